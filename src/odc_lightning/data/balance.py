"""Uniform sampling over clusters: DeepCluster's remedy against a few huge clusters (ODC's is the loss weight).

Shapes: N samples · K non-empty clusters · S samples of each cluster.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniform_order(labels_N: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw an epoch in which all non-empty clusters are equally frequent: N samples in random order, (N,).

    S = N // K + 1 of each cluster: different ones where it has more than S, else with replacement; then all are
    shuffled and cut to N (DeepCluster's rule; it divides by the clusters that are not empty).

    Args:
        labels_N: (N,) cluster of each sample, at least 0.
        rng: of all draws.
    """
    order_N = rng.permutation(len(labels_N))
    by_cluster_N = order_N[np.argsort(labels_N[order_N], kind="stable")]  # cluster by cluster, each in random order
    sizes_K = np.unique(labels_N, return_counts=True)[1]
    share = len(labels_N) // len(sizes_K) + 1
    starts_K1, sizes_K1 = (np.cumsum(sizes_K) - sizes_K)[:, None], sizes_K[:, None]
    again_KS = rng.integers(sizes_K1, size=(len(sizes_K), share))
    place_KS = np.where(sizes_K1 <= share, again_KS, np.arange(share))
    return rng.permutation(by_cluster_N[starts_K1 + place_KS].ravel())[: len(labels_N)]
