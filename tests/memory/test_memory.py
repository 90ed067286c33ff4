import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SlowMemory

from odc_lightning.checks import check_sizes
from odc_lightning.memory import Memory, Ranks
from odc_lightning.memory.memory import last_occurrences
from odc_lightning.memory.split import two_way_split

PAPER = {}
RELEASE = {
    "small_means": "below",
    "split_side": "second",
    "guarantee_size": False,
    "metric": "inner_product",
    "renormalize": True,
    "refresh": "all",
}


def clustered(rng, count, dim, centers=6, noise=0.4):
    """Non-negative features around a few directions, as behind the head's last ReLU; some are zero."""
    directions = rng.normal(size=(centers, dim))
    features = directions[rng.integers(centers, size=count)] + noise * rng.normal(size=(count, dim))
    features = np.maximum(features, 0).astype(np.float32)
    features[rng.random(count) < 0.02] = 0
    return features


def filled(features, labels, clusters, rules=PAPER, seed=3, threshold=4, **keys):
    memory = Memory(
        num_samples=len(features),
        num_clusters=clusters,
        feature_dim=features.shape[1],
        min_cluster_size=threshold,
        seed=seed,
        **{**rules, **keys},
    )
    memory.fill(torch.from_numpy(features), torch.from_numpy(labels))
    return memory


def assert_same(memory, slow):
    assert memory.labels_N.tolist() == slow.labels
    assert memory.sizes_C.tolist() == slow.sizes()
    np.testing.assert_array_equal(memory.samples.rows.double().numpy(), slow.rows)
    np.testing.assert_array_equal(memory.centroids.centroids_CD.numpy(), slow.centroids)


@pytest.mark.parametrize("rules", [PAPER, RELEASE], ids=["paper", "openselfsup"])
@pytest.mark.parametrize("threshold", [1, 4, 9])
def test_equals_the_slow_loop_for_hundreds_of_steps(rules, threshold):
    rng = np.random.default_rng()
    count, clusters, dim, batch = 120, 10, 5, 16
    features, labels = clustered(rng, count, dim), rng.integers(clusters, size=count)
    labels[labels == 3] = 4  # cluster 3 is empty from the start
    memory = filled(features, labels, clusters, rules, threshold=threshold)
    slow = SlowMemory(features, labels, clusters, momentum=0.5, threshold=threshold, seed=3, release=rules is RELEASE)
    assert_same(memory, slow)
    handled = 0
    for step in range(1, 301):
        index = rng.integers(count, size=batch)  # with repeats
        new = clustered(rng, batch, dim, centers=2)  # few directions: clusters run empty
        ratio = memory.update(torch.from_numpy(index), torch.from_numpy(new))
        assert float(ratio) == pytest.approx(slow.update(index, new), abs=1e-6)
        if step % 10 == 0:
            memory.refresh_centroids()
            slow.refresh()
        if step % 3 == 0:
            small = memory.handle_small_clusters()
            assert small == slow.handle_small()
            handled += len(small)
        if step % 20 == 0:
            assert_same(memory, slow)
            memory.check()
    assert_same(memory, slow)
    # The release's threshold of 1 means empty clusters only, which a random run may not have.
    assert handled > 0 or (threshold == 1 and rules is RELEASE)


def test_threshold_at_the_mean_size_takes_borders_of_several_clusters():
    """With 40 samples, 8 clusters and threshold 4 every cluster must end with exactly 5 members."""
    rng = np.random.default_rng()
    features, labels = clustered(rng, 40, 4), rng.integers(3, size=40)
    memory = filled(features, labels, 8, threshold=4)
    slow = SlowMemory(features, labels, 8, momentum=0.5, threshold=4, seed=3)
    assert_same(memory, slow)
    assert memory.sizes_C.tolist() == [5] * 8


@pytest.mark.parametrize("row_dtype", ["float32", "float16"])
def test_sums_are_bit_equal_to_a_recount_after_ten_thousand_updates(row_dtype):
    rng = np.random.default_rng()
    features = clustered(rng, 400, 8)
    memory = filled(features, rng.integers(20, size=400), 20, row_dtype=row_dtype)
    for step in range(10_000):
        index = torch.from_numpy(rng.integers(400, size=8))
        memory.update(index, torch.rand(8, 8))
        if step % 10 == 0:
            memory.refresh_centroids()
            memory.handle_small_clusters()
    assert memory.updates == 10_000
    memory.check()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    clusters=st.integers(2, 12),
    threshold=st.integers(1, 6),
    extra=st.integers(0, 60),
    momentum=st.floats(0.01, 1.0),
)
def test_invariants(seed, clusters, threshold, extra, momentum):
    rng = np.random.default_rng(seed)
    count = clusters * (threshold + 1) + extra
    features = clustered(rng, count, 3, centers=3)
    memory = filled(features, rng.integers(clusters, size=count), clusters, threshold=threshold, momentum=momentum)
    for step in range(6):
        assert int(memory.sizes_C.sum()) == count
        assert int(memory.labels_N.min()) >= 0
        assert int(memory.labels_N.max()) < clusters
        assert torch.isfinite(memory.centroids.centroids_CD).all()
        if step % 2 == 0:  # straight after start-up or handling
            assert int(memory.sizes_C.min()) > threshold
        memory.check()
        index = torch.from_numpy(rng.choice(count, size=min(count, 9), replace=False))
        memory.update(index, torch.from_numpy(clustered(rng, len(index), 3, centers=1)), unique=True)
        if step % 2 == 1:
            memory.refresh_centroids()
            memory.handle_small_clusters()


def test_a_step_changes_exactly_the_touched_rows():
    rng = np.random.default_rng()
    memory = filled(clustered(rng, 90, 6), rng.integers(5, size=90), 5)
    before = memory.samples.rows.clone(), memory.labels_N.clone()
    index = torch.tensor([3, 80, 41])
    memory.update(index, torch.rand(3, 6) + 0.1, unique=True)
    changed = (memory.samples.rows != before[0]).any(1).nonzero().flatten().tolist()
    assert changed == [3, 41, 80]
    assert set((memory.labels_N != before[1]).nonzero().flatten().tolist()) <= {3, 41, 80}


def test_unreadable_samples_keep_row_and_label():
    rng = np.random.default_rng()
    memory = filled(clustered(rng, 60, 6), rng.integers(5, size=60), 5)
    before = memory.samples.rows.clone(), memory.labels_N.clone()
    ok = torch.tensor([True, False, True, False])
    memory.update(torch.tensor([1, 2, 3, 4]), torch.rand(4, 6), ok_B=ok, unique=True)
    for bad in (2, 4):
        assert torch.equal(memory.samples.rows[bad], before[0][bad])
        assert memory.labels_N[bad] == before[1][bad]
    none = torch.zeros(2, dtype=torch.bool)
    assert float(memory.update(torch.tensor([5, 6]), torch.rand(2, 6), ok_B=none)) == 0
    memory.check()


def test_paper_refresh_leaves_uninvolved_clusters_and_release_averages_all():
    rng = np.random.default_rng()
    features = np.eye(4, dtype=np.float32).repeat(10, 0)
    labels = np.arange(4).repeat(10)
    nudge = torch.tensor([[1.0, 0.1, 0, 0]])  # sample 0 moves within its cluster
    for rules, stays in ((PAPER, True), (RELEASE, False)):
        memory = filled(features, labels, 4, rules)
        before = memory.centroids.centroids_CD.clone()
        assert float(memory.update(torch.tensor([0]), nudge)) == 0
        memory.refresh_centroids()
        assert torch.equal(memory.centroids.centroids_CD, before) is stays
    assert rng is not None


def test_state_survives_a_file_and_weights_only(tmp_path):
    rng = np.random.default_rng()
    features, labels = clustered(rng, 100, 6), rng.integers(8, size=100)
    memory, other = filled(features, labels, 8), filled(features[::-1].copy(), labels, 8, seed=11)
    memory.update(torch.arange(20), torch.rand(20, 6))
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    other.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    for step in range(40):
        index, new = torch.from_numpy(rng.integers(100, size=10)), torch.from_numpy(clustered(rng, 10, 6, centers=1))
        assert torch.equal(memory.update(index, new), other.update(index, new))
        assert memory.handle_small_clusters() == other.handle_small_clusters()
        if step % 10 == 9:
            memory.refresh_centroids()
            other.refresh_centroids()
    assert torch.equal(memory.samples.rows, other.samples.rows)
    assert torch.equal(memory.centroids.centroids_CD, other.centroids.centroids_CD)


def test_a_damaged_or_foreign_state_is_refused():
    rng = np.random.default_rng()
    memory = filled(clustered(rng, 60, 6), rng.integers(5, size=60), 5)
    state = {key: value.clone() if torch.is_tensor(value) else value for key, value in memory.state_dict().items()}
    state["rows"][7, 2] += 2.0**-24
    with pytest.raises(RuntimeError, match="damaged"):
        memory.load_state_dict(state)
    for sizes, word in (({"num_samples": 61}, "N"), ({"num_clusters": 6}, "C"), ({"feature_dim": 7}, "D")):
        keys = {"num_samples": 60, "num_clusters": 5, "feature_dim": 6, "min_cluster_size": 4, **sizes}
        with pytest.raises(ValueError, match=rf"\({word}\) = "):
            Memory(**keys).load_state_dict(memory.state_dict())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"momentum": 0.0}, r"momentum must be in \(0, 1\]. Received: 0"),
        ({"momentum": 1.1}, "Received: 1.1"),
        ({"metric": "cosine"}, "metric must be one of l2, inner_product. Received: 'cosine'"),
        ({"refresh": "some"}, "refresh must be"),
        ({"row_dtype": "bfloat16"}, "row_dtype must be"),
        ({"small_means": "tiny"}, "small_means must be"),
        ({"split_side": "first"}, "split_side must be"),
        ({"num_clusters": 101}, "num_clusters must not exceed the number of samples, 100. Received: 101"),
        ({"num_clusters": 1}, "at least 2"),
        ({"min_cluster_size": 0}, "min_cluster_size must be at least 1. Received: 0"),
        ({"min_cluster_size": 20}, "min_cluster_size can be at most 19"),
    ],
)
def test_rules_outside_their_range_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Memory(**{"num_samples": 100, "num_clusters": 5, "feature_dim": 4, "min_cluster_size": 10, **keys})


def test_suggested_sizes_are_possible():
    check_sizes(100, 5, 19)
    check_sizes(100, 4, 20)
    check_sizes(100, 5, 20, "below")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_last_occurrences(values):
    slow = [value not in values[i + 1 :] for i, value in enumerate(values)]
    assert last_occurrences(torch.tensor(values)).tolist() == slow


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 2**31), st.booleans())
def test_split_gives_both_sides_their_share(members, smallest, seed, equal_rows):
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(1 if equal_rows else members, 3))).expand(
        members, 3
    )
    if members < 2 * smallest:
        with pytest.raises(ValueError, match="cannot split"):
            two_way_split(rows, smallest)
        return
    second = int(two_way_split(rows, smallest).sum())
    assert smallest <= second <= members - smallest


def test_split_is_as_good_as_sklearns():
    from sklearn.cluster import KMeans

    rng = np.random.default_rng()
    rows = np.concatenate([rng.normal(size=(80, 16)), rng.normal(size=(50, 16)) + 1.5])
    second = two_way_split(torch.from_numpy(rows), 1).numpy()
    inertia = sum(((side - side.mean(0)) ** 2).sum() for side in (rows[second], rows[~second]))
    assert inertia <= KMeans(2, n_init=10).fit(rows).inertia_ * 1.02


def test_ownership_covers_every_sample_once():
    index = torch.arange(23)
    owners = [Ranks(r, 4) for r in range(4)]
    assert sum(ranks.num_owned(23) for ranks in owners) == 23
    owned = torch.cat([index[ranks.owned(index)] for ranks in owners])
    assert sorted(owned.tolist()) == index.tolist()
