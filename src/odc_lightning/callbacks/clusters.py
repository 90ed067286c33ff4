"""Which image is in which cluster, and how large the clusters are, while a run goes on and at its end."""

from __future__ import annotations

import csv
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from odc_lightning.data.sources import BadImageError, ImageSource
from odc_lightning.methods.base import Method
from odc_lightning.report.cluster_figures import Clustering, Shown, label_counts, purity_and_entropy, top_labels
from odc_lightning.report.clusters_page import strip
from odc_lightning.report.curves import ASSIGNMENTS, draw_run
from odc_lightning.report.panels import GALLERY, HISTOGRAM, PICTURE
from odc_lightning.whole_file import whole_file

IN_GALLERY, SHOWN, SIDE = 100, 12, 48  # clusters, images of each, their side in pixels
_BLOCK = 8192  # rows of the file that are Python numbers at once: these take ten times the tensors' memory
GALLERY_COLUMNS = ["cluster", "images", "mean distance", "most frequent label", "purity", "entropy, bits", "pictures"]


class Clusters(Callback):
    """On W&B a histogram of the cluster sizes every few epochs.

    At the end ``clusters/assignments.csv`` and ``run.png`` in the run folder, and on W&B a gallery and the picture.

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
        if not trainer.is_global_zero:
            return
        folder, source = Path(trainer.default_root_dir), pl_module.datamodule.train_source
        write_assignments(folder / ASSIGNMENTS, source, labels_N, distance_N)
        picture = draw_run(folder)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                if picture:
                    logger.log_image(PICTURE, [str(picture)])
                rows = gallery(source, labels_N.cpu().numpy(), distance_N.cpu().numpy())
                logger.log_table(GALLERY, columns=GALLERY_COLUMNS, data=rows)

    def _histogram(self, trainer: pl.Trainer, sizes_C: Tensor) -> None:
        for logger in trainer.loggers:
            if trainer.is_global_zero and isinstance(logger, WandbLogger):
                import wandb

                histogram = wandb.Histogram(sizes_C.tolist(), num_bins=64)
                logger.experiment.log({HISTOGRAM: histogram, "trainer/global_step": trainer.global_step})


def gallery(source: ImageSource, labels_N: NDArray[Any], distances_N: NDArray[Any]) -> list[list[Any]]:
    """Rows of W&B's table of the largest clusters, with the columns of ``GALLERY_COLUMNS``.

    A picture shows members side by side, one half those nearest to the centroid, the other those at the border; of
    labels the row says nothing where there are none.
    """
    import wandb

    data = Clustering("", [], labels_N, distances_N, source.targets, source.classes)
    shown, names = Shown.of(data, SHOWN), data.class_names()
    counts_CK = label_counts(data, shown)
    purity_C, entropy_C = purity_and_entropy(counts_CK)
    rows: list[list[Any]] = []
    for row, cluster in enumerate(shown.clusters_C[:IN_GALLERY].tolist()):
        members = shown.order_N[shown.start_C[row] :][: shown.sizes_C[row]]
        about = [cluster, len(members), float(distances_N[members].mean()), None, None, None]
        if not np.isnan(purity_C[row]):
            ((label, _),) = top_labels(counts_CK, row, 1)
            about[3:] = [names[label], float(purity_C[row]), float(entropy_C[row])]
        picture = strip(shown.images_CS[row], lambda index: readable(source, index), SIDE)
        rows.append([*about, wandb.Image(picture)])
    return rows


def readable(source: ImageSource, index: int) -> NDArray[np.uint8] | None:
    """The image, or None where it cannot be read."""
    try:
        return source.load(index)
    except (BadImageError, OSError):
        return None


def write_assignments(path: Path, source: ImageSource, labels_N: Tensor, distance_N: Tensor) -> None:
    """Rows of path, cluster, distance to the centroid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as writing, writing.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "cluster", "distance"])
        numbers = (chain.from_iterable(map(Tensor.tolist, values.split(_BLOCK))) for values in (labels_N, distance_N))
        for index, (label, distance) in enumerate(zip(*numbers, strict=True)):
            table.writerow([source.path(index), label, f"{distance:.6g}"])
