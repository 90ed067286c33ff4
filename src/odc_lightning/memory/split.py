"""Two-way split of a cluster by K-Means (paper, Sec. 3.2).

Shapes: M members, D feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    along_M, second_M, size = _two_means(rows_MD.double())
    cut = len(rows_MD) - size if 0 < size < len(rows_MD) else len(rows_MD) // 2
    cut = min(max(cut, smallest), len(rows_MD) - smallest)
    second_M = torch.zeros_like(second_M)
    second_M[along_M.argsort(stable=True)[cut:]] = True
    return second_M


def _two_means(rows_MD: Tensor) -> tuple[Tensor, Tensor, int]:
    """Lloyd's iterations from two far rows, in float64: projection on the line of means, who lies beyond the middle.

    Each small cluster calls this, and rows are few: the number of operations counts.
    """
    total_D, squares_M = rows_MD.sum(0), rows_MD.square().sum(1)
    first_D = _farthest(rows_MD, squares_M, total_D / len(rows_MD))
    second_D = _farthest(rows_MD, squares_M, first_D)
    along_M, second_M = _project(rows_MD, first_D, second_D)
    for _ in range(_ITERATIONS):
        size = int(second_M.sum())
        if size in (0, len(rows_MD)):
            break
        sum_D = second_M.double() @ rows_MD
        first_D, second_D = (total_D - sum_D) / (len(rows_MD) - size), sum_D / size
        along_M, moved_M = _project(rows_MD, first_D, second_D)
        if torch.equal(moved_M, second_M):
            break
        second_M = moved_M
    return along_M, second_M, int(second_M.sum())


def _farthest(rows_MD: Tensor, squares_M: Tensor, point_D: Tensor) -> Tensor:
    """The row with the largest |x - p|^2 = |x|^2 - 2 x.p + |p|^2."""
    return rows_MD[squares_M.sub(rows_MD @ point_D, alpha=2).argmax()]


def _project(rows_MD: Tensor, first_D: Tensor, second_D: Tensor) -> tuple[Tensor, Tensor]:
    line_D = second_D - first_D
    along_M = rows_MD @ line_D
    return along_M, along_M > torch.dot(line_D, first_D + second_D) / 2
