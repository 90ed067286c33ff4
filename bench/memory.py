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
from torch.nn import functional as F

from odc_lightning.memory import Memory
from odc_lightning.objective import loss_weights

BATCH, DIM, MOMENTUM, INTERVAL = 512, 256, 0.5, 10
Call = Callable[[Tensor, Tensor], None]
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def clock() -> float:
    """Processor time of one thread does not see what else the machine does; of several it would add them up."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def filled(num_samples: int, num_clusters: int, dtype: str = "float32") -> Memory:
    """A memory of unit rows around random unit centres, noise 0.9, in clusters of equal size."""
    memory = Memory(
        num_samples=num_samples, num_clusters=num_clusters, feature_dim=DIM, min_cluster_size=2, row_dtype=dtype
    )
    centres_CD = F.normalize(torch.randn(num_clusters, DIM))
    labels_N = torch.randperm(num_samples).remainder_(num_clusters)
    rows_ND = torch.empty(num_samples, DIM, dtype=DTYPES[dtype])
    for rows, labels in zip(rows_ND.split(65536), labels_N.split(65536), strict=True):
        rows.copy_(F.normalize(centres_CD[labels] + 0.9 * noise(len(rows))))
    memory.fill(rows_ND, labels_N)
    return memory


def noise(count: int) -> Tensor:
    """Random directions of norm about 1, (count, D)."""
    return torch.randn(count, DIM) / DIM**0.5


def batches(memory: Memory) -> list[tuple[Tensor, Tensor]]:
    """Ten batches of different images, each feature near its old one, as in training."""
    index = [torch.randint(memory.num_samples, (2 * BATCH,)).unique()[:BATCH] for _ in range(INTERVAL)]
    return [(index_B, memory.samples.owned_rows(index_B).float() + 0.5 * noise(BATCH)) for index_B in index]


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


def product(memory: Memory) -> Call:
    """The floor: scores of the batch against all centroids."""
    centroids_CD = memory.centroids.centroids_CD
    bias_C = -centroids_CD.square().sum(1) / 2

    def scores(_: Tensor, features_BD: Tensor) -> None:
        torch.addmm(bias_C, features_BD, centroids_CD.T)

    return scores


def side_by_side(calls: dict[str, tuple[Memory, Call]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; a round is ten iterations of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (memory, call) in calls.items():
            given = batches(memory)
            began = clock()
            for index_B, features_BD in given:
                call(index_B, features_BD)
            times[name].append((clock() - began) / INTERVAL)
    return {name: values[1:] for name, values in times.items()}  # the first round warms up


def line(name: str, seconds: Sequence[float], floor: Sequence[float]) -> None:
    """Median milliseconds and the round-by-round ratio to the floor with its quartiles."""
    ratios = sorted(own / low for own, low in zip(seconds, floor, strict=True))
    quartiles = f"{ratios[len(ratios) // 4]:.2f}-{ratios[3 * len(ratios) // 4]:.2f}"
    median = statistics.median(seconds) * 1e3
    print(f"  {name:<24} {median:8.2f} ms   ratio {statistics.median(ratios):7.2f} ({quartiles})", flush=True)


def iterations(num_samples: int, num_clusters: int, rounds: int) -> None:
    """An iteration, ours and the release's, over the product in it."""
    memory = filled(num_samples, num_clusters)
    print(f"N {num_samples:,}  C {num_clusters:,}  float32")
    calls = {"product": product(memory), "ours": Ours(memory), "release": Release(memory)}
    times = side_by_side({name: (memory, call) for name, call in calls.items()}, rounds)
    for name, seconds in times.items():
        line(name, seconds, times["product"])
    print(f"  small clusters refilled on the way: {memory.refilled}")


def flat(sizes: Sequence[int], num_clusters: int, rounds: int) -> None:
    """An iteration at several N over that at the first, rows in float16."""
    memories = {f"N {size:,}": filled(size, num_clusters, "float16") for size in sizes}
    print(f"C {num_clusters:,}  float16, over the first")
    times = side_by_side({name: (memory, Ours(memory)) for name, memory in memories.items()}, rounds)
    for name, seconds in times.items():
        line(name, seconds, next(iter(times.values())))
    print(f"  small clusters refilled on the way: {[memory.refilled for memory in memories.values()]}")


def small_clusters(num_samples: int, num_clusters: int, count: int, rounds: int) -> None:
    """Dissolving and refilling so many small clusters at once."""
    seconds = []
    memory = filled(num_samples, num_clusters)
    for _ in range(rounds):
        shrunk = torch.randperm(num_clusters)[:count]
        labels_N = memory.labels_N.long()
        to_C = torch.arange(num_clusters)
        to_C[shrunk] = (shrunk + 1) % num_clusters
        to_C[shrunk] = to_C[to_C[shrunk]]
        rest_N = torch.ones(num_samples, dtype=torch.bool)
        for cluster in shrunk.tolist():  # two members are left
            rest_N[(labels_N == cluster).nonzero().flatten()[:2]] = False
        memory.samples.labels_N = torch.where(rest_N, to_C[labels_N], labels_N).int()
        memory._recount()
        memory.refresh_centroids()
        began = clock()
        handled = memory.handle_small_clusters()
        seconds.append(clock() - began)
        if len(handled) != count:
            raise RuntimeError(f"{count} small clusters were made, {len(handled)} were handled")
    print(f"{count} small clusters at N {num_samples:,}, C {num_clusters:,}: {statistics.median(seconds) * 1e3:.1f} ms")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="of ten iterations each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="also N 10,000,000, which takes 10 GB")
    parser.add_argument("--quick", action="store_true", help="N 100,000 and C 1,000 only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"batch {BATCH}, D {DIM}, refresh every {INTERVAL}, {options.threads} threads, {options.rounds} rounds")
    iterations(100_000, 1_000, options.rounds)
    if options.quick:
        return
    iterations(1_280_000, 10_000, options.rounds)
    flat([100_000, 1_280_000, *([10_000_000] if options.large else [])], 10_000, options.rounds)
    small_clusters(1_280_000, 10_000, 64, 5)


if __name__ == "__main__":
    main()
