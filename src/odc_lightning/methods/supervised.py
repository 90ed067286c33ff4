"""Supervised training: the upper row of every table. The only method that reads true labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Batch
from odc_lightning.data.sources import UNKNOWN
from odc_lightning.methods.base import Method
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.head import linear_classifier
from odc_lightning.objective import weighted_cross_entropy


class Supervised(Method):
    """Cross-entropy of the true classes.

    Args:
        num_classes: of the training images; held against the data before training starts.
        backbone and the rest: see :class:`Method`.

    Raises:
        ValueError: the images have no labels, or another number of classes.
    """

    def __init__(self, backbone: Backbone, *, num_classes: int, **keys: Any) -> None:
        super().__init__(backbone, **keys)
        self.num_classes = num_classes
        self.classifier = linear_classifier(backbone.feature_dim, num_classes)
        self.targets_N: Tensor

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits_BC = self.classifier(self.represent(batch.image))
        targets_B, ok_B = self.targets_N[batch.index], self.readable(batch)
        known_B = targets_B != UNKNOWN if ok_B is None else (targets_B != UNKNOWN) & ok_B
        return self.watch(weighted_cross_entropy(logits_BC, targets_B, mask_B=known_B))

    def require_possible(self, datamodule: DataModule) -> None:
        super().require_possible(datamodule)
        targets = datamodule.train_source.targets
        if targets is None or not (targets >= 0).any():
            raise ValueError(f"method=supervised needs labels, and {datamodule.train_source.name} has none")
        classes = int(targets.max()) + 1
        if classes != self.num_classes:
            raise ValueError(
                f"method.num_classes must be the number of classes of {datamodule.train_source.name}, {classes}. "
                f"Received: {self.num_classes}"
            )

    def on_train_start(self) -> None:
        """True labels to the device, (N,) int64."""
        self.targets_N = torch.from_numpy(self.datamodule.train_source.targets).to(self.device)
