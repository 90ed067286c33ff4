"""PCA-whitening against numpy's own decomposition, however the rows are shared out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_lightning.clustering.whitening import fit_whitening, whitened_unit_rows
from odc_lightning.memory import Ranks
from odc_lightning.memory.samples import GRID


def features(count, dim, seed, least=0.0):
    """Correlated, off-centre, of very different scales, as pooled ReLU features are."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) * np.logspace(0, -3, dim)
    return torch.from_numpy(np.maximum(rows + rng.normal(size=dim), least)).float()


def slow(rows, dim):
    """Whitened by the singular values of the centred rows: no covariance at all."""
    centred = rows.double().numpy() - rows.double().numpy().mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    out = []
    for value, direction in list(zip(np.maximum(values, 1e-30), directions, strict=True))[:dim]:
        direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
        out.append(centred @ direction / (value / np.sqrt(len(rows))))
    return np.stack(out, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(40, 200), st.integers(2, 24), st.integers(1, 30), st.integers(0, 999))
def test_equals_a_singular_value_decomposition(count, dim, wanted, seed):
    rows = features(count, dim, seed)
    whitening = fit_whitening(rows, count, wanted)
    expected, variances = slow(rows, wanted), np.linalg.svd(rows.double() - rows.double().mean(0))[1] ** 2 / count
    known = variances[: expected.shape[1]] > 1e-9 * variances[0]  # below, either way amplifies rounding
    assert whitening.matrix_DP.shape == (dim, min(dim, wanted))
    np.testing.assert_allclose(whitening(rows).numpy()[:, known], expected[:, known], rtol=1e-4, atol=1e-4)


def test_directions_have_variance_one_and_none_goes_with_another():
    rows = features(500, 12, 3)
    white = fit_whitening(rows, 500, 6)(rows)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9)
    turned = fit_whitening(rows, 500, 6, eigen_power=0.0)(rows)
    assert (turned.var(0).diff() < 0).all(), "without whitening the strongest direction comes first"


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_shared_out_rows_give_the_same(monkeypatch, world_size):
    """Each rank's moments by hand, summed: what all_reduce does."""
    rows = features(101, 9, 4)
    whole = fit_whitening(rows, 101, 5)
    shares = [rows[rank::world_size] for rank in range(world_size)]
    calls = []

    def total(ranks, local):
        calls.append(local.shape)
        others = [share.double() for share in shares[1:]]
        if local.shape == (9,):
            return local + sum(share.sum(0) for share in others)
        if local.shape == ():
            return local + sum(share.square().sum() for share in others)
        return local + sum((share - whole.mean_D).T @ (share - whole.mean_D) for share in others)

    monkeypatch.setattr(Ranks, "sum", total)
    monkeypatch.setattr(Ranks, "broadcast", lambda ranks, value: value)
    shared = fit_whitening(shares[0], 101, 5, ranks=Ranks(0, world_size))
    assert len(calls) == 3
    torch.testing.assert_close(shared.matrix_DP, whole.matrix_DP, rtol=1e-9, atol=1e-9)


def test_sign_does_not_depend_on_the_decomposition():
    rows = features(80, 7, 5, least=-np.inf)
    vectors = fit_whitening(rows, 80, 7).matrix_DP
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    assert torch.equal(fit_whitening(rows, 80, 7).matrix_DP, vectors)


def test_directions_without_variance_become_zero_not_noise():
    """Dead channels, copies of a channel, fewer samples than directions, and no variance at all."""
    rows = features(60, 6, 6, least=-np.inf)
    rows = torch.cat([rows, torch.zeros(60, 2), rows[:, :3], torch.full((60, 1), 0.1)], 1)
    white = fit_whitening(rows, 60, 12)(rows)
    assert (white.abs().amax(0) > 0.1).sum() == 6
    assert (white.square().mean(0)[6:].abs() < 1e-9).all()
    few = fit_whitening(rows[:4], 4, 12)(rows[:4])
    assert ((few.square().mean(0) - 1).abs() < 1e-6).sum() == 3, "four samples span three directions"
    same = whitened_unit_rows(fit_whitening(torch.ones(5, 4), 5, 3), torch.ones(5, 4))
    assert torch.equal(same, torch.zeros(5, 3))


def test_unit_rows_lie_on_the_grid_of_k_means():
    rows = features(300, 10, 7)
    unit = whitened_unit_rows(fit_whitening(rows, 300, 8), rows)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(300), rtol=0, atol=1e-6)
    assert torch.equal(unit.double() / GRID, (unit.double() / GRID).round())


def test_bad_input():
    with pytest.raises(ValueError, match="dim must be at least 1. Received: 0"):
        fit_whitening(torch.rand(4, 3), 4, 0)
    with pytest.raises(ValueError, match="whitening needs finite features"):
        fit_whitening(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), 2, 2)
