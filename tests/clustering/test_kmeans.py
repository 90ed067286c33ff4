"""K-Means against slow loops, across backends, processes and threads, and every message it can raise."""

import importlib
import math
import sys
import types
from pathlib import Path

import hydra
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra import compose, initialize_config_dir

from odc_lightning.clustering import kmeans as module
from odc_lightning.clustering.assignment import _largest
from odc_lightning.clustering.kmeans import ALGORITHMS, KMeans, faiss_problem, forecast_seconds, resolve_backend
from odc_lightning.clustering.nearest import block_size
from odc_lightning.memory import Ranks
from odc_lightning.memory.samples import l2_normalize, snap

CONF = Path(__file__).parents[2] / "conf"
BACKENDS = ["torch", *(["faiss"] if faiss_problem() is None else [])]
WAYS = [("lloyd", backend) for backend in BACKENDS] + [("incremental", "torch")]
needs_faiss = pytest.mark.skipif(faiss_problem() is not None, reason="faiss does not work here")


def random_rows(count, width, seed=0, centres=None, noise=0.3):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator)
    if centres:
        means = l2_normalize(torch.randn(centres, width, generator=generator)).float()
        rows = means[torch.randint(centres, (count,), generator=generator)] + noise * rows / math.sqrt(width)
    return rows


def on_grid(rows):
    return snap(l2_normalize(rows), torch.float32)


def repeated_rows(different, copies, width=6):
    return on_grid(random_rows(different, width, seed=3)).repeat(copies, 1)


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def slow_labels(rows, centroids):
    return [min(range(len(centroids)), key=lambda c: squared(row, centroids[c])) for row in rows]


def slow_lloyd(rows, start, iterations):
    """Lists and loops; every cluster keeps a member on the data it is used with."""
    centroids = [rows[i] for i in start]
    labels = slow_labels(rows, centroids)
    for _ in range(iterations):
        for c in range(len(centroids)):
            members = [row for row, label in zip(rows, labels, strict=True) if label == c]
            mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
            centroids[c] = torch.tensor(mean, dtype=torch.float64).float().tolist()
        labels = slow_labels(rows, centroids)
    return labels, centroids


@pytest.mark.parametrize("iterations", [1, 3, 30])
def test_torch_equals_slow_lloyd(iterations):
    rows = on_grid(random_rows(300, 5, seed=iterations))
    start = torch.randperm(300, generator=torch.Generator().manual_seed(7))[:12]
    result = KMeans(backend="torch", iterations=iterations, seed=7).fit(rows, 300, 12)
    labels, centroids = slow_lloyd(rows.tolist(), start.tolist(), iterations)
    assert result.labels_N.tolist() == labels
    assert result.centroids_CD.tolist() == centroids
    assert result.iterations <= iterations
    assert result.seconds > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_labels_are_nearest_and_inertia_is_their_distance(backend, seed):
    rows = on_grid(random_rows(400, 8, seed=seed, centres=9))
    result = KMeans(backend=backend, iterations=5, seed=seed).fit(rows, 400, 11)
    centroids = result.centroids_CD.tolist()
    assert result.labels_N.tolist() == slow_labels(rows.tolist(), centroids)
    distances = [squared(row, centroids[c]) for row, c in zip(rows.tolist(), result.labels_N.tolist(), strict=True)]
    assert result.inertia == pytest.approx(sum(distances), rel=1e-7)
    assert result.labels_N.unique().tolist() == list(range(11))
    assert (result.labels_N.dtype, result.centroids_CD.dtype) == (torch.int32, torch.float32)
    assert result.backend == backend


@needs_faiss
@pytest.mark.parametrize("seed", range(3))
def test_torch_and_faiss_are_equally_good(seed):
    rows = on_grid(random_rows(6000, 32, seed=seed, centres=60, noise=0.8))
    # More clusters than centres: with as many, the luck of the start alone makes 10 % between seeds of either.
    torch_result, faiss_result = (KMeans(backend=b, seed=seed).fit(rows, 6000, 100) for b in ("torch", "faiss"))
    assert torch_result.inertia == pytest.approx(faiss_result.inertia, rel=0.02)


@needs_faiss
def test_faiss_labels_equal_its_own_search():
    import faiss

    rows = on_grid(random_rows(3000, 16, centres=30))
    result = KMeans(backend="faiss").fit(rows, 3000, 30)
    index = faiss.IndexFlatL2(16)
    index.add(result.centroids_CD.numpy())
    _, found = index.search(rows.numpy(), 1)
    assert (torch.from_numpy(found[:, 0]) == result.labels_N).float().mean() > 0.999


@needs_faiss
def test_faiss_keeps_all_rows_and_says_when_told_not_to(monkeypatch, caplog, capfd):
    import faiss

    seen, rows = [], random_rows(600, 4)
    plain = faiss.Kmeans
    monkeypatch.setattr(faiss, "Kmeans", lambda *args, **kwargs: seen.append(kwargs) or plain(*args, **kwargs))
    KMeans(backend="faiss", iterations=2, seed=5).fit(rows, 600, 2)
    assert seen[0]["max_points_per_centroid"] == 10_000_000
    assert (seen[0]["niter"], seen[0]["seed"]) == (2, 5)
    KMeans(backend="faiss", iterations=2).fit(rows, 600, 30)  # 20 a cluster: it would like 39
    assert caplog.text == ""
    KMeans(backend="faiss", iterations=2, max_points_per_centroid=10).fit(rows, 600, 2)
    assert "20 of 600 rows" in caplog.text
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_seed_same_bits_other_seed_other_start(backend):
    rows = random_rows(500, 6)
    first, again, other = (KMeans(backend=backend, seed=seed, iterations=2).fit(rows, 500, 20) for seed in (1, 1, 2))
    assert torch.equal(first.labels_N, again.labels_N)
    assert torch.equal(first.centroids_CD, again.centroids_CD)
    assert not torch.equal(first.centroids_CD, other.centroids_CD)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_threads_do_not_change_a_bit(algorithm):
    rows, results, threads = random_rows(2000, 24, centres=40), [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(KMeans(algorithm=algorithm, backend="torch", iterations=6).fit(rows, 2000, 50))
    finally:
        torch.set_num_threads(threads)
    assert same(*results)


def test_raw_rows_are_normalised_and_grid_rows_taken_as_they_are():
    raw = 100 * random_rows(200, 5)
    kept, clusterer = raw.clone(), KMeans(backend="torch")
    from_raw, from_grid = clusterer.fit(raw, 200, 7), clusterer.fit(on_grid(raw), 200, 7)
    assert same(from_raw, from_grid)
    assert torch.equal(raw, kept)
    short = snap(l2_normalize(raw) / 2, torch.float32)  # as Eq. 2 leaves them
    assert clusterer.fit(short, 200, 7).inertia == pytest.approx(from_grid.inertia / 4, rel=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_float16_rows(algorithm):
    rows, clusterer = on_grid(random_rows(200, 5)).half(), KMeans(algorithm=algorithm, backend="torch")
    result = clusterer.fit(rows, 200, 7)
    assert same(result, clusterer.fit(rows.float(), 200, 7))
    assert result.centroids_CD.dtype == torch.float32


@pytest.mark.parametrize(("algorithm", "backend"), WAYS)
def test_as_many_clusters_as_different_rows_leaves_none_empty(algorithm, backend):
    rows = repeated_rows(different=12, copies=9)
    for seed in range(5):
        result = KMeans(algorithm=algorithm, backend=backend, seed=seed).fit(rows, len(rows), 12)
        assert result.labels_N.bincount(minlength=12).tolist() == [9] * 12
        if backend == "torch":
            assert result.inertia == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("algorithm", "backend"), WAYS)
def test_more_clusters_than_different_rows_leaves_the_rest_empty(algorithm, backend):
    rows = repeated_rows(different=5, copies=6)
    result = KMeans(algorithm=algorithm, backend=backend).fit(rows, len(rows), 8)
    assert sorted(result.labels_N.bincount(minlength=8).tolist()) == [0, 0, 0, 6, 6, 6, 6, 6]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("copies", [4, 100])
def test_equal_distances_do_not_hide_different_rows(algorithm, copies):
    rows = torch.eye(16).repeat_interleave(copies, 0)  # all corners are equally far from each other
    result = KMeans(algorithm=algorithm, backend="torch", iterations=3).fit(rows, 16 * copies, 16)
    assert result.labels_N.bincount(minlength=16).tolist() == [copies] * 16


@pytest.mark.parametrize(("algorithm", "backend"), WAYS)
def test_extreme_numbers_of_clusters(algorithm, backend):
    rows = on_grid(random_rows(40, 4))
    clusterer = KMeans(algorithm=algorithm, backend=backend)
    one = clusterer.fit(rows, 40, 1)
    assert one.labels_N.tolist() == [0] * 40
    assert one.centroids_CD[0].tolist() == pytest.approx(rows.double().mean(0).tolist(), abs=1e-6)
    every = clusterer.fit(rows, 40, 40)
    assert every.labels_N.unique().tolist() == list(range(40))


def test_collapsed_features():
    result = KMeans(backend="torch").fit(torch.zeros(20, 4), 20, 3)
    assert result.labels_N.tolist() == [0] * 20
    assert result.inertia == 0


def test_progress_of_torch_ends_when_no_label_changes():
    calls = []
    result = KMeans(backend="torch", iterations=50).fit(
        random_rows(300, 4, centres=5), 300, 5, progress=lambda *a: calls.append(a)
    )
    done, most, inertia, changed = zip(*calls, strict=True)
    assert done == tuple(range(result.iterations + 1))
    assert set(most) == {50}
    assert result.iterations < 50
    assert list(inertia) == sorted(inertia, reverse=True)
    assert inertia[-1] == result.inertia
    assert changed[0] == 1
    assert changed[-1] == 0
    assert all(0 < share <= 1 for share in changed[:-1])


@needs_faiss
def test_progress_of_faiss_is_called_before_and_after():
    calls = []
    result = KMeans(backend="faiss", iterations=3).fit(random_rows(90, 4), 90, 5, progress=lambda *a: calls.append(a))
    assert [call[:2] for call in calls] == [(0, 3), (3, 3)]
    assert calls[1][2] == result.inertia


# processes


def same(a, b):
    return (
        torch.equal(a.labels_N, b.labels_N) and torch.equal(a.centroids_CD, b.centroids_CD) and a.inertia == b.inertia
    )


def jobs():
    """Name, rows of all ranks, clusters, settings: cases for any number of processes."""
    for algorithm in ALGORITHMS:
        torch_only = {"algorithm": algorithm, "backend": "torch"}
        yield f"{algorithm}, raw", random_rows(1001, 16, centres=20), 23, torch_only
        yield f"{algorithm}, grid", on_grid(random_rows(500, 8)), 40, torch_only
        yield f"{algorithm}, half", on_grid(random_rows(331, 8)).half(), 9, torch_only
        yield f"{algorithm}, empty clusters", repeated_rows(different=30, copies=7), 30, torch_only
        yield f"{algorithm}, fewer different rows", repeated_rows(different=5, copies=5), 9, torch_only
        yield f"{algorithm}, a rank without rows", random_rows(2, 4), 2, torch_only
    yield "one pass", random_rows(600, 8), 50, {"algorithm": "incremental", "iterations": 1}
    yield "auto", random_rows(100, 4), 5, {"backend": "auto"}
    if faiss_problem() is None:
        yield "faiss", random_rows(700, 8), 12, {"backend": "faiss"}


def run_jobs(ranks):
    results = {}
    for name, rows, clusters, settings in jobs():
        owned = rows[ranks.rank :: ranks.world_size]
        results[name] = KMeans(**{"iterations": 8, **settings}).fit(owned, len(rows), clusters, ranks)
    return results


def work(rank, folder, world_sizes):
    torch.set_num_threads(1)
    for world_size in world_sizes:
        if rank < world_size:
            url = f"file://{folder}/{world_size}"
            dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size)
            torch.save(run_jobs(Ranks.current()), f"{folder}/{world_size}.{rank}.pt")
            rows = random_rows(9, 3)[rank::world_size]
            rows[:, 0] = math.nan if rank == 1 else 0.5
            with pytest.raises(ValueError, match=f"{len(range(1, 9, world_size))} rows hold NaN"):
                KMeans(backend="torch").fit(rows, 9, 2)
            dist.destroy_process_group()


def test_processes_do_not_change_a_bit(tmp_path):
    mp.spawn(work, (str(tmp_path), (3, 2)), nprocs=3)
    alone = run_jobs(Ranks())
    for world_size in (2, 3):
        for rank in range(world_size):
            shared = torch.load(tmp_path / f"{world_size}.{rank}.pt", weights_only=False)
            assert shared["auto"].backend == "torch"
            different = [name for name in alone if name != "auto" and not same(alone[name], shared[name])]
            assert different == []


# choice of the backend


def test_auto_prefers_faiss_in_one_process_only():
    assert resolve_backend("auto", 1) == ("faiss" if faiss_problem() is None else "torch")
    assert resolve_backend("auto", 2) == "torch"
    assert resolve_backend("torch", 1) == "torch"


@needs_faiss
def test_explicit_faiss_is_kept_for_several_processes():
    assert resolve_backend("faiss", 4) == "faiss"


def fake_faiss(gpus=0, **attributes):
    return types.SimpleNamespace(Kmeans=object, get_num_gpus=lambda: gpus, **attributes)


def test_auto_on_a_gpu_needs_a_faiss_that_sees_one(monkeypatch):
    gpu = torch.device("cuda", 0)
    for faiss, expected in (
        (fake_faiss(), "torch"),
        (fake_faiss(StandardGpuResources=object), "torch"),
        (fake_faiss(gpus=1, StandardGpuResources=object), "faiss"),
    ):
        monkeypatch.setitem(sys.modules, "faiss", faiss)
        assert resolve_backend("auto", 1, gpu) == expected
        assert resolve_backend("auto", 1, torch.device("cpu")) == "faiss"


def break_faiss(monkeypatch, how):
    if how == "empty":
        monkeypatch.setitem(sys.modules, "faiss", types.ModuleType("faiss"))
    elif how == "missing":
        monkeypatch.setitem(sys.modules, "faiss", None)
    else:

        def fail(name):
            raise RuntimeError("libcudart.so.12 is missing\nand more")

        monkeypatch.setattr(module, "importlib", types.SimpleNamespace(import_module=fail))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            "empty",
            "faiss imports but is empty; faiss-cpu and faiss-gpu overwrite each other: remove both, reinstall one",
        ),
        ("missing", "faiss is not installed"),
        ("raises", "does not import (RuntimeError: libcudart.so.12 is missing); faiss-cpu and faiss-gpu overwrite"),
    ],
)
def test_broken_faiss(monkeypatch, caplog, how, reason):
    break_faiss(monkeypatch, how)
    assert reason in str(faiss_problem())
    assert resolve_backend("auto", 1) == "torch"
    assert reason in caplog.text
    assert "\nand more" not in caplog.text
    result = KMeans().fit(random_rows(20, 3), 20, 2)
    assert result.backend == "torch"
    with pytest.raises(RuntimeError, match=r"backend=faiss cannot be used: faiss .*; or choose backend=torch"):
        KMeans(backend="faiss").fit(random_rows(20, 3), 20, 2)


# messages


def test_unknown_backend():
    message = r"backend must be one of auto, faiss, torch. Received: 'fais'. Did you mean 'faiss'\?"
    with pytest.raises(ValueError, match=message):
        KMeans(backend="fais")
    with pytest.raises(ValueError, match=r"Received: 'gpu'.$"):
        resolve_backend("gpu", 1)


@pytest.mark.parametrize("key", ["iterations", "max_points_per_centroid", "seed"])
def test_settings_out_of_range(key):
    least = 0 if key == "seed" else 1
    with pytest.raises(ValueError, match=f"{key} must be at least {least}. Received: {least - 1}"):
        KMeans(**{key: least - 1})


@pytest.mark.parametrize(
    ("rows", "samples", "clusters", "message"),
    [
        (torch.zeros(5, 2), 5, 6, "num_clusters must not exceed the number of samples, 5. Received: 6"),
        (torch.zeros(5, 2), 5, 0, "num_clusters must be at least 1. Received: 0"),
        (torch.zeros(4, 2), 5, 2, r"5 rows on rank 0 of 1 for 5 samples. Received: \(4, 2\)"),
        (torch.zeros(5), 5, 2, r"owned_rows must be \(N / W, D\)"),
        (torch.tensor([[1.0], [math.nan], [math.inf], [-math.inf], [0.5]]), 5, 2, "3 rows hold NaN or infinity"),
    ],
)
def test_impossible_inputs(rows, samples, clusters, message):
    with pytest.raises(ValueError, match=message):
        KMeans(backend="torch").fit(rows, samples, clusters)


# forecast and configuration


def test_forecast_grows_with_the_work():
    small = forecast_seconds(10_000, 100, 64, iterations=19)
    assert 0 < small < 60
    assert forecast_seconds(10_000_000, 100, 64, iterations=19) > 50 * small


def test_forecast_is_shared_by_the_ranks(monkeypatch):
    monkeypatch.setattr(module, "_timed", lambda *tensors: 2.0)
    alone = forecast_seconds(1000, 10, 8, iterations=4)
    assert alone == 5 * 1000 / block_size(10, torch.device("cpu")) * 2.0
    assert forecast_seconds(1000, 10, 8, iterations=4, world_size=4) == alone / 4


@pytest.mark.parametrize(
    ("name", "algorithm", "backend", "iterations"),
    [
        ("kmeans", "lloyd", "auto", 20),
        ("faiss", "lloyd", "faiss", 20),
        ("torch", "lloyd", "torch", 20),
        ("fast", "incremental", "torch", 3),
    ],
)
def test_configuration_builds(name, algorithm, backend, iterations):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=[f"+clustering={name}", "+seed=3"])
    clusterer = hydra.utils.instantiate(config.clustering)
    assert isinstance(clusterer, KMeans)
    assert (clusterer.algorithm, clusterer.backend, clusterer.iterations) == (algorithm, backend, iterations)
    assert (clusterer.max_points_per_centroid, clusterer.seed) == (10_000_000, 3)


def test_module_imports_no_faiss_by_itself():
    assert not hasattr(importlib.import_module(KMeans.__module__), "faiss")


@pytest.mark.parametrize(("count", "rows"), [(1, 7), (3, 200_001), (70_000, 200_001), (9, 4), (5, 0)])
def test_largest_values_in_the_order_of_a_stable_sort(count, rows):
    values = torch.randint(50, (rows,)).double()
    expected = sorted(range(rows), key=lambda i: -values[i])[:count]
    assert _largest(values, count).tolist() == expected
