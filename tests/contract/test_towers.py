"""Every strategy on towers of many architectures: each works, or is refused with the message that is expected.

``docs/towers.json`` has the expected outcome of every combination and ``docs/towers.md`` shows it. ``python -m
tests.contract.test_towers`` measures and writes both again; with names, only these architectures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import architectures
from tests.architectures import LAYERS, STRATEGIES, TEXT, VISION

DOCS = Path(__file__).parent.parent.parent / "docs"
KINDS = {"text": TEXT, "vision": VISION}
QUICK = {
    "text": ("xlm-roberta", "distilbert", "t5", "m2m_100", "qwen3"),
    "vision": ("vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "resnet10t"),
}
QUICK_CELLS = (("lilt", "all"), ("lora", "last:1"), ("lilt-deep", "last:1"))

Outcomes = dict[str, dict[str, dict[str, str]]]


def expected() -> Outcomes:
    return json.loads((DOCS / "towers.json").read_text(encoding="utf-8"))


@pytest.mark.towers
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_every_strategy_works_or_is_refused_as_the_table_says(kind, name):
    for strategy in STRATEGIES:
        for layers in LAYERS:
            found = architectures.outcome(kind, name, strategy, layers)
            assert "\n" not in found
            assert found == expected()[kind][name][f"{strategy} {layers}"], (strategy, layers)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in QUICK.items() for name in names])
@pytest.mark.parametrize(("strategy", "layers"), QUICK_CELLS)
def test_a_few_architectures_keep_to_the_table(kind, name, strategy, layers):
    assert architectures.outcome(kind, name, strategy, layers) == expected()[kind][name][f"{strategy} {layers}"]


def test_the_table_has_every_architecture_and_twenty_of_each_kind():
    cells = {f"{strategy} {layers}" for strategy in STRATEGIES for layers in LAYERS}
    for kind, names in KINDS.items():
        assert set(expected()[kind]) == set(names)
        assert len(names) >= 20
        assert all(set(row) == cells for row in expected()[kind].values())


def test_the_page_shows_the_table():
    assert (DOCS / "towers.md").read_text(encoding="utf-8") == page(expected())


def page(outcomes: Outcomes) -> str:
    """Render the outcomes as Markdown."""
    parts = [_INTRODUCTION]
    for kind, rows in outcomes.items():
        parts.append(f"## {kind.capitalize()} towers\n")
        parts.append("| architecture | " + " | ".join(f"`{name}`" for name in STRATEGIES) + " |")
        parts.append("| --- |" + " :-: |" * len(STRATEGIES))
        notes: dict[str, int] = {}
        for name, row in rows.items():
            cells = [_cell([row[f"{strategy} {layers}"] for layers in LAYERS], notes) for strategy in STRATEGIES]
            parts.append(f"| `{name}` | " + " | ".join(cells) + " |")
        parts.append("")
        parts += [f"{number}. {note}" for note, number in notes.items()]
        parts.append("")
    return "\n".join(parts)


_INTRODUCTION = """# Which towers work with which strategy

Written by `python -m tests.contract.test_towers`, which builds each architecture small, with random weights, and tries
every strategy on it: on all layers, and on the last one (`--layers last:1`). A combination works when the strategy
starts at the pretrained features where it promises to, trains everything it should and nothing else, gives the same
features with the frozen part computed once, does not depend on padding, and is restored from a checkpoint.

- ✓ works, also on the last layer alone. What lies below the lowest trained layer is computed once.
- ◐ works on all layers; on the last one it works too, but the tower is computed whole at every step.
- ○ works on all layers only.
- A number: refused before anything is computed; the notes below the table quote the message.
"""


def _cell(found: list[str], notes: dict[str, int]) -> str:
    whole, last = found
    if whole.startswith("refused"):
        return str(notes.setdefault(whole.removeprefix("refused: "), len(notes) + 1))
    if last.startswith("refused"):
        return "○"
    return "✓" if last == "works" else "◐"


def write(only: list[str]) -> None:
    """Measure every combination of all architectures, or of those named, and write the table and the page."""
    known = expected() if only else {}
    outcomes: Outcomes = {kind: {name: known.get(kind, {}).get(name, {}) for name in KINDS[kind]} for kind in KINDS}
    for kind, rows in outcomes.items():
        for name in only or rows:
            if name not in rows:
                continue
            sys.stderr.write(f"{kind} {name}\n")
            row = rows[name]
            for strategy in STRATEGIES:
                for layers in LAYERS:
                    row[f"{strategy} {layers}"] = architectures.outcome(kind, name, strategy, layers)
    DOCS.mkdir(exist_ok=True)
    (DOCS / "towers.json").write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
    (DOCS / "towers.md").write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1:])
