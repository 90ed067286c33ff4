"""K-Means of all features: where ODC's memories start (paper, Sec. 3.1), and each epoch of DeepCluster.

The algorithms that run in torch are in `algorithms`, the rows that the incremental one starts from in `start`.

Shapes: N samples · W ranks · C clusters · D feature width.
"""

from __future__ import annotations

import copy
import importlib
import logging
import math
import time
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from odc_lightning.checks import check_choice
from odc_lightning.clustering.algorithms import Progress, incremental, lloyd
from odc_lightning.clustering.assignment import Assignment, add_rows, rows_on_grid
from odc_lightning.clustering.nearest import block_size, nearest_centroid
from odc_lightning.clustering.start import spread_start
from odc_lightning.memory.ranks import Ranks

ALGORITHMS = ("lloyd", "incremental")
BACKENDS = ("auto", "faiss", "torch")

_log = logging.getLogger(__name__)
_Done: TypeAlias = tuple[Assignment, int]  # and the iterations that were run
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
    """K-Means in faiss or in torch.

    Args:
        algorithm: ``lloyd``, which starts from random rows, or ``incremental``, which starts from spread-out ones and
            averages within each pass over the rows: in torch only. On wide features three passes of it are as good as
            ten of Lloyd's: inertia within 1 % (bench/kmeans.py).
        backend: ``faiss`` (one process at a time), ``torch`` (rows stay on their ranks) or ``auto``, see
            `resolve_backend`; with ``incremental`` or float16 rows, auto is torch.
        iterations: passes over all rows, at most; the authors' release runs 20. ``incremental``'s first is a quarter.
        max_points_per_centroid: faiss trains on a random subset above this; its own default of 256 would drop rows
            without a word, the release's 10^7 keeps all. The torch backend always takes all rows.
        seed: of the starting rows, and of the parts that ``incremental`` takes.

    Raises:
        ValueError: for a value outside its range, an unknown algorithm or backend, or incremental in faiss.
    """

    def __init__(
        self,
        *,
        algorithm: str = "lloyd",
        backend: str = "auto",
        iterations: int = 20,
        max_points_per_centroid: int = 10_000_000,
        seed: int = 0,
    ) -> None:
        check_choice("algorithm", algorithm, ALGORITHMS)
        check_choice("backend", backend, BACKENDS)
        if algorithm == "incremental":
            if backend == "faiss":
                raise ValueError("backend must be torch or auto for algorithm=incremental: faiss has only Lloyd's")
            backend = "torch"
        for key, value, least in (
            ("iterations", iterations, 1),
            ("max_points_per_centroid", max_points_per_centroid, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{key} must be at least {least}. Received: {value}")
        self.algorithm, self.backend, self.iterations, self.seed = algorithm, backend, iterations, seed
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
            progress: called at the start and after each iteration; by faiss only before and after. Within
                ``incremental`` the inertia is that of labels of which some were given up to a pass ago.

        Raises:
            ValueError: if there are more clusters than samples, or rows with NaN or infinity.
            RuntimeError: if ``faiss`` was asked for and does not work.
        """
        started, ranks, report = time.perf_counter(), ranks or Ranks.current(), progress or _silent
        _check_sizes(owned_rows, num_samples, num_clusters, ranks)
        asked = self.backend
        if asked == "auto" and owned_rows.dtype == torch.float16:
            asked = "torch"  # faiss would need a copy in float32, twice as large as the rows that were to be small
        backend = resolve_backend(asked, ranks.world_size, owned_rows.device)
        run = self._run_faiss if backend == "faiss" else self._run_torch
        state, iterations = run(rows_on_grid(owned_rows, ranks), num_samples, num_clusters, ranks, report)
        seconds = time.perf_counter() - started
        return KMeansResult(state.all_labels(), state.centroids_CD, state.inertia(), backend, iterations, seconds)

    def _run_torch(self, rows: Tensor, num_samples: int, num_clusters: int, ranks: Ranks, report: Progress) -> _Done:
        generator = torch.Generator().manual_seed(self.seed)
        if self.algorithm == "lloyd":
            start_C = torch.randperm(num_samples, generator=generator)[:num_clusters].to(rows.device)
        else:
            start_C = spread_start(rows, num_samples, num_clusters, ranks, generator)
        state = Assignment(rows, num_samples, ranks.take(rows, start_C), ranks)
        if self.algorithm == "lloyd":
            return state, lloyd(state, self.iterations, report)
        return state, incremental(state, self.iterations, generator, report)

    def _run_faiss(self, rows: Tensor, num_samples: int, num_clusters: int, ranks: Ranks, report: Progress) -> _Done:
        report(0, self.iterations, math.nan, 1.0)
        rows_ND = ranks.collect_rows(rows, num_samples)
        centroids_CD = rows.new_zeros(num_clusters, rows.shape[1], dtype=torch.float32)
        if ranks.rank == 0:
            centroids_CD.copy_(self._faiss_centroids(rows_ND, num_clusters, rows.is_cuda))
        state = Assignment(rows, num_samples, ranks.broadcast(centroids_CD), ranks)
        # Labels by our own rule rather than by faiss's search: the memory decides every later label by it.
        state.assign()
        state.settle()
        report(self.iterations, self.iterations, state.inertia(), math.nan)
        return state, self.iterations

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

    Either algorithm runs all iterations and one assignment more; the first iteration of the incremental one is a
    quarter, and the rest is enough for its start where N > 22 C. faiss on a CPU takes about eight tenths of Lloyd's.
    """
    device = torch.device(device)
    block = block_size(num_clusters, device)
    if device.type != "cuda":
        block = min(max(2**28 // (num_clusters * dim), 256), block)
    rows = torch.rand(block, dim, device=device).sub_(0.5)
    centroids_CD = torch.rand(num_clusters, dim, device=device).sub_(0.5)
    seconds = min(_timed(rows, centroids_CD) for _ in range(3))
    return (iterations + 1) * math.ceil(num_samples / world_size) / block * seconds


def _timed(rows: Tensor, centroids_CD: Tensor) -> float:
    sums_CD = torch.zeros_like(centroids_CD, dtype=torch.float64)
    sizes_C = torch.zeros(len(centroids_CD), dtype=torch.int64, device=rows.device)
    started = time.perf_counter()
    add_rows(sums_CD, sizes_C, rows, nearest_centroid(rows, centroids_CD))
    sizes_C[0].item()  # waits for the device
    return time.perf_counter() - started


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
