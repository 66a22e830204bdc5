"""Vocabulary trimming: a text tower keeps the pieces that a corpus uses, and says of that corpus what it always said.

Idea: Abdaoui et al. 2020, "Load what you need". Numbers of pieces change, their order does not, so that special tokens
which come first (XLM-R's ``<s> <pad> </s> <unk>``) keep their numbers, and a SentencePiece file its offset to them.
"""

from __future__ import annotations

import json
import string
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from polyalign.config.tower import TextSpec
from polyalign.models.towers.text import TextTower, load_encoder, load_tokenizer
from polyalign.utils import storage
from polyalign.utils.errors import UserError
from polyalign.utils.progress import progress

CARD = "trimmed.json"

_SPM_FILES = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
_CHUNK = 1000
_COMPARED = 64
_TOLERANCE = 1e-6

Ints = npt.NDArray[np.int64]


class Trimmed(BaseModel):
    """What trimming did; ``(before, after)`` where there are two, and ``bytes`` of the weights.

    ``sentences_alike`` are those of the corpus that are cut into the very same pieces; all are, unless ``keep`` left
    some of their pieces out. ``max_difference`` is the largest of any hidden state of some of them, before and after.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    revision: str | None
    langs: tuple[str, ...]
    sentences: int
    sentences_alike: int
    pieces: tuple[int, int]
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    max_difference: float


def trim_tower(
    spec: TextSpec, sentences: Sequence[str], out: Path, *, langs: Sequence[str] = (), keep: int | None = None
) -> Trimmed:
    """Write the encoder into ``out`` as a Hugging Face folder with the pieces that ``sentences`` use, and no others.

    Kept besides: special tokens, and the single characters of all that is kept and of ASCII, so that a new word of
    known letters can always be spelt. ``keep`` allows only so many of the used pieces, the most frequent. ``langs`` is
    noted.

    Raises:
        UserError: ``out`` is taken, the corpus is empty, the vocabulary is of an unknown kind, or the result would
            treat the corpus differently after all.
    """
    if out.exists():
        raise UserError(f"{out} is there already: give another --out")
    storage.check_writable(out)
    if not sentences:
        raise UserError("there is no sentence to keep pieces for: the corpus is empty")
    tokenizer, model = load_tokenizer(spec), load_encoder(spec).eval()
    cut = _Cut(tokenizer, sentences, keep)
    pooler = getattr(model, "pooler", None)
    compared = [sentences[i] for i in cut.alike[:: max(1, len(cut.alike) // _COMPARED)][:_COMPARED]]
    before, sizes = _hidden(model, tokenizer, spec, compared), [_size(model)]
    _take_rows(model, cut.kept)
    sizes.append(_size(model))
    if pooler is not None:  # a tower has none, but the model may be used for other things
        model.register_module("pooler", pooler)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as holder:
        partial = Path(holder) / out.name
        _save(model, tokenizer, cut, spec.revision, partial)
        difference = _compare(spec, partial, sentences, cut, compared, before)
        partial.rename(out)
    report = Trimmed(
        model=spec.model,
        revision=spec.revision,
        langs=tuple(langs),
        sentences=len(sentences),
        sentences_alike=len(cut.alike),
        pieces=(len(cut.pieces), len(cut.kept)),
        parameters=(sizes[0][0], sizes[1][0]),
        bytes=(sizes[0][1], sizes[1][1]),
        max_difference=difference,
    )
    storage.write_text(out / CARD, report.model_dump_json(indent=2) + "\n")
    return report


def read_sentences(files: Sequence[Path]) -> list[str]:
    """Read text files of one sentence a line; blank lines are left out.

    Raises:
        UserError: a file cannot be read, or is not UTF-8.
    """
    lines: list[str] = []
    for path in files:
        try:
            lines += path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the corpus {path}: {error}") from error
    return [line for line in lines if line.strip()]


class _Cut:
    """Which pieces stay: ``kept`` are their old numbers in order, so that a piece's new number is its place there."""

    def __init__(self, tokenizer: Any, sentences: Sequence[str], keep: int | None) -> None:
        """Cut the corpus with the whole vocabulary and choose; ``alike`` are the sentences with all pieces kept."""
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UserError(f"cannot trim {tokenizer.name_or_path}: it has no tokenizer.json, nor what makes one")
        self.state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        self.pieces = _pieces(self.state)
        counts = np.zeros(max(self.pieces) + 1, np.int64)
        for done, ids in enumerate(_encode(self.state, sentences), start=1):
            np.add.at(counts, ids, 1)
            progress("cutting the corpus", done, len(sentences))
        used = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        chosen = {int(i) for i in used[:keep]} | _special(self.state, tokenizer, self.pieces)
        chosen |= _letters(self.state, self.pieces, chosen)
        self.kept = np.array(sorted(_with_parts(self.state, self.pieces, chosen)), np.int64)
        stays = np.isin(np.arange(len(counts)), self.kept)
        self.alike = [i for i, ids in enumerate(_encode(self.state, sentences)) if stays[ids].all()]

    @property
    def place(self) -> dict[int, int]:
        """The new number of each kept piece by its old one."""
        return {int(old): new for new, old in enumerate(self.kept)}


def _pieces(state: dict[str, Any]) -> dict[int, str]:
    """Return all pieces by id, including added tokens.

    Raises:
        UserError: the vocabulary is of a kind that cannot be trimmed.
    """
    model = state["model"]
    if model["type"] not in ("Unigram", "BPE", "WordPiece"):
        raise UserError(f"cannot trim a vocabulary of type {model['type']}; known are Unigram, BPE and WordPiece")
    vocab = model["vocab"]
    pairs = enumerate(piece for piece, _ in vocab) if isinstance(vocab, list) else ((i, p) for p, i in vocab.items())
    return dict(pairs) | {token["id"]: token["content"] for token in state["added_tokens"]}


def _encode(state: dict[str, Any], sentences: Sequence[str]) -> Iterator[Ints]:
    """Cut each sentence whole, without special tokens around it."""
    backend = Tokenizer.from_str(json.dumps({**state, "truncation": None, "padding": None}))
    for start in range(0, len(sentences), _CHUNK):
        chunk = list(sentences[start : start + _CHUNK])
        for encoding in backend.encode_batch_fast(chunk, add_special_tokens=False):
            yield np.asarray(encoding.ids, np.int64)


def _special(state: dict[str, Any], tokenizer: Any, pieces: dict[int, str]) -> set[int]:
    """List special and added tokens, bytes, and what other pieces are scored against."""
    model = state["model"]
    found = {int(i) for i in tokenizer.all_special_ids} | {token["id"] for token in state["added_tokens"]}
    found |= {i for i, piece in pieces.items() if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")}
    if model["type"] == "Unigram":
        # An unknown character scores less than the worst piece by so much: that piece must stay.
        scores = [score for _, score in model["vocab"]]
        found |= {model["unk_id"], scores.index(min(scores))} - {None}
    return found


def _letters(state: dict[str, Any], pieces: dict[int, str], chosen: set[int]) -> set[int]:
    """List the pieces of one character: those of the chosen pieces and of ASCII, or all bytes in a byte-level model."""
    model = state["model"]
    joint, end = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    characters = set(string.printable).union(*(pieces[i] for i in chosen))
    if any(part["type"] == "ByteLevel" for part in _parts(state["pre_tokenizer"])):
        characters |= set(pre_tokenizers.ByteLevel.alphabet())
    return {i for i, piece in pieces.items() if piece.removeprefix(joint).removesuffix(end) in characters}


def _parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """List the steps of a pre-tokenizer or a post-processor, which may be a sequence of them."""
    if step is None:
        return []
    return cast(list[dict[str, Any]], step.get("pretokenizers") or step.get("processors") or [step])


def _with_parts(state: dict[str, Any], pieces: dict[int, str], chosen: set[int]) -> set[int]:
    """Add what BPE merges the chosen pieces from, in every way it may."""
    if state["model"]["type"] != "BPE":
        return chosen
    number = {piece: i for i, piece in pieces.items()}
    made: dict[str, list[tuple[str, str]]] = {}
    for left, right in _merges(state):
        made.setdefault(left + right, []).append((left, right))
    reached, waiting = set(chosen), [pieces[i] for i in chosen]
    while waiting:
        for part in (part for pair in made.get(waiting.pop(), ()) for part in pair):
            if number[part] not in reached:
                reached.add(number[part])
                waiting.append(part)
    return reached


def _merges(state: dict[str, Any]) -> list[tuple[str, str]]:
    """List the merges; older files write a pair as one string."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in state["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _smaller(cut: _Cut) -> dict[str, Any]:
    """Return the state of the tokenizer with only the kept pieces, renumbered."""
    place, model = cut.place, dict(cut.state["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][i] for i in cut.kept if i < len(model["vocab"])]
        model["unk_id"] = place.get(model["unk_id"])
    else:
        model["vocab"] = {piece: place[i] for piece, i in model["vocab"].items() if i in place}
    if model["type"] == "BPE":
        known = model["vocab"].keys()
        model["merges"] = [pair for pair in _merges(cut.state) if known >= {*pair, pair[0] + pair[1]}]
    state = {**cut.state, "model": model}
    state["added_tokens"] = [{**token, "id": place[token["id"]]} for token in state["added_tokens"]]
    if state["padding"] is not None:
        state["padding"] = {**state["padding"], "pad_id": place[state["padding"]["pad_id"]]}
    for step in _parts(state["post_processor"]):
        for token in step.get("special_tokens", {}).values():
            token["ids"] = [place[i] for i in token["ids"]]
        for side in {"sep", "cls"} & step.keys():
            step[side] = [step[side][0], place[step[side][1]]]
    return state


def _take_rows(model: PreTrainedModel, kept: Ints) -> None:
    """Keep these rows of the embedding table, and tell the configuration."""
    table = cast(nn.Embedding, model.get_input_embeddings())
    rows = kept[kept < table.num_embeddings]
    place = {int(old): new for new, old in enumerate(rows)}
    table.weight = nn.Parameter(table.weight.detach()[torch.from_numpy(rows)].clone())
    table.num_embeddings = len(rows)
    table.padding_idx = None if table.padding_idx is None else place[table.padding_idx]
    config = model.config
    config.vocab_size = len(rows)
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and value in place:
            setattr(config, key, place[value])


def _save(model: PreTrainedModel, tokenizer: Any, cut: _Cut, revision: str | None, out: Path) -> None:
    """Write model and tokenizer, and a SentencePiece file where the model has one."""
    logging.disable_progress_bar()
    try:
        cast(nn.Module, model).to(_stored(model))
        model.save_pretrained(out)
    finally:
        logging.enable_progress_bar()
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    storage.write_text(out / "tokenizer.json", json.dumps(_smaller(cut), ensure_ascii=False))
    kept = {cut.pieces[int(i)] for i in cut.kept}
    for name in _SPM_FILES:
        path = cached_file(
            tokenizer.name_or_path,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
            proto.ParseFromString(Path(path).read_bytes())
            stay = [piece for piece in proto.pieces if piece.type != piece.NORMAL or piece.piece in kept]
            del proto.pieces[:]
            proto.pieces.extend(stay)
            proto.trainer_spec.vocab_size = len(stay)
            (out / name).write_bytes(proto.SerializeToString())


def _stored(model: nn.Module) -> torch.dtype:
    """Choose the smallest type that holds every weight exactly."""
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(p, p.to(dtype).to(p.dtype)) for p in model.parameters()):
            return dtype
    return torch.float32


def _size(model: nn.Module) -> tuple[int, int]:
    """Count parameters, and the bytes they take in a file."""
    count = sum(p.numel() for p in model.parameters())
    return count, count * _stored(model).itemsize


@torch.no_grad()
def _hidden(model: PreTrainedModel, tokenizer: Any, spec: TextSpec, sentences: Sequence[str]) -> list[torch.Tensor]:
    """Return the last hidden states of each sentence."""
    tower = TextTower(model, tokenizer, spec)
    batches = (tower.collate([ids]) for ids in tower.tokenize(list(sentences)))
    return [model(input_ids=x.values, attention_mask=x.mask.long()).last_hidden_state for x in batches]


def _compare(
    spec: TextSpec, out: Path, sentences: Sequence[str], cut: _Cut, compared: Sequence[str], before: list[torch.Tensor]
) -> float:
    """Load what was written and hold it against the whole: the same pieces, and the same hidden states.

    Raises:
        UserError: it differs by more than rounding.
    """
    small = spec.model_copy(update={"model": str(out.resolve()), "revision": None})
    tokenizer = load_tokenizer(small)
    after = list(_encode(json.loads(tokenizer.backend_tokenizer.to_str()), [sentences[i] for i in cut.alike]))
    whole = _encode(cut.state, [sentences[i] for i in cut.alike])
    differ = [i for i, old, new in zip(cut.alike, whole, after, strict=True) if not np.array_equal(old, cut.kept[new])]
    if differ:
        raise UserError(
            f"{len(differ)} of {len(sentences)} sentences would be cut into other pieces, "
            f'"{sentences[differ[0]]}" among them: leave them out of the corpus'
        )
    states = _hidden(load_encoder(small).eval(), tokenizer, small, compared)
    difference = max((float((old - new).abs().max()) for old, new in zip(before, states, strict=True)), default=0.0)
    if difference > _TOLERANCE:
        raise UserError(f"the trimmed tower differs by {difference:g} on the corpus: {spec.model} cannot be trimmed so")
    return difference
