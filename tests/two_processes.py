"""Run by torchrun, twice at once: the gradient of a step for every recipe in a folder, then the command line.

``python -m torch.distributed.run --nproc_per_node=2 tests/two_processes.py FOLDER train --lang en ...``
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from polyalign import cli
from polyalign.config import resolve as recipe
from polyalign.config.schema import Recipe
from polyalign.data.load import load_table
from polyalign.models import embed
from polyalign.models.build import build_aligner
from polyalign.training.loop import Loop, average_gradients
from polyalign.utils import row_store, storage
from polyalign.utils.process import processes


def loop_of(resolved: Recipe) -> Loop:
    """Make a training loop, before its first step."""
    aligner = build_aligner(resolved)
    train, dev = (embed.prepare(aligner, load_table(resolved, split), resolved.cache) for split in ("train", "dev"))
    return Loop(resolved, aligner, train, [dev], Accelerator())


def gradients(resolved: Recipe) -> dict[str, torch.Tensor]:
    """Give the gradient of the first step's global batch, as every process then has it, and the loss."""
    loop = loop_of(resolved)
    loop.aligner.train()
    loss = loop.backward(loop.batch(0), seed=0)
    average_gradients(loop.aligner, loop.accelerator)
    found = {name: p.grad for name, p in loop.aligner.trainable().items() if p.grad is not None}
    return {**found, "loss": loss}


def resumed(resolved: Recipe, path: Path) -> dict[str, list[int]]:
    """Interrupt the second process alone during step 3, then resume both; dev looks hopeless to the second."""
    process = processes()
    steps: tuple[list[int], list[int]] = ([], [])
    for number, noted in enumerate(steps):
        loop = loop_of(resolved)
        step = loop._step

        def take(index: int, noted: list[int] = noted, step: Any = step, first: bool = number == 0) -> torch.Tensor:
            noted.append(index)
            if first and index == 2 and not process.is_main_process:
                signal.raise_signal(signal.SIGINT)
            made: torch.Tensor = step(index)
            return made

        loop._step = take  # type: ignore[method-assign]
        if not process.is_main_process:
            loop._dev_recalls = lambda: 0.0  # type: ignore[method-assign]
        try:
            state = loop.run(path, resume=number == 1)
        except KeyboardInterrupt:
            assert number == 0
        process.wait_for_everyone()
    return {"before": steps[0], "after": steps[1], "evaluated": [one.step for one in state.dev_evaluations]}


def main(folder: Path, arguments: list[str]) -> None:
    """Write each process's gradients, then train."""
    every = processes()
    assert every.num_processes == 2
    for path in sorted(folder.glob("*.toml")):
        # Both fill the same, empty features at once.
        os.environ["POLYALIGN_CACHE"] = str(folder / f"cache-{path.stem}")
        every.wait_for_everyone()
        found = gradients(recipe.resolve(str(path), "en"))
        storage.save_tensors(folder / f"{path.stem}-{every.process_index}.safetensors", found)
    patient = recipe.resolve(str(folder / "lilt.toml"), "en", overrides={"train": {"patience": 2}})
    found_steps = resumed(patient, folder / "stopped" / "state.safetensors")
    (folder / f"resumed-{every.process_index}.json").write_text(json.dumps(found_steps), encoding="utf-8")
    os.environ["POLYALIGN_CACHE"] = str(folder / "cache-run")
    _note_fillings(folder / f"filled-{every.process_index}")
    sys.argv = ["polyalign", *arguments]
    cli.main()


def _note_fillings(path: Path) -> None:
    """Write a line for every space that this process fills."""
    whole = row_store._fill

    def noted(space, *given):  # type: ignore[no-untyped-def]
        with path.open("a", encoding="utf-8") as file:
            print(space.name, file=file)
        return whole(space, *given)

    path.touch()
    row_store._fill = noted


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
