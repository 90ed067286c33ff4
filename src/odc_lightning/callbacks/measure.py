"""Measures a run against true labels while it trains. Labels are read here only; the loss never sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from odc_lightning.clustering.agreement import agreement
from odc_lightning.console import say
from odc_lightning.data.sources import ImageSource
from odc_lightning.evaluation.features import extract
from odc_lightning.evaluation.knn import knn_accuracy
from odc_lightning.memory import Ranks
from odc_lightning.methods.base import Method
from odc_lightning.nn.normalize import Normalize


class Measure(Callback):
    """Agreement of the pseudo-labels and kNN of the backbone's features, every few epochs and at the end.

    ``agreement/{nmi,ari,purity}`` hold the pseudo-labels against the true ones, ``agreement/nmi_previous`` against the
    pseudo-labels of the measurement before. ``knn/top1`` stands beside ``knn/top1_untrained`` (the same network before
    training) and ``knn/top1_pixels`` (the images themselves), both measured once, at the start.

    Args:
        every_n_epochs: epochs between two measurements; the last epoch is always measured.
        knn: measure kNN too (needs labelled validation images).
        k, temperature: of the weighted kNN (Wu et al., 2018).
        max_images: kNN uses at most so many labelled training and validation images, evenly spaced.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 5,
        knn: bool = True,
        k: int = 20,
        temperature: float = 0.07,
        max_images: int = 50_000,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_epochs", every_n_epochs), ("k", k), ("max_images", max_images)):
            if value < 1:
                raise ValueError(f"callbacks.measure.{name} must be at least 1. Received: {value}")
        if not temperature > 0:
            raise ValueError(f"callbacks.measure.temperature must be above 0. Received: {temperature}")
        self.every_n_epochs, self.knn, self.k, self.temperature = every_n_epochs, knn, k, temperature
        self.max_images = max_images
        self.previous_N: Tensor | None = None
        self.at_start: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        if self.at_start or trainer.global_step > 0:
            return
        if (why_not := self._knn_impossible(pl_module)) and self.knn:
            say(f"kNN is not measured: {why_not}")
        elif self.knn:
            normalize = Normalize(pl_module.datamodule.mean, pl_module.datamodule.std).to(pl_module.device)
            self.at_start = {
                "knn/top1_untrained": self._knn(pl_module, pl_module.represent),
                "knn/top1_pixels": self._knn(pl_module, lambda image: normalize(image).flatten(1)),
            }
            pl_module.write(self.at_start)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs and epoch != trainer.max_epochs:
            return
        line = self._agreement(pl_module)
        if self.knn and not self._knn_impossible(pl_module):
            line["knn/top1"] = self._knn(pl_module, pl_module.represent)
        if line:
            pl_module.write(line)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""
        return {"previous": self.previous_N, "at_start": dict(self.at_start)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier part of the run measured."""
        self.previous_N, self.at_start = state["previous"], state["at_start"]

    def _agreement(self, method: Method) -> dict[str, float]:
        labels_N = method.pseudo_labels()
        if labels_N is None:
            return {}
        line: dict[str, float] = {}
        labels = labels_N.cpu().numpy()
        source = method.datamodule.train_source
        if source.targets is not None and has_labels(source):
            line = {f"agreement/{name}": value for name, value in agreement(labels, source.targets).items()}
        if self.previous_N is not None:
            line["agreement/nmi_previous"] = agreement(labels, self.previous_N.numpy())["nmi"]
        self.previous_N = labels_N.cpu().clone()
        return line

    def _knn(self, method: Method, encode: Any) -> float:
        train, val = method.datamodule.train_source, method.datamodule.val_source
        assert val is not None
        train_features, train_targets = self._encoded(method, encode, train)
        val_features, val_targets = self._encoded(method, encode, val)
        k = min(self.k, len(train_targets))
        return knn_accuracy(train_features, train_targets, val_features, val_targets, k=k, temperature=self.temperature)

    def _encoded(self, method: Method, encode: Any, source: ImageSource) -> tuple[Tensor, Tensor]:
        """Features and true labels, every rank its share and all ranks the whole."""
        assert source.targets is not None
        ranks = Ranks.current()
        known = np.flatnonzero(source.targets >= 0)
        count = min(len(known), self.max_images) // ranks.world_size * ranks.world_size
        chosen = known[np.linspace(0, len(known) - 1, count).round().astype(np.int64)]
        own = chosen[ranks.rank :: ranks.world_size]
        loader = method.datamodule.eval_dataloader(source, own.tolist())
        features = ranks.gather(extract(encode, method, loader, "features for kNN"))
        targets = np.concatenate([source.targets[chosen[rank :: ranks.world_size]] for rank in range(ranks.world_size)])
        return features, torch.from_numpy(targets).to(features.device)

    def _knn_impossible(self, method: Method) -> str:
        train, val = method.datamodule.train_source, method.datamodule.val_source
        if val is None:
            return "the data has no validation images"
        if not (has_labels(train) and has_labels(val)):
            return "the images have no labels"
        return ""


def has_labels(source: ImageSource) -> bool:
    """Is a true label known for any image?"""
    return source.targets is not None and bool((source.targets >= 0).any())
