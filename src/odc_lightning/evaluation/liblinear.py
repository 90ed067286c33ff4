"""scikit-learn's LinearSVC, one fit after another on all cores: the reference for `svm.py`, and low-shot's solver.

No torch here: each worker process would import it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from rich.progress import track
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from odc_lightning.evaluation.average_precision import average_precision

logger = logging.getLogger(__name__)

_MAX_ITERATIONS = 2000
_Result = TypeVar("_Result")


def fit_liblinear(
    rows: NDArray, signs: NDArray, cost: float, positive_weight: float = 2.0
) -> tuple[NDArray[np.float64], int]:
    """Fit one LinearSVC as the published benchmarks do (squared hinge, L2, dual, tol 1e-4, at most 2000 iterations).

    Args:
        rows: (N, F).
        signs: (N,): +1, -1, or 0 for a row left out.

    Returns:
        Weights and intercept (F + 1,), and the number of iterations.
    """
    used = signs != 0
    svm = LinearSVC(
        C=cost,
        class_weight={1: positive_weight, -1: 1.0},
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        tol=1e-4,
        max_iter=_MAX_ITERATIONS,
        intercept_scaling=1.0,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(rows if used.all() else rows[used], signs[used])
    return np.append(svm.coef_[0], svm.intercept_[0]), int(svm.n_iter_)


def liblinear_ap(
    train: NDArray,
    signs: NDArray,
    test: NDArray,
    test_labels: NDArray,
    costs: NDArray,
    positive_weight: float = 2.0,
) -> tuple[NDArray[np.float64], list[int]]:
    """Fit one class at each of C costs; AP on the test rows (C,), 0 to 1, interpolated, and the iterations."""
    rows, signs = train[signs != 0], signs[signs != 0]
    weights, iterations = zip(*(fit_liblinear(rows, signs, cost, positive_weight) for cost in costs), strict=True)
    weights_CF = np.stack(weights)
    scores = weights_CF[:, :-1].astype(np.float32) @ test.T + weights_CF[:, -1:]
    return average_precision(scores, test_labels), list(iterations)


def solve_liblinear(
    features: NDArray, signs: NDArray, costs: NDArray, *, positive_weight: float = 2.0, jobs: int = -1
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Fit P problems (signs (N, P)) at K costs (K, P): weights and intercepts (K, P, F + 1), iterations (K, P)."""
    cells = list(np.ndindex(costs.shape))
    tasks = [(features, signs[:, problem], costs[cost, problem], positive_weight) for cost, problem in cells]
    weights, iterations = zip(*over_cores(fit_liblinear, tasks, jobs, "LinearSVC"), strict=True)
    warn_unfinished(np.array(iterations))
    return np.reshape(weights, (*costs.shape, -1)), np.reshape(iterations, costs.shape)


def over_cores(function: Callable[..., _Result], tasks: Sequence[tuple], jobs: int, title: str) -> Iterable[_Result]:
    """Results in the order of the tasks, from `jobs` processes (-1: one a core), with a progress bar."""
    results = Parallel(n_jobs=jobs, return_as="generator")(delayed(function)(*task) for task in tasks)
    return track(results, title, total=len(tasks), transient=True, disable=not sys.stdout.isatty())


def warn_unfinished(iterations: NDArray[np.int64]) -> None:
    """Say once how many fits stopped at the published limit of iterations."""
    unfinished = int((iterations >= _MAX_ITERATIONS).sum())
    if unfinished:
        logger.warning(
            "%d of %d LinearSVC fits stopped at max_iter=%d, the published limit, short of tol=1e-4",
            unfinished,
            iterations.size,
            _MAX_ITERATIONS,
        )
