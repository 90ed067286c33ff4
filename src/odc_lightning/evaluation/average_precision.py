"""Average precision of rankings, many at a time. NumPy only: worker processes import it without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRESENT, ABSENT, DIFFICULT = 1, 0, -1


def average_precision(scores: ArrayLike, labels: ArrayLike, *, interpolated: bool = True) -> NDArray[np.float64]:
    """Area under the precision-recall curve along the last axis, 0 to 1.

    `interpolated` takes at each recall the highest precision at that recall or above, as PASCAL VOC does since 2010
    (not the 11 points of 2007); otherwise the area is scikit-learn's `average_precision_score`. Rows of equal score
    enter the ranking together, as in scikit-learn, so that their order does not matter. (FAIR's benchmark ranks equal
    scores in the order in which a sort leaves them; without equal scores the two agree.)

    Args:
        scores: (..., N), higher for rows thought to be positive.
        labels: (..., N) or anything that broadcasts with the scores: 1 present, 0 absent, -1 left out.

    Returns:
        (...), NaN where no row is present.

    Raises:
        ValueError: for shapes that do not match, labels other than 1, 0 and -1, or NaN among the scores.
    """
    scores, labels = _checked(scores, labels)
    positive, counted, ends = _ranked(scores, labels)
    hits, shown = positive.cumsum(-1), counted.cumsum(-1)
    precision = np.where(ends, hits / np.maximum(shown, 1), 0.0)
    if interpolated:
        precision = _cumulative_from_right(np.maximum, precision)
    else:
        precision = np.take_along_axis(precision, _next_end(ends), -1)
    with np.errstate(invalid="ignore"):
        return np.asarray((precision * positive).sum(-1) / positive.sum(-1))


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if not scores.ndim or not scores.size or scores.shape[-1:] != labels.shape[-1:]:
        raise ValueError(
            "scores and labels must be (..., rows), at least one row, as many of both. "
            f"Received: {scores.shape} and {labels.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN")
    check_labels("labels", labels)
    pair = np.broadcast_arrays(scores, labels)
    return pair[0], pair[1]


def check_labels(name: str, labels: NDArray) -> None:
    """ValueError unless all labels are 1 (present), 0 (absent) or -1 (difficult)."""
    wrong = labels[~np.isin(labels, (PRESENT, ABSENT, DIFFICULT))]
    if wrong.size:
        raise ValueError(
            f"{name} must be 1 (present), 0 (absent) or -1 (difficult). "
            f"Received: {wrong.flat[0]} ({wrong.size} entries)"
        )


def _ranked(scores: NDArray, labels: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Whether each place of the ranking is positive, whether it counts, and whether its score differs from the next."""
    lowest_first = np.where(labels == DIFFICULT, np.inf, -scores)
    order = np.argsort(lowest_first, axis=-1, kind="stable")
    ranked, labels = np.take_along_axis(lowest_first, order, -1), np.take_along_axis(labels, order, -1)
    ends = np.ones(ranked.shape, dtype=bool)
    ends[..., :-1] = ranked[..., 1:] != ranked[..., :-1]
    return labels == PRESENT, labels != DIFFICULT, ends


def _next_end(ends: NDArray) -> NDArray:
    """Place of the last row with the same score."""
    last = ends.shape[-1] - 1
    return _cumulative_from_right(np.minimum, np.where(ends, np.arange(last + 1), last))


def _cumulative_from_right(operation: np.ufunc, values: NDArray) -> NDArray:
    return operation.accumulate(values[..., ::-1], axis=-1)[..., ::-1]
