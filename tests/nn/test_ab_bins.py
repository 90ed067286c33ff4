"""Colours as classes against slow loops over pixels and bins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_lightning.nn.ab_bins import colour_loss, colour_targets, histogram, in_gamut_bins, rebalancing, soft_code
from odc_lightning.nn.lab import rgb_to_lab

BINS = in_gamut_bins()
seeds = st.integers(0, 2**32 - 1)


def some_images(count, height, width, seed):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.manual_seed(seed)).to(torch.uint8)


def test_bins_are_those_that_colours_fall_in():
    assert BINS.shape == (261, 2)
    rows = {tuple(row) for row in BINS.tolist()}
    ab = rgb_to_lab(some_images(1, 300, 300, seed=0))[0, 1:].flatten(1).T
    assert {(10.0 * round(a / 10), 10.0 * round(b / 10)) for a, b in ab.tolist()} <= rows
    assert (0.0, 0.0) in rows  # grey
    assert (-90.0, 80.0) in rows  # pure green, a = -86, b = 83
    assert len(in_gamut_bins(20.0)) < 100


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), seeds)
def test_targets_are_averages_over_areas(count, height, width, times, seed):
    images = some_images(count, height * times, width * times, seed)
    ab = rgb_to_lab(images)[:, 1:]
    targets = colour_targets(images, (height, width))
    assert targets.shape == (count, height, width, 2)
    for row in range(height):
        for column in range(width):
            area = ab[:, :, row * times : (row + 1) * times, column * times : (column + 1) * times]
            assert torch.allclose(targets[:, row, column], area.mean(dim=(2, 3)), atol=1e-3)


def slow_code(a, b, sigma):
    """(share, bin) of the five nearest bins, the nearest first."""
    distances = sorted((math.hypot(a - x, b - y), number) for number, (x, y) in enumerate(BINS.tolist()))[:5]
    weights = [math.exp(-(distance**2) / (2 * sigma**2)) for distance, _ in distances]
    return [(weight / sum(weights), number) for weight, (_, number) in zip(weights, distances, strict=True)]


def as_row(pairs):
    row = torch.zeros(len(BINS))
    for share, number in pairs:
        row[number] = share
    return row


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 3), st.floats(2, 20), seeds)
def test_soft_codes(height, width, sigma, seed):
    ab = torch.rand(2, height, width, 2, generator=torch.manual_seed(seed)) * 120 - 60
    code = soft_code(ab, BINS, sigma)
    assert code.bins.shape == code.shares.shape == (2, height, width, 5)
    rows = []
    for colour, bins, shares in zip(
        ab.reshape(-1, 2), code.bins.reshape(-1, 5), code.shares.reshape(-1, 5), strict=True
    ):
        rows.append(as_row(slow_code(*colour.tolist(), sigma)))
        got = as_row(zip(shares.tolist(), bins.tolist(), strict=True))
        assert torch.allclose(got, rows[-1], atol=1e-3)
        assert bins[0] == ((BINS - colour) ** 2).sum(1).argmin()
    assert torch.allclose(histogram(code, len(BINS)).float(), torch.stack(rows).sum(0), atol=1e-2)


def test_far_colours_have_codes_too():
    assert soft_code(torch.tensor([[900.0, -900.0]]), BINS, 0.5).shares.sum().item() == pytest.approx(1)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30).filter(sum), st.floats(0.05, 1))
def test_rebalancing(counts, mixed):
    prior = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    raw = [1 / ((1 - mixed) * p + mixed / len(counts)) for p in prior.tolist()]
    scale = sum(p * w for p, w in zip(prior.tolist(), raw, strict=True))
    assert rebalancing(prior, mixed).tolist() == pytest.approx([w / scale for w in raw], rel=1e-5)


def test_uniform_mix_weighs_all_alike():
    assert torch.allclose(rebalancing(torch.tensor([0.7, 0.2, 0.1]), 1.0), torch.ones(3))


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 3), st.integers(1, 3), seeds, st.booleans())
def test_loss(count, side, seed, masked):
    generator = torch.manual_seed(seed)
    logits = torch.randn(count, len(BINS), side, side, generator=generator)
    ab, weights = torch.rand(count, side, side, 2, generator=generator) * 100 - 50, torch.rand(len(BINS)) + 0.1
    code, ok = soft_code(ab, BINS), torch.ones(count, dtype=torch.bool)
    if masked:
        ok[0], logits[0] = False, math.nan
    losses = []
    for image in range(count):
        for row in range(side):
            for column in range(side):
                log_shares = logits[image, :, row, column].log_softmax(0)
                pairs = slow_code(*ab[image, row, column].tolist(), 5.0)
                entropy = -sum(share * log_shares[number].item() for share, number in pairs)
                losses += [weights[pairs[0][1]].item() * entropy] if ok[image] else []
    expected = sum(losses) / len(losses) if losses else 0
    logits.requires_grad_()
    loss = colour_loss(logits, code, weights, ok if masked else None)
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    loss.backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("width", [0, -10, float("nan")])
def test_other_widths_are_refused(width):
    with pytest.raises(ValueError, match="method.bin_width must be above 0. Received"):
        in_gamut_bins(width)
