"""Which orders of the nine tiles the jigsaw asks about: a few thousand that are as different as can be."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from odc_lightning.nn.patches import CELLS

ALL = math.factorial(CELLS)


def distant_permutations(count: int, seed: int) -> Tensor:
    """Choose orders of nine tiles greedily, each at the largest Hamming distance from the nearest one before.

    Noroozi and Favaro (2016), Algorithm 1, of whom Goyal et al. (2019) take 2,000, do so with the mean distance to the
    ones before; the least distance is what tells how alike two answers can be. Ties are broken by a random order. All
    362,880 orders are looked at in each step, nine comparisons of bytes each: 2,000 take about a second.

    Args:
        count: P, orders to choose.
        seed: of the ties.

    Returns: int64 (P, 9); row by row distinct permutations of 0..8.
    Raises: ValueError when there are not so many.
    """
    if not 2 <= count <= ALL:
        raise ValueError(f"method.num_permutations must be from 2 to {ALL:,}, the orders of 9 tiles. Received: {count}")
    order = np.random.default_rng(seed).permutation(ALL)
    candidates_9A = np.array(list(permutations(range(CELLS))), dtype=np.uint8)[order].T.copy()
    distance_A = np.full(ALL, CELLS, dtype=np.uint8)  # to the nearest of those that are chosen
    chosen = []
    for _ in range(count):
        best = int(distance_A.argmax())  # the first of the most distant
        chosen.append(best)
        np.minimum(distance_A, _distances(candidates_9A, best), out=distance_A)
    return torch.from_numpy(candidates_9A[:, chosen].T.astype(np.int64))


def _distances(candidates_9A: np.ndarray, to: int) -> np.ndarray:
    """Hamming distance of every candidate to one of them, (A,) uint8; column by column, which is contiguous."""
    total_A = np.zeros(candidates_9A.shape[1], dtype=np.uint8)
    for column_A in candidates_9A:
        total_A += column_A != column_A[to]
    return total_A
