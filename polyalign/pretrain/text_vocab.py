"""A SentencePiece vocabulary of our own, and the same as a Hugging Face tokenizer.

The numbering is XLM-R's: ``<s> <pad> </s> <unk>``, the pieces, ``<mask>``. The tokenizer is saved as ``tokenizer.json``
because transformers' XLM-R class reads unigram models only, and BPE gives shorter sentences here.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from polyalign.utils.errors import UserError

SPM_FILE = "sentencepiece.bpe.model"

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_UNK = 3


def train(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Train a BPE model of ``vocab_size`` pieces that covers every character; gives the ``.model`` file's bytes.

    Raises:
        UserError: the text has more characters, or fewer different words, than so many pieces need.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="nfkc",
            bos_id=1, eos_id=2, unk_id=0, pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        # SentencePiece says where in its source it stopped, then, after a bracket, why.
        why = str(error).rpartition("] ")[2].strip()
        raise UserError(f"no vocabulary of {vocab_size} pieces from this text, change vocab_size: {why}") from error
    return model.getvalue()


def tokenizer(model: bytes, max_tokens: int) -> PreTrainedTokenizerFast:
    """Build the Hugging Face tokenizer that cuts text into the pieces SentencePiece would."""
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    pieces = [piece.piece for piece in proto.pieces[3:]]
    vocab = {piece: i for i, piece in enumerate([*_SPECIAL, *pieces, "<mask>"])}
    fast = Tokenizer(models.BPE(vocab=vocab, merges=_merges(pieces), unk_token=_SPECIAL[_UNK], fuse_unk=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), normalizers.Replace(" {2,}", " ")]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    fast.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=max_tokens,
    )  # fmt: skip


def save(model: bytes, fast: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files, SentencePiece's own among them."""
    (folder / SPM_FILE).write_bytes(model)
    fast.save_pretrained(folder)


def _merges(pieces: list[str]) -> list[tuple[str, str]]:
    """Recover the merges from the pieces: SentencePiece lists a piece when it merges it, and merges earlier ones first.

    A piece may be the sum of several pairs; whichever pair turns up in a word, the result is that piece, with its rank.
    """
    rank = {piece: i for i, piece in enumerate(pieces)}
    splits = ((piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece)))
    known = [(left, right) for left, right in splits if left in rank and right in rank]
    ordered = sorted(known, key=lambda pair: rank[pair[0] + pair[1]])
    return list(itertools.chain(ordered))
