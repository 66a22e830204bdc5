from __future__ import annotations

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

import polyalign
from polyalign.config import resolve
from polyalign.config.run_files import RECIPE, WEIGHTS
from polyalign.data.trained_images import TRAINED_IMAGES
from polyalign.evaluation.results import Run
from polyalign.models import checkpoint
from polyalign.serving.places import ELSEWHERE, without_places
from polyalign.serving.push import prepare
from tests import tiny
from tests.unit.test_card import train


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload of small files needs; ``server.stored`` has the files of each commit."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        server.tokens.add(self.headers.get("Authorization"))
        if server.refuse:
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            return self.answer(200, {"url": f"{constants.ENDPOINT}/ana/quarters", "id": "1", "name": "ana/quarters"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.answer(200, {"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        if "/commit/main" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    server.stored[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(
                200,
                {"commitUrl": f"{constants.ENDPOINT}/ana/quarters/commit/0", "commitOid": "0" * 40, "success": True},
            )
        return self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.path)
        self.answer(404, {"error": self.path})

    def answer(self, status: int, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, to which somebody is logged in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.stored, server.tokens, server.asked, server.refuse = [], {}, set(), [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_uploads_a_model_that_opens_and_says_what_stays(run, finished, hub, tmp_path):
    code, out, err = run("push", finished, "--repo", "ana/quarters", "--license", "mit", "--private")
    assert code == 0, err
    assert hub.created[0]["name"] == "quarters"
    assert "private" in hub.created[0].values()  # as the visibility
    assert hub.tokens == {"Bearer hf_test"}
    assert "not published: the 64 captions and" in err
    assert "24 test photos" in err
    assert "names and thumbnails of the training photos" in err
    assert f"published: {constants.ENDPOINT}/ana/quarters" in out
    for name, content in hub.stored.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
        assert f"{name}\n" in out
    table = tiny.table("test")
    whole, own = polyalign.load(tmp_path / "copy"), polyalign.load(finished)
    np.testing.assert_allclose(whole.encode_text(table.captions), own.encode_text(table.captions), rtol=0, atol=1e-6)
    assert ModelCard.load(tmp_path / "copy" / "README.md").data.license == "mit"


def test_a_dry_run_writes_the_folder_without_photos_and_places(run, finished, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, out, _ = run(
        "push", finished, "--repo", "ana/quarters", "--license", "mit", "--dry-run", "--out", tmp_path / "hub", "--json"
    )
    assert code == 0
    told = json.loads(out)
    there = sorted(
        path.relative_to(tmp_path / "hub").as_posix() for path in (tmp_path / "hub").rglob("*") if path.is_file()
    )
    assert (told["url"], told["files"]) == (None, there)
    assert {"README.md", "model.safetensors", "vision/model.safetensors", "difference/model.safetensors"} <= {*there}
    assert not [name for name in there if name.endswith((".png", ".jpg", ".bin", ".pt", ".pkl", TRAINED_IMAGES))]
    for name in there:
        if not name.endswith(".safetensors"):
            text = (tmp_path / "hub" / name).read_text()
            assert "/tmp" not in text, name
    difference = tmp_path / "hub" / "difference" / WEIGHTS
    assert difference.read_bytes() == (finished / WEIGHTS).read_bytes()
    polyalign.load(tmp_path / "hub").encode_text(["red"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repo", "quarters"], "--repo quarters: give USER/NAME"),
        (["--repo", "../x/y"], "--repo ../x/y: give USER/NAME"),
        (["--repo", "ana/x", "--out", "there"], "--out is for --dry-run"),
        (["--repo", "ana/x"], "nobody is logged in to the hub: run hf auth login"),
        (["--repo", "ana/x", "--dry-run"], "the licence of the vision tower"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_made(arguments, message, run, finished, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, _, err = run("push", finished, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_a_refusal_of_the_hub_is_one_line(run, finished, hub):
    hub.refuse = True
    code, _, err = run("push", finished, "--repo", "ana/quarters", "--license", "mit")
    assert code == 2
    assert f"error: {constants.ENDPOINT} refuses ana/quarters: " in err.splitlines()[-1]


def test_without_network_it_says_so(run, finished):
    code, _, err = run("push", finished, "--repo", "ana/quarters", "--license", "mit")
    assert (code, "the hub is switched off" in err) == (2, True)


@pytest.mark.parametrize(
    ("source", "gallery"),
    [
        ({"name": "folder", "root": "acme-photos", "captions": "acme.csv"}, "folder-test"),
        ({"name": "folder", "root": "/srv/acme/photos", "images": "acme"}, "folder-test"),
        ({"name": "hub", "dataset": "acme-saved"}, "hub-test"),
        ({"name": "hub", "dataset": "acme/saved", "caption_column": "acme/column"}, "hub-test"),
    ],
)
def test_no_name_of_a_folder_is_published(source, gallery, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished, tmp_path / "acme-run")
    shutil.copytree(tiny.data(), tmp_path / "acme-photos")
    (tmp_path / "acme-photos" / "captions.csv").rename(tmp_path / "acme-photos" / "acme.csv")
    for name in ("acme-saved", "acme/saved"):
        (tmp_path / name).mkdir(parents=True)
    before = resolve.read_recipe(run / RECIPE).table()
    recipe = {
        **before,
        "source": source,
        "data": {**before["data"], "keep_out": [{"name": "folder", "root": "acme-photos"}, source]},
        "parallel": {"text": "acme.tsv"},
        "parent": {"run": "runs/acme", "weights": "0" * 64},
    }
    checkpoint.replace_recipe(run, resolve.validate(recipe, "here"))
    result = (run / "result.json").read_text(encoding="utf-8").replace("quarters-test", "acme-photos-test")
    (run / "result.json").write_text(json.dumps({**json.loads(result), "recipe": recipe}), encoding="utf-8")
    told = prepare(run, tmp_path / "hub", "ana/corners", licence="mit")
    for name in told.files:
        assert b"acme" not in (tmp_path / "hub" / name).read_bytes(), name
    public = Run.load_json(tmp_path / "hub" / "result.json")
    assert {one.gallery for one in (*public.test, public.untrained)} == {gallery}
    assert (public.recipe["parent"]["run"], public.recipe["source"]["name"]) == (ELSEWHERE, source["name"])
    polyalign.load(tmp_path / "hub").encode_text(["red"])
    places = (tmp_path / "hub" / "difference" / RECIPE).read_text(encoding="utf-8")
    for tower in (tiny.vision(), tiny.text()):
        places = places.replace(f'model = "{ELSEWHERE}"', f'model = "{tower}"', 1)
    (tmp_path / "hub" / "difference" / RECIPE).write_text(places, encoding="utf-8")
    polyalign.load(tmp_path / "hub" / "difference").encode_text(["red"])


@pytest.mark.parametrize(
    ("section", "value", "stays"),
    [
        ("vision", {"model": "vit_small_patch14_dinov2.lvd142m"}, True),
        ("vision", {"model": "hf-hub:ana/vit"}, True),
        ("vision", {"model": "starter"}, True),
        ("vision", {"model": "local-dir:/home/ana/vit"}, False),
        ("vision", {"model": "towers/vit"}, False),
        ("text", {"model": "ana/encoder", "prompt": "query/passage: ", "revision": "refs/pr/1"}, True),
        ("text", {"model": "ana/towers/encoder"}, False),
        ("text", {"model": "~/encoder"}, False),
        ("source", {"name": "hub", "dataset": "ana/photos", "revision": "refs/convert/parquet"}, True),
        ("source", {"name": "hub", "dataset": "../photos"}, False),
        ("source", {"name": "folder", "origin": "human", "caption_column": "caption"}, True),
        ("parallel", {"text": "hub:ana/sentences:qu-es"}, True),
        ("parallel", {"text": "captions"}, True),
        ("parallel", {"text": "C:\\sentences.tsv"}, False),
        ("teacher", {"run": "english", "weights": "0", "strategy": {"towers": "text"}}, False),
    ],
)
def test_names_on_the_hub_stay_and_places_do_not(section, value, stays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("text", "human", "captions", "starter", "folder"):
        (tmp_path / name).mkdir()
    assert (without_places({section: value})[section] == value) is stays
