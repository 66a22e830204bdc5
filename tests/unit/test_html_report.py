"""The report as one HTML file."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path

import pytest

from polyalign.experiments import figures, html_report, report
from polyalign.utils.errors import UserError
from tests.pages import checked
from tests.unit.test_hostile_results import hostile
from tests.unit.test_report import saved, seeded_runs, some_runs


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = saved(tmp_path_factory.mktemp("html"), [*seeded_runs(), *some_runs()[3:]])
    assert report.write(folder, as_html=True)[-1] == folder / html_report.NAME
    return folder


def read(folder: Path) -> str:
    return (folder / html_report.NAME).read_text(encoding="utf-8")


def test_the_same_runs_give_the_same_file_to_the_byte(made, tmp_path):
    other = tmp_path / "elsewhere"
    runs = [*seeded_runs(), *some_runs()[3:]]
    report.write(saved(other, runs[::-1]), as_html=True)
    assert (other / html_report.NAME).read_bytes() == (made / html_report.NAME).read_bytes()


def test_it_loads_nothing_and_links_to_itself_alone(made):
    page = checked(read(made))
    assert {one.removeprefix("#") for one in page.all("href")} == {"sw", "xx"} == set(page.all("id"))


def plain(cell: str) -> str:
    return html.unescape(re.sub(r"[*\\]", "", cell)).strip()


def test_it_has_each_row_of_the_markdown_pages_with_its_marks(made):
    rows = re.findall(r"<tr>(.*?)</tr>", read(made), re.DOTALL)
    shown = [[html.unescape(re.sub("<[^>]*>", "", cell)).strip() for cell in row.split("</td>")[:-1]] for row in rows]
    markdown = "".join((made / name).read_text(encoding="utf-8") for name in ("README.md", "sw.md", "xx.md"))
    wanted = [line for line in markdown.splitlines() if line.startswith("| ") and "---" not in line]
    found = {tuple(row) for row in shown}
    for line in wanted:
        cells = tuple(plain(re.sub(r"\[(.*)\]\(.*\.md\)", r"\1", cell)) for cell in line.strip("| ").split(" | "))
        body = tuple(cell for cell in cells if cell)
        is_header = cells[0] in ("language", "strategy")
        assert is_header or any(tuple(cell for cell in row if cell) == body for row in found), line
    assert "<strong>lilt</strong>" in read(made)
    assert {"lilt =", "projection"} <= {row[0] for row in shown if row}, "level with the best, and worse"


def test_every_figure_is_inside(made):
    assert read(made).count("data:image/png;base64,") == len(list((made / "figures").glob("*.png"))) == 6


def test_hostile_names_are_shown_and_not_used(tmp_path):
    report.write(saved(tmp_path, [hostile(), *some_runs()]), as_html=True)
    assert "<script>" in checked(read(tmp_path)).text


@pytest.fixture
def undrawn(monkeypatch):
    """Take the figures that are there, which take seconds to draw."""
    monkeypatch.setattr(figures, "draw", lambda found, folder: sorted(folder.glob("*.png")))


@pytest.mark.usefixtures("undrawn")
def test_a_file_of_others_is_kept(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "copy")
    report.write(folder, as_html=True)  # its own is replaced
    (folder / html_report.NAME).write_text("<p>mine</p>")
    before = (folder / "README.md").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"report\.html was not written by polyalign: move it away"):
        report.write(folder, as_html=True)
    assert read(folder) == "<p>mine</p>"
    assert (folder / "README.md").stat().st_mtime_ns == before, "nothing else was written either"
    report.write(folder)


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_it_when_asked(made, tmp_path, run):
    folder = shutil.copytree(made, tmp_path / "copy")
    (folder / html_report.NAME).unlink()
    assert run("report", "--out", folder)[0] == 0
    assert not (folder / html_report.NAME).exists()
    code, out, _ = run("report", "--out", folder, "--html")
    assert (code, out.splitlines()[-1]) == (0, str(folder / html_report.NAME))
