"""Configurations and tokenizers that are damaged or absurd are errors of one line, before they take time or memory."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from polyalign.config.tower import TextSpec, VisionSpec
from polyalign.models.towers.text_loading import build_text
from polyalign.models.towers.vision_loading import build_vision
from polyalign.utils.errors import UserError
from tests import tiny
from tests.unit.test_feature_cache import timm_folder

ODD = (50_000, 10**9, 10**6, -1, 0, 1.5, "x", "\0", None, [], {}, True, 1e308, 10**400)
RAW = (b"[]", b"7", b"null", b"\0", b"", b"[" * 100_000, b'{"a":' * 50_000, b" " * 2**25)


def text(out: Path) -> Path:
    return shutil.copytree(tiny.text("bert"), out)


def vision(out: Path) -> Path:
    return Path(timm_folder(out)["model"])


BUILDS = {
    "text": (text, lambda folder: build_text(TextSpec(model=str(folder)))),
    "vision": (vision, lambda folder: build_vision(VisionSpec(model=str(folder)))),
}


def refusal(build, folder: Path) -> str | None:
    """Build a tower, and give the error of one line if it is refused."""
    try:
        build(folder)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", BUILDS)
def test_an_odd_value_in_a_configuration_is_used_or_refused_in_one_line(kind, tmp_path):
    make, build = BUILDS[kind]
    folder = make(tmp_path / kind)
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tables = [(), *((key,) for key, value in facts.items() if isinstance(value, dict))]
    places = [(*table, key) for table in tables for key in (facts[table[0]] if table else facts)]
    for place, value in random.Random(0).choices([(place, value) for place in places for value in ODD], k=100):
        changed = json.loads(json.dumps(facts))
        inner = changed[place[0]] if len(place) == 2 else changed
        inner[place[-1]] = value
        (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        assert "\n" not in (refusal(build, folder) or ""), (place, value)


@pytest.mark.parametrize("content", RAW, ids=range(len(RAW)))
@pytest.mark.parametrize("kind", BUILDS)
def test_a_configuration_that_is_no_table_is_refused(kind, content, tmp_path):
    make, build = BUILDS[kind]
    folder = make(tmp_path / kind)
    (folder / "config.json").write_bytes(content)
    said = refusal(build, folder)
    assert said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("kind", "facts", "said"),
    [
        ("text", {"vocab_size": 10**9}, "vocab_size = 1000000000: no tower is that large"),
        ("text", {"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000: no tower is that large"),
        ("text", {"hidden_size": 50_000}, r"states [\d,]+ parameters, more than its weights"),
        ("text", {"vocab_size": 10**7}, r"states [\d,]+ parameters, more than its weights"),
        ("vision", {"model_args": {"depth": 10**6}}, "depth = 1000000: no tower is that large"),
        ("vision", {"model_args": {"embed_dim": 49_152}}, r"states [\d,]+ parameters, more than its weights"),
    ],
)
def test_a_network_larger_than_its_weights_is_refused_before_it_takes_memory(kind, facts, said, tmp_path):
    make, build = BUILDS[kind]
    folder = make(tmp_path / kind)
    before = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**before, **facts}), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        build(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("family", ["bert", "xlmr"])
def test_a_damaged_tokenizer_is_used_or_refused_in_one_line(family, name, tmp_path):
    chance = random.Random(0)
    folder = shutil.copytree(tiny.text(family), tmp_path / family)
    whole = (folder / name).read_bytes()
    for number in range(20):
        place = chance.randrange(len(whole))
        kinds = (
            whole[:place],
            whole[:place] + bytes([chance.randrange(256)]) + whole[place + 1 :],
            whole[:place] + whole[place + chance.randrange(40) :],
        )
        (folder / name).write_bytes((*kinds, *kinds, *RAW[:6])[number % 12])
        assert "\n" not in (refusal(BUILDS["text"][1], folder) or "")
