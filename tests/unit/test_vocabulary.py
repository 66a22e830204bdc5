from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    M2M100Config,
    M2M100Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from polyalign import cli
from polyalign.config.tower import STARTER, TextSpec
from polyalign.models import vocabulary as trim
from polyalign.models.towers.text_loading import build_text
from polyalign.utils.errors import UserError
from tests import architectures, tiny

CORPUS = ["red then blue", "a red and a blue", "blue below red , then a", "red"]
SWAHILI = ["Mbwa mweusi anakimbia kwenye nyasi", "Paka mweupe karibu na mti", "nyota mbili nyekundu"]


def byte_level(out):
    """A RoBERTa-like tower whose pieces are bytes and what they merge to."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    fast.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator([*CORPUS, *SWAHILI, "green green grass on the other side"], trainer)
    fast.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>", **names).save_pretrained(out)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=fast.get_vocab_size(), max_position_embeddings=50, type_vocab_size=1, pad_token_id=1, **tiny.SIZES
    )
    XLMRobertaModel(config).save_pretrained(out)
    return out


TOWERS = {
    "wordpiece": lambda _: tiny.text("bert"),
    "unigram": lambda _: tiny.text("xlmr"),
    "distilbert": lambda _: tiny.text("distilbert"),
    "bpe": lambda _: STARTER / "text",
    "byte-level": lambda folder: byte_level(folder / "source"),
}


FAMILIES = {
    "t5": lambda size: T5EncoderModel(T5Config(**architectures._SEQ, vocab_size=size, pad_token_id=1)),
    "m2m_100": lambda size: M2M100Model(
        M2M100Config(**architectures.TEXT["m2m_100"], vocab_size=size, max_position_embeddings=40, pad_token_id=1)
    ),
}


def of_family(name: str, folder: Path) -> Path:
    """A tower that is a part of a larger model or has its table in several places, with XLM-R's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.text("xlmr"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    FAMILIES[name](len(tokenizer)).save_pretrained(folder)
    return folder


UNKNOWN = ["red 漢 blue", "ሰred"]
SENTENCES = [*CORPUS, *SWAHILI, *UNKNOWN]


@dataclass(frozen=True)
class Case:
    """A tower, what was made of it for ``SENTENCES``, and what that is said to be."""

    source: Path
    out: Path
    done: trim.Trimmed


@pytest.fixture(scope="module", params=list(TOWERS))
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("trim")
    source = TOWERS[request.param](folder)
    return Case(source, folder / "out", trim.trim_tower(spec(source), SENTENCES, folder / "out"))


@pytest.fixture(scope="module")
def starter(tmp_path_factory) -> Path:
    """The starter tower for the Swahili sentences."""
    out = tmp_path_factory.mktemp("trim") / "out"
    trim.trim_tower(TextSpec(model="starter"), SWAHILI, out)
    return out


def spec(folder) -> TextSpec:
    return TextSpec(model=str(folder), max_tokens=24)


def features(folder, sentences):
    tower = build_text(spec(folder))
    with torch.no_grad():
        return tower(tower.collate(tower.tokenize(sentences)))


def test_sentences_of_the_corpus_are_embedded_the_same_to_the_bit(case):
    assert torch.equal(features(case.source, SENTENCES), features(case.out, SENTENCES))
    assert (case.done.sentences, case.done.sentences_alike, case.done.max_difference) == (9, 9, 0)


def test_sentences_of_the_corpus_are_cut_into_the_same_pieces(case):
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (case.source, case.out))
    assert [after.tokenize(sentence) for sentence in SENTENCES] == [before.tokenize(sentence) for sentence in SENTENCES]


def test_the_folder_loads_as_any_other_and_has_a_row_for_every_piece(case):
    model, tokenizer = AutoModel.from_pretrained(case.out), AutoTokenizer.from_pretrained(case.out)
    whole, names = AutoTokenizer.from_pretrained(case.source), ("cls_token", "sep_token", "pad_token", "unk_token")
    assert case.done.pieces == (len(whole), len(tokenizer))
    assert len(tokenizer) < len(whole)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == len(tokenizer)
    assert [getattr(tokenizer, name) for name in names] == [getattr(whole, name) for name in names]
    assert model.config.pad_token_id == tokenizer.pad_token_id == model.get_input_embeddings().padding_idx
    after, before = tokenizer("red")["input_ids"], whole("red")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(after) == whole.convert_ids_to_tokens(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_of_a_larger_model_is_trimmed_alone(family, tmp_path):
    source, out = of_family(family, tmp_path / "source"), tmp_path / "out"
    done = trim.trim_tower(spec(source), SENTENCES, out)
    assert torch.equal(features(source, SENTENCES), features(out, SENTENCES))
    assert done.pieces[0] > done.pieces[1] == build_text(spec(out)).vocabulary
    assert not [name for name in load_file(out / "model.safetensors") if "decoder" in name]


def test_sizes_are_those_of_the_models(tmp_path):
    done = trim.trim_tower(spec(tiny.text("bert")), ["red"], tmp_path / "out")
    before, after = (AutoModel.from_pretrained(path) for path in (tiny.text("bert"), tmp_path / "out"))
    bare = [sum(p.numel() for name, p in model.named_parameters() if "pooler" not in name) for model in (before, after)]
    assert done.parameters == tuple(bare)
    assert bare[0] - bare[1] == 32 * (done.pieces[0] - done.pieces[1]) > 0
    assert done.bytes == (4 * bare[0], 4 * bare[1])


def test_a_pooler_that_the_model_has_is_kept(tmp_path):
    trim.trim_tower(spec(tiny.text("bert")), CORPUS, tmp_path / "out")
    before, after = (AutoModel.from_pretrained(path).pooler for path in (tiny.text("bert"), tmp_path / "out"))
    assert torch.equal(before.dense.weight, after.dense.weight)


def test_weights_kept_in_half_precision_stay_so(tmp_path):
    done = trim.trim_tower(TextSpec(model="starter"), CORPUS, tmp_path / "out")
    assert done.bytes[1] == 2 * done.parameters[1]
    assert abs((tmp_path / "out" / "model.safetensors").stat().st_size - done.bytes[1]) < 20_000


def test_a_new_word_of_known_letters_is_spelt(tmp_path):
    trim.trim_tower(spec(tiny.text("xlmr")), ["red and blue"], tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.unk_token_id not in tokenizer("lend rubble")["input_ids"]


def test_any_bytes_can_be_spelt_by_a_byte_level_model(tmp_path):
    trim.trim_tower(spec(byte_level(tmp_path / "source")), ["red"], tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer("ሰላም 漢字", add_special_tokens=False)["input_ids"]).strip() == "ሰላም 漢字"


def test_keep_chooses_the_most_frequent_and_says_which_sentences_it_costs(tmp_path):
    corpus = ["red red red red", "red red blue", "blue", "yellow"]
    done = trim.trim_tower(spec(tiny.text("bert")), corpus, tmp_path / "out", keep=2)
    words = set(AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab())
    assert {"red", "blue"} <= words
    assert "yellow" not in words
    assert (done.sentences, done.sentences_alike) == (4, 3)
    assert torch.equal(features(tiny.text("bert"), corpus[:3]), features(tmp_path / "out", corpus[:3]))


def test_pieces_that_bpe_merges_the_kept_ones_from_are_kept_and_their_order(starter):
    state = json.loads((starter / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    whole = json.loads((STARTER / "text" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert 0 < len(state["merges"]) < len(whole["merges"])
    assert all({left, right, left + right} <= state["vocab"].keys() for left, right in state["merges"])
    assert [merge for merge in whole["merges"] if merge in state["merges"]] == state["merges"]


def test_the_sentencepiece_file_keeps_its_offset_to_the_numbers_of_xlm_r(starter):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(starter / "sentencepiece.bpe.model"))
    tokenizer = AutoTokenizer.from_pretrained(starter)
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1 == pieces.get_piece_size() + 1
    for sentence in SWAHILI:
        assert tokenizer(sentence, add_special_tokens=False)["input_ids"] == [i + 1 for i in pieces.encode(sentence)]


def test_numbers_that_an_older_tokenizer_configuration_states_are_not_carried_over(tmp_path):
    folder = shutil.copytree(tiny.text("xlmr"), tmp_path / "source")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    last = AutoTokenizer.from_pretrained(folder).mask_token_id
    config["added_tokens_decoder"] = {str(last): {"content": "<mask>", "special": True}}
    path.write_text(json.dumps(config), encoding="utf-8")
    trim.trim_tower(spec(folder), ["red"], tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.mask_token_id == len(tokenizer) - 1 < last


def test_a_truncation_in_the_tokenizer_file_hides_no_piece(tmp_path):
    long = " ".join([*["red"] * 60, "yellow"])
    done = trim.trim_tower(TextSpec(model="starter"), [long], tmp_path / "out")
    assert done.sentences_alike == 1
    backend = AutoTokenizer.from_pretrained(tmp_path / "out").backend_tokenizer
    backend.no_truncation()
    whole = AutoTokenizer.from_pretrained(STARTER / "text").backend_tokenizer
    whole.no_truncation()
    assert backend.encode(long).tokens == whole.encode(long).tokens


def test_what_was_done_is_written_down(tmp_path):
    done = trim.trim_tower(spec(tiny.text()), CORPUS, tmp_path / "out", langs=["en", "sw"])
    assert trim.Trimmed.model_validate_json((tmp_path / "out" / trim.CARD).read_text(encoding="utf-8")) == done
    assert done.langs == ("en", "sw")


def test_a_tower_whose_rows_are_mixed_up_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    right = trim._take_rows

    def mixed(model, kept):
        right(model, np.concatenate([kept[:5], kept[5:-1][::-1], kept[-1:]]))

    monkeypatch.setattr(trim, "_take_rows", mixed)
    with pytest.raises(UserError, match="the trimmed tower differs"):
        trim.trim_tower(TextSpec(model="starter"), SWAHILI, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_that_would_cut_the_corpus_otherwise_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(trim, "_with_parts", lambda state, pieces, chosen: chosen)
    with pytest.raises(UserError, match=r'of 3 sentences would be split into other pieces, for example ".*"'):
        trim.trim_tower(TextSpec(model="starter"), SWAHILI, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_is_read_line_by_line_from_several_files(tmp_path):
    (tmp_path / "a").write_text("eins\n\nzwei ü\n", encoding="utf-8")
    (tmp_path / "b").write_text("  \ntatu", encoding="utf-8")
    assert trim.read_sentences([tmp_path / "a", tmp_path / "b"]) == ["eins", "zwei ü", "tatu"]


def test_a_corpus_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin").write_bytes("ü".encode("latin-1"))
    with pytest.raises(UserError, match=r"cannot read the corpus .*latin"):
        trim.read_sentences([tmp_path / "latin"])
    with pytest.raises(UserError, match=r"cannot read the corpus .*nowhere"):
        trim.read_sentences([tmp_path / "nowhere"])


def test_an_empty_corpus_and_a_folder_that_is_there_are_refused(tmp_path):
    with pytest.raises(UserError, match="corpus is empty"):
        trim.trim_tower(spec(tiny.text()), [], tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out already exists"):
        trim.trim_tower(spec(tiny.text()), CORPUS, tmp_path / "out")


def test_a_vocabulary_of_another_kind_is_refused(tmp_path):
    folder = shutil.copytree(tiny.text("bert"), tmp_path / "source")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "red"])}
    fast = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    with pytest.raises(UserError, match="of type WordLevel; known are Unigram, BPE and WordPiece"):
        trim.trim_tower(spec(folder), CORPUS, tmp_path / "out")


def test_the_command_reads_captions_or_files_and_tells_the_sizes(tmp_path, monkeypatch, capsys):
    (tmp_path / "corpus.txt").write_text("red\n", encoding="utf-8")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["polyalign", "trim", "--text-tower", str(tiny.text()), *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr()

    code, out, _ = run("--lang", "en", "--data", tiny.data(), "--out", tmp_path / "all", "--json")
    assert (code, json.loads(out)["pieces"]) == (0, [16, 16])
    code, out, _ = run("--lang", "en", "--corpus", tmp_path / "corpus.txt", "--out", tmp_path / "red")
    assert code == 0
    assert "1 of 1 sentences are tokenized and embedded as before" in out
    assert "pieces      16 ->" in out
    code, _, err = run("--lang", "xx", "--out", tmp_path / "none")
    assert (code, "xx" in err) == (2, True)
