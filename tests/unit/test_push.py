from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

import polyalign
from polyalign.config.run_files import WEIGHTS
from polyalign.data.trained_images import TRAINED_IMAGES
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
