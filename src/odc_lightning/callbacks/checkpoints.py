"""Checkpoints of a run: last.ckpt, the one before it, and one kept every few epochs; written whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from odc_lightning.callbacks.checkpoint_file import CheckpointFile
from odc_lightning.console import say, warn

LAST, PREVIOUS, WRITING = "last.ckpt", "previous.ckpt", "writing.ckpt"


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` after every epoch and, within long epochs, by steps or minutes.

    A file is written beside and renamed when it is complete; the one before stays as ``previous.ckpt``. A large one is
    written while the training goes on, see :class:`CheckpointFile`.

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
        self.file = CheckpointFile()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._in_root:
            self.folder = Path(trainer.default_root_dir) / "checkpoints"
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = self.file
        elif isinstance(trainer.strategy.checkpoint_io, CheckpointFile):  # of another callback
            self.file = trainer.strategy.checkpoint_io

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        with self._explained():
            self.file.wait(block=False)
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
        epoch = trainer.current_epoch + 1
        kept = self.keep_every_n_epochs and epoch % self.keep_every_n_epochs == 0
        self.write(trainer, self.folder / f"epoch={epoch:04d}.ckpt" if kept else None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with self._explained():
            self.file.wait()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        try:
            self.on_train_end(trainer, pl_module)
        except OSError as error:
            warn(str(error))

    def write(self, trainer: pl.Trainer, kept: Path | None = None) -> None:
        """Write ``last.ckpt``, or begin to. Collective.

        Args:
            kept: another name that the file gets as well.

        Raises:
            OSError: when the file, or the one before it, cannot be written (no space left); the last that could be
                written is untouched.
        """
        self.file.then = functools.partial(self._complete, kept)
        with self._explained():
            trainer.save_checkpoint(self.folder / WRITING)
        if trainer.is_global_zero and trainer.strategy.checkpoint_io is not self.file:
            self._complete(kept)
        self._written_at = time.monotonic()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            (self.folder / WRITING).unlink(missing_ok=True)
            before = f"The one before, {LAST}, is untouched: free" if (self.folder / LAST).exists() else "Free"
            raise OSError(
                f"could not write a checkpoint to {self.folder}: {error}. {before} some space and run the same "
                f"command again"
            ) from error

    def _complete(self, kept: Path | None) -> None:
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        if last.exists():
            previous.unlink(missing_ok=True)
            try:
                os.link(last, previous)  # so that last.ckpt is there at any moment
            except OSError:  # not every disk has hard links
                os.replace(last, previous)
        os.replace(self.folder / WRITING, last)
        if kept is None:
            return
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
