"""Which image is in which cluster, and how large the clusters are, while a run goes on and at its end."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from odc_lightning.data.sources import ImageSource
from odc_lightning.methods.base import Method
from odc_lightning.report.curves import ASSIGNMENTS, draw_run


class Clusters(Callback):
    """Histogram of the cluster sizes on W&B every few epochs; at the end ``clusters/assignments.csv`` and ``run.png``.

    Args:
        every_n_epochs: epochs between two histograms.
    """

    def __init__(self, *, every_n_epochs: int = 5) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"callbacks.clusters.every_n_epochs must be at least 1. Received: {every_n_epochs}")
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and (sizes_C := pl_module.cluster_sizes()) is not None:
            self._histogram(trainer, sizes_C)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        labels_N, distance_N = pl_module.pseudo_labels(), pl_module.centroid_distances()
        if labels_N is None or distance_N is None:
            return
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            write_assignments(folder / ASSIGNMENTS, pl_module.datamodule.train_source, labels_N, distance_N)
            picture = draw_run(folder)
            for logger in trainer.loggers:
                if picture and isinstance(logger, WandbLogger):
                    logger.log_image("run", [str(picture)])

    def _histogram(self, trainer: pl.Trainer, sizes_C: Tensor) -> None:
        for logger in trainer.loggers:
            if trainer.is_global_zero and isinstance(logger, WandbLogger):
                import wandb

                histogram = wandb.Histogram(sizes_C.tolist(), num_bins=64)
                logger.experiment.log({"memory/cluster_sizes": histogram, "trainer/global_step": trainer.global_step})


def write_assignments(path: Path, source: ImageSource, labels_N: Tensor, distance_N: Tensor) -> None:
    """Rows of path, cluster, distance to the centroid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_suffix(".writing")
    with writing.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "cluster", "distance"])
        for index, (label, distance) in enumerate(zip(labels_N.tolist(), distance_N.tolist(), strict=True)):
            table.writerow([source.path(index), label, f"{distance:.6g}"])
    os.replace(writing, path)
