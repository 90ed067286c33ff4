"""Eq. 1 and the loss weights against slow loops in float64, and against F.cross_entropy bit for bit."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from odc_lightning.objective import loss_weights, weighted_cross_entropy

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.lists(st.integers(0, 10_000), min_size=1, max_size=40).filter(any)


def slow_loss(logits, labels, weights, mask):
    """Σ w_y·nll / Σ w_y over the kept samples, one Python float at a time."""
    total = mass = 0.0
    for row, label, keep in zip(logits.tolist(), labels.tolist(), mask.tolist(), strict=True):
        if keep:
            top = max(row)
            nll = top + math.log(math.fsum(math.exp(score - top) for score in row)) - row[label]
            total += weights[label] * nll
            mass += weights[label]
    return total / mass if mass else 0.0


def batch(seed, size, clusters):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(size, clusters, generator=generator)
    labels = torch.randint(clusters, (size,), generator=generator)
    return logits, labels, torch.rand(size, generator=generator) < 0.7


def gradient(loss_of, logits):
    logits = logits.clone().requires_grad_()
    loss = loss_of(logits)
    loss.backward()
    return loss.detach(), logits.grad


@given(SIZES, st.floats(0, 2))
def test_weights_are_mean_size_over_size_to_the_power(sizes, power):
    weights = loss_weights(torch.tensor(sizes), power)
    mean = sum(sizes) / len(sizes)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([(mean / max(n, 1)) ** power for n in sizes], rel=1e-6)


@given(SIZES)
def test_default_is_the_paper_s_inverse_square_root(sizes):
    weights = loss_weights(torch.tensor(sizes))
    scaled = [w * math.sqrt(max(n, 1)) for w, n in zip(weights.tolist(), sizes, strict=True)]
    assert scaled == pytest.approx([scaled[0]] * len(scaled), rel=1e-6)


@given(st.integers(1, 10**9), st.integers(1, 64), st.floats(0, 2))
def test_equal_sizes_weigh_exactly_one(size, clusters, power):
    assert torch.equal(loss_weights(torch.full((clusters,), size), power), torch.ones(clusters))


@given(SIZES)
def test_power_zero_is_exactly_one(sizes):
    assert torch.equal(loss_weights(torch.tensor(sizes), 0), torch.ones(len(sizes)))


def test_negative_power_is_refused():
    with pytest.raises(ValueError, match=r"power must be at least 0. Received: -0.5"):
        loss_weights(torch.ones(3), -0.5)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 30), st.booleans(), st.booleans())
def test_loss_against_a_loop(seed, size, clusters, weighted, masked):
    logits, labels, mask = batch(seed, size, clusters)
    weights = loss_weights(torch.tensor([random.Random(seed + c).randint(1, 500) for c in range(clusters)]))
    loss = weighted_cross_entropy(logits, labels, weights if weighted else None, mask if masked else None)
    slow_weights = weights.tolist() if weighted else [1.0] * clusters
    expected = slow_loss(logits, labels, slow_weights, mask if masked else torch.ones_like(mask))
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 300), st.integers(1, 60), st.integers(1, 10**6))
def test_equal_sizes_are_the_unweighted_loss_bit_for_bit(seed, size, clusters, members):
    logits, labels, _ = batch(seed, size, clusters)
    weights = loss_weights(torch.full((clusters,), members))
    loss, grad = gradient(lambda x: weighted_cross_entropy(x, labels, weights), logits)
    expected, expected_grad = gradient(lambda x: F.cross_entropy(x, labels), logits)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, expected_grad)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 40), st.integers(1, 30))
def test_dropped_samples_are_as_if_absent(seed, size, clusters):
    logits, labels, mask = batch(seed, size, clusters)
    mask[0] = True
    weights = loss_weights(torch.arange(1, clusters + 1))
    expected, expected_grad = gradient(lambda x: weighted_cross_entropy(x, labels[mask], weights), logits[mask])
    logits[~mask], labels[~mask] = float("nan"), -1
    loss, grad = gradient(lambda x: weighted_cross_entropy(x, labels, weights, mask), logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad[mask], expected_grad)
    assert not grad[~mask].any()


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 3.0])])
def test_batch_with_nothing_left_is_zero_without_nan(weights):
    logits = torch.randn(4, 3)
    nothing = torch.zeros(4, dtype=torch.bool)
    loss, grad = gradient(lambda x: weighted_cross_entropy(x, torch.zeros(4).int(), weights, nothing), logits)
    assert loss == 0
    assert torch.equal(grad, torch.zeros(4, 3))


def test_full_mask_changes_no_bit():
    logits, labels, mask = batch(3, 50, 7)
    loss, grad = gradient(lambda x: weighted_cross_entropy(x, labels, None, torch.ones_like(mask)), logits)
    expected, expected_grad = gradient(lambda x: F.cross_entropy(x, labels), logits)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, expected_grad)


def test_float32_under_autocast_and_from_half_logits():
    logits, labels, _ = batch(0, 64, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(weighted_cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    half = logits.bfloat16()
    assert torch.equal(weighted_cross_entropy(half, labels), F.cross_entropy(half.float(), labels))


def test_int32_labels_of_the_memory_are_taken():
    logits, labels, _ = batch(1, 8, 5)
    assert torch.equal(weighted_cross_entropy(logits, labels.int()), weighted_cross_entropy(logits, labels))


def test_scale_of_the_weights_does_not_matter():
    logits, labels, _ = batch(2, 32, 5)
    weights = loss_weights(torch.tensor([1, 5, 20, 3, 700]))
    release = weights / weights.sum()  # the authors' scale
    ours, theirs = (weighted_cross_entropy(logits, labels, w) for w in (weights, release))
    torch.testing.assert_close(ours, theirs)
