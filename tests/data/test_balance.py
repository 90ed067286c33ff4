"""Uniform sampling over clusters against a loop over the clusters."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_lightning.data.balance import uniform_order


def labels_of(count, clusters, skew, seed):
    """Sizes fall off by ``skew``; some clusters may be empty."""
    rng = np.random.default_rng(seed)
    weights = rng.random(clusters) ** skew + 1e-12
    return rng.choice(clusters, count, p=weights / weights.sum()).astype(np.int32)


SKEWED = st.builds(labels_of, st.integers(1, 200), st.integers(1, 30), st.integers(0, 12), st.integers(0, 999))


@settings(deadline=None)
@given(SKEWED, st.integers(0, 99))
def test_every_cluster_gives_its_share(labels, seed):
    order = uniform_order(labels, np.random.default_rng(seed))
    members = {label: np.flatnonzero(labels == label).tolist() for label in set(labels.tolist())}
    share = len(labels) // len(members) + 1
    assert order.shape == labels.shape
    assert order.dtype == np.int64
    drawn = Counter(labels[order].tolist())
    assert all(count <= share for count in drawn.values())
    # The cut to N takes what is more than N, wherever it falls.
    assert sum(share - drawn[label] for label in members) == share * len(members) - len(labels)
    for label, own in members.items():
        times = Counter(order[labels[order] == label].tolist())
        assert set(times) <= set(own)
        assert len(own) <= share or max(times.values(), default=0) <= 1, "enough members: none twice"


@given(SKEWED)
def test_draws_follow_the_generator(labels):
    one, same, other = (uniform_order(labels, np.random.default_rng([3, epoch])) for epoch in (0, 0, 1))
    assert np.array_equal(one, same)
    assert len(labels) < 20 or not np.array_equal(one, other)


def test_members_are_drawn_alike_whether_there_are_many_or_few():
    """Over many epochs each member of a cluster is as frequent as any other: large, exactly S, and small clusters."""
    labels = np.repeat([0, 1, 2], [60, 24, 6])  # S = 31
    counts = np.zeros(90)
    for epoch in range(3000):
        counts += np.bincount(uniform_order(labels, np.random.default_rng(epoch)), minlength=90)
    for members in (slice(0, 60), slice(60, 84), slice(84, 90)):
        mean = counts[members].mean()
        assert np.abs(counts[members] / mean - 1).max() < 0.15
        assert abs(counts[members].sum() / 3000 - 30) < 0.2


def test_order_mixes_the_clusters():
    labels = np.repeat(np.arange(10), 100)
    first = labels[uniform_order(labels, np.random.default_rng(0))[:100]]
    assert len(set(first.tolist())) == 10
