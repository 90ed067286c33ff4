"""Checks of the values a user gives: one wording for every message."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence


def check_choice(key: str, value: object, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`; otherwise ValueError with the nearest spelling."""
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{key} must be one of {', '.join(choices)}. Received: {value!r}.{hint}")


def check_number(key: str, value: object, low: float, high: float) -> float:
    """Return `value` as a float if it lies in [low, high]; otherwise ValueError."""
    if _is_number(value) and low <= float(value) <= high:  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    raise ValueError(f"{key} must be a number from {low:g} to {high:g}. Received: {value!r}")


def check_size(key: str, value: object) -> int:
    """Return `value`, a number of pixels; ValueError unless it is an integer of at least 1."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError(f"{key} must be an integer of at least 1 (pixels). Received: {value!r}")


def check_range(key: str, value: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """Return `value` as (least, most) if low <= least <= most <= high; otherwise ValueError."""
    try:
        pair = tuple(value)
    except TypeError:
        pair = ()
    if len(pair) == 2 and all(map(_is_number, pair)) and low <= pair[0] <= pair[1] <= high:
        return float(pair[0]), float(pair[1])
    limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
    raise ValueError(f"{key} must be a pair [least, most] of numbers {limits}. Received: {value!r}")


def check_sizes(num_samples: int, num_clusters: int, min_cluster_size: int, small_means: str = "at_most") -> None:
    """Raise ValueError where a clustering of these sizes cannot exist, with the nearest that can."""
    if num_clusters < 2:
        raise ValueError(f"num_clusters must be at least 2. Received: {num_clusters}")
    if num_clusters > num_samples:
        raise ValueError(f"num_clusters must not exceed the number of samples, {num_samples}. Received: {num_clusters}")
    if min_cluster_size < 1:
        raise ValueError(f"min_cluster_size must be at least 1. Received: {min_cluster_size}")
    smallest = min_cluster_size + (small_means == "at_most")
    if smallest * num_clusters > num_samples:
        raise ValueError(
            f"min_cluster_size x num_clusters needs {smallest} x {num_clusters} = {smallest * num_clusters} samples, "
            f"the data set has {num_samples}. With {num_clusters} clusters min_cluster_size can be at most "
            f"{num_samples // num_clusters - (small_means == 'at_most')}; with min_cluster_size={min_cluster_size} "
            f"num_clusters can be at most {num_samples // smallest}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
