"""What a dataset tells about itself: facts, what may be downloaded from where, and what to place by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

_COCO = "http://images.cocodataset.org"


class Download(BaseModel):
    """A file that anyone may download, or a folder of files.

    A ``url`` that ends in a slash is of a folder; the files to take are those in ``<source>.sha256`` beside the source,
    with their hashes, in the form of ``sha256sum``. ``to`` is where the file goes, below the dataset's folder (a photo:
    below the folder of photos). With ``unpack`` the file is an archive, of which the files of these names are taken,
    or all (``*``) into the folder ``to``. ``seen`` says who confirms the address.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    to: str = ""
    sha256: str = ""
    unpack: tuple[str, ...] = ()
    seen: str


class Single(BaseModel):
    """Photos of the test set that can be had one by one.

    ``urls`` gives the address of the photos whose ids begin so, where ``{}`` stands for the id; the ids are those of
    the source's test set with ``options``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: dict[str, str]
    options: dict[str, Any] = {}
    to: str
    seen: str


class Info(BaseModel):
    """Facts about a dataset for those who want to use it.

    ``captions`` and ``images`` say what has to lie in ``root`` and in the folder of photos; ``folder`` is its name
    where several datasets lie side by side, as the shipped suites expect it. ``photos`` are archives, ``single`` the
    photos of the test set alone. ``checked`` says where the facts were looked up.
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
        """Say what goes where, in one line."""
        return f"root: {self.captions}" + (f"; images: {self.images}" if self.images else "")


FLICKR30K_PHOTOS = "Flickr30k's flickr30k-images (on request: https://forms.illinois.edu/sec/229675)"

KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
KARPATHY_SEEN = "the data scripts of big_vision (google-research) and of SEACrowd name it"

COCO_ZIPS = tuple(
    Download(
        url=f"{_COCO}/zips/{part}.zip",
        to=f"coco/{part}",
        unpack=("*",),
        seen="CLIP_benchmark's builder.py and big_vision's coco35l.py name it",
    )
    for part in ("train2014", "val2014")
)


def coco_photos(**options: Any) -> Single:
    """Give the addresses of single COCO photos, which their own file of captions calls ``coco_url``."""
    parts = ("train2014", "val2014")
    return Single(
        urls={f"COCO_{part}_": f"{_COCO}/{part}/{{}}" for part in parts},
        options=options,
        to="coco",
        seen="coco_url in COCO's annotations, as quoted in public code",
    )
