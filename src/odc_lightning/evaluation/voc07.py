"""VOC2007 SVM and low-shot as protocols, for VOC2007 or any labelled images, with one label each or several."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from odc_lightning.checks import check_choice
from odc_lightning.console import say
from odc_lightning.data.sources import UNKNOWN
from odc_lightning.evaluation.average_precision import DIFFICULT
from odc_lightning.evaluation.bench import Bench
from odc_lightning.evaluation.low_shot import SHOTS, LowShotResult, low_shot_protocol
from odc_lightning.evaluation.multilabel import COSTS, SOLVERS, SVMResult, best_layer, svm_protocol
from odc_lightning.evaluation.protocol import Protocol
from odc_lightning.evaluation.taps import CONVOLUTIONS, POOL_CHOICES, Pools
from odc_lightning.evaluation.views import VIEWS


class VocSVM(Protocol):
    """A linear SVM for each class on each layer's features (paper, Sec. 4.1, Table 3), see :func:`svm_protocol`.

    Works on any images with several labels each, and on single labels, one class against the rest; ``svm/map`` is the
    best layer's, as the paper reports.

    Args:
        layers, pools: to measure.
        view: ``stretch``: the whole image made square, as published; ``crop``: the central crop.
        costs: to choose from by cross-validation; None: the published 19.
        folds, class_weight, solver, jobs: see :func:`svm_protocol`.
        num_classes: that the data must have; None: any.
        name: of the folder.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        name: str = "voc07_svm",
        layers: Sequence[str] = CONVOLUTIONS,
        pools: str = "auto",
        view: str = "stretch",
        costs: Sequence[float] | None = None,
        folds: int = 3,
        class_weight: float = 2.0,
        solver: str = "batched",
        jobs: int = -1,
        num_classes: int | None = None,
    ) -> None:
        if not layers:
            raise ValueError("protocol.layers must name at least one layer. Received: none")
        for key, value, choices in (("pools", pools, POOL_CHOICES), ("view", view, VIEWS), ("solver", solver, SOLVERS)):
            check_choice(f"protocol.{key}", value, choices)
        self.name, self.layers, self.named_pools, self.view = name, list(layers), pools, view
        self.costs, self.folds, self.class_weight = list(costs or COSTS), folds, class_weight
        self.solver, self.jobs, self.num_classes, self.recipe = solver, jobs, num_classes, solver

    def check(self, bench: Bench) -> None:
        _require_classes(bench, self.num_classes)
        bench.pools(bench.layers(self.layers), self.named_pools)

    def run(self, bench: Bench) -> dict[str, float]:
        pools = bench.pools(bench.layers(self.layers), self.named_pools)
        (train, train_labels), (val, val_labels) = (
            _multi_labelled(bench, split, pools, self.view) for split in ("train", "val")
        )
        if bench.ranks.rank != 0:
            return {}
        results = {}
        for layer in pools:
            results[bench.label(layer)] = result = svm_protocol(
                train[layer].to(bench.device),
                train_labels,
                val[layer].to(bench.device),
                val_labels,
                classes=_label_matrix(bench, "train")[1],
                costs=self.costs,
                folds=self.folds,
                class_weight=self.class_weight,
                solver=self.solver,
                jobs=self.jobs,
            )
            say(f"SVM on {bench.label(layer)}: mAP {result.map:.2f}")
        _write_ap(bench.file("ap", ".csv"), results)
        return {f"svm/{layer}/map": result.map for layer, result in results.items()} | {
            "svm/map": best_layer(results)[1].map
        }


class VocLowShot(Protocol):
    """SVMs on few images of each class (paper, Sec. 4.1, Fig. 3), see :func:`low_shot_protocol`.

    Args:
        layer, pools, view, num_classes, name: as for :class:`VocSVM`.
        shots: numbers of positives of each class.
        samples: draws for each number.
        costs: to try; None: the published 19. Chosen on the test images, as published; one cost avoids that.
        draws: folder of FAIR's fixed draws; None: drawn by the seed.
        class_weight, jobs: see :func:`low_shot_protocol`.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        name: str = "voc07_low_shot",
        layer: str = "conv5",
        pools: str = "auto",
        view: str = "stretch",
        shots: Sequence[int] = SHOTS,
        samples: int = 5,
        costs: Sequence[float] | None = None,
        draws: str | None = None,
        class_weight: float = 2.0,
        jobs: int = -1,
        num_classes: int | None = None,
    ) -> None:
        for key, value, choices in (("pools", pools, POOL_CHOICES), ("view", view, VIEWS)):
            check_choice(f"protocol.{key}", value, choices)
        self.name, self.layer, self.named_pools, self.view = name, layer, pools, view
        self.shots, self.samples, self.costs, self.draws = list(shots), samples, list(costs or COSTS), draws
        self.class_weight, self.jobs, self.num_classes = class_weight, jobs, num_classes
        self.recipe = "seeded draws" if draws is None else "fixed draws"

    def check(self, bench: Bench) -> None:
        _require_classes(bench, self.num_classes)
        bench.pools(bench.layers([self.layer]), self.named_pools)

    def run(self, bench: Bench) -> dict[str, float]:
        pools = bench.pools(bench.layers([self.layer]), self.named_pools)
        (train, train_labels), (val, val_labels) = (
            _multi_labelled(bench, split, pools, self.view) for split in ("train", "val")
        )
        if bench.ranks.rank != 0:
            return {}
        (layer,) = pools
        result = low_shot_protocol(
            train[layer],
            train_labels,
            val[layer],
            val_labels,
            classes=_label_matrix(bench, "train")[1],
            shots=self.shots,
            samples=self.samples,
            costs=self.costs,
            draws=self.draws,
            seed=bench.seed,
            class_weight=self.class_weight,
            jobs=self.jobs,
        )
        _write_table(bench.file("low_shot", ".csv"), result)
        return {f"lowshot/{k}/map": value for k, value in result.map.items()} | {"lowshot/map": result.mean}


def _multi_labelled(bench: Bench, split: str, pools: Pools, view: str) -> tuple[dict[str, Tensor], NDArray[np.int64]]:
    """Features (M, D) of each layer and labels (M, K) of the images that could be read."""
    features = bench.features(split, pools, view)
    rows = bench.readable(split, pools, view)
    labels = _label_matrix(bench, split)[0][rows.numpy()]
    return {layer: values[rows].flatten(1) for layer, values in features.items()}, labels


def _label_matrix(bench: Bench, split: str) -> tuple[NDArray[np.int64], list[str]]:
    """Labels (N, K), 1, 0 or -1 for unknown, and the K names; single labels become one class against the rest."""
    source = bench.source(split)
    if source.label_matrix is not None:
        return source.label_matrix, source.classes or []
    targets_N, count = bench.targets(split), bench.num_classes()
    matrix_NK = np.where(targets_N[:, None] == UNKNOWN, DIFFICULT, targets_N[:, None] == np.arange(count))
    return matrix_NK.astype(np.int64), source.classes or list(map(str, range(count)))


def _require_classes(bench: Bench, wanted: int | None) -> None:
    for split in ("train", "val"):
        matrix_NK, _ = _label_matrix(bench, split)
        if wanted is not None and matrix_NK.shape[1] != wanted:
            raise ValueError(
                f"protocol.num_classes={wanted}, but {bench.source(split).name} has {matrix_NK.shape[1]} classes"
            )


def _write_ap(path: Path, results: dict[str, SVMResult]) -> None:
    """Rows of layer, class, AP in percent, chosen cost."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["layer", "class", "ap", "cost"])
        for layer, result in results.items():
            for name, ap, cost in zip(result.classes, result.ap, result.cost, strict=True):
                table.writerow([layer, name, f"{ap:.6g}", f"{cost:.6g}"])


def _write_table(path: Path, result: LowShotResult) -> None:
    """Rows of shots, sample, cost, mAP in percent."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["shots", "sample", "cost", "map"])
        for (shot, sample, cost), value in np.ndenumerate(result.table):
            table.writerow([list(result.map)[shot], sample + 1, f"{result.costs[cost]:.6g}", f"{value:.6g}"])
