"""Checkpoints of a run: last.ckpt, the one before it, and one kept every few epochs; written whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from odc_lightning.console import say, warn

LAST, PREVIOUS, WRITING = "last.ckpt", "previous.ckpt", "writing.ckpt"


class StraightToFile(TorchCheckpointIO):
    """Writes tensors from where they are into the file.

    Lightning's own way makes the whole file in memory first, as large as the memory bank again, and then in the
    system's folder of temporary files.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file; a failure leaves part of it there."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` after every epoch and, within long epochs, by steps or minutes.

    A file is written beside and renamed when it is complete; the one before stays as ``previous.ckpt``.

    Args:
        folder: of the checkpoints; None: ``checkpoints`` in the trainer's ``default_root_dir``.
        every_n_steps: optimizer steps between two writes; None: epochs and minutes only.
        every_n_minutes: minutes between two writes within an epoch; None: none.
        keep_every_n_epochs: also keep ``epoch=<n>.ckpt`` (a hard link where the disk has them); None: none.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 15.0,
        keep_every_n_epochs: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("keep_every_n_epochs", keep_every_n_epochs)):
            if value is not None and value < 1:
                raise ValueError(f"callbacks.checkpoints.{name} must be at least 1. Received: {value}")
        if every_n_minutes is not None and every_n_minutes <= 0:
            raise ValueError(f"callbacks.checkpoints.every_n_minutes must be above 0. Received: {every_n_minutes}")
        self.folder = Path(folder) if folder else Path("checkpoints")
        self._in_root = folder is None
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.keep_every_n_epochs = keep_every_n_epochs
        self._written_at = time.monotonic()
        self._last_step = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._in_root:
            self.folder = Path(trainer.default_root_dir) / "checkpoints"
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = StraightToFile()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        # Accumulating: no optimizer step has happened, and the gradients so far are in no checkpoint. Last batch: the
        # epoch's own checkpoint follows, and Lightning would not run the epoch's end again after one written here.
        stepped, self._last_step = step != self._last_step, step
        if not stepped or trainer.is_last_batch:
            return
        by_steps = self.every_n_steps is not None and step % self.every_n_steps == 0
        if by_steps or (step % 20 == 0 and self._minutes_are_over(trainer)):
            self.write(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(trainer)
        epoch = trainer.current_epoch + 1
        if self.keep_every_n_epochs and epoch % self.keep_every_n_epochs == 0 and trainer.is_global_zero:
            self._keep(self.folder / f"epoch={epoch:04d}.ckpt")

    def write(self, trainer: pl.Trainer) -> None:
        """Write ``last.ckpt``. Collective.

        Raises:
            OSError: when the file cannot be written (no space left); the checkpoint before is untouched.
        """
        writing = self.folder / WRITING
        try:
            trainer.save_checkpoint(writing)
        except (OSError, RuntimeError) as error:
            writing.unlink(missing_ok=True)
            before = f"The one before, {LAST}, is untouched: free" if (self.folder / LAST).exists() else "Free"
            raise OSError(
                f"could not write a checkpoint to {self.folder}: {error}. {before} some space and run the same "
                f"command again"
            ) from error
        if trainer.is_global_zero:
            if (self.folder / LAST).exists():
                os.replace(self.folder / LAST, self.folder / PREVIOUS)
            os.replace(writing, self.folder / LAST)
        self._written_at = time.monotonic()

    def _keep(self, kept: Path) -> None:
        kept.unlink(missing_ok=True)
        try:
            os.link(self.folder / LAST, kept)
        except OSError:  # not every disk has hard links
            shutil.copyfile(self.folder / LAST, kept)

    def _minutes_are_over(self, trainer: pl.Trainer) -> bool:
        if self.every_n_minutes is None:
            return False
        over = time.monotonic() - self._written_at > 60 * self.every_n_minutes
        return bool(trainer.strategy.broadcast(over))  # one clock decides for all ranks


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint that can be read; says so when a newer one is damaged. None where there is none.

    Raises:
        ValueError: when there are checkpoints and none can be read: starting anew would write over the run.
    """
    folder = Path(folder)
    candidates = [folder / LAST, folder / PREVIOUS, *sorted(folder.glob("epoch=*.ckpt"), reverse=True)]
    existing = list(filter(Path.exists, candidates))
    for path in existing:
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            warn(f"{path} cannot be read ({type(error).__name__}); falling back to the checkpoint before it")
            continue
        say(f"Continuing from {path}")
        return path
    if existing:
        raise ValueError(f"none of the {len(existing)} checkpoints in {folder} can be read; resume=never starts over")
    return None
