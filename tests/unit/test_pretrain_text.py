from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from polyalign.config import language as langs
from polyalign.config.tower import STARTER
from polyalign.pretrain import text, text_corpus, text_vocab
from polyalign.pretrain.text_card import Reader, recall_at_1
from polyalign.utils.errors import UserError

SHIPPED = STARTER / "text"
STARTER_LANGUAGES = [code for code in langs.names() if langs.load(code).starter]
TINY = text.Config(
    languages=("en", "sw"), lines=60, vocab_size=150, width=16, layers=1, heads=2, hidden_width=32,
    mlm_steps=4, ranking_steps=3, batch_size=8, held_out=20,
)  # fmt: skip


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def corpus() -> text_corpus.Corpus:
    return text_corpus.starter(STARTER_LANGUAGES, 2, 1.0, seed=11, held_out=200)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text.run(TINY, tmp_path_factory.mktemp("tiny"), resume=False)


@pytest.fixture(scope="module")
def shipped() -> Reader:
    return Reader(SHIPPED)


# The shipped tower.


def test_the_shipped_tower_finds_translations_among_a_thousand_from_and_to_every_language(shipped: Reader) -> None:
    lines = text_corpus.starter(STARTER_LANGUAGES, 2, 1.0, seed=4242).held_out
    assert len(lines) == 1000
    embedded = {code: shipped.embed([line[code] for line in lines]) for code in STARTER_LANGUAGES}
    english = embedded.pop("en")
    assert len(embedded) >= 9
    found = {code: recall_at_1(rows, english) for code, rows in embedded.items()}
    assert min(min(both) for both in found.values()) >= 0.6, found


def test_the_shipped_tower_can_be_surprised_less_by_its_languages_than_by_jumbled_ones(
    shipped: Reader, corpus: text_corpus.Corpus
) -> None:
    rng = np.random.default_rng(0)
    for code in ("en", "sw", "hi", "am"):
        sentences = [line[code] for line in corpus.held_out[:20]]
        jumbled = [" ".join(rng.permutation(sentence.split())) for sentence in sentences]
        assert shipped.pseudo_perplexity(sentences) < 0.5 * shipped.pseudo_perplexity(jumbled)
        assert shipped.pseudo_perplexity(sentences) < 20


def test_the_shipped_folder_loads_as_any_encoder_does(shipped: Reader) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED, local_files_only=True)
    encoder, info = AutoModel.from_pretrained(
        SHIPPED, local_files_only=True, add_pooling_layer=False, output_loading_info=True
    )
    lm, lm_info = AutoModelForMaskedLM.from_pretrained(SHIPPED, local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"]
    assert not lm_info["missing_keys"]
    assert encoder.config.model_type == "xlm-roberta"
    assert lm.lm_head.decoder.weight is lm.roberta.embeddings.word_embeddings.weight
    assert tokenizer.tokenize("a cat") == shipped.tokenizer.tokenize("a cat")


def test_the_shipped_folder_is_small_half_precision_and_has_its_card() -> None:
    files = list(SHIPPED.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "sentencepiece.bpe.model", "README.md"} <= {
        file.name for file in files
    }
    assert sum(file.stat().st_size for file in files) < 4_000_000
    assert {tensor.dtype for tensor in load_file(SHIPPED / "model.safetensors").values()} == {torch.float16}
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert all(langs.load(code).english_name in card for code in STARTER_LANGUAGES)


def test_no_starter_sentence_has_an_unknown_piece_and_each_comes_back_whole(
    shipped: Reader, corpus: text_corpus.Corpus
) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(SHIPPED / text_vocab.SPM_FILE))
    tokenizer = shipped.tokenizer
    for line in corpus.held_out:
        for sentence in line.values():
            ids = tokenizer(sentence)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == sentence
            assert ids[1:-1] == [piece + 1 for piece in pieces.encode(sentence)]


def test_a_padded_sentence_has_the_embedding_it_has_alone(shipped: Reader) -> None:
    alone = shipped.embed(["paka mmoja mweusi"])
    padded = shipped.embed(["paka mmoja mweusi", "nyumba mbili nyekundu na mti mmoja mkubwa kwenye nyasi"])
    assert np.allclose(alone[0], padded[0], atol=1e-5)


# Pretraining.


def test_a_run_leaves_a_whole_folder_and_no_checkpoint(tiny: Path) -> None:
    assert {file.name for file in tiny.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "sentencepiece.bpe.model", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((tiny / "config.json").read_text())
    assert (config["vocab_size"], config["hidden_size"], config["pad_token_id"]) == (152, 16, 1)
    assert Reader(tiny).tokenizer.mask_token_id == 151


@pytest.mark.parametrize("stop_at", [2, 6])
def test_a_stopped_and_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    original = text.run_stages
    monkeypatch.setattr(text, "run_stages", lambda *args, **kwargs: original(*args, **kwargs, save_every_s=0))
    steps = []

    def stop(task: str, done: int, total: int, note: str = "") -> None:
        steps.append((task, done, total, note))
        if len(steps) == stop_at:
            raise StoppedError

    with pytest.raises(StoppedError):
        text.run(TINY, tmp_path, resume=False, progress=stop)
    text.run(TINY, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (tmp_path / "README.md").read_text() == (tiny / "README.md").read_text()


def test_a_low_resource_language_is_seen_less() -> None:
    counts = text_corpus.starter(["en", "sw"], 2000, 0.25, seed=0).sentences()
    assert counts["en"] == 2000
    assert counts["sw"] == pytest.approx(500, abs=80)


def test_held_out_scenes_are_others_than_those_learned_from() -> None:
    corpus = text_corpus.starter(["en"], 500, 0.25, seed=0)
    assert len(corpus.held_out) == 1000
    shared = {line["en"] for line in corpus.train} & {line["en"] for line in corpus.held_out}
    assert len(shared) < 10


def test_masks_fall_on_pieces_only_and_mostly_hide_them() -> None:
    config = text.Config(languages=("en", "sw"), lines=300, vocab_size=200, mask_share=0.5)
    corpus = text_corpus.starter(config.languages, config.lines, 1.0, seed=0)
    pieces = text_vocab.train([s for line in corpus.train for s in line.values()], config.vocab_size)
    tokenizer = text_vocab.tokenizer(pieces, config.max_tokens)
    model = text.XLMRobertaForMaskedLM(text._architecture(config, len(tokenizer)))
    learner = text.Learner(model, tokenizer, corpus, config)
    ids = torch.full((200, 50), 7)
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[:, ::2] = True
    spoilt = learner._corrupt(ids, chosen, np.random.default_rng(0))
    assert bool((spoilt[~chosen] == 7).all())
    assert (spoilt[chosen] == tokenizer.mask_token_id).float().mean().item() == pytest.approx(0.8, abs=0.02)
    swapped = spoilt[chosen & (spoilt != tokenizer.mask_token_id) & (spoilt != 7)]
    assert len(swapped) / int(chosen.sum()) == pytest.approx(0.1, abs=0.02)
    assert not set(swapped.tolist()) & set(tokenizer.all_special_ids)
    # An untrained model knows nothing: its loss is that of guessing among all pieces.
    assert learner.mlm_loss(np.random.default_rng(1)).item() == pytest.approx(math.log(len(tokenizer)), abs=0.4)


# A user's own text.


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def user_config(**changes: object) -> text.Config:
    return TINY.model_copy(update={"vocab_size": 60, **changes})


def test_a_user_s_plain_text_gets_masked_modelling_and_no_ranking(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.txt", [f"the cat number {n} sat on mat {n % 7}" for n in range(50)])
    stages = []
    text.run(
        user_config(texts=(path,), vocab_size=40), tmp_path / "out", resume=False,
        progress=lambda task, done, total, note="": stages.append(task),
    )  # fmt: skip
    assert "masked language modelling" in stages
    assert "translation ranking" not in stages
    assert "mine.txt" in (tmp_path / "out" / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True).tokenize("the cat")


def test_parallel_files_get_both_stages_and_are_measured_on_lines_held_out(tmp_path: Path) -> None:
    en = write(tmp_path / "a.en", [f"cat {n} on mat {n % 7}" for n in range(60)])
    sw = write(tmp_path / "b.sw", [f"paka {n} kwenye mkeka {n % 7}" if n % 9 else "" for n in range(60)])
    corpus = text_corpus.files((), {"en": en, "sw": sw}, seed=0)
    assert (len(corpus.train), len(corpus.held_out)) == (54, 6)
    assert sum("sw" not in line for line in [*corpus.train, *corpus.held_out]) == 7
    stages = []
    text.run(
        user_config(parallel={"en": en, "sw": sw}), tmp_path / "out", resume=False,
        progress=lambda task, done, total, note="": stages.append(task),
    )  # fmt: skip
    assert set(stages) >= {"masked language modelling", "translation ranking"}
    assert "| Swahili |" in (tmp_path / "out" / "README.md").read_text()


def test_bad_input_is_named(tmp_path: Path) -> None:
    short = write(tmp_path / "short.txt", ["one", "two"])
    long = write(tmp_path / "long.txt", ["one", "two", "three"])
    latin = tmp_path / "latin.txt"
    latin.write_bytes("gr\xfcn\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"short\.txt has 2, .*long\.txt has 3"):
        text_corpus.files((), {"en": short, "sw": long}, seed=0)
    with pytest.raises(UserError, match=r"latin\.txt as UTF-8"):
        text_corpus.files((latin,), {}, seed=0)
    with pytest.raises(UserError, match="cannot read"):
        text_corpus.files((tmp_path / "none.txt",), {}, seed=0)
    with pytest.raises(UserError, match="too little text"):
        text_corpus.files((write(tmp_path / "empty.txt", [""]),), {}, seed=0)
    with pytest.raises(UserError, match=r"no vocabulary of 5000 pieces.*change vocab_size: Vocabulary size too high"):
        text.run(user_config(texts=(long,), vocab_size=5000), tmp_path / "out", resume=False)
    with pytest.raises(UserError, match="French cannot say"):
        text_corpus.starter(["fr"], 2, 1.0, seed=0)
    with pytest.raises(ValidationError, match="not a multiple"):
        text.Config(width=10, heads=4)
