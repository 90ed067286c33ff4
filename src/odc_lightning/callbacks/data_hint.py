"""Says so where the network waits for images, and which key to change."""

from __future__ import annotations

import os

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from odc_lightning.checks import check_number
from odc_lightning.console import say
from odc_lightning.data.augment import TrainTransform
from odc_lightning.data.datamodule import DataModule
from odc_lightning.methods.base import Method

_EPOCHS = 3  # that are looked at after a start
_FEWEST = 10  # iterations of an epoch that tell something


class DataHint(Callback):
    """One line at the end of one of the first epochs, where loading takes a large part of the time.

    Args:
        share: of an iteration's time spent waiting for images (``time/data``) from which on data is the bottleneck.

    Raises:
        ValueError: another share than one from 0 to 1.
    """

    def __init__(self, share: float = 0.25) -> None:
        super().__init__()
        self.share = check_number("callbacks.data_hint.share", share, 0, 1)
        self._left = _EPOCHS

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        times = pl_module.epoch_times
        if not self._left or times["iterations"] < _FEWEST:
            return
        self._left -= 1
        waiting = times["data"] / max(times["data"] + times["step"], 1e-9)
        if waiting >= self.share:
            self._left = 0
            what = f"Data is the bottleneck: waiting for images takes {waiting:.0%} of the time."
            say(f"{what} {advice(pl_module.datamodule)}")


def advice(data: DataModule) -> str:
    """What would make loading faster here."""
    keys, workers, cores = [], data.workers(), data.cores_per_device()
    if workers < cores:
        keys.append(f"data.num_workers={cores} (now {workers}, for {cores} cores per device)")
    if data.store is None and os.path.isabs(data.train_source.path(0)):
        keys.append("data.store=<folder> (once: the same data keys with task=prepare data.store=<folder>)")
    on_gpu = data.trainer is not None and data.trainer.strategy.root_device.type == "cuda"
    if on_gpu and data.augment_on == "workers" and isinstance(data.transform, TrainTransform):
        keys.append("data.augment_on=device")
    return f"Try {' and '.join(keys)}." if keys else "It needs more cores, or a lighter augment."
