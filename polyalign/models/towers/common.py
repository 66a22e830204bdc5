"""Functions that both towers use: masked pooling, and identification by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polyalign.utils.errors import UserError, first_line
from polyalign.utils.text import clean

_LARGEST_JSON = 2**24
_LARGEST_NUMBER, _MOST_LAYERS = 10**8, 1_000
_NOT_STORED = 2**24  # parameters that a file of weights may lack, such as an unused head


def masked_pool(tokens: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool tokens ``(B, L, W)`` to ``(B, W)``, using only the positions where ``mask`` ``(B, L)`` is true.

    ``pooling`` is ``cls`` (the first token), ``last`` (the last real one), ``max`` or ``mean``.
    """
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (places * mask).argmax(1).view(-1, 1, 1)
        return tokens.gather(1, last.expand(-1, 1, tokens.shape[2])).squeeze(1)
    real = mask.unsqueeze(-1)
    if pooling == "max":
        return tokens.masked_fill(~real, float("-inf")).amax(1)
    return tokens.masked_fill(~real, 0).sum(1) / real.sum(1)


def fingerprint(*modules: nn.Module) -> str:
    """Return the first 16 hex digits of ``weights_hash``."""
    return weights_hash(*modules)[:16]


def weights_hash(*modules: nn.Module) -> str:
    """Hash every parameter and buffer by name, dtype, shape and value (SHA-256)."""
    digest = hashlib.sha256()
    for name, tensor in (entry for module in modules for entry in sorted(module.state_dict().items())):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def structure(module: nn.Module) -> str:
    """Hash the classes and plain attributes of all submodules (SHA-256, first 16 hex digits).

    Networks with the same weights but, for example, another number of heads or another activation differ in it.
    """
    digest = hashlib.sha256()
    for path, part in module.named_modules():
        facts = {key: value for key, value in vars(part).items() if key != "training" and _is_plain(value)}
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        digest.update(f"{path}:{kind}:{sorted(facts.items())}\n".encode())
    return digest.hexdigest()[:16]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def read_json(path: str | Path) -> Any:
    """Read a JSON file that describes a model.

    Raises:
        UserError: it cannot be read, or is too large or too deep to be one.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it is larger than {_LARGEST_JSON / 2**20:.0f} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def entries(facts: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values of a nested table with their keys."""
    if isinstance(facts, dict):
        for name, value in facts.items():
            yield from entries(value, name)
    elif isinstance(facts, list | tuple):
        for value in facts:
            yield from entries(value, key)
    else:
        yield key, facts


def check_numbers(facts: Any, where: str) -> None:
    """Check that a configuration states no number that would take hours or all memory to build.

    Raises:
        UserError: it does.
    """
    for key, value in entries(facts):
        most = _MOST_LAYERS if "layer" in key or "depth" in key else _LARGEST_NUMBER
        if isinstance(value, int) and "max_length" not in key and abs(value) > most:
            raise UserError(f"{where} has {clean(f'{key} = {value}', 80)}: no tower is that large")


def check_size(build: Callable[[], nn.Module], files: Iterable[str | Path], where: str) -> None:
    """Check that a network has no more parameters than its files of weights can hold, before it takes memory.

    Raises:
        UserError: it has.
    """
    with torch.device("meta"):
        stated = sum(parameter.numel() for parameter in build().parameters())
    held = sum(Path(file).stat().st_size for file in files if Path(file).is_file())
    if held and stated > held + _NOT_STORED:
        raise UserError(f"{where} states {stated:,} parameters, more than its weights ({held:,} bytes) can hold")


def to_safetensors(weights: str) -> str:
    """Return the command that converts a file of weights in torch's own format."""
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"w = torch.load('{weights}', map_location='cpu', weights_only=True); "
        "s.save_file({k: v.clone().contiguous() for k, v in w.items()}, 'model.safetensors', {'format': 'pt'})\""
    )
