"""Samples shared out to ranks, their clusters, and the exact sums of these: what each k-means algorithm works on.

Shapes: N samples · W ranks · C clusters · D feature width · E empty clusters · P positions of some of a rank's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from odc_lightning.clustering.nearest import block_size, half_squares, nearest_centroid
from odc_lightning.memory.memory import last_occurrences
from odc_lightning.memory.ranks import Ranks
from odc_lightning.memory.samples import GRID, l2_normalize, snap

_SQUARES_GRID = 2.0**-30  # sums of squared lengths are exact up to 2^23 rows
_REFILLS = 10  # one or two are enough unless rows differ by less than float32 scores can tell


class Assignment:
    """Rows that are shared out to ranks, each in one cluster.

    Rows lie on a fixed grid, so that float64 sums are exact: no order of additions and subtractions, hence no number
    of ranks, changes a bit of a centroid.

    Attributes:
        centroids_CD: (C, D) float32, the same on every rank.
        labels: (N / W,) int64 labels of this rank's rows; -1: not assigned yet.
        sums_CD, sizes_C: float64 sums and int64 numbers of the members, over all ranks.
    """

    def __init__(self, rows: Tensor, num_samples: int, centroids_CD: Tensor, ranks: Ranks) -> None:
        self.rows, self.num_samples, self.ranks = rows, num_samples, ranks
        self.centroids_CD = centroids_CD
        self.labels = rows.new_full((len(rows),), -1, dtype=torch.int64)
        self.sums_CD = torch.zeros_like(centroids_CD, dtype=torch.float64)
        self.sizes_C = rows.new_zeros(len(centroids_CD), dtype=torch.int64)
        self.squares = float(ranks.sum(_sum_of_squares(rows)))

    def assign(self, where_P: Tensor | None = None) -> int:
        """Give rows to their nearest centroid; those whose label changes move from sum to sum. Collective.

        Args:
            where_P: positions of the rows on this rank, none twice; None: all.

        Returns:
            How many labels changed, over all ranks.
        """
        half_squares_C, changed = half_squares(self.centroids_CD), 0
        joined_CD, joined_C = torch.zeros_like(self.sums_CD), torch.zeros_like(self.sizes_C)
        # Block by block to the end: what is kept of all rows, but their labels, would be a part of their memory.
        for where, rows in self._blocks(where_P):
            old_B, new_B = self.labels[where], nearest_centroid(rows, self.centroids_CD, half_squares_C=half_squares_C)
            moved_M = (new_B != old_B).nonzero().flatten()
            old_M, new_M, moved_MD = old_B[moved_M], new_B[moved_M], rows.index_select(0, moved_M)
            known_K = (old_M >= 0).nonzero().flatten()
            add_rows(joined_CD, joined_C, moved_MD, new_M)
            add_rows(joined_CD, joined_C, moved_MD[known_K], old_M[known_K], sign=-1)
            self.labels[where] = new_B
            changed += len(moved_M)
        self.sums_CD += self.ranks.sum(joined_CD)
        self.sizes_C += self.ranks.sum(joined_C)
        return int(self.ranks.sum(self.sizes_C.new_tensor(changed)))

    def forget(self) -> None:
        """Take every row out of its cluster; the centroids stay."""
        self.labels.fill_(-1)
        self.sums_CD.zero_()
        self.sizes_C.zero_()

    def average(self) -> None:
        """Move each centroid to the mean of its members; that of an empty cluster stays."""
        means_CD = (self.sums_CD / self.sizes_C.clamp(min=1)[:, None]).float()
        self.centroids_CD = torch.where(self.sizes_C[:, None] > 0, means_CD, self.centroids_CD)

    def fill_empty(self) -> bool:
        """Put the centroid of each empty cluster on a row far from its own centroid. Returns whether any moved.

        Every row must have a label.
        """
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
        """Sum of squared distances of all rows to the centroids of their labels, by cluster: |x|² - 2 x·c + |c|²."""
        centroids_CD = self.centroids_CD.double()
        terms_C = self.sizes_C * centroids_CD.square().sum(1) - 2 * (centroids_CD * self.sums_CD).sum(1)
        return max(math.fsum([self.squares, *terms_C.tolist()]), 0.0)  # fsum: in no order

    def all_labels(self) -> Tensor:
        """Labels of all samples on every rank, (N,) int32."""
        labels_N = torch.zeros(self.num_samples, dtype=torch.int32, device=self.rows.device)
        labels_N[self.ranks.rank :: self.ranks.world_size] = self.labels.int()
        return self.ranks.sum(labels_N)

    def _blocks(self, where_P: Tensor | None) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Positions and rows, as many at a time as are scored at once."""
        size = block_size(len(self.centroids_CD), self.rows.device)
        if where_P is None:
            for start in range(0, len(self.rows), size):
                block = slice(start, start + size)
                yield block, self.rows[block]
        else:
            for part in where_P.split(size):
                yield part, self.rows.index_select(0, part)  # a fourth of the time of rows[part]

    def _farthest(self, count: int) -> Tensor:
        """Indices of up to ``count`` different rows off their centroids, the farthest first, then by index."""
        own, distance, key = _farthest_different_rows(self.rows, self._distances(), count)
        index = own * self.ranks.world_size + self.ranks.rank
        parts = [F.pad(part, (0, count - len(own)), value=-1) for part in (index, distance, key)]
        index, distance, key = (self.ranks.gather(part) for part in parts)
        order = index.argsort()
        index, distance, key = index[order], distance[order], key[order]
        best = _farthest_different(distance, key, count)
        return index[best[distance[best] > 0]]

    def _distances(self) -> Tensor:
        """Squared distance of each row of this rank to its centroid, float64."""
        distance = self.rows.new_empty(len(self.rows), dtype=torch.float64)
        # Into one tensor: small results kept between large temporaries would tear the heap, and it would grow.
        for rows, labels, out in zip(in_blocks(self.rows), in_blocks(self.labels), in_blocks(distance), strict=True):
            out.copy_(_squared_offsets(rows, self.centroids_CD[labels]))
        return distance


def add_rows(sums_CD: Tensor, sizes_C: Tensor, rows_BD: Tensor, labels_B: Tensor, sign: int = 1) -> None:
    """Add rows to the float64 sums of their clusters and to the numbers of members, or take them out."""
    for rows, labels in zip(in_blocks(rows_BD), in_blocks(labels_B), strict=True):
        sums_CD.index_add_(0, labels, rows.double(), alpha=sign)
    sizes_C.index_add_(0, labels_B, torch.ones_like(labels_B), alpha=sign)


def in_blocks(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows by the few that fit in a core's cache in float64; on a GPU by more."""
    return rows.split(8192 if rows.is_cuda else 512)


def rows_on_grid(owned_rows: Tensor, ranks: Ranks) -> Tensor:
    """The rows as they are if all ranks' lie on the grid, else L2-normalised and snapped to it.

    Raises:
        ValueError: if rows hold NaN or infinity.
    """
    off_grid = not all(_are_on_grid(rows) for rows in in_blocks(owned_rows))
    if not ranks.sum(owned_rows.new_tensor(off_grid, dtype=torch.int64)):
        return owned_rows
    not_finite = owned_rows.new_zeros((), dtype=torch.int64)
    for rows in in_blocks(owned_rows):
        not_finite += (~rows.isfinite()).any(1).sum()
    if wrong := int(ranks.sum(not_finite)):
        raise ValueError(
            f"k-means needs finite features, {wrong} rows hold NaN or infinity: check the images, the initial "
            "weights and the precision of the forward pass"
        )
    on_grid = torch.empty_like(owned_rows, dtype=torch.float32)
    for rows, out in zip(in_blocks(owned_rows), in_blocks(on_grid), strict=True):
        out.copy_(snap(l2_normalize(rows), torch.float32))
    return on_grid


def _are_on_grid(rows: Tensor) -> bool:
    """Multiples of 2^-24 within [-1, 1], and no NaN: that differs from itself."""
    steps = rows.to(torch.promote_types(rows.dtype, torch.float32)).mul(1 / GRID)  # exact: by a power of two
    return torch.equal(steps, steps.round().clamp_(-1 / GRID, 1 / GRID))


def _farthest_different_rows(rows: Tensor, distance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of up to ``count`` different rows of the largest distances, among equals the first; distances, keys."""
    looked_at = 2 * count  # keys cost more than distances: more rows only if equal ones lie among these
    while True:
        candidates = _largest(distance, looked_at)
        key = _keys(rows, candidates)
        best = _farthest_different(distance[candidates], key, count)
        if len(best) == count or looked_at >= len(distance):
            return candidates[best], distance[candidates[best]], key[best]
        looked_at *= 8


def _largest(values_N: Tensor, count: int) -> Tensor:
    """Positions of the largest values, descending, among equals the first; a sort of all would take copies of them."""
    best = torch.empty(0, dtype=torch.int64, device=values_N.device)
    size = max(count, 65536)
    for start in range(0, len(values_N), size):
        block = torch.arange(start, min(start + size, len(values_N)), device=values_N.device)
        candidates = torch.cat([best, block])
        best = candidates[values_N[candidates].argsort(descending=True, stable=True)[:count]]
    return best


def _farthest_different(distance: Tensor, key: Tensor, count: int) -> Tensor:
    """Positions of the largest distances, one for each key; among equals the first."""
    order = distance.argsort(descending=True, stable=True)
    return order[last_occurrences(key[order].flip(0)).flip(0)][:count]


def _keys(rows: Tensor, positions_M: Tensor) -> Tensor:
    """An int64 number of each row that is equal for equal rows, (M,)."""
    generator = torch.Generator().manual_seed(0)
    factors_D = torch.randint(2**62, (rows.shape[1],), generator=generator).to(rows.device)
    key_M = torch.empty_like(positions_M)
    for positions, key in zip(in_blocks(positions_M), in_blocks(key_M), strict=True):
        steps = rows.index_select(0, positions).double().div(GRID).long()
        key.copy_((steps * factors_D).sum(1))  # integers wrap around: in no order
    return key_M


def _squared_offsets(rows_BD: Tensor, centroids_BD: Tensor) -> Tensor:
    return (rows_BD.double() - centroids_BD.double()).square_().sum(1)


def _sum_of_squares(rows: Tensor) -> Tensor:
    """Σ|x|², each |x|² rounded to a grid on which the sum is exact."""
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    for block in in_blocks(rows):
        total += block.double().square_().sum(1).div_(_SQUARES_GRID).round_().sum() * _SQUARES_GRID
    return total
