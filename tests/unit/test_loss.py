from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from polyalign.training import loss
from polyalign.training.loss import gather, positives

ONE = torch.tensor(1.0)


def info_nce(image, text, scale, image_of, caption_of=None):
    return loss.info_nce(image, text, scale, positives(image_of, caption_of))


def sigmoid(image, text, scale, bias, image_of):
    return loss.sigmoid(image, text, scale, bias, positives(image_of))


def unit(rows: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return F.normalize(
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def test_a_small_matrix_by_hand():
    # Similarities [[1, 0], [0.6, 0.8]]: rows are images, columns captions.
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    rows = -math.log(math.e / (math.e + 1)), -math.log(math.exp(0.8) / (math.exp(0.6) + math.exp(0.8)))
    columns = -math.log(math.e / (math.e + math.exp(0.6))), -math.log(math.exp(0.8) / (1 + math.exp(0.8)))
    expected = (sum(rows) / 2 + sum(columns) / 2) / 2
    assert info_nce(image, text, ONE, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-6)


def test_two_captions_of_one_image_are_no_negatives_by_hand():
    # Pairs 0 and 1 have the same image; similarities [[1, 1, 0], [1, 1, 0], [0, 0, 1]] in both directions.
    image = text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    shared = -math.log(math.e / (2 * math.e + 1))  # the mean over two positives of equal score
    alone = -math.log(math.e / (math.e + 2))
    expected = (2 * shared + alone) / 3
    assert info_nce(image, text, ONE, torch.tensor([7, 7, 3])).item() == pytest.approx(expected, rel=1e-6)


def test_two_images_with_the_same_caption_are_positives():
    assert positives(torch.tensor([0, 1, 1]), torch.tensor([3, 3, 4])).tolist() == [
        [True, True, False],
        [True, True, True],
        [False, True, True],
    ]
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    same = positives(torch.tensor([0, 1]), torch.tensor([5, 5]))
    # Every similarity, 1 or 0, is a positive: log(1 + exp(-s)) summed over a row, averaged over rows.
    expected = math.log(1 + math.exp(-1)) + math.log(2)
    assert loss.sigmoid(image, text, ONE, torch.tensor(0.0), same).item() == pytest.approx(expected, rel=1e-6)


@given(rows=st.integers(1, 12), scale=st.floats(0.1, 50), seed=st.integers(0, 99))
def test_without_shared_images_it_is_clips_loss(rows, scale, seed):
    image, text = unit(rows, seed=seed), unit(rows, seed=seed + 100)
    logits = scale * image @ text.T
    labels = torch.arange(rows)
    clip = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    shuffled = torch.randperm(1000)[:rows]
    torch.testing.assert_close(info_nce(image, text, torch.tensor(scale), shuffled), clip)


@given(rows=st.integers(1, 10), images=st.integers(1, 5), seed=st.integers(0, 99))
def test_it_equals_a_naive_twin_with_shared_images(rows, images, seed):
    generator = torch.Generator().manual_seed(seed)
    image_of = torch.randint(images, (rows,), generator=generator)
    image, text = unit(images, seed=seed)[image_of], unit(rows, seed=seed + 1)
    similar = (4.0 * image @ text.T).tolist()
    total = 0.0
    for scores in (similar, list(map(list, zip(*similar, strict=True)))):
        for i, row in enumerate(scores):
            normaliser = math.log(sum(math.exp(score) for score in row))
            positives = [j for j in range(rows) if image_of[j] == image_of[i]]
            total += sum(normaliser - row[j] for j in positives) / len(positives)
    found = info_nce(image, text, torch.tensor(4.0), image_of)
    assert found.item() == pytest.approx(total / (2 * rows))


@given(rows=st.integers(2, 8), seed=st.integers(0, 50))
def test_the_order_of_pairs_does_not_matter(rows, seed):
    image, text, image_of = unit(rows, seed=seed), unit(rows, seed=seed + 1), torch.arange(rows) // 2
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    for of_pairs in (info_nce, lambda a, b, scale, of: sigmoid(a, b, scale, torch.tensor(-2.0), of)):
        straight = of_pairs(image, text, torch.tensor(7.0), image_of)
        torch.testing.assert_close(of_pairs(image[order], text[order], torch.tensor(7.0), image_of[order]), straight)


def test_a_perfect_batch_has_no_loss_and_a_uniform_one_the_log_of_its_size():
    image = torch.eye(8)
    assert info_nce(image, image, torch.tensor(1000.0), torch.arange(8)).item() == pytest.approx(0, abs=1e-6)
    assert info_nce(image, image, torch.tensor(0.0), torch.arange(8)).item() == pytest.approx(math.log(8))


def test_the_sigmoid_loss_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scale, bias = torch.tensor(2.0), torch.tensor(-1.0)

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    own = softplus(-(2 * 1.0 - 1)) + softplus(-(2 * 0.8 - 1))
    other = softplus(2 * 0.0 - 1) + softplus(2 * 0.6 - 1)
    apart = sigmoid(image, text, scale, bias, torch.tensor([0, 1])).item()
    assert apart == pytest.approx((own + other) / 2, rel=1e-6)
    both = softplus(-(2 * 0.0 - 1)) + softplus(-(2 * 0.6 - 1))
    shared = sigmoid(image, text, scale, bias, torch.tensor([4, 4])).item()
    assert shared == pytest.approx((own + both) / 2, rel=1e-6)


def test_gathering_in_one_process_is_the_tensor_itself():
    x = unit(3)
    assert gather(x) is x
