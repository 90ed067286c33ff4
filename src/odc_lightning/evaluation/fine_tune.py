"""Fine-tuning with few labels: 1 % or 10 % of the training images, the whole network (the release's benchmark)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from odc_lightning.console import say
from odc_lightning.data.dataset import IndexedDataset, collate
from odc_lightning.data.loader import TrainLoader
from odc_lightning.data.sources import ImageSource
from odc_lightning.evaluation.batches import Chosen, global_batches
from odc_lightning.evaluation.bench import UNKNOWN, Bench
from odc_lightning.evaluation.features import eval_loader, step_bar
from odc_lightning.evaluation.protocol import Protocol, Sgd
from odc_lightning.evaluation.views import crop_and_flip
from odc_lightning.nn.head import linear_classifier
from odc_lightning.whole_file import write_whole

_FEW = 0.01  # the release decays weights by 5e-4 up to this share of the labels, by 1e-4 above


class SemiSupervised(Protocol):
    """Fine-tune on a class-balanced part of the training images; the best of a grid of learning rates, top-1 on val.

    The cell of the grid is chosen on the validation images, as in the published benchmark.

    Args:
        fraction: share of the training images whose labels are used.
        images: file of image names, one a line, to use instead (such as SimCLR's lists for ImageNet); None: drawn.
        lrs, head_multipliers: the grid; the classifier's rate is lr times its multiplier.
        weight_decay: ``auto``: 5e-4 up to 1 %, 1e-4 above.
        num_classes: that the data must have; None: any.
        epochs, milestones, gamma, momentum, batch_size: of each training.
        name: of the folder.

    Raises:
        ValueError: for a value outside its range.
    """

    baselines = ("untrained",)

    def __init__(
        self,
        *,
        name: str = "semi",
        fraction: float = 0.01,
        images: str | None = None,
        lrs: Sequence[float] = (0.001, 0.01, 0.1),
        head_multipliers: Sequence[float] = (1, 10, 100),
        weight_decay: float | str = "auto",
        num_classes: int | None = None,
        epochs: int = 20,
        milestones: Sequence[int] = (12, 16),
        gamma: float = 0.2,
        momentum: float = 0.9,
        batch_size: int = 256,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"protocol.fraction must be in (0, 1]. Received: {fraction}")
        if not lrs or not head_multipliers or min(*lrs, *head_multipliers) <= 0:
            raise ValueError(
                f"protocol.lrs and protocol.head_multipliers must be lists of numbers above 0. "
                f"Received: {list(lrs)} and {list(head_multipliers)}"
            )
        decay = (5e-4 if fraction <= _FEW else 1e-4) if weight_decay == "auto" else float(weight_decay)
        self.name, self.fraction, self.images, self.num_classes = name, fraction, images, num_classes
        self.grid = list(product(map(float, lrs), map(float, head_multipliers)))
        self.sgd = Sgd(
            epochs, 1.0, list(milestones), gamma, momentum, weight_decay=decay, batch_size=batch_size
        )  # the rate is the grid's

    @property
    def prefix(self) -> str:
        """Of the metrics: ``semi/1pct``."""
        return f"semi/{100 * self.fraction:g}pct"

    def check(self, bench: Bench) -> None:
        bench.num_classes(self.num_classes)
        self._chosen(bench)

    def run(self, bench: Bench) -> dict[str, float]:
        chosen = self._chosen(bench)
        if bench.ranks.rank == 0:
            names = "".join(f"{bench.source('train').path(int(index))}\n" for index in chosen)
            (bench.folder / "labelled.txt").write_text(names)
        say(f"{len(chosen)} labelled images, weight decay {self.sgd.weight_decay:g}, {len(self.grid)} trainings")
        results = _Results(bench.file("grid", ".json"))
        for lr, multiplier in self.grid:
            if (lr, multiplier) not in results.found:
                accuracy = self._train(bench, torch.from_numpy(chosen), lr, multiplier)
                results.add(lr, multiplier, accuracy, write=bench.ranks.rank == 0)
                bench.log({f"{self.prefix}/lr{lr:g}_x{multiplier:g}": accuracy}, len(results.found))
        (lr, multiplier), best = max(results.found.items(), key=lambda cell: cell[1])
        return {f"{self.prefix}/top1": best, f"{self.prefix}/lr": lr, f"{self.prefix}/head_multiplier": multiplier}

    def _chosen(self, bench: Bench) -> NDArray[np.int64]:
        if self.images is not None:
            return listed_images(self.images, bench.source("train"))
        return draw_balanced(bench.targets("train"), self.fraction, bench.seed)

    def _train(self, bench: Bench, chosen: Tensor, lr: float, multiplier: float) -> float:
        """Top-1, percent, after the last epoch of one cell."""
        network = _Classifier(bench, bench.num_classes(self.num_classes), seed=bench.seed)
        model = _shared(network, bench)
        groups: list[dict[str, Any]] = [
            {"params": [*network.backbone.parameters()], "lr": lr},
            {"params": [*network.head.parameters()], "lr": lr * multiplier},
        ]
        optimizer = torch.optim.SGD(
            groups,
            momentum=self.sgd.momentum,
            weight_decay=self.sgd.weight_decay,
        )
        rates = [group["lr"] for group in optimizer.param_groups]
        loader = _loader(bench, chosen, self.sgd.batch_size)
        targets = torch.from_numpy(bench.targets("train"))
        with step_bar(f"fine-tuning, lr {lr:g}, head x {multiplier:g}", self.sgd.epochs * len(loader)) as advance:
            for epoch in range(self.sgd.epochs):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * self.sgd.factor(epoch)
                for images, target_B in _readable(loader, targets, bench.device):
                    optimizer.zero_grad()
                    F.cross_entropy(model(images), target_B).backward()
                    optimizer.step()
                    advance(1)
        return _accuracy(network, bench)


class _Classifier(nn.Module):
    """A copy of the measured network that learns, with a linear layer on its pooled feature."""

    def __init__(self, bench: Bench, num_classes: int, seed: int) -> None:
        super().__init__()
        self.prepare = copy.deepcopy(bench.network.prepare)
        self.backbone = copy.deepcopy(bench.network.backbone).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = linear_classifier(self.backbone.feature_dim, num_classes).to(bench.device)
        self.train()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images to logits (B, K)."""
        return self.head(self.backbone(self.prepare(image_BCHW)))


class _Results:
    """Accuracies of the grid's cells, on disk as they come in: a killed evaluation goes on with the next cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = json.loads(path.read_text()) if path.exists() else []
        self.found = {(row["lr"], row["head_multiplier"]): row["top1"] for row in rows}

    def add(self, lr: float, multiplier: float, accuracy: float, *, write: bool) -> None:
        self.found[lr, multiplier] = accuracy
        if write:
            rows = [{"lr": lr, "head_multiplier": by, "top1": top1} for (lr, by), top1 in self.found.items()]
            write_whole(self.path, json.dumps(rows, indent=2) + "\n")


def draw_balanced(targets_N: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """Draw as many images of each class, at least one, together about ``fraction`` of all labelled ones; ascending.

    Args:
        targets_N: true classes, -1 where unknown.
        fraction: in (0, 1].
        seed: other draws; a class's draw does not depend on the other classes.

    Returns: indices, int64; a class that has fewer images gives all it has.
    """
    classes, counts = np.unique(targets_N[targets_N != UNKNOWN], return_counts=True)
    each = max(1, round(fraction * counts.sum() / len(classes)))
    drawn = [
        np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(targets_N == label))[:each]
        for label in classes
    ]
    return np.sort(np.concatenate(drawn))


def listed_images(path: str, source: ImageSource) -> NDArray[np.int64]:
    """Indices of the images whose file name a list holds; ascending.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it names images that the data do not have.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"protocol.images must be a file of image names. Received: {file} (no such file)")
    wanted = {Path(line.strip()).name for line in file.read_text().splitlines() if line.strip()}
    place = {Path(source.path(index)).name: index for index in range(len(source))}
    if missing := sorted(wanted - place.keys()):
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} images of protocol.images={file} are not among the training images: "
            f"{', '.join(missing[:5])}"
        )
    return np.array(sorted(place[name] for name in wanted), dtype=np.int64)


def _shared(network: nn.Module, bench: Bench) -> nn.Module:
    """The network over all ranks, batch norm too where there are GPUs."""
    if bench.ranks.world_size == 1:
        return network
    if bench.device.type != "cuda":
        return DistributedDataParallel(network)
    return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(network), device_ids=[bench.device])


def _loader(bench: Bench, chosen: Tensor, batch_size: int) -> TrainLoader:
    view, workers = crop_and_flip(bench.data.image_size), min(bench.data.workers(), len(chosen) // 64)
    images = IndexedDataset(bench.source("train"), view, bench.seed, bench.data.on_bad_image)
    batches = global_batches(len(chosen), batch_size, bench)
    return TrainLoader(
        Chosen(images, chosen), batches, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
    )


def _readable(loader: TrainLoader, targets: Tensor, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader:
        yield batch.image[batch.ok].to(device, non_blocking=True), targets[batch.index[batch.ok]].to(device)


@torch.no_grad()
def _accuracy(network: nn.Module, bench: Bench) -> float:
    """Top-1, percent, of the labelled validation images; every rank counts its share."""
    source, targets = bench.source("val"), torch.from_numpy(bench.targets("val"))
    known = (targets != UNKNOWN).nonzero().flatten()
    own = known[bench.ranks.rank :: bench.ranks.world_size].tolist()
    network.eval()
    counts = torch.zeros(2, device=bench.device)
    for batch in eval_loader(bench.data, source, bench.data.eval_transform, own):
        target_B = targets[batch.index].to(bench.device)
        right_B = network(batch.image.to(bench.device)).argmax(1) == target_B
        counts += torch.stack([right_B[batch.ok].sum(), batch.ok.sum().to(bench.device)])
    right, total = bench.ranks.sum(counts).tolist()
    return 100.0 * right / max(total, 1)
