"""Which image is in which cluster, and how large the clusters are, while a run goes on and at its end."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from odc_lightning.methods.odc import ODC
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
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0 and isinstance(pl_module, ODC):
            self._histogram(trainer, pl_module.memory.sizes_C)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, ODC):
            return
        distance_N = distances(pl_module)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            write_assignments(folder / ASSIGNMENTS, pl_module, distance_N)
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


@torch.no_grad()
def distances(method: ODC, block: int = 65536) -> Tensor:
    """Euclidean distance of every sample's memory row to its centroid, (N,) float32 on the host. Collective."""
    memory = method.memory
    owned_labels = memory.labels_N[memory.ranks.rank :: memory.ranks.world_size].long()
    parts = [
        (rows.float() - memory.centroids.centroids_CD[labels]).norm(dim=1)
        for rows, labels in zip(memory.samples.rows.split(block), owned_labels.split(block), strict=True)
    ]
    return memory.ranks.collect_rows(torch.cat(parts), memory.num_samples)


def write_assignments(path: Path, method: ODC, distance_N: Tensor) -> None:
    """Rows of path, cluster, distance to the centroid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_suffix(".writing")
    with writing.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "cluster", "distance"])
        table.writerows(_assignments(method, distance_N))
    os.replace(writing, path)


def _assignments(method: ODC, distance_N: Tensor) -> Iterator[tuple[str, int, str]]:
    source = method.datamodule.train_source
    for index, (label, distance) in enumerate(zip(method.memory.labels_N.tolist(), distance_N.tolist(), strict=True)):
        yield source.path(index), label, f"{distance:.6g}"
