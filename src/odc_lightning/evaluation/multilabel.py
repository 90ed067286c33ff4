"""The VOC2007 protocol: one linear SVM for each class on frozen features, its cost chosen by cross-validation.

Goyal et al. 2019, Sec. 4 and App. B ("Scaling and Benchmarking Self-Supervised Visual Representation Learning"); the
paper's Table 3 reports the best layer. Works on any data with several labels an image.

Shapes: N training rows · M test rows · F features · K classes · C costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from odc_lightning.checks import check_choice
from odc_lightning.evaluation.average_precision import ABSENT, DIFFICULT, PRESENT, average_precision, check_labels
from odc_lightning.evaluation.liblinear import solve_liblinear
from odc_lightning.evaluation.svm import SVMSolutions, SVMSolver, check_costs, check_features

COSTS = (*(0.5**power for power in range(19, 3, -1)), 1.0, 10.0, 100.0)
SOLVERS = ("batched", "liblinear")

Fit = Callable[[NDArray, NDArray], SVMSolutions]  # signs (N, P), costs (costs, P)


@dataclass(frozen=True)
class SVMResult:
    """What `svm_protocol` found.

    Attributes:
        map: mean of `ap`, percent.
        ap: float64 (K,), percent, interpolated, on the test rows.
        cost: float64 (K,), the cost chosen for each class.
        cv_ap: float64 (K, C), percent, mean over the folds, not interpolated.
        costs: the C costs.
        classes: the K names.
    """

    map: float
    ap: NDArray[np.float64]
    cost: NDArray[np.float64]
    cv_ap: NDArray[np.float64]
    costs: tuple[float, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class MultiLabelRows:
    """Checked, normalised rows for training and test.

    Attributes:
        train: float32 (N, F), each row f / (|f| + 1e-5).
        train_labels: int64 (N, K), 1 present, 0 absent, -1 difficult.
        test: float32 (M, F).
        test_labels: int64 (M, K).
        classes: the K names.
    """

    train: Tensor
    train_labels: NDArray[np.int64]
    test: Tensor
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]


def svm_protocol(
    train_features: Tensor | ArrayLike,
    train_labels: Tensor | ArrayLike,
    test_features: Tensor | ArrayLike,
    test_labels: Tensor | ArrayLike,
    *,
    classes: Sequence[str] | None = None,
    costs: Sequence[float] = COSTS,
    folds: int = 3,
    class_weight: float = 2.0,
    solver: str = "batched",
    jobs: int = -1,
) -> SVMResult:
    """Train on the training rows, choose each class's cost by stratified folds, report AP on the test rows.

    Difficult images are negatives in training and left out of the test, as in the published benchmarks. The folds are
    those of scikit-learn's `cross_val_score(cv=3)`; among equal costs the lowest is chosen.

    Args:
        train_features: (N, F) tensor or array; normalised here. A tensor's device is where the batched solver works.
        train_labels: (N, K): 1 present, 0 absent, -1 difficult.
        test_features: (M, F).
        test_labels: (M, K).
        classes: K names for messages and results; default: their numbers.
        costs: to choose from.
        folds: number of folds.
        class_weight: weight of the positives' losses; the negatives' is 1.
        solver: `batched` solves all together, `liblinear` is scikit-learn's LinearSVC, fit by fit.
        jobs: processes for `liblinear`; -1: one a core.

    Raises:
        ValueError: before anything is solved, for features that do not match or are not finite, labels other than 1, 0
            and -1, a class with fewer positives or negatives than folds or without a positive in the test, costs or
            weights not above 0, an unknown solver.
    """
    check_choice("solver", solver, SOLVERS)
    check_costs(costs, 1)
    rows = check_rows(train_features, train_labels, test_features, test_labels, classes)
    check_folds(rows, folds)
    fit = _batched(rows.train, class_weight) if solver == "batched" else _liblinear(rows.train, class_weight, jobs)
    costs_C = np.sort(np.asarray(costs, dtype=np.float64))
    signs_NK = np.where(rows.train_labels == PRESENT, 1, -1)
    cv_ap = 100 * _cross_validate(fit, rows.train, signs_NK, costs_C, folds)
    cost = costs_C[cv_ap.argmax(1)]
    test_scores_KM = fit(signs_NK, cost[None]).scores(rows.test)[0]
    ap = 100 * average_precision(test_scores_KM.cpu().numpy(), rows.test_labels.T)
    return SVMResult(float(ap.mean()), ap, cost, cv_ap, tuple(costs_C.tolist()), rows.classes)


def best_layer(results: Mapping[str, SVMResult]) -> tuple[str, SVMResult]:
    """Name and result of the layer with the highest mAP, the first among equals; ValueError without a layer."""
    if not results:
        raise ValueError("results must hold at least one layer. Received: none")
    name = max(results, key=lambda layer: results[layer].map)
    return name, results[name]


def normalize(features: Tensor) -> Tensor:
    """f / (|f| + 1e-5) for each row, in float64, returned as float32."""
    exact = features.double()
    return (exact / (exact.norm(dim=1, keepdim=True) + 1e-5)).float()


def check_rows(
    train_features: Tensor | ArrayLike,
    train_labels: Tensor | ArrayLike,
    test_features: Tensor | ArrayLike,
    test_labels: Tensor | ArrayLike,
    classes: Sequence[str] | None,
) -> MultiLabelRows:
    """Check and normalise; ValueError as in `svm_protocol`."""
    train, train_labels = _checked_part("train", train_features, train_labels)
    test, test_labels = _checked_part("test", test_features, test_labels)
    for name, sizes in {
        "features": (train.shape[1], test.shape[1]),
        "labels": (train_labels.shape[1], test_labels.shape[1]),
    }.items():
        if sizes[0] != sizes[1]:
            raise ValueError(f"train and test {name} must have the same width. Received: {sizes[0]} and {sizes[1]}")
    names = tuple(map(str, range(train_labels.shape[1]) if classes is None else classes))
    if len(names) != train_labels.shape[1]:
        raise ValueError(f"classes must name the {train_labels.shape[1]} columns of the labels. Received: {len(names)}")
    _check_counts("test", test_labels, names, {PRESENT: 1}, "needed for an average precision")
    return MultiLabelRows(normalize(train), train_labels, normalize(test).to(train.device), test_labels, names)


def _checked_part(
    part: str, features: Tensor | ArrayLike, labels: Tensor | ArrayLike
) -> tuple[Tensor, NDArray[np.int64]]:
    features = torch.as_tensor(features).detach()
    if features.device.type == "mps":  # it has no float64
        features = features.cpu()
    check_features(f"{part} features", features)
    labels = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if labels.ndim != 2 or len(labels) != len(features) or not labels.shape[1]:
        raise ValueError(f"{part} labels must be ({len(features)}, classes). Received: {labels.shape}")
    check_labels(f"{part} labels", labels)
    return features, labels.astype(np.int64)


def check_folds(rows: MultiLabelRows, folds: int) -> None:
    """ValueError unless each class has a positive and a negative for each of at least 2 folds."""
    if folds < 2:
        raise ValueError(f"folds must be at least 2. Received: {folds}")
    as_trained = np.where(rows.train_labels == DIFFICULT, ABSENT, rows.train_labels)
    _check_counts("train", as_trained, rows.classes, {PRESENT: folds, ABSENT: folds}, f"one for each of {folds} folds")


def _check_counts(part: str, labels: NDArray, classes: tuple[str, ...], least: Mapping[int, int], reason: str) -> None:
    for label, count in least.items():
        kind = "positive" if label == PRESENT else "negative"
        found_K = (labels == label).sum(0)
        poor = [f"{classes[place]} ({found_K[place]})" for place in np.flatnonzero(found_K < count)]
        if poor:
            raise ValueError(
                f"each class must have at least {count} {kind} {part} images, {reason}. Received: {', '.join(poor)}"
            )


def _cross_validate(
    fit: Fit, train: Tensor, signs_NK: NDArray, costs_C: NDArray[np.float64], folds: int
) -> NDArray[np.float64]:
    """Mean AP over the folds, (K, C), 0 to 1."""
    held_out_NKV = np.stack([_held_out(signs_N, folds) for signs_N in signs_NK.T], axis=1)
    signs_NP = np.where(held_out_NKV, 0, signs_NK[..., None]).reshape(len(signs_NK), -1)
    solutions = fit(signs_NP, np.repeat(costs_C[:, None], signs_NP.shape[1], axis=1))
    ap_CP = _held_out_ap(solutions, train, held_out_NKV.reshape(signs_NP.shape), np.repeat(signs_NK, folds, axis=1))
    return ap_CP.reshape(len(costs_C), -1, folds).mean(2).T


def _held_out(signs_N: NDArray, folds: int) -> NDArray[np.bool_]:
    """(N, folds): the rows that each fold tests."""
    held_out = np.zeros((len(signs_N), folds), dtype=bool)
    for fold, (_, rows) in enumerate(StratifiedKFold(folds).split(signs_N[:, None], signs_N)):
        held_out[rows, fold] = True
    return held_out


def _held_out_ap(
    solutions: SVMSolutions, train: Tensor, held_out_NP: NDArray[np.bool_], signs_NP: NDArray
) -> NDArray[np.float64]:
    """(C, P), as cross_val_score's `average_precision`."""
    columns = []
    for problem, (held_out, signs) in enumerate(zip(held_out_NP.T, signs_NP.T, strict=True)):
        scores = solutions.select(problem).scores(train[torch.from_numpy(held_out).to(train.device)])
        columns.append(average_precision(scores[:, 0].cpu().numpy(), signs[held_out] > 0, interpolated=False))
    return np.stack(columns, axis=1)


def _batched(train: Tensor, class_weight: float) -> Fit:
    solver = SVMSolver(train, positive_weight=class_weight)
    return lambda signs, costs: solver.solve(torch.from_numpy(signs), torch.from_numpy(costs))


def _liblinear(train: Tensor, class_weight: float, jobs: int) -> Fit:
    rows = train.cpu().numpy()

    def fit(signs: NDArray, costs: NDArray) -> SVMSolutions:
        weights, steps = solve_liblinear(rows, signs, costs, positive_weight=class_weight, jobs=jobs)
        solved = torch.from_numpy(weights).to(train.device)
        return SVMSolutions(solved[..., :-1], solved[..., -1], torch.from_numpy(steps).to(train.device))

    return fit
