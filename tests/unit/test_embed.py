from __future__ import annotations

import numpy as np
import pytest
import torch

from polyalign.config.schema import Cache
from polyalign.data.pairs import PairTable
from polyalign.models import embed as embedding
from polyalign.models.embed import embed, embed_features, encode_captions, prepare
from tests import tiny

FULL = Cache(dtype="float32")


@pytest.fixture(scope="module")
def aligner():
    return tiny.aligner("lilt", text={"model": str(tiny.text("xlmr"))})


@pytest.fixture(scope="module")
def table() -> PairTable:
    """Five images, twelve captions of several lengths, in no order."""
    whole = tiny.table()
    return whole.take_pairs([9, 0, 3, 1, 8, 2, 5, 4, 7, 6])


def test_embeddings_are_float32_unit_vectors_in_the_tables_order(aligner, table):
    found = embed(aligner, table, config=FULL)
    assert found.images.shape == (5, 16)
    assert found.captions.shape == (10, 16)
    assert found.images.dtype == found.captions.dtype == np.float32
    assert (found.image_of == table.image_of).all()
    np.testing.assert_allclose(np.linalg.norm(found.captions, axis=1), 1, rtol=1e-5)


def test_each_image_and_caption_is_embedded_as_if_alone(aligner, table):
    found = embed(aligner, table, config=FULL)
    with torch.no_grad():
        for row, image in enumerate(table.images):
            alone = aligner.encode_image(aligner.vision.transform(image.open()).unsqueeze(0))[0]
            np.testing.assert_allclose(found.images[row], alone.numpy(), atol=1e-5)
        for row, caption in enumerate(table.captions):
            alone = aligner.encode_text(aligner.text.collate(aligner.text.tokenize([caption])))[0]
            np.testing.assert_allclose(found.captions[row], alone.numpy(), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_does_not_matter(aligner, table, batch_size):
    whole, parts = embed(aligner, table, config=FULL), embed(aligner, table, batch_size=batch_size, config=FULL)
    np.testing.assert_allclose(whole.captions, parts.captions, atol=1e-5)
    np.testing.assert_allclose(whole.images, parts.images, atol=1e-5)


def test_captions_of_like_length_go_through_together_and_come_back_in_order(aligner, table, monkeypatch):
    store = prepare(aligner, table, FULL).captions
    rows = np.array([7, 2, 9, 4, 2, 0])
    aligner.eval()
    together = encode_captions(aligner, store, rows)
    padded, encode_text = [], aligner.encode_text
    monkeypatch.setattr(aligner, "encode_text", lambda x, cut: padded.append(x.mask.shape) or encode_text(x, cut))
    monkeypatch.setattr(embedding, "_OF_LIKE_LENGTH", 2)
    torch.testing.assert_close(encode_captions(aligner, store, rows), together, atol=1e-5, rtol=1e-5)
    lengths = np.sort(np.diff(store.offsets)[rows])
    assert padded == [(2, longest) for longest in lengths[1::2]]
    assert lengths[1] < lengths[-1]


def test_embedding_switches_training_off(table):
    aligner = tiny.aligner("full")
    features = prepare(aligner, table, FULL)
    aligner.train()
    one, other = embed_features(aligner, features), embed_features(aligner, features)
    assert not aligner.training
    assert (one.captions == other.captions).all()


def test_progress_is_told(aligner, table, tmp_path, monkeypatch, news):
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path))
    embed(aligner, table, config=FULL)
    assert {one[0].split(" (")[0] for one in news} == {"preparing images"}
    assert news[-1][1:] == (5, 5)
