"""Cache of frozen features: the output of the stages below a tower's first trainable one, computed once, on disk.

At cut 0 a space has decoded uint8 pixels (captions are token ids, which are not stored); at the last cut it has one
vector for each image or caption. Tables, runs and evaluations share the rows of an image or caption. Its content is the
key of the image (of a file: path, size and time of modification) or the token ids of the caption.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polyalign.config.schema import Cache
from polyalign.data.pairs import ImageRef
from polyalign.models.towers.text import TextTower, Tokens
from polyalign.models.towers.vision import VisionTower
from polyalign.utils import precision, row_store
from polyalign.utils.errors import UserError
from polyalign.utils.gathered import Gathered, Ints, ranges
from polyalign.utils.process import Spent
from polyalign.utils.progress import progress
from polyalign.utils.row_blocks import Space
from polyalign.utils.row_store import Batch, Costs, Table
from polyalign.utils.text import binary_size, clean

logger = logging.getLogger(__name__)

_BATCH = 64
_AHEAD = 2  # batches of images that are decoded while the tower computes
_SORTED = 16 * _BATCH  # captions that are computed in order of length
_ROWS = 4096
_FORMAT = "6"  # version of the rows and of the names of spaces
_LIBRARIES = {"vision": ("torch", "timm", "pillow"), "text": ("torch", "transformers")}


@dataclass(frozen=True)
class CachedFeatures:
    """The input of stage ``cut`` of a tower, for every image or caption of a table.

    ``values`` is ``(N, ...)``; for token sequences it is ``(total tokens, ...)`` with row ``i`` at ``offsets[i] :
    offsets[i + 1]``. ``costs`` is what computing the features took, also if they were read from disk. With ``in_bf16``
    they were computed in bf16, and the stages above are evaluated in bf16 too.
    """

    values: npt.NDArray[Any] | Gathered
    cut: int
    offsets: npt.NDArray[np.int64] | None = None
    ids: npt.NDArray[np.int64] | None = None
    pad: int = 0
    costs: Costs | None = None
    in_bf16: bool = False

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def batch(self, rows: npt.NDArray[np.int64], device: torch.device | str = "cpu") -> Any:
        """Return these rows as a tensor ``(B, ...)``, or as ``Tokens`` padded to the longest row."""
        if self.offsets is None:
            return _tensor(self.values[rows], device)
        lengths = self._lengths(rows)
        mask = np.arange(lengths.max()) < lengths[:, None]
        places = ranges(self.offsets[rows], lengths)

        def padded(values: npt.NDArray[Any] | Gathered, pad: int) -> torch.Tensor:
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

    def parts(self) -> Iterator[npt.NDArray[Any]]:
        """Yield all values, some thousand at a time."""
        for start in range(0, len(self.values), _ROWS):
            yield self.values[start : start + _ROWS]

    def _lengths(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self.offsets is None:
            return np.ones(len(rows), np.int64)
        return self.offsets[rows + 1] - self.offsets[rows]


def together(stores: Sequence[CachedFeatures]) -> Spent:
    """Return what computing features took; an image or caption in several of them counts once."""
    return Costs.together([store.costs for store in stores if store.costs is not None])


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

    def compute(dtype: str, rows: Ints) -> Iterator[Batch]:
        done = 0
        for batch, pixels in _ahead(lambda row: tower.transform(refs[row].open()), rows):
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
                stage = tower.prefix(pixels.to(device), cut)
            yield Batch(batch, _array(stage, dtype))
            done += len(batch)
            progress("preparing images", done, len(rows))

    how = tower.preprocessing.model_dump_json() + (tower.variant if cut else "")
    spaces = _spaces(tower, "images", cut, config, how, in_bf16=in_bf16)
    found = _fetch(spaces, [ref.key() for ref in refs], compute, config)
    return CachedFeatures(found.values, cut, costs=found.costs, in_bf16=in_bf16)


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
    lengths = np.diff(offsets) if cut < tower.whole else np.ones(len(ids), np.int64)

    def compute_sorted(dtype: str, rows: Ints, done: Callable[[int], object]) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] | None = None
        sizes, order = lengths[rows], tokens.by_length(rows)
        starts = np.cumsum(sizes) - sizes
        for begin in range(0, len(rows), _BATCH):
            part = order[begin : begin + _BATCH]
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
                stage = tower.prefix(tokens.batch(rows[part], device), cut)
            made = _array(tower.values(stage)[stage.mask] if isinstance(stage, Tokens) else stage, dtype)
            if values is None:
                values = np.empty((sizes.sum(), *made.shape[1:]), made.dtype)
            values[ranges(starts[part], sizes[part])] = made
            done(begin + len(part))
        assert values is not None
        return values

    def compute(dtype: str, rows: Ints) -> Iterator[Batch]:
        for start in range(0, len(rows), _SORTED):
            chunk = rows[start : start + _SORTED]
            done = partial(_report, "captions", start, len(rows))
            yield Batch(chunk, compute_sorted(dtype, chunk, done))

    spaces = _spaces(tower, "captions", cut, config, tower.variant, in_bf16=in_bf16)
    contents = [" ".join(map(str, sequence)) for sequence in ids]
    found = _fetch(spaces, contents, compute, config, lengths)
    if cut == tower.whole:
        return CachedFeatures(found.values, cut, pad=tower.pad, costs=found.costs, in_bf16=in_bf16)
    return CachedFeatures(found.values, cut, offsets, flat, tower.pad, found.costs, in_bf16)


def vectors(
    model: str, texts: Sequence[str], encode: Callable[[list[str]], npt.NDArray[np.float32]], config: Cache
) -> CachedFeatures:
    """Return the vectors ``(N, D)`` of texts by another model, from disk or from ``encode``.

    ``model`` identifies the model and its weights.
    """

    def compute(_: str, rows: Ints) -> Iterator[Batch]:
        for start in range(0, len(rows), _SORTED):
            part = rows[start : start + _SORTED]
            yield Batch(part, encode([texts[row] for row in part]))

    digest = hashlib.sha256(f"{_FORMAT}\0{model}".encode()).hexdigest()
    found = _fetch([Space(name=f"vectors-{digest[:24]}", what="sentences")], texts, compute, config)
    return CachedFeatures(found.values, 0, costs=found.costs)


def _ahead(function: Callable[[int], torch.Tensor], rows: Ints) -> Iterator[tuple[Ints, torch.Tensor]]:
    """Yield batches of rows and what a function gives for them, computed in threads some batches ahead."""
    begun: deque[tuple[Ints, list[Future[torch.Tensor]]]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                begun.append((batch, [pool.submit(function, row) for row in batch.tolist()]))
                if len(begun) > _AHEAD:
                    yield _awaited(*begun.popleft())
            while begun:
                yield _awaited(*begun.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _awaited(rows: Ints, made: list[Future[torch.Tensor]]) -> tuple[Ints, torch.Tensor]:
    return rows, torch.stack([one.result() for one in made])


def _report(what: str, before: int, total: int, done: int) -> None:
    progress(f"preparing {what}", before + done, total)


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


def _spaces(
    tower: VisionTower | TextTower, what: str, cut: int, config: Cache, how: str, *, in_bf16: bool
) -> list[Space]:
    """Return the space of the rows, and that of rows too large for float16.

    There is none, and nothing is stored, for the stages of a tower without pretrained weights.
    """
    if cut > 0 and (tower.fingerprint is None or tower.is_random):
        return []
    libraries = [f"{library} {'.'.join(version(library).split('.')[:2])}" for library in _LIBRARIES[tower.kind]]
    found = []
    for dtype in (config.dtype, *(["float32, not float16"] if cut and config.dtype == "float16" else [])):
        weights = [tower.fingerprint, str(cut), dtype, *(["bf16"] if in_bf16 else [])] if cut else []
        digest = hashlib.sha256("\0".join([_FORMAT, tower.kind, *libraries, how, *map(str, weights)]).encode())
        name = f"{tower.kind}-{cut}-{digest.hexdigest()[:24]}"
        found.append(Space(name=name, what=what, tower=clean(tower.place, 500), cut=cut))
    return found


def _fetch(
    spaces: Sequence[Space],
    contents: Sequence[str],
    compute: Callable[[str, Ints], Iterator[Batch]],
    config: Cache,
    lengths: Ints | None = None,
) -> Table:
    """Return the rows of contents, from disk or computed.

    They are computed in ``config.dtype``, or in float32 if the space of rows too large for float16 has any.
    """
    what = spaces[0].what if spaces else "features"

    def check(size: int) -> None:
        if size > config.max_gib * 2**30:
            raise UserError(
                f"the cache of {len(contents):,} {what} would take {binary_size(size)}, "
                f"more than cache.max_gib = {config.max_gib:g}: raise it, train on fewer pairs, "
                "or keep only pixels with --set cache.prefix=false"
            )

    first, wide = (spaces[0], spaces[-1]) if spaces else (None, None)
    fetch = partial(row_store.fetch, contents=contents, lengths=lengths, check=check)
    if wide is None or wide is first or not row_store.exists(wide):
        try:
            return fetch(first, compute=partial(compute, config.dtype))
        except _TooLargeForFloat16:
            logger.info(f"features of {what} exceed 65,504, the largest number of float16: they are cached in float32")
    return fetch(wide, compute=partial(compute, "float32"))
