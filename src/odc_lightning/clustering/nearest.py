"""Nearest centroid, Eq. 3 of the paper, decided the same way on every device and number of processes.

Shapes: B rows, C centroids, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from odc_lightning.checks import check_choice

METRICS = ("l2", "inner_product")
_GROUP = 64  # columns of scores whose maximum is taken together
_ROUNDING = 2.0**-24  # relative, of one float32 operation


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keep matrix products in real float32: bf16 scores give 42 % wrong labels on concentrated ReLU features."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


@torch.no_grad()
def nearest_centroid(
    rows_BD: Tensor,
    centroids_CD: Tensor,
    *,
    metric: str = "l2",
    allowed_C: Tensor | None = None,
    half_squares_C: Tensor | None = None,
) -> Tensor:
    """Label of the nearest centroid of each row (Eq. 3): (B,) int64; among equals the lowest label.

    A float32 matrix product finds two finalists a row. Where they lie closer than its rounding can tell, float64
    arithmetic on these two decides. So a label does not depend on how a library blocks its products, that is on the
    batch size, the threads or the number of ranks, unless three centroids lie that close.

    Args:
        rows_BD: features, (B, D), any floating type.
        centroids_CD: (C, D) float32.
        metric: ``l2`` is the paper's squared distance, ``inner_product`` the authors' release (it favours long means).
        allowed_C: bool (C,); clusters that are False are never chosen. At least one must be True.
        half_squares_C: :func:`half_squares` of the centroids, where the caller keeps them.

    Raises:
        ValueError: for an unknown metric.
    """
    check_choice("metric", metric, METRICS)
    if half_squares_C is None:
        half_squares_C = half_squares(centroids_CD)
    # |x - c|^2 is smallest where x.c - |c|^2 / 2 is largest: the L2 rule costs one bias.
    bias_C = -half_squares_C if metric == "l2" else torch.zeros_like(half_squares_C)
    if allowed_C is not None:
        bias_C = bias_C.masked_fill(~allowed_C, -torch.inf)
    longest = half_squares_C.max().mul(2).sqrt()
    labels_B = torch.empty(len(rows_BD), dtype=torch.int64, device=rows_BD.device)
    if not len(rows_BD):
        return labels_B
    size = block_size(len(centroids_CD), rows_BD.device)
    with full_float32(rows_BD.device):
        # Into one tensor: small results kept between large temporaries would tear the heap, and it would grow.
        for rows, labels in zip(rows_BD.split(size), labels_B.split(size), strict=True):
            labels.copy_(_nearest_in_block(rows, centroids_CD, bias_C, longest, metric))
    return labels_B


def block_size(num_clusters: int, device: torch.device) -> int:
    """Rows to score at once: on a CPU few, so that the scores stay near its cache, on a GPU what its memory bounds."""
    return 8192 if device.type == "cuda" else min(max(2**22 // num_clusters, 512), 4096)


def half_squares(centroids_CD: Tensor) -> Tensor:
    """|c|^2 / 2 of each centroid, (C,)."""
    return torch.linalg.vector_norm(centroids_CD, dim=1).square_().div_(2)


def is_nearer(rows_BD: Tensor, one_BD: Tensor, other_BD: Tensor, metric: str) -> Tensor:
    """Is each row nearer to its ``other`` than to its ``one``? (B,) bool; not if they are equally near."""
    twice_BD = rows_BD + rows_BD
    if metric == "l2":  # |x - a|^2 - |x - b|^2 = (b - a).(2x - a - b)
        twice_BD.sub_(one_BD).sub_(other_BD)
    return twice_BD.mul_(other_BD - one_BD).sum(1) > 0


def _nearest_in_block(rows_BD: Tensor, centroids_CD: Tensor, bias_C: Tensor, longest: Tensor, metric: str) -> Tensor:
    scores_BGK, maxima_BG = _scores(rows_BD.float(), centroids_CD, bias_C)
    every_B = torch.arange(len(rows_BD), device=rows_BD.device)
    if rows_BD.is_cuda:  # to pick out the close ones would have the host wait
        return _decide(rows_BD, _finalists(scores_BGK, maxima_BG, every_B), centroids_CD, bias_C, metric)
    labels_B, lead_B = _highest_and_lead(scores_BGK, maxima_BG, every_B)
    # A product of D terms is off by at most D roundings of |x||c|, and |c|^2 / 2 likewise; two scores, twice that.
    length_B = torch.linalg.vector_norm(rows_BD, dim=1, dtype=torch.float32)
    doubt_B = (length_B + longest) * longest * (2 * (rows_BD.shape[1] + 8) * _ROUNDING)
    close_M = (~(lead_B > doubt_B)).nonzero().flatten()
    if len(close_M):
        finalists_M2 = _finalists(scores_BGK, maxima_BG, close_M)
        labels_B[close_M] = _decide(rows_BD[close_M], finalists_M2, centroids_CD, bias_C, metric)
    return labels_B


def _scores(rows_BD: Tensor, centroids_CD: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
    """x.c + bias in two or more groups of K columns, -inf where there is no centroid; and the maximum of each group."""
    count = len(centroids_CD)
    groups = max(-(-count // _GROUP), 2)
    scores_BP = rows_BD.new_empty(len(rows_BD), groups * _GROUP)
    scores_BP[:, count:] = -torch.inf
    torch.addmm(bias_C, rows_BD, centroids_CD.T, out=scores_BP[:, :count])
    scores_BGK = scores_BP.unflatten(1, (groups, _GROUP))
    return scores_BGK, scores_BGK.amax(-1)


def _highest_and_lead(scores_BGK: Tensor, maxima_BG: Tensor, every_B: Tensor) -> tuple[Tensor, Tensor]:
    """Column of a highest score of each row, and how far it lies above the next: (B,) and (B,)."""
    group_B1, second_of_all_B = _first_and_second(maxima_BG)
    within_BK = _scores_in(scores_BGK, every_B, group_B1)
    place_B1, second_within_B = _first_and_second(within_BK)
    highest_B = within_BK.gather(1, place_B1).squeeze(1)
    return (group_B1 * _GROUP + place_B1).squeeze(1), highest_B - torch.maximum(second_of_all_B, second_within_B)


def _first_and_second(values_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Position of a highest value of each row, (B, 1), and the second highest value, (B,); topk is far slower."""
    first_B1 = values_BK.argmax(1, keepdim=True)
    return first_B1, values_BK.scatter(1, first_B1, -torch.inf).amax(1)


def _scores_in(scores_BGK: Tensor, rows_M: Tensor, groups_MS: Tensor) -> Tensor:
    """Scores of the rows ``rows_M`` in S groups each, (M, S K)."""
    num_groups = scores_BGK.shape[1]
    place_MS = rows_M[:, None] * num_groups + groups_MS
    return scores_BGK.flatten(0, 1).index_select(0, place_MS.flatten()).view(len(rows_M), -1)


def _decide(rows_MD: Tensor, finalists_M2: Tensor, centroids_CD: Tensor, bias_C: Tensor, metric: str) -> Tensor:
    """The nearer of two finalists in float64; the lower number if they are equally near."""
    low_M, high_M = finalists_M2.sort(1).values.unbind(1)
    high_M = torch.where(high_M < len(centroids_CD), high_M, low_M)  # a single centroid
    takes_high_M = is_nearer(rows_MD.double(), centroids_CD[low_M].double(), centroids_CD[high_M].double(), metric)
    takes_high_M |= bias_C[low_M] == -torch.inf
    takes_high_M &= bias_C[high_M] != -torch.inf
    return torch.where(takes_high_M, high_M, low_M)


def _finalists(scores_BGK: Tensor, maxima_BG: Tensor, rows_M: Tensor) -> Tensor:
    """Columns of the two highest scores of each of the rows ``rows_M``, (M, 2); among equals the lowest.

    Only the two groups of the highest maxima are searched.
    """
    groups_M2 = _two_highest(maxima_BG[rows_M]).sort(1).values
    places_M2 = _two_highest(_scores_in(scores_BGK, rows_M, groups_M2))
    behind_M2 = places_M2 >= _GROUP  # in the second of the two groups
    return groups_M2.gather(1, behind_M2.long()) * _GROUP + places_M2 - behind_M2 * _GROUP


def _two_highest(values_MK: Tensor) -> Tensor:
    """Positions of the highest and the second highest value of each row; topk does not keep the order of equals."""
    first_M1 = values_MK.argmax(1, keepdim=True)
    second_M1 = values_MK.scatter(1, first_M1, -torch.inf).argmax(1, keepdim=True)
    another_M1 = (first_M1 + 1).remainder(values_MK.shape[1])  # where all others are -inf
    return torch.cat([first_M1, torch.where(second_M1 == first_M1, another_M1, second_M1)], 1)
