"""Agreement between two clusterings, or of a clustering with true classes: for measuring only, never for training.

Every measure ignores the names of the clusters. Shapes: N samples · C clusters · K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

Labels: TypeAlias = "np.ndarray | torch.Tensor"
UNKNOWN = -1


def agreement(labels_N: Labels, truth_N: Labels) -> dict[str, float]:
    """NMI, ARI and purity of a clustering.

    - ``nmi``: mutual information over the mean of both entropies, [0, 1]; symmetric. Two single clusters give 1.
    - ``ari``: Rand index adjusted for chance (Hubert and Arabie 1985), at most 1, near 0 for chance; symmetric.
    - ``purity``: share of the samples whose class is the most frequent of their cluster, (0, 1]; grows with C.

    Args:
        labels_N: (N,) integers, the clusters.
        truth_N: (N,) integers, the true classes or another clustering. Samples with -1 (unknown) are left out.

    Returns: the three as floats, all NaN when no sample is known.
    Raises: ValueError when the two differ in length or are not integers of one dimension.
    """
    table = _contingency(labels_N, truth_N)
    return {"nmi": _nmi(table), "ari": _ari(table), "purity": _purity(table)}


def cluster_accuracy(labels_N: Labels, truth_N: Labels) -> float:
    """Share of samples, [0, 1], whose class is the one matched with their cluster by the best one-to-one matching.

    With more clusters than classes the unmatched clusters count as wrong (the "clustering accuracy" of the
    literature; Kuhn 1955). Takes half a second for a million samples in 10,000 clusters. Unknown samples, NaN and
    errors as in `agreement`.
    """
    table = _contingency(labels_N, truth_N)
    return _matched(table) / table.total if table.total else float("nan")


def switch_ratio(labels_N: Labels, previous_N: Labels) -> float:
    """Share of samples, [0, 1], whose label changed, after the new clusters have got the best names.

    A fresh k-means numbers its clusters anew; the best one-to-one matching of new and old clusters takes that out.
    """
    return 1.0 - cluster_accuracy(labels_N, previous_N)


def size_entropy(sizes_C: Labels) -> float:
    """Entropy of the cluster sizes over log C: 1 when all are equal, 0 when one holds everything.

    Raises: ValueError when the sizes are negative or hold no sample.
    """
    sizes = _to_numpy(sizes_C).astype(np.float64)
    if sizes.size == 0 or sizes.min() < 0 or sizes.sum() == 0:
        raise ValueError(f"sizes must be at least 0 and hold a sample. Received: {sizes.tolist()[:10]}")
    return 1.0 if sizes.size == 1 else max(_entropy(sizes), 0.0) / float(np.log(sizes.size))


@dataclass(frozen=True)
class _Contingency:
    """How many samples each pair of a cluster and a class shares; only the P pairs that occur."""

    count_P: np.ndarray
    cluster_P: np.ndarray
    class_P: np.ndarray
    sizes_C: np.ndarray
    sizes_K: np.ndarray

    @property
    def total(self) -> int:
        return int(self.count_P.sum())


def _contingency(labels_N: Labels, truth_N: Labels) -> _Contingency:
    labels, truth = _to_numpy(labels_N), _to_numpy(truth_N)
    for name, values in (("labels", labels), ("truth", truth)):
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers of one dimension. Received: {values.dtype}, {values.shape}")
    if len(labels) != len(truth):
        raise ValueError(f"labels and truth must be equally long. Received: {len(labels)} and {len(truth)}")
    known = truth != UNKNOWN
    label, sizes_C = _renumbered(labels[known])
    true, sizes_K = _renumbered(truth[known])
    classes = max(len(sizes_K), 1)
    pair_N = label.astype(np.int64)
    pair_N *= classes
    pair_N += true
    pair_N.sort()  # in place, as all of this: N may be millions, and the rest of the memory the features'
    first_P = np.flatnonzero(np.concatenate([[True], pair_N[1:] != pair_N[:-1]])[: len(pair_N)])
    count_P = np.diff(first_P, append=len(pair_N))
    return _Contingency(count_P, *np.divmod(pair_N[first_P], classes), sizes_C, sizes_K)


def _renumbered(values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values by their place among those that occur, (N,) int32, and how often each of these occurs."""
    number_N = np.searchsorted(np.unique(values_N), values_N).astype(np.int32)
    return number_N, np.bincount(number_N)


def _nmi(table: _Contingency) -> float:
    if not table.total:
        return float("nan")
    of_clusters, of_classes = _entropy(table.sizes_C), _entropy(table.sizes_K)
    if len(table.sizes_C) == len(table.sizes_K) == 1:
        return 1.0
    shared = of_clusters + of_classes - _entropy(table.count_P)
    return min(max(2 * shared / (of_clusters + of_classes), 0.0), 1.0)


def _ari(table: _Contingency) -> float:
    if not table.total:
        return float("nan")
    both, same_cluster, same_class = (_pairs(sizes) for sizes in (table.count_P, table.sizes_C, table.sizes_K))
    # Python integers: these products pass 2^63 from 100,000 samples on.
    all_pairs = table.total * (table.total - 1) // 2
    above_chance = 2 * (both * all_pairs - same_cluster * same_class)
    most = (same_cluster + same_class) * all_pairs - 2 * same_cluster * same_class
    return above_chance / most if most else 1.0


def _matched(table: _Contingency) -> int:
    """Most samples that a one-to-one matching of clusters and classes can hold.

    Only the pairs that occur are edges: for a million samples in 10,000 clusters nine times faster than a dense table,
    which takes 800 MB. A class of its own for each cluster lets a cluster stay unmatched. No edge may weigh 0, so each
    weighs 1 more than its samples.
    """
    clusters = np.arange(len(table.sizes_C))
    weight = np.concatenate([table.count_P + 1.0, np.ones(len(clusters))])
    row = np.concatenate([table.cluster_P, clusters])
    column = np.concatenate([table.class_P, len(table.sizes_K) + clusters])
    edges = coo_array((weight, (row, column)), shape=(len(clusters), len(table.sizes_K) + len(clusters))).tocsr()
    chosen = min_weight_full_bipartite_matching(edges, maximize=True)
    return round(float(edges[chosen].sum())) - len(clusters)


def _purity(table: _Contingency) -> float:
    if not table.total:
        return float("nan")
    largest_C = np.zeros(len(table.sizes_C), dtype=np.int64)
    np.maximum.at(largest_C, table.cluster_P, table.count_P)
    return int(largest_C.sum()) / table.total


def _pairs(sizes: np.ndarray) -> int:
    """Pairs of samples within the groups; below 2^63 for a billion samples."""
    sizes = sizes.astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())


def _entropy(sizes: np.ndarray) -> float:
    shares = sizes[sizes > 0] / sizes.sum()
    return float(-(shares * np.log(shares)).sum())


def _to_numpy(values: Labels) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
