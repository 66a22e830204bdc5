from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from polyalign.config.tower import TextSpec
from polyalign.models import vocabulary as trim
from polyalign.models.towers.text_loading import build_text


def captions(root, code):
    lines = (root / "data" / "flickr8k" / "captions" / f"{code}.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition("\t")[2] for line in lines[:2000]]


@pytest.mark.parametrize("codes", [("qu",), ("de", "gn"), ("zh",)])
def test_a_real_unigram_tower_says_the_same_of_its_languages_with_a_part_of_its_pieces(codes, real_data, tmp_path):
    folder = real_data / "towers" / "mini-xlmr"
    sentences = [caption for code in codes for caption in captions(real_data, code)]
    done = trim.trim_tower(TextSpec(model=str(folder)), sentences, tmp_path / "out")
    assert done.sentences_alike == len(sentences) == 2000 * len(codes)
    assert done.pieces[1] < done.pieces[0] / 4
    whole, small = (build_text(TextSpec(model=str(path))) for path in (folder, tmp_path / "out"))
    with torch.no_grad():
        for start in range(0, len(sentences), 500):
            batch = sentences[start : start + 20]
            assert torch.equal(*(tower(tower.collate(tower.tokenize(batch))) for tower in (whole, small)))


def test_new_captions_of_the_language_meet_few_unknown_pieces(real_data, tmp_path):
    known, new = captions(real_data, "de")[:1500], captions(real_data, "de")[1500:]
    trim.trim_tower(TextSpec(model=str(real_data / "towers" / "mini-xlmr")), known, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = [i for caption in new for i in tokenizer(caption)["input_ids"]]
    assert ids.count(tokenizer.unk_token_id) / len(ids) < 0.001
