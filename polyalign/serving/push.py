"""Publish a run on the Hugging Face hub: the merged model, what training changed, and a card."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from polyalign.config.resolve import validate
from polyalign.config.run_files import RECIPE
from polyalign.config.shipped import read_toml
from polyalign.data.trained_images import TRAINED_IMAGES
from polyalign.evaluation.record import to_json
from polyalign.evaluation.results import Run
from polyalign.models import checkpoint
from polyalign.serving.card import card
from polyalign.serving.export.check import RECORD
from polyalign.serving.export.run import MERGED, Options, export
from polyalign.serving.places import published, without_places
from polyalign.training.averaging import RECORD as AVERAGE
from polyalign.training.train import RESULT
from polyalign.utils import storage
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.text import clean

logger = logging.getLogger(__name__)

CARD, DIFFERENCE = "README.md", "difference"

_KINDS = (".safetensors", ".json", ".toml", ".md", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Publication:
    """A folder to publish: its ``files`` and what of the run is ``left_out``; ``url`` is where it was published."""

    files: tuple[str, ...]
    left_out: tuple[str, ...]
    url: str | None = None


def prepare(
    run: Path, folder: Path, repo: str, *, licence: str | None = None, base_models: Sequence[str] = ()
) -> Publication:
    """Write what is published of a run into the new folder ``folder``, without the places of files on this machine.

    See ``polyalign.serving.places`` for what a place is.

    Raises:
        UserError: the name is not USER/NAME, the folder exists, or as for ``card`` and ``export``.
    """
    check_name(repo)
    about = card(run, licence=licence, repo=repo, base_models=base_models)  # before anything slow
    with storage.new_folder(folder) as partial:
        merged = partial / "merged"
        made = export(run, MERGED, merged, Options())
        for path in merged.iterdir():
            path.rename(partial / path.name)
        merged.rmdir()
        for name in (TRAINED_IMAGES, AVERAGE):
            (partial / name).unlink(missing_ok=True)
        compared = re.sub(r"(test images) of .* and their", r"\1 and their", made.compared_on)
        made.model_copy(update={"run": repo.rpartition("/")[2], "compared_on": compared}).save_json(partial / RECORD)
        (partial / DIFFERENCE).mkdir()
        for name in checkpoint.FILES:
            copy = shutil.copytree if (run / name).is_dir() else shutil.copyfile
            copy(run / name, partial / DIFFERENCE / name)
        for place in (partial, partial / DIFFERENCE):
            recipe = validate(without_places(read_toml(place / RECIPE)), f"the recipe of {run}, without places")
            checkpoint.replace_recipe(place, recipe)
        result = json.loads((partial / RESULT).read_text(encoding="utf-8"))
        storage.write_text(partial / RESULT, to_json(published(result)) + "\n")
        storage.write_text(partial / CARD, str(about))
        files = tuple(sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()))
        if other := [name for name in files if not name.endswith(_KINDS)]:
            raise UserError(f"{clean(other[0])} is not published: only weights in safetensors and text files are")
    return Publication(files, _left_out(run))


def push(repo: str, folder: Path, publication: Publication, *, private: bool = False) -> Publication:
    """Upload a prepared folder into a repository, which is created if there is none.

    Raises:
        UserError: nobody is logged in to the hub, or the hub refuses.
    """
    check_login()
    api = HfApi()
    try:
        place = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=place.repo_id, folder_path=folder, commit_message="Add a model, by polyalign")
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise UserError(f"{constants.ENDPOINT} refuses {repo}: {clean(first_line(error), 300)}") from error
    return Publication(publication.files, publication.left_out, str(place))


def check_name(repo: str) -> None:
    """Check that a name is USER/NAME.

    Raises:
        UserError: it is not.
    """
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("it has no user")
    except HFValidationError as error:
        raise UserError(f"--repo {clean(repo, 100)}: give USER/NAME ({clean(first_line(error), 200)})") from error


def check_login() -> None:
    """Check that there is a token of the hub and a connection to it is allowed.

    Raises:
        UserError: there is not.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError("the hub is switched off (HF_HUB_OFFLINE): unset it, or use --dry-run")
    if get_token() is None:
        raise UserError("nobody is logged in to the hub: run hf auth login, or use --dry-run")


def _left_out(run: Path) -> tuple[str, ...]:
    """Say what of the data is not published."""
    record = Run.load_json(run / RESULT)
    source = clean(record.recipe["source"]["name"], 80)
    amounts = f"the {record.pairs:,} captions and {record.images:,} photos that it was trained on (source: {source})"
    tests = [f"the {one.images:,} test photos of {clean(one.gallery, 80)} in {one.lang}" for one in record.test]
    places = "names of folders and files on this machine; what is named is the recipe, the source, columns and the hub"
    names = f"{TRAINED_IMAGES}: names and thumbnails of the training photos, which reveal whether a test photo was seen"
    return (amounts, *tests, places, *([names] if (run / TRAINED_IMAGES).is_file() else []))
