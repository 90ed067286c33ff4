"""Colours as classes (Zhang, Isola and Efros, ECCV 2016, Sec. 2): bins of Lab's a and b, soft codes, rebalancing.

Shapes: Q bins, K = 5 nearest bins, h x w pixels of the map that colours are predicted on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from odc_lightning.nn.lab import rgb_to_lab

NEAREST = 5


class SoftCode(NamedTuple):
    """Share of each pixel in its nearest bins: bins (..., K) int64 with the nearest first, shares (..., K) sum to 1."""

    bins: Tensor
    shares: Tensor


def in_gamut_bins(width: float = 10.0) -> Tensor:
    """Centres of the bins of a and b that hold a colour of 8-bit sRGB, (Q, 2) float32, sorted.

    A bin is the square of this width about a multiple of it. The surface of the RGB cube suffices: every line of
    constant a and b that meets the cube leaves it through the surface. At width 10 there are 261 bins, and all 2^24
    colours give the same 261. (The paper counts 313 and does not say how.)

    Raises ValueError for a width that is not above 0.
    """
    if not width > 0:
        raise ValueError(f"method.bin_width must be above 0. Received: {width}")
    level = torch.arange(256, dtype=torch.uint8)
    one, other = torch.cartesian_prod(level, level).unbind(1)
    faces = []
    for end in (0, 255):
        fixed = torch.full_like(one, end)
        faces += [torch.stack(face) for face in ((fixed, one, other), (one, fixed, other), (one, other, fixed))]
    ab_2S = rgb_to_lab(torch.cat(faces, dim=1)[None, :, :, None])[0, 1:, :, 0]
    return (ab_2S.T / width).round().unique(dim=0) * width


def colour_targets(image_B3HW: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 sRGB images to their a and b, averaged over the area of each pixel of a map of this size: (B, h, w, 2)."""
    ab_B2HW = rgb_to_lab(image_B3HW)[:, 1:]
    return F.adaptive_avg_pool2d(ab_B2HW, size).permute(0, 2, 3, 1)


def soft_code(ab: Tensor, bins_Q2: Tensor, sigma: float = 5.0) -> SoftCode:
    """Code colours (..., 2) by their five nearest bins, weighted by a Gaussian of their distance (Sec. 2.2)."""
    distance, nearest = torch.cdist(ab.flatten(0, -2), bins_Q2).topk(min(NEAREST, len(bins_Q2)), largest=False)
    # A softmax is that Gaussian and its normalisation, without an underflow for colours far from every bin.
    shares = (-distance.square() / (2 * sigma**2)).softmax(-1)
    return SoftCode(nearest.unflatten(0, ab.shape[:-1]), shares.unflatten(0, ab.shape[:-1]))


def histogram(code: SoftCode, num_bins: int) -> Tensor:
    """Sum of the shares in each bin, (Q,) float64."""
    empty = code.shares.new_zeros(num_bins, dtype=torch.float64)
    return empty.index_add(0, code.bins.flatten(), code.shares.flatten().double())


def rebalancing(prior_Q: Tensor, mixed: float = 0.5) -> Tensor:
    """Weights of the bins from how often they occur, Eq. 4: w ~ ((1 - mixed) p + mixed / Q)^-1, and sum(p w) = 1.

    Args:
        prior_Q: p, sums to 1.
        mixed: the paper's lambda, share of the uniform distribution, within 0..1; at 1 all bins weigh 1.

    Returns: float32 (Q,).
    """
    prior_Q = prior_Q.double()
    weights_Q = 1 / ((1 - mixed) * prior_Q + mixed / len(prior_Q))
    return (weights_Q / (prior_Q * weights_Q).sum()).float()


def colour_loss(logits_BQhw: Tensor, code: SoftCode, weights_Q: Tensor, ok_B: Tensor | None = None) -> Tensor:
    """Eq. 2: mean over the pixels of v(Z) times the cross-entropy of the soft code Z; v is its nearest bin's weight.

    Always in float32, whatever autocast says.

    Args:
        logits_BQhw: scores of the bins.
        code: of the true colours, (B, h, w, K).
        weights_Q: from `rebalancing`.
        ok_B: False leaves an image out, whatever its logits are. When all are left out the loss is 0.

    Returns: scalar float32.
    """
    with torch.autocast(logits_BQhw.device.type, enabled=False):
        logits_BQhw = logits_BQhw.float()
        if ok_B is not None:  # a NaN in a dropped image would pass through the softmax's gradient
            logits_BQhw = logits_BQhw.masked_fill(~ok_B[:, None, None, None], 0)
        log_shares = logits_BQhw.log_softmax(1).permute(0, 2, 3, 1).gather(-1, code.bins)
        loss_Bhw = -weights_Q[code.bins[..., 0]] * (code.shares * log_shares).sum(-1)
        loss_B = loss_Bhw.mean(dim=(1, 2))
        return loss_B.mean() if ok_B is None else (loss_B * ok_B).sum() / ok_B.sum().clamp(min=1)
