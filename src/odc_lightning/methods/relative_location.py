"""Relative patch location (Doersch, Gupta and Efros, ICCV 2015): where does this patch lie, seen from that one?

Shapes: B images of this rank, nine patches an image, D backbone features, 8 neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Batch
from odc_lightning.methods.pretext import Pretext, per_question
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.init import init_linear_normal
from odc_lightning.nn.patches import CELLS, PatchGrid

CENTRE = CELLS // 2
NEIGHBOURS = CELLS - 1


class RelativeLocation(Pretext):
    """The centre of a 3 x 3 grid of patches is paired with its eight neighbours; each pair's place is classified.

    Args:
        patch_share: side of a patch over that of its cell; the rest is gap and jitter. See :class:`PatchGrid`.
        hidden_dim: width of the head {fc-bn-relu-dropout-fc}, which reads both features.
        dropout: in the head.
        neck_bn_momentum: of the head's batch-norm statistics (release: 0.003).
        backbone and the rest: see :class:`Pretext`.

    Raises:
        ValueError: for a value outside its range; patches too small for the backbone, before training starts.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        patch_share: float = 64 / 85,
        hidden_dim: int = 4096,
        dropout: float = 0.5,
        neck_bn_momentum: float = 0.003,
        **keys: Any,
    ) -> None:
        super().__init__(backbone, **keys)
        if hidden_dim < 1:
            raise ValueError(f"method.hidden_dim must be at least 1. Received: {hidden_dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"method.dropout must be in [0, 1). Received: {dropout}")
        self.grid = PatchGrid(patch_share)
        first, last = nn.Linear(2 * backbone.feature_dim, hidden_dim), nn.Linear(hidden_dim, NEIGHBOURS)
        for linear in (first, last):
            init_linear_normal(linear, std=0.005)
        nn.init.constant_(first.bias, 0.1)
        norm = nn.BatchNorm1d(hidden_dim, momentum=neck_bn_momentum)
        self.classifier = nn.Sequential(first, norm, nn.ReLU(inplace=True), nn.Dropout(dropout), last)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # 1. Nine patches an image, each through the backbone once.
        patches = self.grid.cut(batch.image)
        feature_B9D = self.represent(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        # 2. Eight questions an image: in which direction from the first patch lies the second?
        pair_QD = centre_and_neighbour(feature_B9D).flatten(0, 1)
        places_Q = torch.arange(NEIGHBOURS, device=pair_QD.device).repeat(len(batch.image))
        return self.judge(self.classifier(pair_QD), places_Q, per_question(self.readable(batch), NEIGHBOURS))

    def smallest_view(self, datamodule: DataModule) -> tuple[int, str]:
        return self.grid.named_side(datamodule.image_size)

    def head(self) -> list[nn.Module]:
        return [self.classifier]


def centre_and_neighbour(feature_B9D: Tensor) -> Tensor:
    """Features of nine patches, row by row, to eight pairs (B, 8, 2 D): the centre's, then a neighbour's."""
    neighbour_B8D = torch.cat([feature_B9D[:, :CENTRE], feature_B9D[:, CENTRE + 1 :]], dim=1)
    return torch.cat([feature_B9D[:, CENTRE, None].expand_as(neighbour_B8D), neighbour_B8D], dim=2)
