"""A whole iteration of ODC's memory over the matrix product inside it, flat in N; small clusters; the release's way.

An iteration is what the training does besides the network: read labels and weights, Eq. 2, Eq. 3, sums, a tenth of a
centroid refresh, the test for small clusters. Its floor is the product of the batch with all centroids.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from odc_lightning.memory import Memory
from odc_lightning.objective import loss_weights

BATCH, DIM, MOMENTUM, INTERVAL = 512, 256, 0.5, 10
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def clock() -> float:
    """Processor time of one thread does not see what else the machine does; of several it would add them up."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def filled(num_samples: int, num_clusters: int, dtype: str = "float32") -> Memory:
    """A memory of random unit rows, in clusters of equal size, as a start-up clustering would leave it."""
    memory = Memory(
        num_samples=num_samples, num_clusters=num_clusters, feature_dim=DIM, min_cluster_size=5, row_dtype=dtype
    )
    labels_N = torch.randperm(num_samples).remainder_(num_clusters)
    memory.fill(torch.empty(num_samples, DIM, dtype=DTYPES[dtype]).uniform_(), labels_N)
    return memory


class Ours:
    """One call is one iteration."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.number = memory, 0

    def __call__(self, index_B: Tensor, features_BD: Tensor) -> None:
        self.number += 1
        self.memory.labels(index_B)
        self.memory.update(index_B, features_BD, unique=True)
        if self.number % INTERVAL == 0:
            self.memory.refresh_centroids()
        self.memory.handle_small_clusters()
        loss_weights(self.memory.sizes_C)


class Release:
    """The same iteration as the authors' release does it, on the host: by scans of all N labels."""

    def __init__(self, memory: Memory) -> None:
        self.rows, self.labels = memory.samples.rows.float().numpy().copy(), memory.labels_N.long().numpy().copy()
        self.centroids, self.number = memory.centroids.centroids_CD.clone(), 0

    def __call__(self, index_B: Tensor, features_BD: Tensor) -> None:
        self.number += 1
        index = index_B.numpy()
        moved = MOMENTUM * torch.nn.functional.normalize(features_BD) + (1 - MOMENTUM) * torch.from_numpy(
            self.rows[index]
        )
        moved = torch.nn.functional.normalize(moved)
        self.rows[index] = moved.numpy()
        self.labels[index] = torch.mm(self.centroids, moved.T).argmax(0).numpy()
        clusters = len(self.centroids)
        if self.number % INTERVAL == 0:
            order = np.argsort(self.labels)
            ends = np.cumsum(np.bincount(self.labels, minlength=clusters))
            for cluster, members in enumerate(np.split(order, ends[:-1])):
                if len(members):
                    self.centroids[cluster] = torch.from_numpy(self.rows[members].mean(0))
        np.bincount(self.labels, minlength=clusters)  # small clusters
        1 / np.sqrt(np.maximum(np.bincount(self.labels, minlength=clusters), 1))  # weights


def product(memory: Memory) -> Callable[[Tensor, Tensor], None]:
    """The floor: scores of the batch against all centroids."""
    centroids_CD = memory.centroids.centroids_CD
    bias_C = -centroids_CD.square().sum(1) / 2

    def scores(_: Tensor, features_BD: Tensor) -> None:
        torch.addmm(bias_C, features_BD, centroids_CD.T)

    return scores


def side_by_side(calls: dict[str, Callable[[Tensor, Tensor], None]], num_samples: int, rounds: int) -> dict[str, list]:
    """Seconds of each call in each round; a round is ten iterations of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        batches = [(torch.randperm(num_samples)[:BATCH], torch.rand(BATCH, DIM)) for _ in range(INTERVAL)]
        for name, call in calls.items():
            began = clock()
            for index_B, features_BD in batches:
                call(index_B, features_BD)
            times[name].append((clock() - began) / INTERVAL)
    return {name: values[1:] for name, values in times.items()}  # the first round warms up


def line(name: str, seconds: Sequence[float], floor: Sequence[float], about: str = "") -> None:
    """Median milliseconds and the round-by-round ratio to the floor with its quartiles."""
    ratios = sorted(own / low for own, low in zip(seconds, floor, strict=True))
    quartiles = f"{ratios[len(ratios) // 4]:.2f}-{ratios[3 * len(ratios) // 4]:.2f}"
    median = statistics.median(seconds) * 1e3
    print(f"{name:<34} {median:8.2f} ms   ratio {statistics.median(ratios):7.2f} ({quartiles})  {about}", flush=True)


def iterations(num_clusters: int, sizes: Sequence[tuple[int, str]], rounds: int, release: bool) -> None:
    """Iterations at one C and several N: each over the product, and over that at the first N."""
    first: list[float] = []
    for num_samples, dtype in sizes:
        memory = filled(num_samples, num_clusters, dtype)
        calls: dict[str, Callable[[Tensor, Tensor], None]] = {"product": product(memory), "ours": Ours(memory)}
        if release:
            calls["release"] = Release(memory)
        times = side_by_side(calls, num_samples, rounds)
        print(f"N {num_samples:,}  C {num_clusters:,}  {dtype}")
        for name, seconds in times.items():
            line(f"  {name}", seconds, times["product"])
        first = first or [own - low for own, low in zip(times["ours"], times["product"], strict=True)]
        beside = statistics.median(own - low for own, low in zip(times["ours"], times["product"], strict=True))
        print(f"  beside the product {beside * 1e3:.2f} ms, {statistics.median(first) * 1e3:.2f} at the first N")


def small_clusters(num_samples: int, num_clusters: int, count: int, rounds: int) -> None:
    """Dissolving and refilling so many small clusters at once."""
    seconds = []
    for _ in range(rounds):
        memory = filled(num_samples, num_clusters)
        keep = torch.randperm(num_clusters)[:count]
        table_C = torch.arange(num_clusters)
        table_C[keep] = (keep + 1) % num_clusters
        labels_N = table_C[memory.labels_N.long()]
        for cluster in keep.tolist():  # three members are left
            labels_N[(memory.labels_N == cluster).nonzero().flatten()[:3]] = cluster
        memory.samples.labels_N = labels_N.int()
        memory._recount()
        began = clock()
        handled = memory.handle_small_clusters()
        seconds.append(clock() - began)
        assert len(handled) == count
    print(f"{count} small clusters at N {num_samples:,}, C {num_clusters:,}: {statistics.median(seconds) * 1e3:.1f} ms")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="of ten iterations each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="also N 10,000,000, which takes 5 GB")
    parser.add_argument("--quick", action="store_true", help="N 100,000 and C 1,000 only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"batch {BATCH}, D {DIM}, refresh every {INTERVAL}, {options.threads} threads, {options.rounds} rounds")
    iterations(1_000, [(100_000, "float32")], options.rounds, release=True)
    if options.quick:
        return
    iterations(10_000, [(1_280_000, "float32")], options.rounds, release=True)
    sizes = [(100_000, "float16"), (1_000_000, "float16"), *([(10_000_000, "float16")] if options.large else [])]
    iterations(10_000, sizes, options.rounds, release=False)
    small_clusters(1_280_000, 10_000, 64, 3)


if __name__ == "__main__":
    main()
