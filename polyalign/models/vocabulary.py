"""Vocabulary trimming: keep the pieces of a text tower that a corpus uses; the features of that corpus do not change.

Idea: Abdaoui et al. 2020, "Load what you need". The ids of the pieces change but their order does not, so that special
tokens at the start (XLM-R's ``<s> <pad> </s> <unk>``) keep their ids, and a SentencePiece file its offset to them.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
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
from transformers.utils.hub import cached_file

from polyalign.config.tower import TextSpec
from polyalign.models.towers.saving import save_encoder
from polyalign.models.towers.text_loading import load_encoder, load_tokenizer
from polyalign.utils import storage
from polyalign.utils.errors import UserError, first_line
from polyalign.utils.files import check_is_file
from polyalign.utils.progress import progress
from polyalign.utils.text import clean

CARD = "trimmed.json"

_SPM_FILES = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
_CHUNK = 1000
_COMPARED = 64
_TOLERANCE = 1e-6

Ints = npt.NDArray[np.int64]


class Trimmed(BaseModel):
    """Record of a trimming; pairs are ``(before, after)``, ``bytes`` those of the weights, both without the pooler.

    ``sentences_alike`` counts the sentences of the corpus with the same pieces as before: all of them, unless ``keep``
    removed some of their pieces. ``unknown_rate`` is the share of unknown tokens among those of the corpus.
    ``max_difference`` is the largest between hidden states, over some of them.
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
    unknown_rate: tuple[float, float]
    max_difference: float


def trim_tower(
    spec: TextSpec, sentences: Sequence[str], out: Path, *, langs: Sequence[str] = (), keep: int | None = None
) -> Trimmed:
    """Write the encoder into ``out`` as a Hugging Face folder with only the pieces that ``sentences`` use.

    It also keeps special tokens, and the single characters of ASCII and of all kept pieces, so that new words of known
    letters can be spelt. ``keep`` limits the used pieces to this number, the most frequent. ``langs`` is only recorded.

    Raises:
        UserError: ``out`` exists, the corpus is empty, the vocabulary is of an unknown kind, or the trimmed tower
            treats the corpus differently.
    """
    if not sentences:
        raise UserError("there is no sentence to keep pieces for: the corpus is empty")
    with storage.new_folder(out) as partial:
        tokenizer, model = load_tokenizer(spec), load_encoder(spec).eval()
        choice = _Choice(tokenizer, sentences, keep)
        compared = [sentences[i] for i in choice.alike[:: max(1, len(choice.alike) // _COMPARED)][:_COMPARED]]
        before, (parameters, size) = _hidden(model, tokenizer, spec, compared), _size(model)
        _take_rows(model, choice.kept)
        trimmed_parameters, trimmed_size = _size(model)
        _save(model, choice, spec.revision, partial)
        difference = _compare(spec, partial, sentences, choice, before)
    report = Trimmed(
        model=spec.model,
        revision=spec.revision,
        langs=tuple(langs),
        sentences=len(sentences),
        sentences_alike=len(choice.alike),
        pieces=(len(choice.pieces), len(choice.kept)),
        parameters=(parameters, trimmed_parameters),
        bytes=(size, trimmed_size),
        unknown_rate=(_unknown_rate(tokenizer, sentences), _unknown_rate(load_tokenizer(_at(spec, out)), sentences)),
        max_difference=difference,
    )
    storage.write_text(out / CARD, report.model_dump_json(indent=2) + "\n")
    return report


def read_sentences(files: Sequence[Path]) -> list[str]:
    """Read text files with one sentence per line; blank lines are skipped.

    Raises:
        UserError: a file cannot be read, or is not UTF-8.
    """
    lines: list[str] = []
    for path in files:
        try:
            check_is_file(path, "the corpus ")
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the corpus {clean(path)}: {first_line(error)}") from error
        if "\0" in text:
            raise UserError(f"the corpus {path} has null characters: it is not text")
        lines += text.splitlines()
    return [line for line in lines if line.strip()]


class _Choice:
    """The pieces to keep: ``kept`` are their old ids in order, ``place`` maps an old id to the new one.

    ``alike`` are the indices of the sentences of which all pieces are kept.
    """

    def __init__(self, tokenizer: Any, sentences: Sequence[str], keep: int | None) -> None:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UserError(f"cannot trim {tokenizer.name_or_path}: it has no fast tokenizer (tokenizer.json)")
        self.tokenizer = tokenizer
        self.state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        if (kind := self.state["model"]["type"]) not in ("Unigram", "BPE", "WordPiece"):
            raise UserError(f"cannot trim a vocabulary of type {kind}; known are Unigram, BPE and WordPiece")
        self.pieces = {i: piece for piece, i in tokenizer.backend_tokenizer.get_vocab().items()}
        counts = np.zeros(max(self.pieces) + 1, np.int64)
        for done, ids in enumerate(_encode(tokenizer, sentences), start=1):
            np.add.at(counts, ids, 1)
            progress("tokenising the corpus", done, len(sentences))
        used = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        chosen = {int(i) for i in used[:keep]} | _special(self.state, tokenizer, self.pieces)
        chosen |= _letters(self.state, self.pieces, chosen)
        self.kept = np.array(sorted(_with_parts(self.state, self.pieces, chosen)), np.int64)
        self.place = {int(old): new for new, old in enumerate(self.kept)}
        stays = np.isin(np.arange(len(counts)), self.kept)
        self.alike = [i for i, ids in enumerate(_encode(tokenizer, sentences)) if stays[ids].all()]


def _at(spec: TextSpec, folder: Path) -> TextSpec:
    return spec.model_copy(update={"model": str(folder.resolve()), "revision": None})


def _unknown_rate(tokenizer: Any, sentences: Sequence[str]) -> float:
    ids = np.concatenate(list(_encode(tokenizer, sentences)))
    return float((ids == tokenizer.unk_token_id).mean()) if len(ids) else 0.0


def _encode(tokenizer: Any, sentences: Sequence[str]) -> Iterator[Ints]:
    """Tokenise each sentence without truncation and special tokens."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    for start in range(0, len(sentences), _CHUNK):
        for encoding in backend.encode_batch_fast(list(sentences[start : start + _CHUNK]), add_special_tokens=False):
            yield np.asarray(encoding.ids, np.int64)


def _special(state: dict[str, Any], tokenizer: Any, pieces: dict[int, str]) -> set[int]:
    """Return the ids of special and added tokens, of byte pieces, and of what sets the score of unknown characters."""
    model = state["model"]
    found = {int(i) for i in tokenizer.all_special_ids} | {token["id"] for token in state["added_tokens"]}
    found |= {i for i, piece in pieces.items() if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")}
    if model["type"] == "Unigram":
        # The score of an unknown character is relative to the lowest score of a piece: that piece must stay.
        scores = [score for _, score in model["vocab"]]
        found |= {model["unk_id"], scores.index(min(scores))} - {None}
    return found


def _letters(state: dict[str, Any], pieces: dict[int, str], chosen: set[int]) -> set[int]:
    """Return the ids of the characters of ASCII and of the chosen pieces; in a byte-level model those of all bytes."""
    model = state["model"]
    joint, end = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    characters = set(string.printable).union(*(pieces[i] for i in chosen))
    if any(part["type"] == "ByteLevel" for part in _parts(state["pre_tokenizer"])):
        characters |= set(pre_tokenizers.ByteLevel.alphabet())
    return {i for i, piece in pieces.items() if piece.removeprefix(joint).removesuffix(end) in characters}


def _parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a pre-tokenizer or a post-processor, which may be a sequence of steps or None."""
    steps = step and (step.get("pretokenizers") or step.get("processors") or [step])
    return cast(list[dict[str, Any]], steps or [])


def _with_parts(state: dict[str, Any], pieces: dict[int, str], chosen: set[int]) -> set[int]:
    """Add the pieces that BPE merges the chosen ones from, by every possible path."""
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
    """Return the merges; older files write a pair as one string."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in state["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _smaller(choice: _Choice) -> dict[str, Any]:
    """Return the state of the tokenizer with only the kept pieces and their new ids."""
    place, model = choice.place, dict(choice.state["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][i] for i in choice.kept if i < len(model["vocab"])]
        model["unk_id"] = place.get(model["unk_id"])
    else:
        model["vocab"] = {piece: place[i] for piece, i in model["vocab"].items() if i in place}
    if model["type"] == "BPE":
        known = model["vocab"].keys()
        model["merges"] = [pair for pair in _merges(choice.state) if known >= {*pair, pair[0] + pair[1]}]
    state = {**choice.state, "model": model}
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
    """Keep only these rows of the embedding table, and update the configuration."""
    table = cast(nn.Embedding, model.get_input_embeddings())
    rows = kept[kept < table.num_embeddings]
    place = {int(old): new for new, old in enumerate(rows)}
    weight = nn.Parameter(table.weight.detach()[torch.from_numpy(rows)].clone())
    shared = [one for one in cast(nn.Module, model).modules() if getattr(one, "weight", None) is table.weight]
    for one in cast(list[nn.Embedding], shared):  # T5 has its table in two places
        one.weight, one.num_embeddings = weight, len(rows)
        one.padding_idx = None if one.padding_idx is None else place[one.padding_idx]
    config = model.config
    config.vocab_size = len(rows)
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and value in place:
            setattr(config, key, place[value])


def _save(model: PreTrainedModel, choice: _Choice, revision: str | None, out: Path) -> None:
    """Write the model, the tokenizer, and the SentencePiece file if the model has one."""
    save_encoder(out, model, _smallest_dtype(model))
    choice.tokenizer.save_pretrained(out)
    storage.write_text(out / "tokenizer.json", json.dumps(_smaller(choice), ensure_ascii=False))
    kept = {choice.pieces[int(i)] for i in choice.kept}
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    for name in _SPM_FILES:
        path = cached_file(choice.tokenizer.name_or_path, name, revision=revision, **missing)
        if path is not None:
            proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
            proto.ParseFromString(Path(path).read_bytes())
            stay = [piece for piece in proto.pieces if piece.type != piece.NORMAL or piece.piece in kept]
            del proto.pieces[:]
            proto.pieces.extend(stay)
            proto.trainer_spec.vocab_size = len(stay)
            (out / name).write_bytes(proto.SerializeToString())


def _smallest_dtype(model: nn.Module) -> torch.dtype:
    """Return the smallest floating-point type that holds every weight exactly."""
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(p, p.to(dtype).to(p.dtype)) for p in model.parameters()):
            return dtype
    return torch.float32


def _size(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters and of their bytes in a file, without the pooler, which a tower does not have."""
    count = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("pooler."))
    return count, count * _smallest_dtype(model).itemsize


@torch.no_grad()
def _hidden(
    model: PreTrainedModel, tokenizer: Any, spec: TextSpec, sentences: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return the last hidden states ``(1, L, W)`` of each sentence."""
    states = {}
    for sentence in sentences:
        ids = tokenizer(sentence, truncation=True, max_length=spec.max_tokens, return_tensors="pt")["input_ids"]
        states[sentence] = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return states


def _compare(
    spec: TextSpec, out: Path, sentences: Sequence[str], choice: _Choice, before: Mapping[str, torch.Tensor]
) -> float:
    """Compare the trimmed tower with the whole one: pieces of all sentences, hidden states of some up to rounding."""
    small = _at(spec, out)
    tokenizer = load_tokenizer(small)
    alike = [sentences[i] for i in choice.alike]
    pairs = zip(alike, _encode(choice.tokenizer, alike), _encode(tokenizer, alike), strict=True)
    differ = [sentence for sentence, old, new in pairs if not np.array_equal(old, choice.kept[new])]
    if differ:
        raise UserError(
            f"{len(differ)} of {len(sentences)} sentences would be split into other pieces, "
            f'for example "{differ[0]}": leave them out of the corpus'
        )
    after = _hidden(load_encoder(small).eval(), tokenizer, small, list(before))
    difference = max((float((before[key] - after[key]).abs().max()) for key in before), default=0.0)
    if difference > _TOLERANCE:
        raise UserError(f"the trimmed tower differs by {difference:g} on the corpus: {spec.model} cannot be trimmed")
    return difference
