"""Data sets of (image, index): the index finds the image's row in the memory. There are no labels here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from odc_lightning.checks import check_choice
from odc_lightning.data.augment import TrainTransform, sample_rng
from odc_lightning.data.image_ops import Image
from odc_lightning.data.sources import BadImageError, ImageSource


class Transform(Protocol):
    """What a data set needs of a transform: the side of its result in pixels, and the call."""

    size: int

    def __call__(self, image: Image, rng: Generator) -> Image:
        """Return uint8 (size, size, C) from uint8 (H, W, C)."""


class Sample(NamedTuple):
    """One image: uint8 (C, size, size); its index; False in `ok` if it could not be read and is all zeros.

    `colour`, float32 (9,), is what is still to be done to its colours, if that is left to the device.
    """

    image: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index
    ok: bool
    colour: Tensor | None = None


class Batch(NamedTuple):
    """B samples: image uint8 (B, C, size, size), index int64 (B,), ok bool (B,), colour float32 (B, 9) or None."""

    image: Tensor
    index: Tensor  # type: ignore[assignment]
    ok: Tensor
    colour: Tensor | None = None


class IndexedDataset(Dataset[Sample]):
    """Augmented images with their indices.

    A key is `(epoch, index)`, or an index alone, which means epoch 0. The view depends on seed, epoch and index
    only: not on workers, ranks or what was loaded before.

    Args:
        source: the images.
        transform: from an image and a generator to uint8 (size, size, C).
        seed: of all augmentation.
        on_bad_image: `error` raises BadImageError; `skip` gives zeros with ok=False, to be left out of loss and memory.
        colour_later: leave the colours to :func:`odc_lightning.data.colour.jitter`; the transform is a TrainTransform.

    Raises:
        ValueError: another value of on_bad_image.
        IndexError: no such index (from `[]`).
        BadImageError: an image cannot be read (from `[]`).
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        seed: int,
        on_bad_image: str = "error",
        colour_later: bool = False,
    ) -> None:
        check_choice("on_bad_image", on_bad_image, ("error", "skip"))
        self.colour_later = colour_later
        self.source, self.transform, self.seed, self.on_bad_image = source, transform, seed, on_bad_image
        self._single_threaded = False

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < len(self.source):
            raise IndexError(f"index must be from 0 to {len(self.source) - 1}. Received: {index}")
        self._one_thread_per_worker()
        try:
            image = self.source.load(index)
        except BadImageError:
            if self.on_bad_image == "error":
                raise
            return Sample(self._blank(), index, False, torch.zeros(9) if self.colour_later else None)
        rng = sample_rng(self.seed, epoch, index)
        if self.colour_later:
            assert isinstance(self.transform, TrainTransform)
            view, colour = self.transform.uncoloured(image, rng)
            return Sample(_to_tensor(view), index, True, torch.from_numpy(colour).float())
        return Sample(_to_tensor(self.transform(image, rng)), index, True)

    def _blank(self) -> Tensor:
        return torch.zeros(self.source.channels, self.transform.size, self.transform.size, dtype=torch.uint8)

    def _one_thread_per_worker(self) -> None:
        if not self._single_threaded and get_worker_info() is not None:
            cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's own pool would fight over the same cores
            self._single_threaded = True


class EvalDataset(IndexedDataset):
    """Deterministic images with their indices: IndexedDataset with a transform that draws nothing."""

    def __init__(self, source: ImageSource, transform: Transform, on_bad_image: str = "error") -> None:
        super().__init__(source, transform, seed=0, on_bad_image=on_bad_image)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; the `collate_fn` of a DataLoader."""
    given = 3 if samples[0].colour is None else 4
    return Batch(*default_collate([sample[:given] for sample in samples]))


def _to_tensor(image: Image) -> Tensor:
    """uint8 (H, W, C) to contiguous (C, H, W); cv2.split takes a sixth of the time of a transposed copy."""
    planes = np.empty((image.shape[2], *image.shape[:2]), dtype=np.uint8)
    cv2.split(image, list(planes))
    return torch.from_numpy(planes)
