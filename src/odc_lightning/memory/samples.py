"""Samples memory: the feature and the pseudo-label of every sample (paper, Sec. 3.1).

Rows lie on the fixed grid of multiples of 2^-24, on which float64 sums are exact: their order, hence the number of
ranks and the split of a batch, cannot change a bit of a centroid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odc_lightning.memory.ranks import Ranks

GRID = 2.0**-24
EPSILON = 1e-10
ROW_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_CHUNK = 4096  # rows that are normalised at once


def l2_normalize(features_BD: Tensor, length: float = 1.0) -> Tensor:
    """length f / (|f| + 1e-10) in float64, a new tensor: a zero feature stays zero."""
    scaled_BD = features_BD.to(torch.float64, copy=True)
    norm_B1 = scaled_BD.square().sum(1, keepdim=True).sqrt_()  # twice as fast as vector_norm
    return scaled_BD.mul_(length / (norm_B1 + EPSILON))


def snap(rows_BD: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 rows within [-1, 1] to multiples of 2^-24; float16 is that grid by its own format."""
    if dtype == torch.float16:
        return rows_BD.half()
    return rows_BD.mul(1 / GRID).round_().to(dtype).mul_(GRID)


class SamplesMemory:
    """Feature rows of the samples that this rank owns, and the labels of all samples.

    Attributes:
        rows: (N / W, D) float32 or float16, sample i at position i // W on rank i % W.
        labels_N: (N,) int32 pseudo-labels, replicated.
    """

    def __init__(self, num_samples: int, feature_dim: int, dtype: torch.dtype, ranks: Ranks) -> None:
        self.ranks = ranks
        self.num_samples = num_samples
        self.rows = torch.empty(ranks.num_owned(num_samples), feature_dim, dtype=dtype)  # takes memory when written
        self.labels_N = torch.zeros(num_samples, dtype=torch.int32)

    def to(self, device: torch.device) -> None:
        """Move rows and labels."""
        self.rows, self.labels_N = self.rows.to(device), self.labels_N.to(device)

    def fill(self, owned_features: Tensor) -> None:
        """Store the L2-normalised start-up features of the owned samples, (N / W, D)."""
        for rows, features in zip(self.rows.split(_CHUNK), owned_features.split(_CHUNK), strict=True):
            rows.copy_(self.as_rows(features.to(rows.device)))

    def as_rows(self, features_BD: Tensor) -> Tensor:
        """What is stored of features at the start, (B, D): they are L2-normalised and lie on the grid."""
        return snap(l2_normalize(features_BD), self.rows.dtype)

    def labels(self, index_B: Tensor) -> Tensor:
        """Current pseudo-labels of the samples, (B,) int64."""
        return self.labels_N.index_select(0, index_B).long()

    def relabel(self, index_B: Tensor, labels_B: Tensor) -> None:
        """Write pseudo-labels; the indices must not repeat."""
        self.labels_N[index_B] = labels_B.int()

    def owned_rows(self, index_B: Tensor) -> Tensor:
        """Rows of samples that this rank owns, (B, D)."""
        return self.rows.index_select(0, self.ranks.positions(index_B))

    def move(self, index_B: Tensor, features_BD: Tensor, momentum: float, renormalize: bool) -> tuple[Tensor, Tensor]:
        """Eq. 2 for samples that this rank owns: F_m <- m f/|f| + (1 - m) F_m. Returns the old and the new rows."""
        position_B = self.ranks.positions(index_B)
        old_BD = self.rows.index_select(0, position_B)
        moved_BD = l2_normalize(features_BD, momentum).add_(old_BD, alpha=1.0 - momentum)
        new_BD = snap(l2_normalize(moved_BD) if renormalize else moved_BD, self.rows.dtype)
        self.rows.index_copy_(0, position_B, new_BD)
        return old_BD, new_BD

    def members(self, cluster: int) -> Tensor:
        """Indices of the samples labelled ``cluster``, ascending, (M,) int64."""
        return (self.labels_N == cluster).nonzero().flatten()

    def members_of(self, clusters_C: Tensor) -> Tensor:
        """Indices of the samples whose cluster is True in the bool table ``clusters_C``, ascending."""
        return clusters_C.index_select(0, self.labels_N).nonzero().flatten()

    def gathered_rows(self, index_M: Tensor) -> Tensor:
        """Rows of any samples on every rank, (M, D) float32."""
        return self.ranks.take(self.rows, index_M)
