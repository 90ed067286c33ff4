"""The two memories of ODC together: what a training iteration reads and writes (paper, Sec. 3.1 and 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odc_lightning.checks import check_choice, check_sizes
from odc_lightning.clustering.nearest import METRICS
from odc_lightning.memory.centroids import CentroidsMemory
from odc_lightning.memory.journal import Journal
from odc_lightning.memory.ranks import Ranks
from odc_lightning.memory.samples import ROW_DTYPES, SamplesMemory
from odc_lightning.memory.small_clusters import SIDES, SmallClusters

SMALL_MEANS = ("at_most", "below")
REFRESHES = ("involved", "all")
_SIZES = {"num_samples": "N", "num_clusters": "C", "feature_dim": "D"}


class Memory:
    """Samples memory and centroids memory, sharded by rows over the ranks, labels and centroids everywhere.

    ``updates`` counts batches, ``refilled`` the small clusters that were dissolved and filled again.

    Every call with a batch is collective: all ranks make it with batches of equal size. The defaults are the paper's
    rules; the authors' release differs in each of the keys below ``momentum`` (``fidelity=openselfsup``).

    Args:
        num_samples: N, images in the data set.
        num_clusters: C; the paper takes ten times the number of classes.
        feature_dim: D, width of the stored features.
        momentum: m of Eq. 2, in (0, 1]: the share of the new feature.
        min_cluster_size: threshold of a small cluster (paper: 20).
        small_means: a cluster is small when its size is ``at_most`` the threshold (paper) or ``below`` it (release).
        split_side: side of a split that becomes the new cluster: ``random`` (paper) or ``second`` (release).
        guarantee_size: shift a split so that no cluster is small after handling (paper: "until all clusters are
            normal"); False leaves halves as K-Means cuts them (release).
        metric: nearest centroid by ``l2`` (paper, Eq. 3) or ``inner_product`` (release).
        renormalize: L2-normalise a row again after Eq. 2 (release).
        refresh: average only ``involved`` clusters, joined or left since the last time (paper), or ``all`` (release).
        row_dtype: ``float32`` or ``float16``, which halves the memory (about 0.04 % of the labels differ).
        seed: of the random sides.
        ranks: processes that share the rows; default: the running process group.

    Raises:
        ValueError: for sizes or rules outside their range, with what was received.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        num_clusters: int,
        feature_dim: int,
        momentum: float = 0.5,
        min_cluster_size: int = 20,
        small_means: str = "at_most",
        split_side: str = "random",
        guarantee_size: bool = True,
        metric: str = "l2",
        renormalize: bool = False,
        refresh: str = "involved",
        row_dtype: str = "float32",
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        check_rules(
            num_samples=num_samples,
            num_clusters=num_clusters,
            momentum=momentum,
            min_cluster_size=min_cluster_size,
            small_means=small_means,
            split_side=split_side,
            metric=metric,
            refresh=refresh,
            row_dtype=row_dtype,
        )
        self.num_samples, self.num_clusters, self.feature_dim = num_samples, num_clusters, feature_dim
        self.momentum, self.renormalize, self.metric, self.refresh = momentum, renormalize, metric, refresh
        self.ranks = ranks or Ranks.current()
        self.samples = SamplesMemory(num_samples, feature_dim, ROW_DTYPES[row_dtype], self.ranks)
        self.centroids = CentroidsMemory(num_clusters, feature_dim, self.ranks)
        self.generator = torch.Generator().manual_seed(seed)
        largest_small = min_cluster_size - (small_means == "below")
        self.small_clusters = SmallClusters(
            largest_small=largest_small,
            smallest_half=largest_small + 1 if guarantee_size else 1,
            side=split_side,
            metric=metric,
            generator=self.generator,
        )
        self.journal = Journal(metric, self.ranks)
        self.updates, self.refilled = 0, 0
        self.filled = False
        self._small_flag: _LateFlag | None = None

    @property
    def sizes_C(self) -> Tensor:
        """Number of members of each cluster, (C,) int64."""
        return self.centroids.sizes_C

    @property
    def labels_N(self) -> Tensor:
        """Pseudo-labels of all samples, (N,) int32."""
        return self.samples.labels_N

    def to(self, device: torch.device) -> Memory:
        """Move everything to a device."""
        self.samples.to(device)
        self.centroids.to(device)
        self.journal.to(device)
        return self

    def fill(self, owned_features: Tensor, labels_N: Tensor) -> list[int]:
        """Store features and start from a global clustering of them; returns the small clusters that were refilled.

        Args:
            owned_features: (N / W, D) features of the samples that this rank owns, in the order of their indices.
            labels_N: (N,) labels of the clustering, the same on every rank.
        """
        self.samples.fill(owned_features)
        return self.start(labels_N)

    def start(self, labels_N: Tensor) -> list[int]:
        """Start from a global clustering of the rows that are stored; returns the small clusters that were refilled.

        Args:
            labels_N: (N,) labels of the clustering, the same on every rank.
        """
        self.samples.labels_N = labels_N.to(self.samples.labels_N)
        self._recount()
        self.centroids.refresh()
        self.filled = True
        return self._handle()

    def bytes(self) -> int:
        """Bytes of rows, labels, centroids and sums, over all ranks' rows and one copy of the rest."""
        row = self.feature_dim * self.samples.rows.element_size()
        return self.num_samples * (row + 4) + self.num_clusters * (self.feature_dim * (4 + 8) + 16)

    def labels(self, index_B: Tensor) -> Tensor:
        """Pseudo-labels of a batch, (B,) int64: the targets of Eq. 1."""
        return self.samples.labels(index_B)

    @torch.no_grad()
    def update(
        self, index_B: Tensor, features_BD: Tensor, *, ok_B: Tensor | None = None, unique: bool = False
    ) -> Tensor:
        """One iteration of the samples memory: Eq. 2, then Eq. 3, and the running sums of the clusters.

        Args:
            index_B: (B,) int64 sample indices of this rank's part of the global batch.
            features_BD: (B, D) features of the training forward; not normalised.
            ok_B: (B,) bool; samples that are False (unreadable images) are left as they are.
            unique: promise that no index repeats in the global batch. Without it a repeated index is updated once,
                by its last occurrence in rank order.

        Returns:
            Label-switch ratio of the global batch, a float32 scalar in [0, 1] (paper, Fig. 5).
        """
        index_B, features_BD = global_batch(self.ranks, index_B, features_BD, ok_B=ok_B, unique=unique)
        old_labels_B, own = self.samples.labels(index_B), self.ranks.owned(index_B)
        old_rows, new_rows = self.samples.move(index_B[own], features_BD[own], self.momentum, self.renormalize)
        new_labels_B = torch.zeros_like(old_labels_B)
        new_labels_B[own] = self.centroids.nearest(new_rows, self.metric)
        self.journal.count(old_rows, old_labels_B[own], new_labels_B[own], self.centroids.centroids_CD)
        new_labels_B = self.ranks.sum(new_labels_B)
        self.centroids.move_rows(old_rows, old_labels_B[own], new_rows, new_labels_B[own])
        switched_B = self.centroids.move_members(old_labels_B, new_labels_B)
        self.samples.relabel(index_B, new_labels_B)
        self.updates += 1
        return switched_B.float().sum() / max(len(switched_B), 1)

    @torch.no_grad()
    def refresh_centroids(self) -> None:
        """Average the members of the involved clusters; the module calls it every k-th iteration."""
        self.centroids.refresh(self.centroids.moves_C > 0 if self.refresh == "involved" else None)

    @torch.no_grad()
    def handle_small_clusters(self) -> list[int]:
        """Dissolve and refill small clusters; returns their numbers.

        On a GPU the test is read one call late, so that an ordinary iteration never waits for the device.
        """
        return self._handle() if self._any_small() else []

    def check(self) -> None:
        """Raise RuntimeError unless sums and sizes equal a recount from rows and labels, bit for bit."""
        sums_CD, sizes_C = self.centroids.sums_CD.clone(), self.sizes_C.clone()
        self._recount()
        if not torch.equal(sums_CD, self.centroids.sums_CD) or not torch.equal(sizes_C, self.sizes_C):
            raise RuntimeError("the memory is damaged: cluster sums or sizes do not equal a recount of their members")

    def state_dict(self) -> dict[str, Any]:
        """The whole memory as host tensors and numbers, whatever the number of ranks. Collective."""
        return {
            **{key: getattr(self, key) for key in _SIZES},
            "rows": self.ranks.collect_rows(self.samples.rows, self.num_samples),
            "labels": self.labels_N.cpu(),
            "sums": self.ranks.sum(self.centroids.sums_CD).cpu(),
            "centroids": self.centroids.centroids_CD.cpu(),
            "moves": self.centroids.moves_C.cpu(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "refilled": self.refilled,
            "journal": self.journal.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved memory on any number of ranks and check it against its own sums.

        One rank takes the tensor of the rows itself, which may be most of the machine's memory: do not use it on.

        Raises:
            ValueError: if it was saved for another number of samples or clusters, or another feature width.
            RuntimeError: if the saved sums do not equal the sums of the saved rows.
        """
        for key, letter in _SIZES.items():
            if state[key] != getattr(self, key):
                raise ValueError(
                    f"the checkpoint's memory has {key} ({letter}) = {state[key]}, this run has {getattr(self, key)}"
                )
        device = self.labels_N.device
        owned = slice(self.ranks.rank, None, self.ranks.world_size)
        self.samples.rows = state["rows"][owned].to(self.samples.rows.dtype).to(device).contiguous()
        self.samples.labels_N = state["labels"].to(device, copy=True)
        self.centroids.put(state["centroids"].to(device, copy=True))
        self.centroids.moves_C = state["moves"].to(device, copy=True)
        self.generator.set_state(state["generator"])
        self.updates, self.refilled, self.filled = state["updates"], state["refilled"], True
        if "journal" in state:  # checkpoints of earlier versions have none
            self.journal.load_state_dict(state["journal"])
        self._recount()
        if not torch.equal(self.ranks.sum(self.centroids.sums_CD).cpu(), state["sums"]):
            raise RuntimeError("the checkpoint's memory is damaged: its cluster sums do not equal those of its rows")

    def _recount(self) -> None:
        owned_labels = self.labels_N[self.ranks.rank :: self.ranks.world_size]
        self.centroids.recount(self.samples.rows, owned_labels, self.labels_N)

    def _handle(self) -> list[int]:
        small = self.small_clusters.handle(self.samples, self.centroids)
        self.refilled += len(small)
        self.journal.add(self.updates, self.small_clusters.events)
        return small

    def _any_small(self) -> bool:
        small = self.small_clusters.among(self.sizes_C).any()
        if not small.is_cuda:
            return bool(small)
        late, self._small_flag = self._small_flag, _LateFlag(small)
        return late is not None and late.read()


class _LateFlag:
    """A device flag on its way to the host: read it an iteration later without stopping the queue."""

    def __init__(self, flag: Tensor) -> None:
        self.host = flag.to("cpu", non_blocking=True)
        self.copied = torch.cuda.Event()
        self.copied.record()

    def read(self) -> bool:
        self.copied.synchronize()
        return bool(self.host)


def global_batch(
    ranks: Ranks, index_B: Tensor, features_BD: Tensor, *, ok_B: Tensor | None = None, unique: bool = False
) -> tuple[Tensor, Tensor]:
    """Gather the batch in rank order; drop unreadable samples and all but the last of a repeated one. Collective.

    Args: as of :meth:`Memory.update`.
    """
    if ok_B is not None:
        index_B = index_B.masked_fill(~ok_B, -1)
    index_B, features_BD = ranks.gather(index_B), ranks.gather(features_BD.detach().float())
    if ok_B is None and unique:
        return index_B, features_BD
    keep_B = index_B >= 0
    if not unique:
        keep_B &= last_occurrences(index_B)
    return index_B[keep_B], features_BD[keep_B]


def last_occurrences(index_B: Tensor) -> Tensor:
    """Which entries are the last of their value, (B,) bool."""
    ordered_B, position_B = index_B.sort(stable=True)
    last_B = torch.ones_like(ordered_B, dtype=torch.bool)
    last_B[:-1] = ordered_B[1:] != ordered_B[:-1]
    return torch.empty_like(last_B).scatter_(0, position_B, last_B)


def check_rules(
    *,
    num_samples: int,
    num_clusters: int,
    momentum: float,
    min_cluster_size: int,
    small_means: str,
    split_side: str,
    metric: str,
    refresh: str,
    row_dtype: str,
    **_: Any,
) -> None:
    """Raise ValueError for settings of :class:`Memory` that cannot work, without allocating it."""
    for key, value, allowed in (
        ("small_means", small_means, SMALL_MEANS),
        ("split_side", split_side, SIDES),
        ("metric", metric, METRICS),
        ("refresh", refresh, REFRESHES),
        ("row_dtype", row_dtype, tuple(ROW_DTYPES)),
    ):
        check_choice(key, value, allowed)
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum must be in (0, 1]. Received: {momentum}")
    check_sizes(num_samples, num_clusters, min_cluster_size, small_means)
