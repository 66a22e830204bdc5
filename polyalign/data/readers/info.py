"""Facts about published datasets: what they are, their licences, what can be downloaded and what to place by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from polyalign.config.shipped import read_toml

_FOLDER = Path(__file__).parents[1]


class Download(BaseModel, frozen=True, extra="forbid"):
    """A freely downloadable file or folder of files.

    A ``url`` ending in a slash is a folder; its files and their hashes are listed in ``<source>.sha256`` beside the
    source, in the format of ``sha256sum``. ``to`` is the target below the dataset's folder (for photos, below the
    photo folder). With ``unpack`` the file is an archive: the files of these names are extracted, or all of them
    (``*``) into the folder ``to``. ``seen`` is the reference for the address.
    """

    url: str
    to: str = ""
    sha256: str = ""
    unpack: tuple[str, ...] = ()
    seen: str


class Single(BaseModel, frozen=True, extra="forbid"):
    """Photos of the test set that can be downloaded one by one.

    ``urls`` maps a prefix of image ids to the address of those photos, where ``{}`` stands for the id; the ids are
    those of the source's test set with ``options``.
    """

    urls: dict[str, str]
    options: dict[str, Any] = {}
    to: str
    seen: str


class Info(BaseModel, frozen=True, extra="forbid"):
    """Facts about a dataset of captions.

    ``captions`` and ``images`` describe the contents of ``root`` and of the photo folder; ``folder`` is the name of
    the dataset folder, as in the shipped suites. ``photos`` are archives, ``single`` addresses of individual photos of
    the test set. ``checked`` is the source of the facts.
    """

    title: str
    folder: str
    languages: str
    size: str
    origin: str
    licence: str
    home: str
    captions: str
    images: str = ""
    note: str = ""
    checked: str
    downloads: tuple[Download, ...] = ()
    photos: tuple[Download, ...] = ()
    single: Single | None = None

    @property
    def place(self) -> str:
        """Describe the files to place, in one line."""
        return f"root: {self.captions}" + (f"; images: {self.images}" if self.images else "")


class LabelledSet(BaseModel, frozen=True, extra="forbid"):
    """Facts about a labelled dataset; ``hub`` is its name on the Hugging Face hub, or empty.

    Folder trees of the same data (one folder per class) are also supported. ``checked`` is the source of the facts.
    """

    title: str
    classes: int
    images: str
    hub: str = ""
    split: str = "test"
    label_column: str = "label"
    place: str = ""
    note: str = ""
    checked: str


PUBLISHED = {name: Info.model_validate(facts) for name, facts in read_toml(_FOLDER / "datasets.toml").items()}
"""The shipped caption datasets, by the name of their source."""
LABELLED = {
    name: LabelledSet.model_validate(facts) for name, facts in read_toml(_FOLDER / "labelled_sets.toml").items()
}
"""Common labelled datasets for zero-shot classification, by name."""
