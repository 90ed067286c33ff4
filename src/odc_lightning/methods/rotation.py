"""Rotation (Gidaris, Singh and Komodakis, ICLR 2018): by how many quarter turns was this image turned?

Shapes: B images of this rank, C channels, H x H pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odc_lightning.data.dataset import Batch
from odc_lightning.methods.pretext import Pretext, per_question
from odc_lightning.nn.backbone import Backbone

TURNS = 4


class Rotation(Pretext):
    """Every image is shown in all four rotations, and each is classified (their Sec. 2.1).

    Args:
        backbone and the rest: see :class:`Pretext`.
    """

    def __init__(self, backbone: Backbone, **keys: Any) -> None:
        super().__init__(backbone, **keys)
        self.classifier = nn.Linear(backbone.feature_dim, TURNS)
        nn.init.kaiming_normal_(self.classifier.weight, nonlinearity="relu")  # as the release
        nn.init.zeros_(self.classifier.bias)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # 1. Four questions an image, the answers 0..3 quarter turns.
        turned = four_rotations(batch.image)
        turns_Q = torch.arange(TURNS, device=turned.device).repeat(len(batch.image))
        # 2. Answer them from the pooled features.
        logits_QC = self.classifier(self.represent(turned))
        return self.judge(logits_QC, turns_Q, per_question(self.readable(batch), TURNS))

    def head(self) -> list[nn.Module]:
        return [self.classifier]


def four_rotations(image_BCHW: Tensor) -> Tensor:
    """Square images (B, C, H, H) to (4 B, C, H, H): each by 0, 1, 2, 3 quarter turns counter-clockwise, in this order.

    Flips and transpositions of whole pixels: nothing is interpolated, so nothing but the content tells the rotation.
    """
    turned = torch.stack([image_BCHW.rot90(turns, (2, 3)) for turns in range(TURNS)], dim=1)
    return turned.flatten(0, 1)
