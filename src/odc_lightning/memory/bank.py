"""The samples memory as instance discrimination uses it: unit rows that every rank holds in full.

Shapes: N samples, B batch, D feature width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from odc_lightning.clustering.nearest import full_float32
from odc_lightning.memory.memory import global_batch
from odc_lightning.memory.ranks import Ranks
from odc_lightning.memory.samples import SamplesMemory

_SIZES = ("num_samples", "feature_dim")


class Bank:
    """A unit vector for each sample, moved towards the sample's feature whenever it is seen.

    ODC reads the rows of its batch only and shares the others out to the ranks. Here every step compares the batch to
    rows of all samples, so each rank holds all of them: 0.65 GB for ImageNet's 1.28 million and D = 128. The ranks
    gather each batch and make the same update, hence their rows stay the same bit for bit and none is ever sent.
    Rows begin as random directions, drawn from ``seed``.

    Args:
        num_samples: N.
        feature_dim: D.
        momentum: share of the new feature in a row, in (0, 1].
        seed: of the first rows.
        ranks: processes that keep the same rows; default: the running process group.

    Raises:
        ValueError: for a momentum outside its range.
    """

    def __init__(
        self, num_samples: int, feature_dim: int, *, momentum: float = 0.5, seed: int = 0, ranks: Ranks | None = None
    ) -> None:
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1]. Received: {momentum}")
        self.num_samples, self.feature_dim, self.momentum = num_samples, feature_dim, momentum
        self.ranks = ranks or Ranks.current()
        self.samples = SamplesMemory(num_samples, feature_dim, torch.float32, Ranks())  # to itself a rank is alone
        # Not the seed itself: torch would draw the numbers again that the first layer's weights are made of.
        entropy = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy >> 1))
        self.samples.fill(torch.randn(num_samples, feature_dim, generator=generator))

    @property
    def rows_ND(self) -> Tensor:
        """All rows, (N, D) float32, the same on every rank."""
        return self.samples.rows

    def owned_rows(self) -> Tensor:
        """Rows of the samples i with ``i % W == rank``: this rank's share where work is split."""
        return self.rows_ND[self.ranks.rank :: self.ranks.world_size].contiguous()

    def to(self, device: torch.device) -> None:
        """Move the rows."""
        self.samples.to(device)

    def bytes(self) -> int:
        """Bytes of the rows on each rank."""
        return self.rows_ND.numel() * self.rows_ND.element_size()

    def similarities(self, features_BD: Tensor) -> Tensor:
        """Inner product of features with every row, (B, N) float32 under any precision; rows get no gradient."""
        with full_float32(features_BD.device):
            return features_BD.float() @ self.rows_ND.T

    @torch.no_grad()
    def update(self, index_B: Tensor, features_BD: Tensor, *, ok_B: Tensor | None = None, unique: bool = False) -> None:
        """v_i <- normalise((1 - m) v_i + m f_i) for the samples of the global batch. Collective.

        Args: as of :meth:`odc_lightning.memory.Memory.update`.
        """
        index_B, features_BD = global_batch(self.ranks, index_B, features_BD, ok_B=ok_B, unique=unique)
        self.samples.move(index_B, features_BD, self.momentum, renormalize=True)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and the rows on the host."""
        return {**{key: getattr(self, key) for key in _SIZES}, "rows": self.rows_ND.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved rows, the tensor itself, on any number of ranks.

        Raises:
            ValueError: if they were saved for another number of samples or another feature width.
        """
        for key in _SIZES:
            if state[key] != getattr(self, key):
                raise ValueError(f"the checkpoint's bank has {key} = {state[key]}, this run has {getattr(self, key)}")
        self.samples.rows = state["rows"].to(self.rows_ND.device)
