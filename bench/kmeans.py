"""K-means of all features: ours in faiss and in torch, and the fast mode, against faiss alone: time and inertia.

All run in turn, in one process, on the same unit rows around unit centres: close around them (clustered) and far off
(noisy). Inertia is the sum of squared distances of all rows to the nearest centroid, found the same way for each.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import faiss
import torch
from torch import Tensor

from memory import clock
from odc_lightning.clustering.kmeans import KMeans
from odc_lightning.clustering.nearest import nearest_centroid
from odc_lightning.memory.samples import l2_normalize, snap

NOISE = {"clustered": 0.9, "noisy": 2.0}  # length of what is added to a unit centre
PEER = "faiss alone"


def rows_around_centres(count: int, width: int, centres: int, noise: float, seed: int) -> Tensor:
    """Unit rows on the grid of the samples memory, (count, width) float32; the clusters' sizes are lognormal."""
    generator = torch.Generator().manual_seed(seed)
    means = l2_normalize(torch.randn(centres, width, generator=generator)).float()
    shares = torch.randn(centres, generator=generator).exp_()
    rows = torch.randn(count, width, generator=generator).mul_(noise / width**0.5)
    rows += means[torch.multinomial(shares, count, replacement=True, generator=generator)]
    return snap(l2_normalize(rows), torch.float32)


def inertia(rows: Tensor, centroids_CD: Tensor) -> float:
    """Sum of squared distances to the nearest centroid."""
    total = 0.0
    for block in rows.split(8192):
        offsets = block.double() - centroids_CD[nearest_centroid(block, centroids_CD)].double()
        total += float(offsets.square_().sum())
    return total


def faiss_alone(iterations: int) -> Callable[[Tensor, int, int], Tensor]:
    """Training by faiss with nothing around it, to centroids; it keeps all rows as ours does."""

    def fit(rows: Tensor, clusters: int, seed: int) -> Tensor:
        kmeans = faiss.Kmeans(
            rows.shape[1],
            clusters,
            niter=iterations,
            seed=seed,
            max_points_per_centroid=10_000_000,
            min_points_per_centroid=1,
        )
        kmeans.train(rows.numpy())
        return torch.from_numpy(kmeans.centroids)

    return fit


def ours(**settings: str | int) -> Callable[[Tensor, int, int], Tensor]:
    """Our whole call, which also labels every row, to centroids."""

    def fit(rows: Tensor, clusters: int, seed: int) -> Tensor:
        return KMeans(**settings, seed=seed).fit(rows, len(rows), clusters).centroids_CD  # type: ignore[arg-type]

    return fit


def contenders(iterations: int) -> dict[str, Callable[[Tensor, int, int], Tensor]]:
    """What is timed, by name."""
    return {
        PEER: faiss_alone(iterations),
        "KMeans, faiss": ours(backend="faiss", iterations=iterations),
        "KMeans, torch": ours(backend="torch", iterations=iterations),
        "fast, 3 passes": ours(algorithm="incremental", iterations=3),  # as conf/clustering/fast.yaml
        "fast, 6 passes": ours(algorithm="incremental", iterations=6),
    }


def spread(values: list[float], digits: int) -> str:
    """Median with quartiles."""
    values = sorted(values)
    low, high = values[len(values) // 4], values[3 * len(values) // 4]
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def compare(kind: str, options: argparse.Namespace) -> None:
    """A table: each contender's median seconds, and time and inertia over those of faiss alone, round by round."""
    fits = contenders(options.iterations)
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    quality: dict[str, list[float]] = {name: [] for name in fits}
    for seed in range(options.seed, options.seed + options.rounds):
        rows = rows_around_centres(options.samples, options.width, options.clusters, NOISE[kind], seed)
        for name, fit in fits.items():
            began = clock()
            centroids_CD = fit(rows, options.clusters, seed)
            seconds[name].append(clock() - began)
            quality[name].append(inertia(rows, centroids_CD))
    print(f"\n{kind}{'seconds':>18}{'time / faiss alone':>26}{'inertia / faiss alone':>30}")
    for name in fits:
        times = [own / peer for own, peer in zip(seconds[name], seconds[PEER], strict=True)]
        ratios = [own / peer for own, peer in zip(quality[name], quality[PEER], strict=True)]
        median = statistics.median(seconds[name])
        print(f"{name:<16}{median:>11.2f}{spread(times, 2):>26}{spread(ratios, 4):>30}", flush=True)


def main() -> None:
    """Print a table for each kind of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=1_000)
    parser.add_argument("--iterations", type=int, default=10, help="of faiss and of ours beside the fast mode")
    parser.add_argument("--rounds", type=int, default=3, help="each with rows and a start of its own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=NOISE, default=list(NOISE))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    print(
        f"N {options.samples:,}, D {options.width}, C {options.clusters:,}, {options.iterations} iterations, "
        f"{options.threads} threads, {options.rounds} rounds"
    )
    for kind in options.kinds:
        compare(kind, options)


if __name__ == "__main__":
    main()
