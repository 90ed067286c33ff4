"""Features on disk: a re-run finds what an earlier one extracted, under a key of everything that decides a feature."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odc_lightning.console import size
from odc_lightning.evaluation.taps import Shape
from odc_lightning.whole_file import write_whole

_VERSION = 1
_ROWS, _READABLE, _ABOUT = "features.npy", "readable.npy", "about.json"


def cache_key(about: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of a description in plain values."""
    text = json.dumps({"version": _VERSION, **about}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class CachedFeatures:
    """The features of one layer of one network for one set of images: ``<folder>/<key>/``.

    ``about.json`` is written last: without it the files are unfinished and are written again.

    Args:
        folder: of the cache.
        about: network, weights, images, view, layer and pool, in plain values.
        rows: N, number of images.
        shape: of one image's feature.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], rows: int, shape: Shape) -> None:
        self.about, self.rows, self.shape = {**about, "shape": [rows, *shape]}, rows, tuple(shape)
        self.folder = folder / cache_key(self.about)
        self._writing: np.memmap
        self._readable: NDArray[np.bool_]

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self.rows * (4 * int(np.prod(self.shape)) + 1)

    def complete(self) -> bool:
        """Are all rows there?"""
        return (self.folder / _ABOUT).exists()

    def begin(self) -> None:
        """Make room for all rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (self.rows, *self.shape)
        self._writing = np.lib.format.open_memmap(self.folder / _ROWS, mode="w+", dtype=np.float32, shape=shape)
        self._readable = np.zeros(self.rows, dtype=np.bool_)

    def write(self, start: int, features: Tensor, readable: Tensor) -> None:
        """Rows from ``start`` on; what is beyond the last row is padding and is dropped."""
        rows = slice(start, min(start + len(features), self.rows))
        count = rows.stop - rows.start
        self._writing[rows] = features[:count].cpu().numpy()
        self._readable[rows] = readable[:count].cpu().numpy()

    def finish(self) -> None:
        """Everything is written."""
        self._writing.flush()
        del self._writing
        np.save(self.folder / _READABLE, self._readable)
        write_whole(self.folder / _ABOUT, json.dumps(self.about, indent=2, default=str) + "\n")

    def features(self) -> Tensor:
        """(N, \\*shape) float32 in host memory, read from disk where it is looked at."""
        if not self.rows:
            return torch.zeros(0, *self.shape)
        # Copy on write: torch wants memory it may write to, and the file must stay as it is.
        return torch.from_numpy(np.load(self.folder / _ROWS, mmap_mode="c"))

    def readable(self) -> Tensor:
        """Which images could be read, (N,) bool."""
        return torch.from_numpy(np.load(self.folder / _READABLE))


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError if ``needed`` bytes do not fit on the disk of ``folder``."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"the features need {size(needed)}, {existing} has {size(free)} left. Take fewer layers (protocol.layers), "
            f"an augmentation (protocol.augment=crop keeps no training features) or another evaluate.cache_dir"
        )
