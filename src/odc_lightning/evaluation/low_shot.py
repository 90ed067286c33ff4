"""Low-shot VOC2007 (the paper's Fig. 3): SVMs on k positives and 19k negatives a class, for k from 1 to 96.

Goyal et al. 2019, Sec. 4 and App. B. Shapes: N training rows · M test rows · F features · K classes · C costs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from odc_lightning.evaluation.average_precision import ABSENT, PRESENT, check_labels
from odc_lightning.evaluation.liblinear import liblinear_ap, over_cores, warn_unfinished
from odc_lightning.evaluation.multilabel import COSTS, MultiLabelRows, check_rows
from odc_lightning.evaluation.svm import check_above_zero, check_costs

SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
NEGATIVES_PER_POSITIVE = 19
LEFT_OUT = -1
_SHOWN = 5


@dataclass(frozen=True)
class LowShotResult:
    """What `low_shot_protocol` found.

    Attributes:
        mean: mean of `map` over the shots, percent: the paper's single figure.
        map: for each k, percent: mean over the samples at the best cost.
        cost: for each k, the cost with the best mean.
        table: float64 (shots, samples, C), percent: mean AP over the classes.
        costs: the C costs.
    """

    mean: float
    map: dict[int, float]
    cost: dict[int, float]
    table: NDArray[np.float64]
    costs: tuple[float, ...]


def low_shot_protocol(
    train_features: Tensor | ArrayLike,
    train_labels: Tensor | ArrayLike,
    test_features: Tensor | ArrayLike,
    test_labels: Tensor | ArrayLike,
    *,
    classes: Sequence[str] | None = None,
    shots: Sequence[int] = SHOTS,
    samples: int = 5,
    costs: Sequence[float] = COSTS,
    draws: str | os.PathLike[str] | None = None,
    seed: int = 0,
    class_weight: float = 2.0,
    jobs: int = -1,
) -> LowShotResult:
    """Train LinearSVC on few rows of each class, test on all test rows, for each k, sample and cost.

    As in the published benchmark the cost of each k is the one with the best mean over the samples ON THE TEST rows.
    For a figure without that choice give a single cost.

    Args:
        train_features: (N, F), normalised here.
        train_labels: (N, K): 1 present, 0 absent, -1 difficult. Difficult images are never drawn.
        test_features: (M, F).
        test_labels: (M, K); difficult images are left out.
        classes: K names for messages; default: their numbers.
        shots: the numbers k of positives.
        samples: draws for each k.
        costs: to try.
        draws: folder of FAIR's fixed draws, see `read_draws`; None: draws by `draw_low_shot`.
        seed: of the draws.
        class_weight: weight of the positives' losses; the negatives' is 1.
        jobs: processes; -1: one a core.

    Raises:
        ValueError: before anything is solved, as `svm_protocol`, or for a class with too few images for the largest k.
        FileNotFoundError: a file of `draws` is missing.
    """
    check_costs(costs, 1)
    check_above_zero("class_weight", class_weight)
    _check_integers(shots, samples)
    rows = check_rows(train_features, train_labels, test_features, test_labels, classes)
    drawn = [_drawn(rows, shot, sample, draws, seed) for shot in shots for sample in range(1, samples + 1)]
    costs_C = np.sort(np.asarray(costs, dtype=np.float64))
    ap_DKC = _all_ap(rows, np.stack(drawn), costs_C, class_weight, jobs)
    table = 100 * ap_DKC.mean(1).reshape(len(shots), samples, len(costs_C))
    return _summary(table, tuple(shots), costs_C)


def draw_low_shot(
    labels: NDArray[np.int64], shots: int, sample: int, *, seed: int = 0, classes: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Draw k positives and 19k negatives of each class, independently of the other classes, k and samples.

    Args:
        labels: (N, K): 1 present, 0 absent, -1 difficult.
        shots: k.
        sample: number of the draw, from 1.
        seed: other draws.
        classes: K names for messages.

    Returns:
        (N, K): 1 and 0 for rows drawn as positives and negatives, -1 for rows left out.

    Raises:
        ValueError: a class has too few of either; names the class and the count.
    """
    targets = np.full_like(labels, LEFT_OUT)
    for place, labels_N in enumerate(labels.T):
        generator = np.random.default_rng([seed, shots, sample, place])
        for label, count in ((PRESENT, shots), (ABSENT, NEGATIVES_PER_POSITIVE * shots)):
            rows = np.flatnonzero(labels_N == label)
            if len(rows) < count:
                kind, name = ("negative", "positive")[label], place if classes is None else classes[place]
                raise ValueError(
                    f"shots={shots} needs {count} {kind} images of each class. Received: {len(rows)} of {name}"
                )
            targets[generator.choice(rows, count, replace=False), place] = label
    return targets


def read_draws(folder: str | os.PathLike[str], shots: int, sample: int) -> NDArray[np.int64]:
    """Read FAIR's fixed draw `train_targets_sample{sample}_k{shots}.npy`: (N, K), 1, 0, and -1 for rows left out.

    Raises:
        FileNotFoundError: the file is missing; says what is there.
        ValueError: it is no (N, K) array of 1, 0 and -1.
    """
    file = Path(folder).expanduser() / f"train_targets_sample{sample}_k{shots}.npy"
    if not file.is_file():
        found = sorted(each.name for each in file.parent.glob("*"))
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise FileNotFoundError(
            f"draws must hold {file.name}. Found in {file.parent}: {', '.join(found[:_SHOWN]) or 'nothing'}{more}"
        )
    targets = np.load(file, allow_pickle=False)
    check_labels(file.name, targets)
    if targets.ndim != 2:
        raise ValueError(f"{file.name} must be (images, classes). Received: {targets.shape}")
    return targets.astype(np.int64)


def _drawn(
    rows: MultiLabelRows, shots: int, sample: int, draws: str | os.PathLike[str] | None, seed: int
) -> NDArray[np.int64]:
    if draws is None:
        return draw_low_shot(rows.train_labels, shots, sample, seed=seed, classes=rows.classes)
    targets = read_draws(draws, shots, sample)
    name = f"train_targets_sample{sample}_k{shots}.npy"
    if targets.shape != rows.train_labels.shape:
        raise ValueError(f"{name} must be {rows.train_labels.shape}, as the labels. Received: {targets.shape}")
    _check_agreement(name, targets, rows)
    return targets


def _check_agreement(name: str, targets: NDArray[np.int64], rows: MultiLabelRows) -> None:
    """A draw made for another order of the images would train on wrong labels without a word."""
    wrong = (targets != LEFT_OUT) & ((targets == PRESENT) != (rows.train_labels == PRESENT))
    if wrong.any():
        raise ValueError(
            f"{name} contradicts {int(wrong.sum())} of the {int((targets != LEFT_OUT).sum())} labels that it draws: "
            "it numbers the images or the classes in another order"
        )
    for label, kind in ((PRESENT, "positive"), (ABSENT, "negative")):
        empty = np.flatnonzero(~(targets == label).any(0))
        if len(empty):
            raise ValueError(
                f"{name} must draw a {kind} image of each class. Received: none of {rows.classes[empty[0]]}"
            )


def _all_ap(
    rows: MultiLabelRows, targets_DNK: NDArray[np.int64], costs_C: NDArray[np.float64], class_weight: float, jobs: int
) -> NDArray[np.float64]:
    """AP, 0 to 1, of each draw and class at each cost: (draws, K, C)."""
    train, test = rows.train.cpu().numpy(), rows.test.cpu().numpy()
    cells = list(np.ndindex(len(targets_DNK), len(rows.classes)))
    signs_DNK = np.where(targets_DNK == LEFT_OUT, 0, np.where(targets_DNK == PRESENT, 1, -1))
    tasks = [
        (train, signs_DNK[draw, :, place], test, rows.test_labels[:, place], costs_C, class_weight)
        for draw, place in cells
    ]
    ap, iterations = zip(*over_cores(liblinear_ap, tasks, jobs, "low-shot"), strict=True)
    warn_unfinished(np.array(iterations))
    return np.reshape(ap, (len(targets_DNK), len(rows.classes), len(costs_C)))


def _summary(table: NDArray[np.float64], shots: tuple[int, ...], costs_C: NDArray[np.float64]) -> LowShotResult:
    mean_SC = table.mean(1)
    best_S = mean_SC.argmax(1)
    maps = {shot: float(mean_SC[row, best_S[row]]) for row, shot in enumerate(shots)}
    cost = {shot: float(costs_C[best_S[row]]) for row, shot in enumerate(shots)}
    return LowShotResult(float(np.mean(list(maps.values()))), maps, cost, table, tuple(costs_C.tolist()))


def _check_integers(shots: Sequence[int], samples: int) -> None:
    if not shots or len(set(shots)) != len(shots) or any(shot < 1 for shot in shots):
        raise ValueError(f"shots must be different integers of at least 1. Received: {list(shots)}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1. Received: {samples}")
