"""Cache of frozen features: the output of the stages below a tower's first trainable one, computed once, on disk.

At cut 0 a store has decoded uint8 pixels (captions are token ids, which are not stored); at the last cut it has one
vector for each image or caption. Training, evaluation and all runs of a comparison share the stores.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polyalign.config.schema import Cache
from polyalign.data.pairs import ImageRef
from polyalign.models.towers.text import TextTower, Tokens
from polyalign.models.towers.vision import VisionTower
from polyalign.utils import array_cache, precision
from polyalign.utils.errors import UserError
from polyalign.utils.process import Spent
from polyalign.utils.progress import progress
from polyalign.utils.text import binary_size

logger = logging.getLogger(__name__)

folder, clear = array_cache.folder, array_cache.clear

_BATCH = 64
_FORMAT = "5"  # version of the stores and their keys
_LIBRARIES = {"vision": ("torch", "timm", "pillow"), "text": ("torch", "transformers")}

Places = npt.NDArray[np.int64]
Filled = tuple[Places, npt.NDArray[Any]]
"""Row indices of a store and the values of these rows."""


@dataclass(frozen=True)
class CachedFeatures:
    """The input of stage ``cut`` of a tower, for every image or caption of a table.

    ``values`` is ``(N, ...)``; for token sequences it is ``(total tokens, ...)`` with row ``i`` at ``offsets[i] :
    offsets[i + 1]``. ``spent`` is the cost of computing the features, also if they were read from disk. With
    ``in_bf16`` they were computed in bf16, and the stages above are evaluated in bf16 too.
    """

    values: npt.NDArray[Any]
    cut: int
    offsets: npt.NDArray[np.int64] | None = None
    ids: npt.NDArray[np.int64] | None = None
    pad: int = 0
    spent: Spent = field(default_factory=Spent)
    in_bf16: bool = False

    @property
    def name(self) -> str:
        """The file of the values, or what tells them from others in memory."""
        return str(getattr(self.values, "filename", None) or id(self.values))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def batch(self, rows: npt.NDArray[np.int64], device: torch.device | str = "cpu") -> Any:
        """Return these rows as a tensor ``(B, ...)``, or as ``Tokens`` padded to the longest row."""
        if self.offsets is None:
            return _tensor(self.values[rows], device)
        lengths = self._lengths(rows)
        mask = np.arange(lengths.max()) < lengths[:, None]
        places = _places(self.offsets, rows)

        def padded(values: npt.NDArray[Any], pad: int) -> torch.Tensor:
            full = np.full((*mask.shape, *values.shape[1:]), pad, values.dtype)
            full[mask] = values[places]
            return _tensor(full, device)

        on_device = torch.from_numpy(mask).to(device)
        if self.ids is None:
            return Tokens(padded(self.values, self.pad), on_device)
        return Tokens(padded(self.ids, self.pad), on_device, padded(self.values, 0))

    def by_length(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the indices ``(N,)`` that sort these rows by length, shortest first."""
        return np.argsort(self._lengths(rows), kind="stable")

    def _lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self.offsets is None:
            return np.ones(len(rows), np.int64)
        return self.offsets[rows + 1] - self.offsets[rows]


def _places(offsets: Places, rows: Places) -> Places:
    """Return the indices of the tokens of these rows in ``values``."""
    return np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])


def _tensor(values: npt.NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """Copy to the device; float16 hidden states become float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(device)
    return tensor.float() if tensor.dtype == torch.float16 else tensor


@torch.no_grad()
def image_features(tower: VisionTower, refs: Sequence[ImageRef], cut: int, config: Cache) -> CachedFeatures:
    """Return the input of stage ``cut`` of the vision tower for these images, from disk or computed and stored.

    Raises:
        UserError: the store would be larger than ``config.max_gib``.
    """
    cut = cut if config.prefix else 0
    device = next(tower.parameters()).device
    in_bf16 = precision.infers_in_bf16(config.precision, device)

    def batches(dtype: str) -> Iterator[Filled]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(refs), _BATCH):
                pixels = list(pool.map(lambda ref: tower.transform(ref.open()), refs[start : start + _BATCH]))
                with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
                    stage = tower.prefix(torch.stack(pixels).to(device), cut)
                yield np.arange(start, start + len(pixels)), _array(stage, dtype)

    how = tower.preprocessing.model_dump_json() + (tower.variant if cut else "")
    key = _key(tower, cut, config, [ref.key() for ref in refs], how, in_bf16=in_bf16)
    values, spent = _stored(key, batches, len(refs), len(refs), config, "images")
    return CachedFeatures(values, cut, spent=spent, in_bf16=in_bf16)


@torch.no_grad()
def caption_features(
    tower: TextTower, texts: Sequence[str], cut: int, config: Cache, lang: str | Sequence[str] | None = None
) -> CachedFeatures:
    """Return the input of stage ``cut`` of the text tower for these captions, from disk or computed and stored.

    ``lang`` is their language, or that of each of them.

    Raises:
        UserError: the store would be larger than ``config.max_gib``.
    """
    cut = cut if config.prefix else 0
    device = next(tower.parameters()).device
    in_bf16 = precision.infers_in_bf16(config.precision, device)
    ids = tower.tokenize(list(texts), lang)
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    flat = np.concatenate([np.asarray(sequence, np.int64) for sequence in ids])
    tokens = CachedFeatures(flat, 0, offsets, pad=tower.pad, in_bf16=in_bf16)
    if cut == 0:
        return tokens
    by_length = tokens.by_length(np.arange(len(ids)))

    def batches(dtype: str) -> Iterator[Filled]:
        for start in range(0, len(ids), _BATCH):
            rows = by_length[start : start + _BATCH]
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
                stage = tower.prefix(tokens.batch(rows, device), cut)
            if isinstance(stage, Tokens):
                yield _places(offsets, rows), _array(tower.values(stage)[stage.mask], dtype)
            else:
                yield rows, _array(stage, dtype)

    contents = [" ".join(map(str, sequence)) for sequence in ids]
    key = _key(tower, cut, config, contents, tower.variant, in_bf16=in_bf16)
    total = len(flat) if cut < tower.whole else len(ids)
    values, spent = _stored(key, batches, total, len(ids), config, "captions")
    if cut == tower.whole:
        return CachedFeatures(values, cut, pad=tower.pad, spent=spent, in_bf16=in_bf16)
    return CachedFeatures(values, cut, offsets, flat, tower.pad, spent, in_bf16)


def vectors(
    model: str, texts: Sequence[str], encode: Callable[[], npt.NDArray[np.float32]], config: Cache
) -> tuple[npt.NDArray[Any], Spent]:
    """Return the vectors ``(N, D)`` of texts by another model, from disk or from ``encode``, and the cost of computing.

    ``model`` identifies the model and its weights.
    """
    digest = hashlib.sha256("\0".join([_FORMAT, "vectors", model, *texts]).encode()).hexdigest()

    def batches(_: str) -> Iterator[Filled]:
        yield np.arange(len(texts)), encode()

    return _stored(f"text-0-{digest[:24]}", batches, len(texts), len(texts), config, "sentences")


class _TooLargeForFloat16(Exception):  # noqa: N818 - it never reaches the user
    pass


def _array(tensor: torch.Tensor, dtype: str) -> npt.NDArray[Any]:
    """Return pixels as they are and hidden states, which must be finite, in ``dtype``."""
    if tensor.dtype == torch.uint8:
        return tensor.cpu().numpy()
    values = tensor.float()
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not math.isfinite(largest):
        raise UserError(
            "the tower gives features that are not finite: use --set cache.precision=fp32, or another tower"
        )
    if dtype == "float16" and largest > float(np.finfo(np.float16).max):
        raise _TooLargeForFloat16
    return values.cpu().numpy().astype(dtype)  # numpy has no bf16


def _key(
    tower: VisionTower | TextTower, cut: int, config: Cache, contents: list[str], how: str, *, in_bf16: bool
) -> str | None:
    """Return the name of a store, which contains a hash of everything that determines its values.

    It is None, and nothing is stored, for the stages of a tower without pretrained weights.
    """
    if cut > 0 and (tower.fingerprint is None or tower.is_random):
        return None
    weights = [tower.fingerprint, str(cut), config.dtype, *(["bf16"] if in_bf16 else [])] if cut else []
    libraries = [f"{library} {'.'.join(version(library).split('.')[:2])}" for library in _LIBRARIES[tower.kind]]
    parts = [_FORMAT, tower.kind, *libraries, how, *map(str, weights), *contents]
    digest = hashlib.sha256("\0".join(parts).encode())
    return f"{tower.kind}-{cut}-{digest.hexdigest()[:24]}"


def _stored(
    key: str | None, batches: Callable[[str], Iterator[Filled]], total: int, items: int, config: Cache, what: str
) -> tuple[npt.NDArray[Any], Spent]:
    """Return a store of ``total`` rows and the cost of computing it, from disk or computed.

    It is computed in ``config.dtype``, or in float32 where values are too large for float16.
    """
    found = None if key is None else array_cache.find(key)
    if found is not None and len(found[0]) == total:
        return found[0], Spent(found[1].seconds, found[1].cpu_seconds)
    try:
        return _store(key, batches(config.dtype), total, items, config, what)
    except _TooLargeForFloat16:
        logger.info(f"features of {what} exceed 65,504, the largest number of float16: they are cached in float32")
        return _store(key, batches("float32"), total, items, config, what)


def _store(
    key: str | None, batches: Iterator[Filled], total: int, items: int, config: Cache, what: str
) -> tuple[npt.NDArray[Any], Spent]:
    """Write the batches into one array of ``total`` rows: atomically on disk, or in memory if ``key`` is None."""
    began = spent = Spent.until_now()
    first = next(batches)
    shape, dtype = (total, *first[1].shape[1:]), first[1].dtype
    size = total * first[1][0].nbytes
    if size > config.max_gib * 2**30:
        raise UserError(
            f"the cache of {items:,} {what} would take {binary_size(size)}, "
            f"more than cache.max_gib = {config.max_gib:g}: raise it, train on fewer pairs, "
            "or keep only pixels with --set cache.prefix=false"
        )
    batches = itertools.chain([first], batches)

    def fill(values: npt.NDArray[Any]) -> dict[str, Any]:
        nonlocal spent
        for number, (rows, batch) in enumerate(batches, start=1):
            values[rows] = batch
            progress(f"preparing {what} ({values.nbytes / 2**20:.0f} MiB)", min(number * _BATCH, items), items)
        spent = Spent.until_now() - began
        return {"what": what, "rows": items, **asdict(spent)}

    if key is not None:
        return array_cache.write(key, shape, dtype, fill), spent
    fill(values := np.empty(shape, dtype))
    return values, spent


def list_entries() -> list[array_cache.Card]:
    """Return the cards of the stores on disk, largest first."""
    return sorted(array_cache.cards(), key=lambda card: (-card.bytes, card.name))
