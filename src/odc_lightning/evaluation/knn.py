"""Weighted k-nearest-neighbour classifier on frozen features (Wu et al. 2018, Sec. 3.4).

Shapes: M training rows · B test rows of a block · D feature width · K classes · k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from odc_lightning.clustering.nearest import full_float32
from odc_lightning.data.sources import UNKNOWN

_SCORES = 2**26  # similarities held at once: 256 MiB
_WEIGHT_GRID = 2.0**-40  # sums of up to 2^13 weights are exact, so that atomics in any order give the same votes


def knn_accuracy(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> float:
    """Top-1 accuracy in percent; see `knn_accuracies`."""
    return knn_accuracies(
        train_features,
        train_targets,
        test_features,
        test_targets,
        ks=(k,),
        temperature=temperature,
        num_classes=num_classes,
    )[k]


@torch.no_grad()
def knn_accuracies(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> dict[int, float]:
    """Top-1 accuracy in percent for several numbers of neighbours, from one search.

    The k training rows of highest cosine similarity s vote for their class with the weight exp(s / temperature);
    among classes with equal votes the lowest wins. Float32 whatever autocast says, on the device of the training
    features, the same result on every call.

    Args:
        train_features: (M, D), any floating type; normalised here.
        train_targets: (M,) integer classes; rows with -1 (unknown) are left out.
        test_features: (B, D).
        test_targets: (B,) integer classes; rows with -1 are left out.
        ks: numbers of neighbours.
        temperature: 0.07 in the paper of the method.
        num_classes: K; default: the largest class of the training rows plus one.

    Raises:
        ValueError: for a k above the number of known training rows, a temperature of 0 or less, features that do not
            match or are not finite, targets of another length or not below K, or no known test row.
    """
    train_features, train_targets = _known("train", train_features, train_targets)
    test_features, test_targets = _known("test", test_features, test_targets)
    _check(train_features, test_features, ks, temperature)
    classes = _num_classes(train_targets, num_classes)
    train_MD, test_targets = _normalized(train_features), test_targets.to(train_features.device)
    train_targets = train_targets.to(train_MD.device)
    correct = torch.zeros(len(ks), dtype=torch.int64, device=train_MD.device)
    block = max(1, _SCORES // len(train_MD))
    with full_float32(train_MD.device):
        for rows, targets in zip(test_features.split(block), test_targets.split(block), strict=True):
            rows_BD = _normalized(rows.to(train_MD.device))
            similar_Bk, nearest_Bk = (rows_BD @ train_MD.T).topk(max(ks), dim=1)
            votes = _votes(similar_Bk, train_targets[nearest_Bk], ks, temperature, classes)
            correct += torch.stack([(votes_BK.argmax(1) == targets).sum() for votes_BK in votes])
    return {k: 100.0 * hits / len(test_targets) for k, hits in zip(ks, correct.tolist(), strict=True)}


def _votes(
    similar_Bk: Tensor, classes_Bk: Tensor, ks: Sequence[int], temperature: float, num_classes: int
) -> list[Tensor]:
    """Sum of the weights by class, (B, K) float64, for each k. Weights are relative to the nearest neighbour's."""
    relative_Bk = (similar_Bk.double() - similar_Bk[:, :1].double()) / temperature
    weights_Bk = relative_Bk.exp_().div_(_WEIGHT_GRID).round_().mul_(_WEIGHT_GRID)
    empty_BK = weights_Bk.new_zeros(len(weights_Bk), num_classes)
    return [empty_BK.scatter_add(1, classes_Bk[:, :k], weights_Bk[:, :k]) for k in ks]


def _normalized(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1)


def _known(name: str, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            f"{name} features must be (rows, D) and their targets (rows,). "
            f"Received: {tuple(features.shape)} and {tuple(targets.shape)}"
        )
    known = targets != UNKNOWN
    if not known.any():
        raise ValueError(f"no {name} row has a known target: all are {UNKNOWN}, or there are none")
    features, targets = (features, targets) if known.all() else (features[known.to(features.device)], targets[known])
    not_finite = int((~features.isfinite().all(1)).sum())
    if not_finite:
        raise ValueError(f"{not_finite} of {len(features)} {name} rows hold NaN or infinity")
    return features, targets.long()


def _check(train_features: Tensor, test_features: Tensor, ks: Sequence[int], temperature: float) -> None:
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            "train and test features must have the same width. "
            f"Received: {train_features.shape[1]} and {test_features.shape[1]}"
        )
    if not ks:
        raise ValueError("ks must name at least one number of neighbours. Received: none")
    for k in ks:
        if not 1 <= k <= len(train_features):
            raise ValueError(f"k must be in 1..{len(train_features)}, the known training rows. Received: {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0. Received: {temperature}")


def _num_classes(train_targets: Tensor, num_classes: int | None) -> int:
    lowest, largest = int(train_targets.min()), int(train_targets.max())
    if lowest < 0:
        raise ValueError(f"targets must be at least 0, or {UNKNOWN} for unknown. Received: {lowest}")
    if num_classes is not None and largest >= num_classes:
        raise ValueError(f"targets must be below num_classes, {num_classes}. Received: {largest}")
    return largest + 1 if num_classes is None else num_classes
