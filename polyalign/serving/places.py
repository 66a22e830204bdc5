"""Settings and results of a run without the places of files on this machine, to publish them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from polyalign.config.plugins import load_plugin, shipped_plugins
from polyalign.data.parallel import CAPTIONS, HUB, STARTER

ELSEWHERE = "./not-published"
"""Stands for each place."""

_MERGED = ("./vision", "./text")  # where a merged model has its own towers
_TEXTS = ("name", "description", "prompt", "revision")
_ALWAYS = ("root", "images", "captions", "run")


def without_places(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe in which ``ELSEWHERE`` stands for each place of a file.

    A place is what has a separator or a tilde, what a key for places has, and what exists here of the options of a
    source. Texts (names, the prompt) and what ``is_local`` takes for a name on the hub stay.
    """
    return {key: _hidden(value, (key,)) for key, value in recipe.items()}


def published(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a run with ``without_places`` of its recipe, and without names of folders in its galleries.

    A gallery is named after the folder of its data, unless the data is a published dataset or has no place.
    """
    source, recipe = result["recipe"]["source"], without_places(result["recipe"])
    if recipe["source"] == source or info_of(source["name"]) is not None:
        return {**result, "recipe": recipe}
    return {**_renamed(result, source["name"]), "recipe": recipe}


def info_of(source: str) -> Any:
    """Return the facts of a published dataset, None for other sources; no code of the user's plugins is run."""
    return getattr(load_plugin("sources", source), "INFO", None) if source in shipped_plugins("sources") else None


def is_local(key: str, value: str) -> bool:
    """Whether a value of ``vision.model``, ``text.model``, ``parallel.text`` or a ``dataset`` is a place."""
    if value == STARTER:
        return False
    if key == "parallel.text":
        return value != CAPTIONS and not (value.startswith(HUB) and _on_hub(value.split(":")[1]))
    if key == "vision.model" and ":" in value:
        on_hub = value.startswith(("hf-hub:", "hf_hub:", "hf:", "open_clip:"))
        return not (on_hub and _on_hub(value.split(":", 1)[1].partition("@")[0]))
    return not _on_hub(value) or (key == "vision.model" and "/" in value)


def _on_hub(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def _hidden(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(one, (*path, key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(one, path) for one in value]
    return ELSEWHERE if isinstance(value, str) and _is_place(value, path) else value


def _is_place(value: str, path: tuple[str, ...]) -> bool:
    key = path[-1]
    if value in _MERGED or key in _TEXTS:
        return False
    if key in _ALWAYS or path == ("vision", "weights"):
        return True
    if ".".join(path) in ("vision.model", "text.model", "parallel.text") or key == "dataset":
        return is_local(".".join(path), value)
    in_source = path[0] == "source" or path[:2] == ("data", "keep_out")
    return bool(re.search(r"[/\\]|^~", value)) or (in_source and key != "origin" and Path(value).exists())


def _renamed(value: Any, source: str) -> Any:
    """Name galleries after their source and split alone."""
    if isinstance(value, dict):
        new = {key: _renamed(one, source) for key, one in value.items()}
        if isinstance(gallery := new.get("gallery"), str):
            new["gallery"] = f"{source}-{gallery.rpartition('-')[2]}"
        return new
    return [_renamed(one, source) for one in value] if isinstance(value, list | tuple) else value
