"""Keeps index.html of the run folder up to date while a run goes on."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from odc_lightning.report.dashboard import write_dashboard


class Dashboard(Callback):
    """Writes the page of the run after every epoch; the training task writes it once more with the final figures.

    The page shows what metrics.csv and the history hold, so this one stands after the callbacks that write these.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_dashboard(trainer.default_root_dir)
