"""Centroids memory: the mean feature of each cluster, refreshed every k-th iteration (paper, Sec. 3.1).

A batch moves its rows between running sums, so that a refresh is one division and nothing grows with N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odc_lightning.clustering.nearest import half_squares, nearest_centroid
from odc_lightning.memory.ranks import Ranks

_CHUNK = 1024  # rows whose float64 copy stays in cache: nine times faster than 65536
_CLUSTERS = 512  # likewise, to average at once


class CentroidsMemory:
    """Centroids with the exact sums and sizes they are refreshed from.

    Attributes:
        centroids_CD: (C, D) float32, what Eq. 3 reads; as old as the last refresh.
        half_squares_C: (C,) float32, |c|^2 / 2 of these.
        sums_CD: (C, D) float64, exact sums of the members that this rank owns.
        sizes_C: (C,) int64 number of members over all ranks.
        moves_C: (C,) int64 members that joined or left since the last refresh: above 0 is "involved".
    """

    def __init__(self, num_clusters: int, feature_dim: int, ranks: Ranks) -> None:
        self.ranks = ranks
        self.centroids_CD = torch.zeros(num_clusters, feature_dim)
        self.half_squares_C = torch.zeros(num_clusters)
        self.sums_CD = torch.zeros(num_clusters, feature_dim, dtype=torch.float64)
        self.sizes_C = torch.zeros(num_clusters, dtype=torch.int64)
        self.moves_C = torch.zeros(num_clusters, dtype=torch.int64)

    def to(self, device: torch.device) -> None:
        """Move all tensors."""
        for name in ("centroids_CD", "half_squares_C", "sums_CD", "sizes_C", "moves_C"):
            setattr(self, name, getattr(self, name).to(device))

    def recount(self, owned_rows: Tensor, owned_labels: Tensor, labels_N: Tensor) -> None:
        """Sums and sizes from scratch: at the start, and to check a checkpoint."""
        self.sizes_C = torch.bincount(labels_N, minlength=len(self.sizes_C))
        self.sums_CD.zero_()
        for start in range(0, len(owned_rows), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self.sums_CD.index_add_(0, owned_labels[chunk].long(), owned_rows[chunk].double())

    def nearest(self, rows_BD: Tensor, metric: str, allowed_C: Tensor | None = None) -> Tensor:
        """Eq. 3 against the centroids as they are, (B,) int64; see :func:`nearest_centroid`."""
        return nearest_centroid(
            rows_BD,
            self.centroids_CD,
            metric=metric,
            allowed_C=allowed_C,
            half_squares_C=self.half_squares_C,
        )

    def move_rows(self, old_BD: Tensor, old_labels_B: Tensor, new_BD: Tensor, new_labels_B: Tensor) -> None:
        """Take the old rows out of their old clusters and put the new rows into the new ones."""
        for labels_B, rows_BD, sign in ((old_labels_B, old_BD, -1), (new_labels_B, new_BD, 1)):
            for labels, rows in zip(labels_B.split(_CHUNK), rows_BD.split(_CHUNK), strict=True):
                self.sums_CD.index_add_(0, labels, rows.double(), alpha=sign)

    def move_members(self, old_labels_B: Tensor, new_labels_B: Tensor) -> Tensor:
        """Count who left and who joined. Returns which samples changed their label, (B,) bool."""
        changed_B = old_labels_B != new_labels_B
        changed = changed_B.long()
        self.sizes_C.index_add_(0, old_labels_B, changed, alpha=-1).index_add_(0, new_labels_B, changed)
        self.moves_C.index_add_(0, old_labels_B, changed).index_add_(0, new_labels_B, changed)
        return changed_B

    def refresh(self, which_C: Tensor | None = None) -> None:
        """Average the members of the clusters that are True in ``which_C`` (default: all); empty ones keep theirs."""
        sums_CD = self.ranks.sum(self.sums_CD)
        fresh_C = self.sizes_C > 0 if which_C is None else which_C & (self.sizes_C > 0)
        if sums_CD.is_cuda:  # to list the fresh ones would have the host wait
            means_CD = (sums_CD / self.sizes_C.clamp(min=1)[:, None]).float()
            self.put(torch.where(fresh_C[:, None], means_CD, self.centroids_CD))
        else:
            for clusters_M in fresh_C.nonzero().flatten().split(_CLUSTERS):
                self._average(clusters_M, sums_CD.index_select(0, clusters_M))
        self.moves_C.zero_()

    def refresh_few(self, clusters: list[int]) -> None:
        """Average the members of a few named, non-empty clusters at once; they stay recorded as involved."""
        clusters_M = torch.tensor(clusters, device=self.sums_CD.device)
        self._average(clusters_M, self.ranks.sum(self.sums_CD.index_select(0, clusters_M)))

    def _average(self, clusters_M: Tensor, sums_MD: Tensor) -> None:
        means_MD = sums_MD.div_(self.sizes_C.index_select(0, clusters_M).double()[:, None]).float()
        self.centroids_CD.index_copy_(0, clusters_M, means_MD)
        self.half_squares_C.index_copy_(0, clusters_M, half_squares(means_MD))

    def put(self, centroids_CD: Tensor) -> None:
        """Replace all centroids."""
        self.centroids_CD, self.half_squares_C = centroids_CD, half_squares(centroids_CD)
