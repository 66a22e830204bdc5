"""Files of a finished run, which are looked for before heavy libraries are imported."""

from __future__ import annotations

from pathlib import Path

from polyalign.utils.errors import UserError

WEIGHTS = "model.safetensors"
RESULT = "result.json"
RECIPE = "recipe.toml"
"""The resolved recipe in the folder of a run."""


def check_finished(folder: Path) -> None:
    """Check that a folder holds a finished run.

    Raises:
        UserError: it does not.
    """
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no finished checkpoint (no {WEIGHTS}): train first, or finish with --resume")
