"""Facts about a published dataset: what it is, its licence, what can be downloaded and what to place by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

_COCO = "http://images.cocodataset.org"


class Download(BaseModel):
    """A freely downloadable file or folder of files.

    A ``url`` ending in a slash is a folder; its files and their hashes are listed in ``<source>.sha256`` beside the
    source, in the format of ``sha256sum``. ``to`` is the target below the dataset's folder (for photos, below the
    photo folder). With ``unpack`` the file is an archive: the files of these names are extracted, or all of them
    (``*``) into the folder ``to``. ``seen`` says who confirms the address.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    to: str = ""
    sha256: str = ""
    unpack: tuple[str, ...] = ()
    seen: str


class Single(BaseModel):
    """Photos of the test set that can be downloaded one by one.

    ``urls`` maps a prefix of image ids to the address of those photos, where ``{}`` stands for the id; the ids are
    those of the source's test set with ``options``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: dict[str, str]
    options: dict[str, Any] = {}
    to: str
    seen: str


class Info(BaseModel):
    """Facts about a dataset.

    ``captions`` and ``images`` describe the contents of ``root`` and of the photo folder; ``folder`` is the name of
    the dataset folder, as in the shipped suites. ``photos`` are archives, ``single`` addresses of individual photos of
    the test set. ``checked`` is the source of the facts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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


FLICKR30K_PHOTOS = "Flickr30k's flickr30k-images (on request: https://forms.illinois.edu/sec/229675)"
COCO_PHOTOS = "COCO train2014 and val2014"

_PARTS = ("train2014", "val2014")
_COCO_SEEN = "CLIP_benchmark's builder.py and big_vision's coco35l.py name it"
COCO_ZIPS = tuple(
    Download(url=f"{_COCO}/zips/{part}.zip", to=f"coco/{part}", unpack=("*",), seen=_COCO_SEEN) for part in _PARTS
)


def github(path: str, seen: str = "the address is GitHub's for any file of a commit") -> tuple[Download, ...]:
    """Return a folder of a GitHub repository at a commit, ``owner/repository/commit/folder``."""
    url = f"https://raw.githubusercontent.com/{path}/"
    return (Download(url=url, seen=f"{seen}; hashes are of the repository's files"),)


def karpathy(file: str) -> tuple[Download, ...]:
    """Return one file of Karpathy's archive of splits."""
    url = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
    seen = "the data scripts of big_vision (google-research) and of SEACrowd name it"
    return (Download(url=url, unpack=(file,), seen=seen),)


def coco_photos(**options: Any) -> Single:
    """Return the addresses of single COCO photos, ``coco_url`` in COCO's annotations."""
    urls = {f"COCO_{part}_": f"{_COCO}/{part}/{{}}" for part in _PARTS}
    return Single(urls=urls, options=options, to="coco", seen="coco_url in COCO's annotations")
