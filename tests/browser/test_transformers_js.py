"""The ONNX export in a browser: a static page finds photos by a sentence with transformers.js, without Python.

It needs the packages of npm: ``npm install --ignore-scripts @huggingface/transformers`` in some folder, and that folder
in ``$POLYALIGN_NODE``.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright")
pytest.importorskip("onnxruntime")
from playwright.sync_api import sync_playwright

from polyalign.serving.export.run import export
from tests import tiny
from tests.unit.test_merge import trained, vectors

CHROMIUM = shutil.which("chromium")
NODE = Path(os.environ.get("POLYALIGN_NODE", "")) / "node_modules"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
    pytest.mark.skipif(
        not (NODE / "@huggingface" / "transformers").is_dir(), reason="transformers.js is not in $POLYALIGN_NODE"
    ),
]

PAGE = """<!doctype html><meta charset="utf-8"><title>photos</title>
<input id="query" aria-label="query"><ol id="found"></ol><pre id="error"></pre>
<script type="module">
import {AutoProcessor, AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, RawImage, env}
  from '/node_modules/@huggingface/transformers/dist/transformers.min.js';
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = '/';
env.backends.onnx.wasm.wasmPaths = '/node_modules/onnxruntime-web/dist/';
env.backends.onnx.wasm.numThreads = 1;
const photos = await (await fetch('/photos.json')).json();
const tokenizer = await AutoTokenizer.from_pretrained('model');
const text = await CLIPTextModelWithProjection.from_pretrained('model');
const rows = tensor => Array.from({length: tensor.dims[0]}, (_, i) => Array.from(tensor[i].data));
window.texts = async sentences =>
  rows((await text(tokenizer(sentences, {padding: true, truncation: true}))).text_embeds);
window.images = async places => {
  const processor = await AutoProcessor.from_pretrained('model');
  const vision = await CLIPVisionModelWithProjection.from_pretrained('model');
  const read = await Promise.all(places.map(place => RawImage.read(place)));
  return rows((await vision(await processor(read))).image_embeds);
};
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
query.addEventListener('change', async () => {
  const [vector] = await texts([query.value]);
  const ranked = photos.map(photo => [dot(vector, photo.vector), photo.path]).sort((a, b) => b[0] - a[0]);
  found.replaceChildren(...ranked.slice(0, 5).map(([, path]) => {
    const item = document.createElement('li');
    item.append(Object.assign(new Image(), {src: path, alt: path}));
    return item;
  }));
});
document.title = 'ready';
</script>"""


class Files(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "node_modules").symlink_to(NODE.resolve())
    (tmp_path / "site" / "index.html").write_text(PAGE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(tmp_path / "site")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path / "site", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_static_page_finds_photos_with_the_exported_model(site, tmp_path):
    folder, address = site
    trained(tmp_path / "run", "lilt")
    export(tmp_path / "run", "onnx", folder / "model")
    wanted = vectors(tmp_path / "run")
    captions = list(tiny.table("test").captions)
    (folder / "images").mkdir()
    paths = [f"/images/{number}.png" for number in range(len(wanted[0]))]
    for path, image in zip(paths, tiny.table("test").images, strict=True):
        image.open().save(folder / path[1:])
    photos = [{"path": path, "vector": vector.tolist()} for path, vector in zip(paths, wanted[0], strict=True)]
    (folder / "photos.json").write_text(json.dumps(photos))

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page()
        problems: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_function("document.title === 'ready'", timeout=60_000)
        texts = np.array(page.evaluate("texts => window.texts(texts)", captions), np.float32)
        images = np.array(page.evaluate("paths => window.images(paths)", paths), np.float32)
        page.fill("#query", captions[4])
        page.press("#query", "Enter")
        page.wait_for_selector("#found li")
        shown = [image.get_attribute("alt") for image in page.query_selector_all("#found img")]
        page.wait_for_function(
            "document.images.length === 5 && [...document.images].every(image => image.complete && image.width > 0)"
        )
        browser.close()
    assert not problems
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)
    assert np.abs(texts - wanted[1]).max() < 1e-4
    assert np.abs(images - wanted[0]).max() < 1e-3  # the pictures have the size of the tower: nothing is resized
    assert shown == [paths[place] for place in np.argsort(-(wanted[0] @ wanted[1][4]), kind="stable")[:5]]
