"""What a vision tower learns from a user's own images: the folders' names where there are folders, else views.

A tree of folders is taught as classification. A flat folder has nothing to be told, so two random views of an image
are to find each other among the views of all others in the batch (NT-Xent, SimCLR, arXiv 2002.05709; no gradient is
gathered across processes, and there is no second projection layer's batch normalisation).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from torchvision.transforms import v2

from polyalign.data.pairs import FileImage
from polyalign.pretrain.loop import Stage
from polyalign.pretrain.pixels import Pixels, stored
from polyalign.pretrain.probe import linear_probe
from polyalign.pretrain.vision_task import Config, Task, Tower
from polyalign.utils.errors import UserError
from polyalign.utils.progress import Progress

_ENDINGS: Final = tuple(Image.registered_extensions())
_CORRUPT_SHARE: Final = 0.05
_HELD_BACK: Final = 10  # one image in so many is kept for measuring
_FEWEST: Final = 20
_MARGIN: Final = 1.15  # images are kept this much larger than the tower sees, so that crops have room
_TEMPERATURE: Final = 0.2


@dataclass(frozen=True)
class Found:
    """The images of a folder that can be decoded, with each one's class, and how many cannot.

    ``labels`` is empty in a flat folder.
    """

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    corrupt: int


def find(folder: Path) -> Found:
    """List a folder's images: by sub-folder if it has any with images, else those in the folder itself.

    Raises:
        UserError: there is no such folder, or it has too few images, one class, images both in it and in
            sub-folders, or more than one corrupt image in twenty.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    every = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in _ENDINGS and p.is_file()]
    flat = [p.parent == folder for p in every]
    if any(flat) and not all(flat):
        raise UserError(
            f"{folder} has {sum(flat)} images beside sub-folders with images: either sort all into folders, one a "
            "class, or put all into one folder to learn without classes"
        )
    if len(every) < _FEWEST:
        raise UserError(f"{folder} has {len(every)} images: at least {_FEWEST} are needed")
    good = [path for path in every if _decodes(path)]
    corrupt = len(every) - len(good)
    if corrupt > _CORRUPT_SHARE * len(every):
        first = next(path for path in every if path not in set(good))
        raise UserError(f"{corrupt} of {len(every)} images in {folder} cannot be decoded, the first is {first}")
    if all(flat):
        return Found(tuple(good), (), np.empty(0, dtype=np.int64), corrupt)
    names = [path.relative_to(folder).parts[0] for path in good]
    classes = tuple(sorted(set(names)))
    if len(classes) == 1:
        raise UserError(f"{folder} has one folder of images, {classes[0]}: give that one to learn without classes")
    return Found(tuple(good), classes, np.array([classes.index(name) for name in names]), corrupt)


def _decodes(path: Path) -> bool:
    try:
        FileImage(path).open()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError):  # what Pillow raises for a broken file
        return False
    return True


def task(config: Config, tower: Tower, out: Path, progress: Progress | None) -> Task:
    """Set up learning from ``config.images``, its images decoded into a file in ``out``."""
    if config.images is None:
        raise ValueError("no folder of images is named")
    found = find(config.images)
    side = round(config.image_px * _MARGIN)
    path = out / f"images-{config.digest()}.npy"
    pixels = stored(path, len(found.paths), lambda i: square(FileImage(found.paths[i]).open(), side), progress)
    order = np.random.default_rng((config.seed, 4)).permutation(len(pixels))
    kept, learned = order[: len(order) // _HELD_BACK], order[len(order) // _HELD_BACK :]
    name, objective = ("classes", _Classes) if found.classes else ("views", _Views)
    model = objective(tower, found, config)
    stage = Stage(
        name,
        config.steps,
        lambda rng: model.loss(pixels, rng.choice(learned, min(config.batch_size, len(learned)), replace=False)),
        config.lr,
        config.weight_decay,
        config.warmup_steps,
    )
    story = (
        f"It learned {model.story} on {len(learned):,} images ({config.steps:,} steps of {config.batch_size}); "
        f"{len(kept):,} more were kept back for the measurement below. {found.corrupt} images could not be decoded "
        "and were left out."
    )
    return Task(model, [stage], lambda: model.measure(pixels, learned, kept), story, [path])


def square(image: Image.Image, side: int) -> Image.Image:
    """Cut the largest square from the middle and resize it."""
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def _views(pixels: Pixels, view: v2.Transform) -> Pixels:
    """Give one random view ``(B, P, P, 3)`` of each image ``(B, S, S, 3)``; chance is torch's global generator's."""
    seen = [view(torch.from_numpy(one.copy()).permute(2, 0, 1)) for one in pixels]
    return torch.stack(seen).permute(0, 2, 3, 1).numpy()


def _cropping(image_px: int, smallest: float) -> list[v2.Transform]:
    return [v2.RandomResizedCrop(image_px, scale=(smallest, 1.0), antialias=True), v2.RandomHorizontalFlip()]


class _Classes(nn.Module):
    """The tower with a linear layer that names the folder."""

    def __init__(self, tower: Tower, found: Found, config: Config) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.width, len(found.classes)).to(tower.device)
        self.labels = torch.from_numpy(found.labels)
        self.view = v2.Compose(_cropping(config.image_px, 0.35))
        self.middle = v2.CenterCrop(config.image_px)
        self.story = f"to name the folder, of {len(found.classes)},"

    def loss(self, pixels: Pixels, batch: npt.NDArray[np.int64]) -> Tensor:
        """Give the cross-entropy of naming random views."""
        logits = self.head(self.tower(_views(pixels[batch], self.view)))
        return F.cross_entropy(logits, self.labels[batch].to(logits.device))

    def measure(self, pixels: Pixels, learned: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]) -> dict[str, str]:
        """Probe the frozen features linearly on the images kept back."""
        train, test = (self.tower.features(_views(pixels[which], self.middle)) for which in (learned, kept))
        (accuracy,) = linear_probe(train, self.labels[learned], [(test, self.labels[kept])])
        most_common = self.labels[learned].bincount().argmax()
        guess = (self.labels[kept] == most_common).float().mean().item()
        return {"folder named by a linear layer": f"{accuracy:.1%}", "always the commonest folder": f"{guess:.1%}"}


class _Views(nn.Module):
    """The tower with a small network on top, in whose space two views of an image are near each other."""

    def __init__(self, tower: Tower, found: Found, config: Config) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Sequential(nn.Linear(tower.width, tower.width), nn.GELU(), nn.Linear(tower.width, 128))
        self.head.to(tower.device)
        jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        self.view = v2.Compose([*_cropping(config.image_px, 0.2), jitter, v2.RandomGrayscale(0.2)])
        self.story = "to tell two random views of an image (crop, flip, colours) from the views of all others"

    def loss(self, pixels: Pixels, batch: npt.NDArray[np.int64]) -> Tensor:
        """Give the NT-Xent of two views of each image."""
        both = torch.cat([self.head(self.tower(_views(pixels[batch], self.view))) for _ in range(2)])
        return nt_xent(both)

    def measure(self, pixels: Pixels, learned: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]) -> dict[str, str]:
        """See how often a view's nearest is the other view of its image, among the images kept back."""
        torch.manual_seed(0)
        one, two = (F.normalize(self.tower.features(_views(pixels[kept], self.view)), dim=1) for _ in range(2))
        found = ((one @ two.T).argmax(1) == torch.arange(len(kept))).float().mean().item()
        return {
            f"a view finds its image's other view among {len(kept):,}": f"{found:.1%}",
            "chance": f"{1 / len(kept):.1%}",
        }


def nt_xent(views: Tensor) -> Tensor:
    """Give the NT-Xent of ``(2B, D)``, where rows ``i`` and ``B + i`` are views of the same image."""
    unit = F.normalize(views, dim=1)
    logits = (unit @ unit.T / _TEMPERATURE).fill_diagonal_(float("-inf"))
    half = len(views) // 2
    return F.cross_entropy(logits, torch.arange(2 * half, device=views.device).roll(half))
