"""Agreement of clusterings against counting loops, scikit-learn and what must not matter."""

import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn import metrics

from odc_lightning.clustering.agreement import agreement, cluster_accuracy, size_entropy, switch_ratio

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=40).map(
    lambda pairs: np.array(pairs).T
)


def slow_entropy(labels):
    return -sum(n / len(labels) * math.log(n / len(labels)) for n in Counter(labels).values())


def slow_nmi(a, b):
    both = slow_entropy(list(zip(a, b, strict=True)))
    mean = (slow_entropy(a) + slow_entropy(b)) / 2
    return (slow_entropy(a) + slow_entropy(b) - both) / mean if mean else 1.0


def slow_ari(a, b):
    """Over all pairs of samples: together in both, in a, in b."""
    couples = list(itertools.combinations(range(len(a)), 2))
    in_a = sum(a[i] == a[j] for i, j in couples)
    in_b = sum(b[i] == b[j] for i, j in couples)
    in_both = sum(a[i] == a[j] and b[i] == b[j] for i, j in couples)
    if not couples or in_a == in_b == 0:
        return 1.0
    chance, most = in_a * in_b / len(couples), (in_a + in_b) / 2
    return (in_both - chance) / (most - chance) if most != chance else 1.0


def slow_purity(clusters, classes):
    hits = 0
    for cluster in set(clusters):
        hits += max(Counter(k for c, k in zip(clusters, classes, strict=True) if c == cluster).values())
    return hits / len(clusters)


def slow_accuracy(clusters, classes):
    """Best over all one-to-one matchings of the shorter list of names into the longer."""
    few, many = sorted([sorted(set(clusters)), sorted(set(classes))], key=len)
    count = Counter(zip(clusters, classes, strict=True))
    count.update(Counter(zip(classes, clusters, strict=True)) if few != sorted(set(clusters)) else {})
    best = 0
    for match in itertools.permutations(many, len(few)):
        hits = sum(
            (c, k) in {*zip(few, match, strict=True)} or (k, c) in {*zip(few, match, strict=True)}
            for c, k in zip(clusters, classes, strict=True)
        )
        best = max(best, hits)
    return best / len(clusters)


@settings(deadline=None)
@given(pairs)
def test_equals_slow_loops(pair):
    a, b = (labels.tolist() for labels in pair)
    expected = {"nmi": slow_nmi(a, b), "ari": slow_ari(a, b), "purity": slow_purity(a, b)}
    assert agreement(*pair) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_accuracy_equals_trying_all_matchings(seed):
    rng = np.random.default_rng(seed)
    clusters = rng.integers(10, 10 + rng.integers(1, 6), 40)  # names apart, so that the reference may swap the two
    classes = rng.integers(0, rng.integers(1, 6), 40)
    expected = slow_accuracy(clusters.tolist(), classes.tolist())
    assert cluster_accuracy(clusters, classes) == pytest.approx(expected)


@settings(deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(pair, random):
    a, b = pair
    names, order = random.sample(range(1000), 7), np.array(random.sample(range(len(a)), len(a)))
    renamed = np.array(names)[a][order]
    assert agreement(renamed, b[order]) == pytest.approx(agreement(a, b), abs=1e-12)
    assert cluster_accuracy(renamed, b[order]) == pytest.approx(cluster_accuracy(a, b))


@settings(deadline=None)
@given(pairs)
def test_identical_is_one_and_symmetry(pair):
    a, b = pair
    assert agreement(a, a) == pytest.approx({"nmi": 1, "ari": 1, "purity": 1})
    assert cluster_accuracy(a, a) == 1
    there, back = agreement(a, b), agreement(b, a)
    assert (there["nmi"], there["ari"]) == pytest.approx((back["nmi"], back["ari"]), abs=1e-12)
    assert 0 <= there["nmi"] <= 1
    assert there["ari"] <= 1
    assert 0 < cluster_accuracy(a, b) <= there["purity"] <= 1


def test_equals_scikit_learn_beyond_64_bit_products():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 200_000)
    clusters = np.where(rng.random(truth.size) < 0.3, rng.integers(0, 4, truth.size), truth)
    found = agreement(clusters, truth)
    assert found["nmi"] == pytest.approx(metrics.normalized_mutual_info_score(truth, clusters))
    assert found["ari"] == pytest.approx(metrics.adjusted_rand_score(truth, clusters))


def test_unknown_classes_are_left_out_and_other_types_welcome():
    clusters, truth = np.array([5, 5, 7, 7, 9, 5]), np.array([0, 0, 1, 0, -1, -1])
    expected = agreement(clusters[:4], truth[:4])
    assert agreement(clusters, truth) == expected
    assert agreement(torch.from_numpy(clusters).int(), torch.from_numpy(truth)) == expected
    assert agreement(clusters.tolist(), truth.astype(np.int16)) == expected
    assert cluster_accuracy(clusters, truth) == cluster_accuracy(clusters[:4], truth[:4]) == 0.75


@pytest.mark.parametrize("clusters", [[0, 1, 2], []])
def test_nothing_known_is_nan(clusters):
    clusters = np.array(clusters, dtype=np.int64)
    truth = np.full_like(clusters, -1)
    assert all(math.isnan(value) for value in agreement(clusters, truth).values())
    assert math.isnan(cluster_accuracy(clusters, truth))


def test_one_cluster_for_everything_tells_nothing():
    found = agreement(np.zeros(6, int), np.array([0, 0, 0, 1, 1, 2]))
    assert found == pytest.approx({"nmi": 0, "ari": 0, "purity": 0.5})


@pytest.mark.parametrize(
    ("clusters", "truth", "message"),
    [
        (np.zeros(3, int), np.zeros(4, int), "equally long. Received: 3 and 4"),
        (np.zeros(3), np.zeros(3, int), r"labels must be integers of one dimension. Received: float64, \(3,\)"),
        (
            np.zeros(3, int),
            np.zeros((3, 1), int),
            r"truth must be integers of one dimension. Received: int64, \(3, 1\)",
        ),
    ],
)
def test_messages(clusters, truth, message):
    for measure in (agreement, cluster_accuracy):
        with pytest.raises(ValueError, match=message):
            measure(clusters, truth)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=20).filter(any))
def test_size_entropy_equals_slow_loop(sizes):
    members = [cluster for cluster, size in enumerate(sizes) for _ in range(size)]
    expected = slow_entropy(members) / math.log(len(sizes))
    assert size_entropy(np.array(sizes)) == pytest.approx(expected, abs=1e-12)
    assert size_entropy(torch.tensor(sizes[::-1])) == pytest.approx(expected, abs=1e-12)
    assert 0 <= size_entropy(np.array(sizes)) <= 1 + 1e-12


def test_size_entropy_at_its_ends():
    assert size_entropy(torch.full((7,), 3)) == pytest.approx(1)
    assert size_entropy(np.array([9, 0, 0])) == 0
    assert size_entropy(np.array([4])) == 1


@pytest.mark.parametrize("sizes", [[], [0, 0], [3, -1]])
def test_size_entropy_of_nothing(sizes):
    with pytest.raises(ValueError, match="sizes must be at least 0 and hold a sample"):
        size_entropy(np.array(sizes))


def test_fast_at_the_size_of_imagenet():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 1000, 1_280_000)
    clusters = rng.integers(0, 10_000, truth.size).astype(np.int32)
    started = time.process_time()
    agreement(clusters, truth)
    assert time.process_time() - started < 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_switch_ratio_is_what_no_renaming_can_undo(pairs):
    new, old = np.array(pairs).T
    least = min(np.mean(np.array(names)[new] != old) for names in itertools.permutations(range(4)))
    assert switch_ratio(new, old) == pytest.approx(least)
    assert switch_ratio((new + 2) % 4, old) == switch_ratio(new, old)


def test_matching_equals_a_dense_one_at_hundreds_of_clusters():
    rng = np.random.default_rng(1)
    old = rng.integers(0, 300, 20_000)
    new = np.where(rng.random(old.size) < 0.5, rng.integers(0, 300, old.size), rng.permutation(300)[old])
    table = np.zeros((300, 300))
    np.add.at(table, (new, old), 1)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    assert cluster_accuracy(new, old) == matched / old.size


def test_switch_ratio_is_fast_at_the_size_of_imagenet():
    rng = np.random.default_rng(2)
    old = rng.integers(0, 10_000, 1_280_000).astype(np.int32)
    new = np.where(rng.random(old.size) < 0.6, rng.integers(0, 10_000, old.size), old).astype(np.int32)
    started = time.process_time()
    assert switch_ratio(new, old) == pytest.approx(0.6, abs=0.01)
    assert time.process_time() - started < 4
