"""The search page in a real browser: nothing outside the window, nothing blank, readable, and usable by keyboard."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("playwright")
pytest.importorskip("uvicorn")
from PIL import Image
from playwright.sync_api import sync_playwright

from polyalign.config.language import language_codes, load_language
from tests.shelf import served, shelf

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")

CAPTIONS = {
    "sw": "mbwa mweusi anakimbia kwenye nyasi karibu na nyumba",
    "ar": "كلب أسود يجري على العشب قرب البيت",
    "am": "ጥቁር ውሻ በሣር ላይ ይሮጣል",
}
MORE = [code for code in language_codes() if load_language(code).page and code not in CAPTIONS]
PATHS = {"home": "/", "results": "/?q={}&page=2", "similar": "/similar/3", "none": "/nothing"}
CASES = [(code, name) for code in CAPTIONS for name in PATHS if code == "ar" or name in ("home", "results")] + [
    pytest.param(code, name, marks=pytest.mark.repeated) for code in MORE for name in PATHS
]
SIZES = ((320, 640, "light"), (1600, 900, "dark"))

# Texts that do not lie in the window from side to side, or have no size; and texts whose contrast is below 4.5.
OUTSIDE = """() => [...document.body.querySelectorAll('*')].filter(element => {
  const box = element.getBoundingClientRect();
  return box.left < 0 || box.right > innerWidth + 0.5 || box.width <= 0 || box.height <= 0;
}).map(element => element.outerHTML)"""
FAINT = """() => {
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = color.map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const below = element => {
    const back = parse(getComputedStyle(element).backgroundColor);
    return back[3] === 0 && element.parentElement ? below(element.parentElement) : back.slice(0, 3);
  };
  return [...document.body.querySelectorAll('*')].filter(element => {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own && element.tagName !== 'INPUT') return false;
    const two = [light(parse(getComputedStyle(element).color).slice(0, 3)), light(below(element))];
    return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05) < 4.5;
  }).map(element => element.outerHTML);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The address of a page in a language, with a caption of that language, a hostile one, a long one and none."""
    with ExitStack() as stack:
        started: dict[str, str] = {}

        def start(code: str) -> str:
            if code not in started:
                text = CAPTIONS.get(code, load_language(code).name)
                hostile = "<script>document.title='x'</script>\u202e\"'&"
                captions = [hostile, "", "w" * 280, *(f"{text} {i}" for i in range(47))]
                started[code] = stack.enter_context(served(shelf(tmp_path_factory.mktemp(code), captions), code))
            return started[code]

        yield start


def watch(page: Any, home: str) -> list[str]:
    """Collect what goes wrong in a page: errors, and requests to other hosts."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(f"{home}/") else found.append(request.url))
    return found


def colors(picture: Image.Image, locator: Any) -> int:
    """Return the number of colours that an element shows in a picture of the window."""
    box = locator.bounding_box()
    ends = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
    found = picture.crop(tuple(map(int, ends))).getcolors(1 << 24)
    assert found
    return len(found)


@pytest.mark.parametrize(("code", "name"), CASES)
def test_everything_lies_in_the_window_and_can_be_read(browser: Any, address: Any, code: str, name: str) -> None:
    texts, home = load_language(code).page, address(code)
    assert texts
    page = browser.new_page()
    problems = watch(page, home)
    page.goto(home + PATHS[name].format(CAPTIONS.get(code, "x")))
    for width, height, scheme in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(OUTSIDE) == []
        assert page.evaluate(FAINT) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.get_by_label(texts.describe).count() == 1
        seen = [page.locator("h1"), page.get_by_role("button")]
        seen += [page.locator("label")] if name == "home" else []
        seen += [page.locator(".photo img").first] if name == "results" else []
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        assert min(colors(picture, element) for element in seen) > 10
    assert page.locator("html").get_attribute("dir") == load_language(code).direction
    assert problems == (
        ["Failed to load resource: the server responded with a status of 404 (Not Found)"] * (name == "none")
    )
    page.close()


def test_a_search_by_keyboard_without_javascript(browser: Any, address: Any) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(address("sw"))
        page.locator("input:focus").wait_for()
        page.keyboard.type(CAPTIONS["sw"])
        page.keyboard.press("Enter")
        page.wait_for_url("**/?q=*")
        assert page.get_by_role("heading", level=1).inner_text() == CAPTIONS["sw"]
        assert page.get_by_role("listitem").count() == 24
        assert page.get_by_label("Picha ionyeshe nini?").input_value() == CAPTIONS["sw"]
        page.get_by_role("link", name="Ukurasa unaofuata").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**page=2")
        page.get_by_role("link", name="Ukurasa uliotangulia").wait_for()
        page.get_by_role("link", name="Picha zinazofanana").first.click()
        page.wait_for_url("**/similar/*")
        page.get_by_role("listitem").first.get_by_role("link", name="Ukubwa kamili").click()
        page.wait_for_url("**/photo/*")
        assert page.title() != "x"


def test_the_focus_is_seen(browser: Any, address: Any) -> None:
    page = browser.new_page()
    page.goto(address("ar") + "/?q=x")
    seen = []
    for _ in range(5):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("getComputedStyle(document.activeElement).outlineWidth"))
    assert seen == ["3px"] * 5
    page.close()


def test_hostile_text_is_shown_as_it_is(browser: Any, address: Any) -> None:
    page = browser.new_page()
    page.goto(address("sw") + "/?q=%3Cscript%3Edocument.title%3D1%3C/script%3E")
    assert page.get_by_role("heading", level=1).inner_text() == "<script>document.title=1</script>"
    page.goto(address("sw") + "/similar/1")
    assert page.locator("figcaption").inner_text().startswith("<script>document.title='x'</script>")
    assert page.title().startswith("Picha zinazofanana")
    page.close()


def test_captions_have_the_direction_of_their_first_letter(browser: Any, address: Any) -> None:
    page = browser.new_page(viewport={"width": 700, "height": 600})
    page.goto(address("ar") + "/similar/1?page=1")
    assert page.locator(".caption", has_text="كلب").first.evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert page.locator("figcaption").evaluate("e => getComputedStyle(e).direction") == "ltr"
    grid = page.locator(".photos li")
    assert grid.nth(0).bounding_box()["x"] > grid.nth(1).bounding_box()["x"]  # from right to left
    page.close()
