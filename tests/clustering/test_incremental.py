"""The incremental k-means against a slow loop that sums anew each time, its invariants, and how good it is."""

import math

import pytest
import torch
from test_kmeans import on_grid, random_rows, repeated_rows, slow_labels

from odc_lightning.clustering import assignment
from odc_lightning.clustering import kmeans as module
from odc_lightning.clustering.algorithms import incremental
from odc_lightning.clustering.assignment import Assignment
from odc_lightning.clustering.kmeans import KMeans, forecast_seconds, resolve_backend
from odc_lightning.clustering.nearest import nearest_centroid
from odc_lightning.clustering.start import spread_start
from odc_lightning.memory import Ranks


def fast(**settings):
    return KMeans(algorithm="incremental", **{"iterations": 3, **settings})


def slow_incremental(rows, start, parts, iterations):
    """Lists and loops; from the second pass on every cluster keeps a member on the data it is used with."""
    centroids, labels = [rows[i] for i in start], [None] * len(rows)

    def step(*some):
        own = [i for i in range(len(rows)) if parts[i] in some]
        for i, label in zip(own, slow_labels([rows[i] for i in own], centroids), strict=True):
            labels[i] = label
        for c in range(len(centroids)):
            members = [row for row, label in zip(rows, labels, strict=True) if label == c]
            if members:
                mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
                centroids[c] = torch.tensor(mean, dtype=torch.float64).float().tolist()

    step(0, 1)
    labels = [None] * len(rows)
    for done in range(1, iterations):
        first = [(2, 3, 4, 5)] if done == 1 else [(2,), (3,), (4,), (5,)]
        for some in [*first, (6,), (7,), (0,), (1,)]:
            step(*some)
        assert set(labels) == set(range(len(centroids)))
    return slow_labels(rows, centroids), centroids


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_equals_slow_loop(iterations, seed):
    rows = on_grid(random_rows(317, 5, seed=10 * seed + iterations))
    generator = torch.Generator().manual_seed(seed)
    start = spread_start(rows, 317, 8, Ranks(), generator)
    parts = torch.randperm(317, generator=generator) % 8
    result = fast(iterations=iterations, seed=seed).fit(rows, 317, 8)
    labels, centroids = slow_incremental(rows.tolist(), start.tolist(), parts.tolist(), iterations)
    assert result.labels_N.tolist() == labels
    assert result.centroids_CD.tolist() == centroids
    assert result.iterations == iterations
    assert result.backend == "torch"


@pytest.mark.parametrize("rows", [on_grid(random_rows(700, 8, centres=40)), repeated_rows(different=40, copies=9)])
@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_running_sums_equal_a_recount(rows, iterations):
    count, clusters = len(rows), 35
    state = Assignment(rows, count, rows[:clusters].clone(), Ranks())
    done = incremental(state, iterations, torch.Generator().manual_seed(1), lambda *_: None)
    assert done <= iterations
    assert state.labels.tolist() == slow_labels(rows.tolist(), state.centroids_CD.tolist())
    expected = torch.zeros(clusters, rows.shape[1], dtype=torch.float64).index_add_(0, state.labels, rows.double())
    assert torch.equal(state.sums_CD, expected)
    assert state.sizes_C.tolist() == state.labels.bincount(minlength=clusters).tolist()
    assert state.sizes_C.min() > 0
    distances = (rows.double() - state.centroids_CD[state.labels].double()).square().sum()
    assert state.inertia() == pytest.approx(float(distances), rel=1e-7, abs=1e-5)


def test_three_passes_are_as_good_as_ten_iterations_of_lloyd():
    few, many, lloyd = 0.0, 0.0, 0.0
    for seed in range(8):
        rows = on_grid(random_rows(4000, 64, seed=seed, centres=40, noise=1.5))
        few += fast(iterations=1, seed=seed).fit(rows, 4000, 60).inertia
        many += fast(seed=seed).fit(rows, 4000, 60).inertia
        lloyd += KMeans(backend="torch", iterations=10, seed=seed).fit(rows, 4000, 60).inertia
    assert many < 1.01 * lloyd
    assert few > 1.01 * lloyd  # so the bound says something


def test_progress_counts_the_last_pass_when_its_labels_are_there():
    calls = []
    result = fast(iterations=4).fit(random_rows(304, 4), 304, 12, progress=lambda *call: calls.append(call))
    done, most, inertia, changed = zip(*calls, strict=True)
    assert done == (0, 1, 2, 3, 4)
    assert set(most) == {4}
    assert [math.isnan(value) for value in inertia] == [True, True, False, False, False]
    assert inertia[2] > inertia[3] > inertia[4] == result.inertia
    assert changed[:3] == (1, 0.25, 1)
    assert 0 < changed[3] < 1


def test_ends_when_no_label_changes():
    rows = on_grid(random_rows(300, 4, centres=5, noise=0.01))
    result = fast(iterations=50).fit(rows, 300, 5)
    assert 2 < result.iterations < 50
    assert torch.equal(result.labels_N, fast(iterations=51).fit(rows, 300, 5).labels_N)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_fewer_rows_than_parts(count):
    rows = on_grid(random_rows(count, 3))
    assert fast().fit(rows, count, count).labels_N.unique().tolist() == list(range(count))


def test_seed_changes_the_parts():
    rows, calls = on_grid(random_rows(500, 6)), []
    for seed in (1, 1, 2):
        state = Assignment(rows, 500, rows[:20].clone(), Ranks())  # the same start
        incremental(state, 2, torch.Generator().manual_seed(seed), lambda *_: None)
        calls.append(state.centroids_CD)
    assert torch.equal(calls[0], calls[1])
    assert not torch.equal(calls[0], calls[2])


def test_only_in_torch():
    with pytest.raises(ValueError, match="^backend must be torch or auto for algorithm=incremental: faiss has only"):
        fast(backend="faiss")
    assert resolve_backend(fast(backend="auto").backend, 1) == "torch"


def test_unknown_algorithm():
    message = r"algorithm must be one of lloyd, incremental. Received: 'loyd'. Did you mean 'lloyd'\?"
    with pytest.raises(ValueError, match=message):
        KMeans(algorithm="loyd")


def test_forecast_counts_as_many_assignments_as_are_made(monkeypatch):
    assigned = []

    def counted(rows, *args, **kwargs):
        assigned.append(len(rows))
        return nearest_centroid(rows, *args, **kwargs)

    monkeypatch.setattr(assignment, "nearest_centroid", counted)
    monkeypatch.setattr(module, "_timed", lambda rows, *_: float(len(rows)))
    rows = on_grid(random_rows(1600, 4, centres=10))
    fast(iterations=5).fit(rows, 1600, 10)
    forecast = forecast_seconds(1600, 10, 4, iterations=5)
    assert forecast == 6 * 1600
    assert sum(assigned) == forecast - 1200  # three quarters of a pass: for the start
