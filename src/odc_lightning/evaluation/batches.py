"""Batches for linear heads: from features that are there already, or from augmented images through the frozen network.

Both give this rank's part of the same global batches: a permutation by (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from odc_lightning.console import say
from odc_lightning.data.dataset import IndexedDataset, Sample, Transform, collate
from odc_lightning.data.loader import GlobalBatches, TrainLoader
from odc_lightning.evaluation.bench import Bench
from odc_lightning.evaluation.taps import Pools

Batch = tuple[dict[str, Tensor], Tensor]  # features (B, \*shape) by layer, targets (B,)
_SHARE_OF_DEVICE = 0.5  # of its free memory that features may take


class Batches(Protocol):
    """Epochs of batches, any of which may be the first."""

    steps: int

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Features and targets of each step, on the device."""


class CachedBatches:
    """Batches of features that are there.

    Args:
        features: (N, \\*shape) by layer.
        targets: (N,).
        known: rows to use.
        batches: over the rows to use.
        device: of the batches.
    """

    def __init__(
        self,
        features: Mapping[str, Tensor],
        targets: Tensor,
        known: Tensor,
        batches: GlobalBatches,
        device: torch.device,
    ) -> None:
        self.features = on_device(features, device)
        self.targets, self.known, self.batches, self.device = targets, known, batches, device
        self.steps = len(batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Features and targets of each step, on the device."""
        self.batches.epoch, self.batches.position = epoch, 0
        for keys in self.batches:
            rows = self.known[[position for _, position in keys]]
            features = {layer: rows_of(values, rows, self.device) for layer, values in self.features.items()}
            yield features, self.targets[rows].to(self.device)


class AugmentedBatches:
    """Batches of augmented training images, through the network at each step.

    Args:
        bench: network and images.
        pools: of the layers.
        transform: augmentation.
        known: images to use.
        batches: over the images to use.
    """

    def __init__(self, bench: Bench, pools: Pools, transform: Transform, known: Tensor, batches: GlobalBatches) -> None:
        self.bench, self.pools, self.batches, self.steps = bench, pools, batches, len(batches)
        images = IndexedDataset(bench.source("train"), transform, bench.seed, bench.data.on_bad_image)
        self.dataset = Chosen(images, known)
        self.targets = torch.from_numpy(bench.targets("train"))
        self.loader: TrainLoader | None = None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Features and targets of each step, on the device."""
        if self.loader is None or self.loader.epoch != epoch:
            workers = self.bench.data.workers()
            options: dict[str, Any] = {"collate_fn": collate, "num_workers": workers, "persistent_workers": workers > 0}
            self.loader = TrainLoader(
                self.dataset, self.batches, done=epoch * self.steps, pin_memory=torch.cuda.is_available(), **options
            )
        for batch in self.loader:
            images = batch.image.to(self.bench.device, non_blocking=True)
            targets = self.targets[batch.index].to(self.bench.device)
            features = self.bench.network(images, self.pools)
            if not bool(batch.ok.all()):
                ok = batch.ok.to(targets.device)
                features, targets = {layer: values[ok] for layer, values in features.items()}, targets[ok]
            yield features, targets
        self.loader.epoch, self.loader.position = epoch + 1, 0


class Chosen(Dataset[Sample]):
    """Some images of a data set under keys (epoch, position among them)."""

    def __init__(self, images: IndexedDataset, chosen: Tensor) -> None:
        self.images, self.chosen = images, chosen.numpy()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, position = key
        return self.images[epoch, int(self.chosen[position])]


def global_batches(count: int, batch_size: int, bench: Bench) -> GlobalBatches:
    """Batches over ``count`` rows; a batch that is larger than that takes them all."""
    ranks = bench.ranks
    if count < batch_size:
        fitting = count // ranks.world_size * ranks.world_size
        say(f"protocol.batch_size={batch_size} is more than the {count} training images: batches of {fitting}")
        batch_size = fitting
    return GlobalBatches(count, batch_size, seed=bench.seed, rank=ranks.rank, world_size=ranks.world_size)


def on_device(features: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Features on the device if they take no more than half of its free memory, else where they are."""
    needed = sum(values.nbytes for values in features.values())
    if device.type != "cuda" or needed > _SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
        return dict(features)
    return {layer: values.to(device) for layer, values in features.items()}


def rows_of(values: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Some rows on the device, wherever the values are."""
    return values[rows.to(values.device)].to(device, non_blocking=True)
