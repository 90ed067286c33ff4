"""Which cluster each image was in after every epoch, and why labels changed: ``clusters/history.npz``."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback

from odc_lightning.clustering.agreement import switch_ratio
from odc_lightning.console import warn
from odc_lightning.methods.base import Method
from odc_lightning.report.history import FORMAT, HISTORY, NOT_COUNTED, PARTS, History
from odc_lightning.whole_file import whole_file

Record = dict[str, Any]  # arrays and NumPy scalars by part


class WriteHistory(Callback):
    """Appends a record to ``clusters/history.npz`` after every epoch; :class:`odc_lightning.report.history.History`
    reads it.

    A record holds only the labels that changed since the one before: a bit an image and two bytes a change, both
    deflated. The file is written beside and renamed. Lightning runs :class:`Checkpoints` after all other callbacks,
    so the file is never behind a checkpoint; on resume the records after the checkpoint are dropped. What the running
    epoch has counted so far is in the method's own state. Rank 0 writes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.previous_N: NDArray[np.int32] | None = None  # labels of the latest record

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        path = Path(trainer.default_root_dir) / HISTORY
        if not trainer.is_global_zero or not path.exists():
            return
        if pl_module.iteration == 0:  # left by a start that came to no checkpoint
            path.unlink()
            return
        try:
            rewind(path, pl_module.iteration)
            history = History(path)
            self.previous_N = history.labels(history.epochs[-1]) if history.epochs else None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            warn(f"{path} cannot be read ({error}); the history begins anew")
            path.unlink()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        if pl_module.iteration == 0:  # the start-up clustering is a record of its own
            self._record(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        self._record(trainer, pl_module, trainer.current_epoch + 1)

    def _record(self, trainer: pl.Trainer, method: Method, epoch: int) -> None:
        """Add the state after so many epochs. Collective: the counts are summed over the ranks."""
        labels, journal = method.pseudo_labels(), method.journal()
        if labels is None or not trainer.is_global_zero:
            return
        labels_N = labels.cpu().numpy().astype(np.int32)
        features, centroids, images = journal["counts"].tolist() if journal else 3 * [NOT_COUNTED]
        record = {
            **changes(labels_N, self.previous_N),
            "about": np.array([epoch, method.iteration, features, centroids, images], dtype=np.int64),  # see ABOUT
            "events": journal["events"].numpy().astype(np.int32) if journal else np.empty((0, 5), dtype=np.int32),
            "switched": _switched(labels_N, self.previous_N, method.renumbers_clusters),
            "renumbered": method.renumbers_clusters,
        }
        append(Path(trainer.default_root_dir) / HISTORY, f"{epoch:05d}", record)
        self.previous_N = labels_N


def changes(labels_N: NDArray[np.int32], previous_N: NDArray[np.int32] | None) -> Record:
    """Which labels differ from those before, as bits, and what they are now; without any before, all differ.

    Returns: changed (N / 8,) uint8, labels (changes,) of the smallest dtype, sizes (C,) int32.
    """
    changed_N = np.ones(len(labels_N), dtype=bool) if previous_N is None else labels_N != previous_N
    smallest = np.uint16 if labels_N.max() < 1 << 16 else np.int32
    return {
        "changed": np.packbits(changed_N),
        "labels": labels_N[changed_N].astype(smallest),
        "sizes": np.bincount(labels_N).astype(np.int32),
    }


def append(path: Path, name: str, record: Record) -> None:
    """Add the arrays of a record to an npz file, completely or not at all.

    The bytes that are there are copied, not compressed again: half a second for half a gigabyte.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as writing:
        if path.exists():
            shutil.copyfile(path, writing)
        else:
            writing.unlink(missing_ok=True)
        with zipfile.ZipFile(writing, "a") as file:
            for part in PARTS:
                _write_array(file, f"{FORMAT}/{name}/{part}.npy", np.asarray(record[part]))


def rewind(path: Path, iteration: int) -> None:
    """Drop the records after an iteration."""
    history = History(path)
    kept = [f"{FORMAT}/{epoch:05d}/" for epoch in history.epochs if history.about(epoch)["iteration"] <= iteration]
    if len(kept) == len(history.epochs):
        return
    with whole_file(path) as writing, zipfile.ZipFile(path) as old, zipfile.ZipFile(writing, "w") as new:
        for entry in _of(old, kept):
            new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry), zipfile.ZIP_DEFLATED)


def _of(file: zipfile.ZipFile, records: list[str]) -> Iterable[zipfile.ZipInfo]:
    return (entry for entry in file.infolist() if entry.filename.startswith(tuple(records) or ("\n",)))


def _write_array(file: zipfile.ZipFile, name: str, array: NDArray) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980: the same run gives the same bytes
    entry.compress_type = zipfile.ZIP_DEFLATED
    with file.open(entry, "w", force_zip64=True) as out:
        np.lib.format.write_array(out, array, allow_pickle=False)


def _switched(labels_N: NDArray[np.int32], previous_N: NDArray[np.int32] | None, renumbered: bool) -> float:
    """Share of labels that differ from the record before, under the best matching where clusters get new numbers."""
    if previous_N is None:
        return float("nan")
    if renumbered:
        return switch_ratio(labels_N, previous_N)
    return float((labels_N != previous_N).mean())
