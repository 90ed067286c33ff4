"""Spread-out rows for k-means to start from.

Shapes: N samples · C clusters · D feature width · S samples of a random subset, O of them on this rank · M drawn in a
round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odc_lightning.clustering.assignment import in_blocks
from odc_lightning.memory.ranks import Ranks

_CHOICE = 8  # samples of the subset for each that is drawn
_ROUNDS = 16
# Distances must not depend on the order of additions, that is on the threads, the blocks or the library. Rows lie
# within [-1, 1]: in steps of 2^-20 each coordinate is an integer up to 2^20, each product one up to 2^40, and a float64
# sum of up to 2^13 products is exact. On the rows' own grid, 2^-24, that would hold for rows of length 5 at most.
_STEP = 2.0**-20


def spread_start(rows: Tensor, num_samples: int, num_clusters: int, ranks: Ranks, generator: torch.Generator) -> Tensor:
    """Draw rows far from each other. Collective: the same indices of C different samples on every rank, (C,).

    As k-means++ (Arthur & Vassilvitskii, 2007), but from a random subset of 8 C samples, and in 16 rounds rather than
    one row at a time (as k-means|| of Bahmani et al., 2012). The first round is at random; each further one draws
    C / 16 rows, none twice, with probability proportional to the squared distance to the nearest row drawn before it.
    Rows without distance, equal to drawn ones, are drawn only where no others are left, in the subset's order.

    It takes 8 C / N of a pass's products, in float64, hence about 16 C / N of its time, or two passes where N < 8 C.

    Args:
        rows: of this rank, within [-1, 1].
        num_samples: N, over all ranks.
        num_clusters: C, at most N.
        ranks: processes that share the rows, and the work.
        generator: on the CPU, in the same state on every rank.
    """
    index_S = torch.randperm(num_samples, generator=generator)[: _CHOICE * num_clusters].to(rows.device)
    own_O = ranks.owned(index_S)
    rows_OD = _in_steps(rows.index_select(0, ranks.positions(index_S[own_O])))
    distance_O = torch.full_like(rows_OD[:, 0], torch.inf, dtype=torch.float64)
    per_round = -(-num_clusters // _ROUNDS)
    drawn_C = new_M = torch.arange(per_round, device=rows.device)  # their order is random already
    while len(drawn_C) < num_clusters:
        _approach(distance_O, rows_OD, _in_steps(ranks.take(rows, index_S[new_M])))
        distance_S = distance_O.new_zeros(len(index_S))
        distance_S[own_O] = distance_O
        distance_S = ranks.sum(distance_S)
        distance_S[drawn_C] = -1  # behind all others
        # The largest of distance / Exp(1) are a draw without replacement (Efraimidis & Spirakis, 2006).
        race_S = torch.empty(len(index_S), dtype=torch.float64).exponential_(generator=generator).to(rows.device)
        order_S = (distance_S / race_S).argsort(descending=True, stable=True)
        new_M = order_S[: min(per_round, num_clusters - len(drawn_C))]
        drawn_C = torch.cat([drawn_C, new_M])
    return index_S[drawn_C]


def _in_steps(rows: Tensor) -> Tensor:
    return rows.float().mul(1 / _STEP).round_()


def _approach(distance_O: Tensor, rows_OD: Tensor, new_MD: Tensor) -> None:
    """Lower the squared distances, in place, to those to the nearest new row: |x|² + (|y|² - 2 x·y)."""
    new_DM = new_MD.double().T
    new_squares_M = new_DM.square().sum(0)
    for distance, rows in zip(in_blocks(distance_O), in_blocks(rows_OD), strict=True):
        block = rows.double()
        nearest = torch.sub(new_squares_M, block @ new_DM, alpha=2).amin(1)
        torch.minimum(distance, nearest.add_(block.square_().sum(1)), out=distance)
