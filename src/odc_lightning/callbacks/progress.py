"""Progress: a live bar in a terminal, one line per epoch elsewhere (batch jobs, logs)."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from odc_lightning.console import clock

SHOWN = {
    "train/loss": "loss",
    "train/label_switch_ratio": "switch",
    "time/images_per_second": "images/s",
    "knn/top1": "kNN",
}


class ProgressBar(RichProgressBar):
    """Rich's bar with the values of the newest log line."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return {short: f"{value:.4g}" for short, value in shown(pl_module).items()}


class EpochLines(Callback):
    """One line per epoch, with the time that is left."""

    def __init__(self) -> None:
        self._began, self._first = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began, self._first = time.monotonic(), trainer.current_epoch

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done, total = trainer.current_epoch + 1, trainer.max_epochs or -1
        per_epoch = (time.monotonic() - self._began) / (done - self._first)
        values = "  ".join(f"{short} {value:.4g}" for short, value in shown(pl_module).items())
        left = f"  {clock(per_epoch * (total - done))} left" if total > 0 else ""
        print(f"epoch {done}/{total if total > 0 else '-'}  {values}{left}", flush=True)


def progress_callback() -> Callback:
    """The bar for a terminal, lines for anything else."""
    return ProgressBar() if sys.stdout.isatty() else EpochLines()


def shown(pl_module: pl.LightningModule) -> dict[str, float]:
    """Newest values by their short names."""
    latest = getattr(pl_module, "latest", {})
    return {short: latest[name] for name, short in SHOWN.items() if name in latest}
