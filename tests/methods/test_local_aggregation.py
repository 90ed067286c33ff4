"""Local aggregation: neighbourhoods and loss against loops written from the paper, when it clusters, the contract."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import check_resumes_bit_for_bit, check_two_processes, fit
from helpers import datamodule
from odc_lightning.clustering.kmeans import KMeans
from odc_lightning.data.dataset import Batch
from odc_lightning.methods.local_aggregation import (
    LocalAggregation,
    background_neighbours,
    close_neighbours,
    local_aggregation,
)
from odc_lightning.methods.npid import NPID
from odc_lightning.nn.resnet import small_resnet

SEEDS = st.integers(0, 2**32 - 1)


def build(method=LocalAggregation, **keys):
    torch.manual_seed(0)
    return method(
        small_resnet(width=4),
        kmeans=KMeans(backend="torch", iterations=5),
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        log_every_n_steps=2,
        **{
            "num_clusters": 6,
            "num_clusterings": 3,
            "num_background": 16,
            "warmup_epochs": 1,
            "feature_dim": 8,
            "num_negatives": 20,
            "temperature": 0.2,
            **keys,
        },
    )


# -- neighbourhoods and loss -------------------------------------------------------------------------------------------


def neighbours_by_a_loop(logits, own, labels, count):
    """B_i: the nearest rows, among them the image's own. C_i: what is in its cluster, over all clusterings."""
    others = sorted((j for j in range(len(logits)) if j != own), key=lambda j: -logits[j])
    nearest = sorted(range(len(logits)), key=lambda j: -logits[j])[:count]
    background = set(nearest if own in nearest else [*others[: count - 1], own])
    close = {j for clustering in labels for j in range(len(logits)) if clustering[j] == clustering[own]}
    return background, close


def loss_by_a_loop(logits, background, close):
    """-log of P(C_i and B_i | v) / P(B_i | v), P(A | v) the sum over A of exp(v_j.v / tau) / Z."""
    z = sum(map(math.exp, logits))
    probability = [math.exp(logit) / z for logit in logits]
    return -math.log(sum(probability[j] for j in background & close) / sum(probability[j] for j in background))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, samples=st.integers(2, 30), count=st.integers(1, 40), clusterings=st.integers(1, 4))
def test_neighbourhoods_and_loss_are_the_papers(seed, samples, count, clusterings):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, samples, dtype=torch.float64, generator=rng) * 3
    index = torch.randint(samples, (5,), generator=rng)
    labels = torch.randint(4, (clusterings, samples), generator=rng, dtype=torch.int32)
    neighbours = background_neighbours(logits, index, count)
    close = close_neighbours(labels, index, neighbours)
    loss = local_aggregation(logits.gather(1, neighbours), close)
    for i in range(5):
        background, expected_close = neighbours_by_a_loop(logits[i].tolist(), int(index[i]), labels.tolist(), count)
        assert len(neighbours[i]) == min(count, samples)
        assert set(neighbours[i].tolist()) == background
        assert {int(j) for j in neighbours[i][close[i]]} == background & expected_close
        expected = loss_by_a_loop(logits[i].tolist(), background, expected_close)
        assert loss[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_gradient_is_that_of_finite_differences():
    logits = (torch.randn(4, 7, dtype=torch.float64) * 3).requires_grad_()
    close = torch.rand(4, 7) > 0.5
    close[:, 3] = True
    assert torch.autograd.gradcheck(lambda x: local_aggregation(x, close), (logits,))


def test_no_background_but_close_ones_is_no_loss():
    logits = torch.tensor([[90.0, -90.0], [1.0, 2.0]], requires_grad=True)
    loss = local_aggregation(logits, torch.tensor([[True, True], [False, True]]))
    loss.sum().backward()
    assert loss[0].item() == 0.0
    assert loss[1].item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert logits.grad.isfinite().all()


# -- the iteration -----------------------------------------------------------------------------------------------------


def test_an_iteration_by_hand(tmp_path):
    method = fit(tmp_path, build, max_epochs=2)
    images, index = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8), torch.randperm(64)[:6]
    method.eval()
    rows, feature = method.bank.rows_ND.clone(), method(images).detach()
    value = method.training_step(Batch(images, index, torch.ones(6, dtype=torch.bool)), 0).item()
    expected = []
    for i, own in enumerate(index.tolist()):
        logits = [(feature[i] @ row).item() / 0.2 for row in rows]
        expected.append(loss_by_a_loop(logits, *neighbours_by_a_loop(logits, own, method.labels_MN.tolist(), 16)))
    assert value == pytest.approx(sum(expected) / 6, rel=1e-5)
    method.finish_iteration()
    moved = (rows[index] + feature) / 2
    torch.testing.assert_close(method.bank.rows_ND[index], moved / moved.norm(dim=1, keepdim=True))


class CountsClusterings(LocalAggregation):
    """Notes the iterations before which it clusters."""

    def __init__(self, *args, **keys):
        super().__init__(*args, **keys)
        self.at = []

    def clusterings(self):
        self.at.append(self.iteration)
        return super().clusterings()


@pytest.mark.parametrize(
    ("warmup", "every", "expected"),
    [(0, 1, [0, 4, 8, 12]), (1, 1, [4, 8, 12]), (1, 2, [4, 12]), (2, 3, [8]), (4, 1, [])],
)
def test_clusters_where_an_epoch_begins(tmp_path, warmup, every, expected):
    counting = partial(build, CountsClusterings, warmup_epochs=warmup, recluster_every=every)
    assert fit(tmp_path, counting, max_epochs=4).at == expected


def test_the_warm_up_is_instance_discrimination(tmp_path):
    def discrimination():
        torch.manual_seed(0)
        keys = {"feature_dim": 8, "num_negatives": 20, "temperature": 0.2}
        optimizer = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
        return NPID(small_resnet(width=4), optimizer=optimizer, log_every_n_steps=2, **keys)

    warm = fit(tmp_path / "warm", build, max_epochs=1)
    other = fit(tmp_path / "other", discrimination, max_epochs=1)
    assert warm.pseudo_labels() is None
    assert torch.equal(warm.bank.rows_ND, other.bank.rows_ND)


def test_clusterings_differ_and_the_last_is_measured(tmp_path):
    method = fit(tmp_path, build, max_epochs=2)
    assert method.labels_MN.shape == (3, 64)
    assert torch.equal(method.pseudo_labels(), method.labels_MN[-1])
    assert not torch.equal(method.labels_MN[0], method.labels_MN[1])  # seeds of their own
    assert torch.equal(method.clusterings(), method.clusterings())  # that depend on seed and iteration only
    assert method.labels_MN.unique().tolist() == list(range(6))
    assert method.state_bytes() == 64 * 8 * 4 + 3 * 64 * 4
    assert method.forecast()["k-means"].startswith("3 x 6 clusters from epoch 2, every epoch")


# -- bad input and the contract ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_clusterings": 0}, "method.num_clusterings must be at least 1. Received: 0"),
        ({"num_background": 0}, "method.num_background must be at least 1. Received: 0"),
        ({"warmup_epochs": -1}, "method.warmup_epochs must be at least 0. Received: -1"),
        ({"recluster_every": 0}, "method.recluster_every must be at least 1. Received: 0"),
        ({"temperature": -0.1}, "method.temperature must be above 0. Received: -0.1"),
    ],
)
def test_values_outside_their_range_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        build(**keys)


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        (1, "num_clusters must be at least 2. Received: 1"),
        (65, "num_clusters must not exceed the number of samples, 64. Received: 65"),
    ],
)
def test_clusters_are_held_against_the_data(clusters, message):
    with pytest.raises(ValueError, match=message):
        build(num_clusters=clusters).require_possible(datamodule())


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_resumes_bit_for_bit(tmp_path, every):
    check_resumes_bit_for_bit(tmp_path, partial(build, recluster_every=every))


@pytest.mark.slow
def test_two_processes(tmp_path):
    checkpoint = check_two_processes(tmp_path, build)
    assert checkpoint["method"]["labels"].shape == (3, 64)
