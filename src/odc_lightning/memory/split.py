"""Two-way split of a cluster by K-Means (paper, Sec. 3.2).

Shapes: M members, D feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odc_lightning.clustering.nearest import full_float32

_ITERATIONS = 20


def two_way_split(rows_MD: Tensor, smallest: int) -> Tensor:
    """Which members lie on the second side of a 2-means split, (M,) bool.

    Two means are separated by a plane, so a step is one projection. Both sides get at least ``smallest`` members:
    where K-Means gives less, the plane is shifted along its normal; where it gives none (equal rows), it halves.

    Raises:
        ValueError: if M < 2 * smallest.
    """
    if len(rows_MD) < 2 * smallest:
        raise ValueError(f"cannot split {len(rows_MD)} members into two clusters of at least {smallest}")
    with full_float32(rows_MD.device):
        along_M, second_M = _two_means(rows_MD.double())
    cut = len(rows_MD) - int(second_M.sum())
    if cut in (0, len(rows_MD)):
        cut = len(rows_MD) // 2
    cut = min(max(cut, smallest), len(rows_MD) - smallest)
    second_M = torch.zeros_like(second_M)
    second_M[along_M.argsort(stable=True)[cut:]] = True
    return second_M


def _two_means(rows_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations from two far rows: the projection on the line of means, and who lies beyond the middle."""
    squares_M = rows_MD.square().sum(1)
    first_D = _farthest(rows_MD, squares_M, rows_MD.mean(0))
    second_D = _farthest(rows_MD, squares_M, first_D)
    along_M, second_M = _project(rows_MD, first_D, second_D)
    for _ in range(_ITERATIONS):
        size = second_M.sum()
        if size == 0 or size == len(rows_MD):
            break
        weight_2M = torch.stack([~second_M, second_M]).double()
        first_D, second_D = (weight_2M @ rows_MD / weight_2M.sum(1, keepdim=True)).unbind()
        along_M, moved_M = _project(rows_MD, first_D, second_D)
        if torch.equal(moved_M, second_M):
            break
        second_M = moved_M
    return along_M, second_M


def _farthest(rows_MD: Tensor, squares_M: Tensor, point_D: Tensor) -> Tensor:
    """The row with the largest |x - p|^2 = |x|^2 - 2 x.p + |p|^2."""
    return rows_MD[squares_M.sub(rows_MD @ point_D, alpha=2).argmax()]


def _project(rows_MD: Tensor, first_D: Tensor, second_D: Tensor) -> tuple[Tensor, Tensor]:
    along_M = rows_MD @ (second_D - first_D)
    return along_M, along_M > (second_D.square().sum() - first_D.square().sum()) / 2
