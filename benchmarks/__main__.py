"""``python -m benchmarks``: measure, and write ``results.json`` and ``README.md``; parts not measured now are kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import evaluation, inference, page, recall, searching, startup, training
from benchmarks.material import SIZES
from benchmarks.steps import CASES

PARTS = ("startup", "inference", "evaluation", "search", "recall", "training")


def main() -> None:
    """Read the options, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is given")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the towers (default: small)")
    parser.add_argument("--batch", type=int, default=16, help="pairs a step (default: 16)")
    parser.add_argument("--steps", type=int, default=2, help="of what runs everything; others take more (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default: 3)")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only this; may repeat")
    parser.add_argument("--images", type=int, default=2000, help="of the time to a recall (default: 2000)")
    parser.add_argument("--recall-steps", type=int, default=120, help="of the time to a recall (default: 120)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (default: benchmarks)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))} (known: {', '.join(PARTS)})")
    path = options.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for part in options.parts or PARTS:
        if part == "training":
            found = training.run(options.size, options.batch, options.steps, options.repeats, options.case)
            results.setdefault("training", {})[f"{found['size']}-{found['device']}"] = found
        elif part == "recall":
            results[part] = recall.run(options.images, options.recall_steps)
        elif part == "inference":
            results[part] = inference.run(options.size)
        elif part == "search":
            results[part] = searching.run()
        else:
            results[part] = evaluation.run() if part == "evaluation" else startup.run()
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (options.out / "README.md").write_text(page.page(results), encoding="utf-8")
    print(options.out / "README.md")


if __name__ == "__main__":
    main()
