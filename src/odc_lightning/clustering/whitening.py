"""PCA-whitening before the k-means of DeepCluster: without it a few strong directions decide every distance.

Shapes: N samples · W ranks · D feature width · P principal directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from odc_lightning.memory.ranks import Ranks
from odc_lightning.memory.samples import l2_normalize, snap

_BLOCK = 8192  # rows that are in float64 at a time
_ROUNDING = 2.0**-48  # of |x|²: what rounding x to float32 adds to a variance, at most


@dataclass(frozen=True)
class Whitening:
    """x to (x - mean) @ matrix: P directions, each of variance 1.

    Attributes:
        mean_D: (D,) float64.
        matrix_DP: (D, P) float64; the column of a direction without variance is 0.
    """

    mean_D: Tensor
    matrix_DP: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Whiten rows (M, D) of any device; (M, P) float64 on the device of the matrix."""
        return (rows.to(self.mean_D.device).double() - self.mean_D) @ self.matrix_DP


@torch.no_grad()
def fit_whitening(
    owned_rows: Tensor,
    num_samples: int,
    dim: int = 256,
    *,
    eigen_power: float = -0.5,
    ranks: Ranks | None = None,
    device: torch.device | None = None,
) -> Whitening:
    """Principal directions of all samples by their exact covariance. Collective.

    A direction v of variance λ becomes λ^p·v; its largest entry is positive, so that equal features give equal rows.
    Directions whose variance is no more than float32 rounding give zeros, not amplified noise.

    Args:
        owned_rows: (N / W, D) features of the samples that this rank owns; they may lie on another device.
        num_samples: N, over all ranks.
        dim: P, at most D are there.
        eigen_power: p; -0.5 is whitening, 0 is PCA.
        ranks: processes that share the rows; default: the running process group.
        device: of the computation; default: that of the rows.

    Raises:
        ValueError: for a ``dim`` below 1, or rows with NaN or infinity.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1. Received: {dim}")
    ranks, device = ranks or Ranks.current(), device or owned_rows.device
    mean_D, covariance_DD, power = _moments(owned_rows, num_samples, ranks, device)
    if not bool(covariance_DD.isfinite().all()):
        raise ValueError("whitening needs finite features: check the images, the weights and the learning rate")
    # The eigenvectors are not decided twice: two ranks might differ in a last bit.
    matrix_DP = covariance_DD.new_zeros(len(mean_D), min(dim, len(mean_D)))
    if ranks.rank == 0:
        matrix_DP.copy_(_directions(covariance_DD, matrix_DP.shape[1], eigen_power, float(power) * _ROUNDING))
    return Whitening(mean_D, ranks.broadcast(matrix_DP))


@torch.no_grad()
def whitened_unit_rows(whitening: Whitening, owned_rows: Tensor) -> Tensor:
    """Whiten rows (M, D), L2-normalise them and snap them to the grid on which k-means is exact: (M, P) float32."""
    blocks = owned_rows.split(_BLOCK)
    return torch.cat([snap(l2_normalize(whitening(rows)), torch.float32) for rows in blocks])


def _moments(owned_rows: Tensor, count: int, ranks: Ranks, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), covariance (D, D) and mean squared length of all samples, float64."""
    dim = owned_rows.shape[1]
    sum_D, power = (torch.zeros(size, dtype=torch.float64, device=device) for size in ((dim,), ()))
    for rows in _blocks(owned_rows, device):
        sum_D += rows.sum(0)
        power += rows.square().sum()
    mean_D, power = ranks.sum(sum_D) / count, ranks.sum(power) / count
    covariance_DD = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    for rows in _blocks(owned_rows, device):  # about the mean: the difference of two large sums would cancel
        rows -= mean_D
        covariance_DD.addmm_(rows.T, rows)
    return mean_D, ranks.sum(covariance_DD) / count, power


def _directions(covariance_DD: Tensor, dim: int, eigen_power: float, noise: float) -> Tensor:
    """The ``dim`` strongest directions, scaled by their variance to the ``eigen_power``: (D, P)."""
    variance_D, vectors_DD = torch.linalg.eigh(covariance_DD)  # ascending
    variance_P, vectors_DP = variance_D.flip(0)[:dim], vectors_DD.flip(1)[:, :dim]
    largest_1P = vectors_DP.gather(0, vectors_DP.abs().argmax(0, keepdim=True))
    scale_P = torch.where(variance_P > noise, variance_P.clamp(min=noise).pow(eigen_power), 0.0)
    return vectors_DP * largest_1P.sign() * scale_P


def _blocks(rows: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Fresh float64 copies of some rows at a time."""
    for block in rows.split(_BLOCK):
        yield block.to(device=device, dtype=torch.float64, copy=True)
