"""The LightningDataModule: colour-jittered batches for training, centre crops for start-up and measuring."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Subset

from odc_lightning.checks import check_choice
from odc_lightning.data.augment import TrainTransform
from odc_lightning.data.colour import jitter_on_device
from odc_lightning.data.dataset import Batch, EvalDataset, IndexedDataset, Transform, collate
from odc_lightning.data.loader import GlobalBatches, TrainLoader, local_batch_size
from odc_lightning.data.sources import ImageSource, MissingSplitError
from odc_lightning.data.store import StoredImages
from odc_lightning.data.subset import ClassDraw
from odc_lightning.memory import Ranks


class DataModule(pl.LightningDataModule):
    """Images with their indices; labels stay in ``train_source.targets`` and never enter a batch.

    Args:
        source: called with ``split="train"`` and ``split="val"``; gives the images; validation images may be missing.
        transform: training augmentation (paper, Sec. 3.4).
        eval_transform: deterministic crop for start-up extraction and measuring.
        batch_size: images of one optimizer step, over all devices and accumulated batches.
        num_workers: loading processes per device; ``auto`` takes the cores there are, less one, at most 8.
        on_bad_image: ``error`` or ``skip`` (its index keeps its place and is left out of loss and memory).
        replacement: draw the training images with replacement (authors' release).
        seed: of permutations and augmentation.
        mean, std: per channel on the scale 0..1, applied on the device.
        image_size: side of the training images in pixels.
        subset: takes a part of the training and validation images; None: all.
        augment_on: where colours are jittered: by the ``workers``, on the ``device``, batched with parameters of each
            image, or ``auto``: on the device if that is a GPU.
        store: folder that ``task=prepare`` has made of the source's images, to read them from; None: their own files.
    """

    def __init__(
        self,
        source: Callable[..., ImageSource],
        transform: Transform,
        eval_transform: Transform,
        *,
        batch_size: int,
        num_workers: int | str = "auto",
        on_bad_image: str = "error",
        replacement: bool = False,
        seed: int = 0,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        image_size: int = 224,
        subset: ClassDraw | None = None,
        augment_on: str = "auto",
        store: str | os.PathLike[str] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"data.on_bad_image must be error or skip. Received: {on_bad_image!r}")
        if num_workers != "auto" and (not isinstance(num_workers, int) or num_workers < 0):
            raise ValueError(f"data.num_workers must be auto or a whole number from 0. Received: {num_workers!r}")
        check_choice("data.augment_on", augment_on, ("auto", "workers", "device"))
        if augment_on == "device" and not isinstance(transform, TrainTransform):
            raise ValueError(
                f"data.augment_on must be auto or workers for an augment without colour jitter "
                f"({type(transform).__name__}). Received: 'device'"
            )
        self.augment_on = augment_on
        self.transform, self.eval_transform = transform, eval_transform
        self.batch_size, self.num_workers, self.on_bad_image = batch_size, num_workers, on_bad_image
        self.replacement, self.seed, self.mean, self.std = replacement, seed, tuple(mean), tuple(std)
        self.image_size = image_size
        self.train_source: ImageSource = source(split="train")
        self.val_source: ImageSource | None = None
        with suppress(MissingSplitError):
            self.val_source = source(split="val")
        self.store = store
        if store is not None:
            self.train_source = StoredImages(self.train_source, store)
            self.val_source = self.val_source and StoredImages(self.val_source, store)
        if subset:
            self.train_source, self.val_source = subset(self.train_source, self.val_source)

    @property
    def num_samples(self) -> int:
        """N, images that are trained on."""
        return len(self.train_source)

    def require_divisible(self, parts: int) -> None:
        """Raise ValueError unless the batch can be shared by ``parts`` = devices x accumulation, and fits the data."""
        share = local_batch_size(self.batch_size, parts)
        GlobalBatches(self.num_samples, self.batch_size)
        if share < 2:
            raise ValueError(
                f"data.batch_size must give each of {parts} devices x accumulation at least 2 images: batch-norm needs "
                f"them. Received: {self.batch_size}"
            )

    @property
    def accumulate(self) -> int:
        """Forwards of one optimizer step."""
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    @property
    def micro_batch_size(self) -> int:
        """Images of one forward over all devices: the batch less gradient accumulation."""
        return self.batch_size // self.accumulate

    def train_dataloader(self) -> TrainLoader:
        """Augmented batches of this rank, resumable anywhere."""
        ranks = Ranks.current()
        local_batch_size(self.batch_size, ranks.world_size * self.accumulate)
        batches = GlobalBatches(
            self.num_samples,
            self.micro_batch_size,
            seed=self.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            replacement=self.replacement,
            order=getattr(self.trainer and self.trainer.lightning_module, "sampling_order", None),
        )
        later = self.colours_on_device()
        dataset = IndexedDataset(self.train_source, self.transform, self.seed, self.on_bad_image, colour_later=later)
        # Whole optimizer steps only: accumulated or not, an epoch has the same steps of the same images.
        length, done = self.num_samples // self.batch_size * self.accumulate, 0
        if self.trainer:
            limit, done = self.trainer.limit_train_batches, getattr(self.trainer.lightning_module, "iteration", 0)
            length = min(limit, length) if isinstance(limit, int) else length
        return TrainLoader(dataset, batches, limit=length, done=done, **self._loading(persistent=True))

    def colours_on_device(self) -> bool:
        """``augment_on`` after ``auto`` is resolved."""
        if self.augment_on != "auto":
            return self.augment_on == "device"
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return on_gpu and isinstance(self.transform, TrainTransform)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Do to the colours what the workers have left to the device."""
        if not isinstance(batch, Batch) or batch.colour is None:
            return batch
        return batch._replace(image=jitter_on_device(batch.image, batch.colour), colour=None)

    def eval_dataloader(self, source: ImageSource, indices: Sequence[int], batch_size: int | None = None) -> DataLoader:
        """Centre crops of the given images, in this order."""
        dataset = Subset(EvalDataset(source, self.eval_transform, self.on_bad_image), list(indices))
        size = batch_size or max(1, min(256, self.batch_size // Ranks.current().world_size))
        return DataLoader(dataset, batch_size=size, **self._loading(persistent=False))

    def workers(self) -> int:
        """Loading processes per device, after ``auto`` is resolved."""
        if self.num_workers != "auto":
            return int(self.num_workers)
        return min(8, max(1, self.cores_per_device() - 1))

    def cores_per_device(self) -> int:
        """Cores that this process may use, shared by the devices of this machine."""
        return cores() // (self.trainer.num_devices if self.trainer else 1)

    def _loading(self, persistent: bool) -> dict[str, Any]:
        workers = self.workers()
        return {
            "collate_fn": collate,
            "num_workers": workers,
            "persistent_workers": persistent and workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
