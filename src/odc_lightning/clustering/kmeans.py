"""K-Means of all features: where ODC's memories start (paper, Sec. 3.1), and each epoch of DeepCluster.

Shapes: N samples · W ranks · C clusters · D feature width · E empty clusters.
"""

from __future__ import annotations

import copy
import importlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from odc_lightning.checks import check_choice
from odc_lightning.clustering.nearest import nearest_centroid
from odc_lightning.memory.memory import last_occurrences
from odc_lightning.memory.ranks import Ranks
from odc_lightning.memory.samples import GRID, l2_normalize, snap

BACKENDS = ("auto", "faiss", "torch")
Progress = Callable[[int, int, float, float], None]
"""Called with iterations done, iterations at most, inertia, share of samples whose label changed (NaN: not known)."""

_log = logging.getLogger(__name__)
_CPU_BLOCK, _GPU_BLOCK = 512, 8192  # rows: a block's scores and its float64 copy stay in a core's cache
_SQUARES_GRID = 2.0**-30  # sums of squared lengths are exact up to 2^23 rows
_REFILLS = 10  # one or two are enough unless rows differ by less than float32 scores can tell
_BOTH_BUILDS = "faiss-cpu and faiss-gpu overwrite each other: remove both, reinstall one"


@dataclass(frozen=True)
class KMeansResult:
    """A clustering of all samples, the same on every rank.

    Attributes:
        labels_N: (N,) int32, the nearest centroid of each sample; on the device of the rows, as the centroids.
        centroids_CD: (C, D) float32.
        inertia: sum of the squared distances to the nearest centroid.
        backend: ``faiss`` or ``torch``.
        iterations: that were run; fewer than asked for when no label changed any more.
        seconds: of the whole call.
    """

    labels_N: Tensor
    centroids_CD: Tensor
    inertia: float
    backend: str
    iterations: int
    seconds: float


class KMeans:
    """K-Means by Lloyd's iterations, in faiss or in torch.

    Args:
        backend: ``faiss`` (one process at a time), ``torch`` (rows stay on their ranks) or ``auto``, see
            `resolve_backend`.
        iterations: at most; the authors' release runs 20.
        max_points_per_centroid: faiss trains on a random subset above this; its own default of 256 would drop rows
            without a word, the release's 10^7 keeps all. The torch backend always takes all rows.
        seed: of the starting rows.

    Raises:
        ValueError: for a value outside its range or an unknown backend.
    """

    def __init__(
        self,
        *,
        backend: str = "auto",
        iterations: int = 20,
        max_points_per_centroid: int = 10_000_000,
        seed: int = 0,
    ) -> None:
        check_choice("backend", backend, BACKENDS)
        for key, value, least in (
            ("iterations", iterations, 1),
            ("max_points_per_centroid", max_points_per_centroid, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{key} must be at least {least}. Received: {value}")
        self.backend, self.iterations, self.seed = backend, iterations, seed
        self.max_points_per_centroid = max_points_per_centroid

    def with_seed(self, seed: int) -> KMeans:
        """The same with other starting rows: for a clustering of every epoch."""
        other = copy.copy(self)
        other.seed = seed
        return other

    @torch.no_grad()
    def fit(
        self,
        owned_rows: Tensor,
        num_samples: int,
        num_clusters: int,
        ranks: Ranks | None = None,
        progress: Progress | None = None,
    ) -> KMeansResult:
        """Cluster all samples. Collective: every rank makes the call.

        The torch backend gives the same bits on the CPU for any number of ranks and threads. No cluster is empty
        unless fewer than C rows differ.

        Args:
            owned_rows: (N / W, D) features of the samples i with ``i % W == rank``, in order. Rows on the grid of the
                samples memory (multiples of 2^-24 within [-1, 1]) are taken as they are; if any row of any rank is
                not, all are L2-normalised and snapped to it.
            num_samples: N, over all ranks.
            num_clusters: C.
            ranks: processes that share the rows; default: the running process group.
            progress: called at the start and after each iteration; by faiss only before and after.

        Raises:
            ValueError: if there are more clusters than samples, or rows with NaN or infinity.
            RuntimeError: if ``faiss`` was asked for and does not work.
        """
        started, ranks, report = time.perf_counter(), ranks or Ranks.current(), progress or _silent
        _check_sizes(owned_rows, num_samples, num_clusters, ranks)
        backend = resolve_backend(self.backend, ranks.world_size, owned_rows.device)
        state = _Lloyd(_rows_on_grid(owned_rows, ranks), num_samples, ranks)
        iterations = (self._run_faiss if backend == "faiss" else self._run_torch)(state, num_clusters, report)
        seconds = time.perf_counter() - started
        return KMeansResult(state.all_labels(), state.centroids_CD, state.inertia(), backend, iterations, seconds)

    def _run_torch(self, state: _Lloyd, num_clusters: int, report: Progress) -> int:
        generator = torch.Generator().manual_seed(self.seed)
        start_C = torch.randperm(state.num_samples, generator=generator)[:num_clusters]
        state.centroids_CD = state.ranks.take(state.rows, start_C.to(state.rows.device))
        changed, done = state.assign(), 0
        report(0, self.iterations, state.inertia(), changed)
        while changed > 0 and done < self.iterations:
            state.average()
            state.fill_empty()
            changed, done = state.assign(), done + 1
            report(done, self.iterations, state.inertia(), changed)
        state.settle()
        return done

    def _run_faiss(self, state: _Lloyd, num_clusters: int, report: Progress) -> int:
        report(0, self.iterations, math.nan, 1.0)
        rows_ND = state.ranks.collect_rows(state.rows, state.num_samples)
        state.centroids_CD = state.rows.new_zeros(num_clusters, state.rows.shape[1], dtype=torch.float32)
        if state.ranks.rank == 0:
            state.centroids_CD.copy_(self._faiss_centroids(rows_ND, num_clusters, state.rows.is_cuda))
        state.centroids_CD = state.ranks.broadcast(state.centroids_CD)
        # Labels by our own rule rather than by faiss's search: the memory decides every later label by it.
        state.assign()
        state.settle()
        report(self.iterations, self.iterations, state.inertia(), math.nan)
        return self.iterations

    def _faiss_centroids(self, rows_ND: Tensor, num_clusters: int, on_gpu: bool) -> Tensor:
        if len(rows_ND) > self.max_points_per_centroid * num_clusters:
            kept = self.max_points_per_centroid * num_clusters
            _log.warning("faiss trains on %d of %d rows: max_points_per_centroid", kept, len(rows_ND))
        faiss = importlib.import_module("faiss")
        kmeans = faiss.Kmeans(
            rows_ND.shape[1],
            num_clusters,
            niter=self.iterations,
            seed=self.seed % 2**31,
            max_points_per_centroid=self.max_points_per_centroid,
            min_points_per_centroid=1,  # silences its wish for 39
            gpu=on_gpu and _faiss_gpus(faiss) > 0,
        )
        kmeans.train(rows_ND.float().numpy())
        return torch.from_numpy(kmeans.centroids)


def resolve_backend(backend: str, world_size: int = 1, device: torch.device | None = None) -> str:
    """Fill in ``auto``: faiss where it works and serves the device in one process, else torch.

    Several processes take torch, because faiss would need all rows in one. Rows on an accelerator take torch unless
    faiss was built for GPUs and sees one.

    Raises:
        ValueError: for an unknown backend.
        RuntimeError: if ``faiss`` is asked for by name and does not work, with the reason.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "torch" or (backend == "auto" and world_size > 1):
        return "torch"
    problem = faiss_problem()
    if backend == "faiss":
        if problem:
            raise RuntimeError(f"backend=faiss cannot be used: {problem}; or choose backend=torch")
        return "faiss"
    if problem:
        _log.warning("k-means runs in torch: %s", problem)
        return "torch"
    on_accelerator = device is not None and device.type != "cpu"
    return "torch" if on_accelerator and _faiss_gpus(importlib.import_module("faiss")) == 0 else "faiss"


def faiss_problem() -> str | None:
    """What keeps faiss from working here, in one line; None if nothing does."""
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        return f"faiss is not installed ({error})"
    except Exception as error:  # missing CUDA libraries raise RuntimeError, a mixed install almost anything
        reason = str(error).strip().splitlines() or [""]
        return f"faiss does not import ({type(error).__name__}: {reason[0]}); {_BOTH_BUILDS}"
    return None if hasattr(faiss, "Kmeans") else f"faiss imports but is empty; {_BOTH_BUILDS}"


def forecast_seconds(
    num_samples: int,
    num_clusters: int,
    dim: int,
    iterations: int = 20,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> float:
    """Seconds that the torch backend will take: a block of rows is timed (tens of milliseconds) and scaled.

    It runs all iterations and one assignment more. faiss on a CPU takes about two thirds of it.
    """
    device = torch.device(device)
    block = _GPU_BLOCK if device.type == "cuda" else min(max(2**26 // (num_clusters * dim), 256), _CPU_BLOCK)
    rows = torch.rand(block, dim, device=device).sub_(0.5)
    centroids_CD = torch.rand(num_clusters, dim, device=device).sub_(0.5)
    sums_CD = torch.zeros(num_clusters, dim, dtype=torch.float64, device=device)
    seconds = min(_timed(rows, centroids_CD, sums_CD) for _ in range(3))
    return (iterations + 1) * math.ceil(num_samples / world_size) / block * seconds


def _timed(rows: Tensor, centroids_CD: Tensor, sums_CD: Tensor) -> float:
    started = time.perf_counter()
    _assign_block(rows, centroids_CD, sums_CD).max().item()  # .item() waits for the device
    return time.perf_counter() - started


class _Lloyd:
    """Lloyd's iterations over rows that are shared out to ranks.

    Rows lie on a fixed grid, so that float64 sums are exact: no order of additions, hence no number of ranks, changes
    a bit of a centroid.

    Attributes:
        centroids_CD: (C, D) float32, the same on every rank.
        labels: (N / W,) int64 labels of this rank's rows.
        sums_CD, sizes_C: float64 sums and int64 numbers of the members by the last assignment, over all ranks.
    """

    centroids_CD: Tensor
    sums_CD: Tensor
    sizes_C: Tensor

    def __init__(self, rows: Tensor, num_samples: int, ranks: Ranks) -> None:
        self.rows, self.num_samples, self.ranks = rows, num_samples, ranks
        self.labels = rows.new_full((len(rows),), -1, dtype=torch.int64)
        self.squares = float(ranks.sum(_sum_of_squares(rows)))

    def assign(self) -> float:
        """Give each row to its nearest centroid. Returns the share of all samples whose label changed."""
        sums_CD = torch.zeros_like(self.centroids_CD, dtype=torch.float64)
        labels = torch.cat([_assign_block(rows, self.centroids_CD, sums_CD) for rows in _blocks(self.rows)])
        changed = self.ranks.sum((labels != self.labels).sum())
        self.labels = labels
        self.sums_CD = self.ranks.sum(sums_CD)
        self.sizes_C = self.ranks.sum(torch.bincount(labels, minlength=len(sums_CD)))
        return int(changed) / self.num_samples

    def average(self) -> None:
        """Move each centroid to the mean of its members; that of an empty cluster stays."""
        means_CD = (self.sums_CD / self.sizes_C.clamp(min=1)[:, None]).float()
        self.centroids_CD = torch.where(self.sizes_C[:, None] > 0, means_CD, self.centroids_CD)

    def fill_empty(self) -> bool:
        """Put the centroid of each empty cluster on a row far from its own centroid. Returns whether any moved."""
        empty_E = (self.sizes_C == 0).nonzero().flatten()
        if len(empty_E) == 0:
            return False
        index_E = self._farthest(len(empty_E))
        self.centroids_CD[empty_E[: len(index_E)]] = self.ranks.take(self.rows, index_E)
        return len(index_E) > 0

    def settle(self) -> None:
        """Assign again until no cluster is empty, or every row lies on its centroid: fewer than C rows differ."""
        for _ in range(_REFILLS):
            if not self.fill_empty():
                break
            self.assign()

    def inertia(self) -> float:
        """Sum of squared distances to the centroids of the last assignment: |x|² - 2 x·c + |c|², summed by cluster."""
        centroids_CD = self.centroids_CD.double()
        terms_C = self.sizes_C * centroids_CD.square().sum(1) - 2 * (centroids_CD * self.sums_CD).sum(1)
        return max(math.fsum([self.squares, *terms_C.tolist()]), 0.0)  # fsum: in no order

    def all_labels(self) -> Tensor:
        """Labels of all samples on every rank, (N,) int32."""
        labels_N = torch.zeros(self.num_samples, dtype=torch.int32, device=self.rows.device)
        labels_N[self.ranks.rank :: self.ranks.world_size] = self.labels.int()
        return self.ranks.sum(labels_N)

    def _farthest(self, count: int) -> Tensor:
        """Indices of up to ``count`` different rows off their centroids, the farthest first, then by index."""
        distance, key = self._distances_and_keys()
        own = _farthest_different(distance, key, count)
        index = own * self.ranks.world_size + self.ranks.rank
        parts = [F.pad(part, (0, count - len(own)), value=-1) for part in (index, distance[own], key[own])]
        index, distance, key = (self.ranks.gather(part) for part in parts)
        order = index.argsort()
        index, distance, key = index[order], distance[order], key[order]
        best = _farthest_different(distance, key, count)
        return index[best[distance[best] > 0]]

    def _distances_and_keys(self) -> tuple[Tensor, Tensor]:
        """Squared distance of each row to its centroid, and an int64 key that is equal for equal rows."""
        generator = torch.Generator().manual_seed(0)
        factors_D = torch.randint(2**62, (self.rows.shape[1],), generator=generator).to(self.rows.device)
        distances, keys = [], []
        for rows, labels in zip(_blocks(self.rows), _blocks(self.labels), strict=True):
            distances.append((rows.double() - self.centroids_CD[labels].double()).square_().sum(1))
            keys.append((rows.double().div(GRID).long() * factors_D).sum(1))  # integers wrap around: in no order
        return torch.cat(distances), torch.cat(keys)


def _farthest_different(distance: Tensor, key: Tensor, count: int) -> Tensor:
    """Positions of the largest distances, one for each key; among equals the first."""
    order = distance.argsort(descending=True, stable=True)
    return order[last_occurrences(key[order].flip(0)).flip(0)][:count]


def _assign_block(rows: Tensor, centroids_CD: Tensor, sums_CD: Tensor) -> Tensor:
    """Nearest centroid of each row; adds the rows to the sums of their clusters."""
    labels = nearest_centroid(rows, centroids_CD)
    sums_CD.index_add_(0, labels, rows.double())
    return labels


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(_GPU_BLOCK if rows.is_cuda else _CPU_BLOCK)


def _rows_on_grid(owned_rows: Tensor, ranks: Ranks) -> Tensor:
    """The rows as they are if all ranks' lie on the grid, else L2-normalised and snapped to it."""
    wrong_2 = torch.zeros(2, dtype=torch.int64, device=owned_rows.device)
    for rows in _blocks(owned_rows):
        on_grid = (rows.abs() <= 1) & (rows.double().div(GRID).frac() == 0)
        wrong_2 += torch.stack([~rows.isfinite().all(1), ~on_grid.all(1)]).sum(1)
    not_finite, off_grid = ranks.sum(wrong_2).tolist()
    if not_finite:
        raise ValueError(
            f"k-means needs finite features, {not_finite} rows hold NaN or infinity: check the images, the initial "
            "weights and the precision of the forward pass"
        )
    if not off_grid:
        return owned_rows
    return torch.cat([snap(l2_normalize(rows), torch.float32) for rows in _blocks(owned_rows)])


def _sum_of_squares(rows: Tensor) -> Tensor:
    """Σ|x|², each |x|² rounded to a grid on which the sum is exact."""
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    for block in _blocks(rows):
        total += block.double().square_().sum(1).div_(_SQUARES_GRID).round_().sum() * _SQUARES_GRID
    return total


def _check_sizes(owned_rows: Tensor, num_samples: int, num_clusters: int, ranks: Ranks) -> None:
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1. Received: {num_clusters}")
    if num_clusters > num_samples:
        raise ValueError(f"num_clusters must not exceed the number of samples, {num_samples}. Received: {num_clusters}")
    owned = ranks.num_owned(num_samples)
    if owned_rows.ndim != 2 or len(owned_rows) != owned:
        raise ValueError(
            f"owned_rows must be (N / W, D), {owned} rows on rank {ranks.rank} of {ranks.world_size} for {num_samples} "
            f"samples. Received: {tuple(owned_rows.shape)}"
        )


def _faiss_gpus(faiss: Any) -> int:
    """GPUs that this faiss can use; a CPU build has no StandardGpuResources."""
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def _silent(*_: object) -> None:
    pass
