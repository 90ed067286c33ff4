"""Linear classification on frozen features of each layer (paper, Sec. 4.1, Tables 1 and 2), and on the pooled one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odc_lightning.checks import check_choice
from odc_lightning.data.sources import UNKNOWN
from odc_lightning.evaluation.batches import AugmentedBatches, Batches, CachedBatches, global_batches, on_device
from odc_lightning.evaluation.bench import Bench
from odc_lightning.evaluation.heads import LinearHeads, top1, train_heads
from odc_lightning.evaluation.protocol import Protocol, Sgd
from odc_lightning.evaluation.taps import CONVOLUTIONS, POOL_CHOICES, Pools
from odc_lightning.evaluation.views import augmentation

_MEASURE_EVERY = 10  # epochs between two looks at the validation images
REPORTS = ("last", "best")


class LinearProbe(Protocol):
    """Linear heads on several layers, trained at once on one frozen forward; top-1 of the validation images.

    Args:
        layers: to measure.
        pools: see :func:`odc_lightning.evaluation.taps.pools_for`.
        augment: ``crop``: random resized crop and flip; ``crop_jitter``: the release's, with jitter and lighting;
            ``square_crop``: the release's for Places205; ``none``: the centre crop, whose features are kept on disk.
        batch_norm: before the linear layer.
        report: the ``last`` epoch's accuracy or the ``best`` epoch's (an optimistic choice, on the test images).
        num_classes: that the data must have; None: any.
        epochs, lr, milestones, gamma, momentum, nesterov, weight_decay, batch_size: of the training.
        name, recipe: for the folder and results.json.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        name: str = "linear",
        recipe: str | None = None,
        layers: Sequence[str] = CONVOLUTIONS,
        pools: str = "auto",
        augment: str = "crop",
        batch_norm: bool = True,
        report: str = "last",
        num_classes: int | None = None,
        epochs: int = 100,
        lr: float = 0.01,
        milestones: Sequence[int] = (30, 60, 90),
        gamma: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 1e-4,
        batch_size: int = 256,
    ) -> None:
        if not layers:
            raise ValueError("protocol.layers must name at least one layer. Received: none")
        check_choice("protocol.report", report, REPORTS)
        check_choice("protocol.pools", pools, POOL_CHOICES)
        augmentation(augment, 32)
        self.name, self.recipe, self.layers, self.named_pools = name, recipe, list(layers), pools
        self.augment, self.batch_norm, self.report, self.num_classes = augment, batch_norm, report, num_classes
        self.sgd = Sgd(epochs, lr, list(milestones), gamma, momentum, nesterov, weight_decay, batch_size)

    def check(self, bench: Bench) -> None:
        bench.num_classes(self.num_classes)
        bench.pools(bench.layers(self.layers), self.named_pools)

    def run(self, bench: Bench) -> dict[str, float]:
        pools = bench.pools(bench.layers(self.layers), self.named_pools)
        batches = self._batches(bench, pools)
        val, targets = on_device(bench.features("val", pools), bench.device), _targets(bench, "val")
        known = bench.known("val", pools)
        heads = LinearHeads(
            bench.network.shapes(pools, bench.data.image_size),
            bench.num_classes(self.num_classes),
            batch_norm=self.batch_norm,
            seed=bench.seed,
        ).to(bench.device)
        best: dict[str, float] = {}

        def on_epoch(epoch: int, losses: dict[str, float]) -> None:
            values = {f"linear/{bench.label(layer)}/loss": loss for layer, loss in losses.items()}
            if self._due(epoch):
                values |= _named(bench, accuracy := top1(heads, val, targets, known))
                best.update({layer: max(value, best.get(layer, 0.0)) for layer, value in accuracy.items()})
            bench.log(values, epoch + 1)

        train_heads(heads, batches, self.sgd, on_epoch, best, bench.file("heads", ".pt"))
        return _named(bench, best if self.report == "best" else top1(heads, val, targets, known))

    def _batches(self, bench: Bench, pools: Pools) -> Batches:
        transform = augmentation(self.augment, bench.data.image_size)
        targets = _targets(bench, "train")
        if transform is not None:
            chosen = (targets != UNKNOWN).nonzero().flatten()
            return AugmentedBatches(
                bench, pools, transform, chosen, global_batches(len(chosen), self.sgd.batch_size, bench)
            )
        features = bench.features("train", pools)
        chosen = bench.known("train", pools)
        batches = global_batches(len(chosen), self.sgd.batch_size, bench)
        return CachedBatches(features, targets, chosen, batches, bench.device)

    def _due(self, epoch: int) -> bool:
        every = 1 if self.report == "best" else _MEASURE_EVERY
        return (epoch + 1) % every == 0


def _targets(bench: Bench, split: str) -> Tensor:
    return torch.from_numpy(bench.targets(split))


def _named(bench: Bench, accuracy: dict[str, float]) -> dict[str, Any]:
    return {f"linear/{bench.label(layer)}/top1": value for layer, value in accuracy.items()}
