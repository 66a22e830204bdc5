from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, XLMRobertaForMaskedLM

from polyalign.config import resolve as recipe
from polyalign.config.tower import TextSpec
from polyalign.data.labelled import Labelled
from polyalign.data.pairs import PairTable
from polyalign.evaluation.tasks import retention
from polyalign.evaluation.tasks.retention import Config, Probes, cka, knn_accuracy
from polyalign.models.aligner import Aligner
from polyalign.models.build import build_aligner
from polyalign.models.towers.text_loading import build_text
from polyalign.utils.errors import UserError
from tests import tiny


def parallel() -> tuple[PairTable, PairTable]:
    table = tiny.table("test")
    backwards = tuple(" ".join(caption.split()[::-1]) for caption in table.captions)
    return table, replace(table, lang="ne", captions=backwards)


def labelled() -> Labelled:
    table = tiny.table("train")
    firsts = [table.captions[c].split()[0] for c in np.unique(table.image_of, return_index=True)[1]]
    classes = tuple(sorted(set(firsts)))
    labels = np.array([classes.index(first) for first in firsts])
    return Labelled("quarters", "en", table.images, labels, classes, tuple((name,) for name in classes))


def probes() -> Probes:
    return Probes(tiny.aligner(), parallel(), labelled())


def trained(name: str, **options: str) -> Aligner:
    settings = recipe.merge(tiny.settings(name), {"strategy": {"name": name, **options}})
    aligner = build_aligner(recipe.validate(settings, "the test"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in aligner.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return aligner


def test_towers_that_did_not_change_keep_everything() -> None:
    got = retention.measure(trained("projection"), probes(), Config())
    assert got.kept == pytest.approx(1)
    assert set(got.sentences) == {"en-ne"}
    assert all(change.before == change.after for change in (got.sentences | got.probe).values())
    assert got.moved == {"vision": 0, "text": 0}
    assert {tower: len(layers) for tower, layers in got.cka.items()} == {"vision": 5, "text": 5}
    assert all(value == pytest.approx(1) for layers in got.cka.values() for value in layers)


@pytest.mark.parametrize("strategy", ["layernorm", "bitfit", "lilt", "lilt-deep", "lora", "full"])
def test_a_change_is_seen_in_the_tower_that_changed(strategy: str) -> None:
    got = retention.measure(trained(strategy, towers="text"), probes(), Config())
    assert got.moved["vision"] == 0
    assert got.moved["text"] > 0.01
    assert got.cka["text"][-1] < 0.9999
    assert min(got.cka["vision"]) == pytest.approx(1)
    assert len(got.cka["text"]) == 5  # the block that lilt-deep adds has no twin


def test_layers_below_the_change_are_alike() -> None:
    got = retention.measure(trained("full", layers="last:1"), probes(), Config())
    for layers in got.cka.values():
        assert layers[:3] == pytest.approx((1, 1, 1))
        assert layers[3] < 0.999


def test_answers_are_independent_of_the_batch() -> None:
    one = retention.answer(tiny.aligner(), probes(), Config(batch_size=3))
    two = retention.answer(tiny.aligner(), probes(), Config(batch_size=100))
    assert one.sentences == two.sentences
    for tower in ("vision", "text"):
        for a, b in zip(one.layers[tower], two.layers[tower], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_layers_end_with_the_towers_own_output() -> None:
    aligner, table = tiny.aligner(), tiny.table("test")
    with torch.no_grad():
        tokens = aligner.text.collate(aligner.text.tokenize(list(table.captions)))
        pixels = torch.stack([aligner.vision.transform(image.open()) for image in table.images])
        text, vision = aligner.text(tokens).numpy(), aligner.vision(pixels).numpy()
    np.testing.assert_allclose(retention.layer_features(aligner.text, table.captions)[-1], text, atol=1e-5)
    np.testing.assert_allclose(retention.layer_features(aligner.vision, table.images)[-1], vision, atol=1e-5)


def test_a_convolutional_tower_has_one_layer() -> None:
    aligner = tiny.aligner(vision={"model": str(tiny.conv())})
    assert len(retention.layer_features(aligner.vision, tiny.table("test").images)) == 1


def test_without_text_or_labels_there_is_nothing_to_keep() -> None:
    got = retention.measure(tiny.aligner(), Probes(tiny.aligner()), Config())
    assert got.kept is None
    assert got.cka == {}


def test_only_images_that_all_languages_have_are_asked_about() -> None:
    one, other = parallel()
    spoken = retention._parallel((one, other.take_images([3, 7, 5])), 500)
    assert spoken["en"] == [one.captions[2 * image] for image in (3, 5, 7)]
    assert spoken["ne"] == [other.captions[2 * image] for image in (3, 5, 7)]


def test_tables_without_a_shared_image_are_refused() -> None:
    one, other = parallel()
    with pytest.raises(UserError, match="en, ne share no images"):
        retention._parallel((one.take_images([0, 1]), other.take_images([2])), 500)


def test_questions_come_from_the_recipe() -> None:
    asked = retention.probes(tiny.resolved("full", test={"languages": ["de"]}))
    assert [table.lang for table in asked.parallel] == ["en", "de"]
    assert asked.labelled is None
    assert asked.before.count()[0] == tiny.aligner("projection").count()[0]


def test_cka_by_definition() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)), rng.standard_normal((40, 7))
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    assert cka(x, 3 * x @ rotation + 2) == pytest.approx(1)
    centre = np.eye(40) - 1 / 40
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert cka(x, y) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    assert cka(x, np.ones((40, 3))) == 0


def test_knn_by_hand() -> None:
    angles = np.array([0.0, 0.1, 0.2, 1.5, 1.4, 1.45])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # the first and third of each class are known, the second is asked for
    assert knn_accuracy(features, np.array([0, 0, 0, 1, 1, 1]), 1) == 1.0
    # the image at 0.2 is nearest to the other class's at 0.1, the one at 1.5 to its own at 1.45
    assert knn_accuracy(features, np.array([1, 0, 1, 0, 1, 0]), 1) == 0.5


def test_sentence_retrieval_of_shuffled_translations_is_at_chance() -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal((200, 32))
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    assert retention.sentence_retrieval(one, one) == 1.0
    assert retention.sentence_retrieval(one, one[rng.permutation(200)]) < 0.05


@pytest.fixture(scope="module")
def with_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mlm")
    AutoTokenizer.from_pretrained(tiny.text("xlmr")).save_pretrained(out)
    torch.manual_seed(0)
    XLMRobertaForMaskedLM(AutoConfig.from_pretrained(tiny.text("xlmr"))).save_pretrained(out)
    return out


def test_pseudo_perplexity_is_the_definition(with_head: Path) -> None:
    tower = build_text(TextSpec(model=str(with_head)))
    sentence = "red and blue"
    ids = tower.tokenize([sentence])[0]
    model = XLMRobertaForMaskedLM.from_pretrained(with_head).eval()
    surprise = []
    for place in range(1, len(ids) - 1):
        masked = torch.tensor([[*ids[:place], tower.tokenizer.mask_token_id, *ids[place + 1 :]]])
        with torch.no_grad():
            surprise.append(-model(masked).logits[0, place].log_softmax(-1)[ids[place]].item())
    expected = math.exp(sum(surprise) / len(surprise))
    assert retention.pseudo_perplexity(tower, [sentence], batch_size=3) == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        for parameter in tower.model.parameters():
            parameter.add_(0.5)
    assert retention.pseudo_perplexity(tower, [sentence]) != pytest.approx(expected, rel=1e-3)


def test_a_tower_without_a_language_model_head_has_no_perplexity() -> None:
    for folder in (tiny.text("xlmr"), tiny.text()):
        assert retention.pseudo_perplexity(build_text(TextSpec(model=str(folder))), ["red"]) is None


def test_perplexity_is_part_of_the_answer(with_head: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(with_head, tmp_path / "tower")
    aligner = tiny.aligner(text={"model": str(folder)})
    got = retention.measure(aligner, Probes(aligner, parallel()), Config(perplexity_sentences=2))
    assert set(got.perplexity) == {"en", "ne"}
    assert got.perplexity["en"].before == got.perplexity["en"].after > 1
