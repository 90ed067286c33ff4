"""Figures of the clusters of a run: which images to show of each, labels, purity, entropy, what happened to them.

Shapes: N images, C clusters that have members, S images shown of each at most, K classes, R records of the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from odc_lightning.report.history import History, flow

_RECORDS, _PARTNERS = 120, 6  # most that are kept of each, for a cluster


@dataclass(frozen=True)
class Clustering:
    """What there is to show.

    Attributes:
        name: title of the page.
        paths: names of the images, (N,).
        labels_N: cluster of each image, int.
        distances_N: to the centroid, float; NaN where unknown.
        targets_N: true labels, -1 where unknown; None without labels.
        classes: the labels' names; None: their numbers.
        history: of the run, if it kept one.
    """

    name: str
    paths: Sequence[str]
    labels_N: NDArray[Any]
    distances_N: NDArray[Any]
    targets_N: NDArray[Any] | None = None
    classes: Sequence[str] | None = None
    history: History | None = None

    @property
    def labelled(self) -> bool:
        """Is any true label known?"""
        return self.targets_N is not None and bool((self.targets_N >= 0).any())

    def class_names(self) -> list[str]:
        """Names of the classes, (K,)."""
        if not self.labelled or self.targets_N is None:
            return []
        return list(self.classes or map(str, range(int(self.targets_N.max()) + 1)))


@dataclass(frozen=True)
class Shown:
    """Clusters in the order of their size, and which of their images are shown.

    Attributes:
        clusters_C: numbers of the clusters, largest first.
        row_of: row of each cluster number; -1 for a cluster without members.
        order_N: images by cluster, then by distance; ``start_C`` and ``sizes_C``: where each row's images lie in it.
        images_CS: image shown in each slot, -1 for none: the nearest to the centroid, then those at the border.
        near_C: how many of them are of the nearest.
    """

    clusters_C: NDArray[np.int64]
    row_of: NDArray[np.int64]
    order_N: NDArray[np.int64]
    start_C: NDArray[np.int64]
    sizes_C: NDArray[np.int64]
    images_CS: NDArray[np.int64]
    near_C: NDArray[np.int64]

    @classmethod
    def of(cls, data: Clustering, images_per_cluster: int) -> Shown:
        """Sort the clusters and choose their images; equal sizes by number, equal distances by index."""
        order_N = np.lexsort((data.distances_N, data.labels_N)).astype(np.int64)
        sizes = np.bincount(data.labels_N)
        starts = np.cumsum(sizes) - sizes
        clusters_C = np.argsort(-sizes, kind="stable")
        clusters_C = clusters_C[: int((sizes > 0).sum())]
        row_of = np.full(len(sizes), -1)
        row_of[clusters_C] = np.arange(len(clusters_C))
        images_CS = np.full((len(clusters_C), images_per_cluster), -1)
        near_C = np.minimum(sizes[clusters_C], -(-images_per_cluster // 2))
        for row, (cluster, near) in enumerate(zip(clusters_C, near_C, strict=True)):
            members = order_N[starts[cluster] : starts[cluster] + sizes[cluster]]
            border = members[max(near, len(members) - (images_per_cluster - near)) :]
            images_CS[row, : near + len(border)] = [*members[:near], *border]
        return cls(clusters_C, row_of, order_N, starts[clusters_C], sizes[clusters_C], images_CS, near_C)


def label_counts(data: Clustering, shown: Shown) -> csr_array:
    """How many images of each label each cluster has, (C, K) sparse int64; images without a label are left out."""
    classes = max(len(data.class_names()), 1)
    if not data.labelled or data.targets_N is None:
        return csr_array((len(shown.clusters_C), classes), dtype=np.int64)
    known = data.targets_N >= 0
    places = (shown.row_of[data.labels_N[known]], data.targets_N[known])
    ones = np.ones(int(known.sum()), dtype=np.int64)
    table = coo_array((ones, places), shape=(len(shown.clusters_C), classes)).tocsr()
    table.sum_duplicates()
    return table


def purity_and_entropy(counts_CK: csr_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of the most frequent label and entropy of the labels in bits, each (C,); NaN without a known label."""
    total_C = counts_CK.sum(axis=1).astype(np.float64)
    total_C[total_C == 0] = np.nan
    purity_C = counts_CK.max(axis=1).toarray() / total_C
    shares = counts_CK.astype(np.float64)
    row = np.repeat(np.arange(len(total_C)), np.diff(shares.indptr))
    share = shares.data / total_C[row]
    entropy_C = np.bincount(row, -share * np.log2(share), minlength=len(total_C)) + 0.0
    return purity_C, np.where(np.isnan(total_C), np.nan, entropy_C)


def top_labels(counts: csr_array, row: int, most: int) -> list[list[int]]:
    """[label, images] of a row's most frequent labels, at most so many."""
    part = slice(counts.indptr[row], counts.indptr[row + 1])
    labels, images = counts.indices[part], counts.data[part]
    return [[int(labels[at]), int(images[at])] for at in np.argsort(-images, kind="stable")[:most]]


@dataclass(frozen=True)
class Past:
    """What the history says of each shown cluster.

    Attributes:
        epochs: of the records that the lines show, evenly spaced, at most 120.
        sizes_RC: members of each cluster at these records.
        switches_RC: share of its members that were not in it one record before.
        ages_C: epochs since a cluster was last filled anew; None where numbers mean nothing over time.
        events_C: the latest events of each cluster, (E, 6) as of :meth:`History.events`.
        causes: label switches over the images at these records, whole and by cause: :meth:`History.switches`.
        left, came: images by cluster number that went from row to column in the last epoch, and the transpose.
    """

    epochs: list[int]
    sizes_RC: NDArray[Any]
    switches_RC: NDArray[Any]
    ages_C: NDArray[Any] | None
    events_C: list[NDArray[np.int64]]
    causes: dict[str, NDArray[np.float64]]
    left: csr_array | None = None
    came: csr_array | None = None

    @classmethod
    def of(cls, history: History | None, shown: Shown) -> Past:
        """Read it once for all clusters."""
        clusters = shown.clusters_C
        if history is None or not history.epochs:
            nothing = np.empty((0, len(clusters)))
            return cls([], nothing, nothing, None, [np.empty((0, 6), dtype=np.int64)] * len(clusters), {})
        sizes_RC = history.sizes()
        # A run that goes on may have written more than the checkpoint that is shown.
        count = max(len(shown.row_of), sizes_RC.shape[1])
        kept = np.unique(np.linspace(0, len(sizes_RC) - 1, _RECORDS).round().astype(int))
        tables = [_widened(table, count)[kept][:, clusters] for table in (sizes_RC, history.cluster_switches())]
        ages_C, left = None, None
        if not history.renumbered:
            ages_C = _widened(history.ages()[None], count)[0, clusters]
            labels = [history.labels(epoch) for epoch in history.epochs[-2:]]
            left = flow(labels[0], labels[-1], count)
        events = latest_events(history.events(), clusters)
        came = None if left is None else left.T.tocsr()
        causes = {cause: ratios[kept] for cause, ratios in history.switches().items()}
        epochs = [history.epochs[at] for at in kept]
        return cls(epochs, tables[0], tables[1], ages_C, events, causes, left, came)

    def partners(self, cluster: int) -> list[list[int]]:
        """[cluster, images it got, images it gave] of those with whom a cluster exchanged most in the last epoch."""
        if self.left is None or self.came is None:
            return []
        both: dict[int, list[int]] = {}
        for side, table in enumerate((self.left, self.came)):
            part = slice(table.indptr[cluster], table.indptr[cluster + 1])
            for other, images in zip(table.indices[part].tolist(), table.data[part].tolist(), strict=True):
                both.setdefault(other, [0, 0])[side] += images
        both.pop(cluster, None)
        ranked = sorted(both.items(), key=lambda item: (-sum(item[1]), item[0]))[:_PARTNERS]
        return [[other, *images] for other, images in ranked]


def latest_events(events: NDArray[np.int64], clusters: NDArray[np.int64], most: int = 12) -> list[NDArray[np.int64]]:
    """The last events of each of the clusters, the ones they gave members in too, oldest first: (E, 6) arrays."""
    given = events[events[:, 4] >= 0]
    owner = np.concatenate([events[:, 3], given[:, 4]])
    both = np.concatenate([events, given])
    order = np.lexsort((np.concatenate([np.arange(len(events)), np.flatnonzero(events[:, 4] >= 0)]), owner))
    ends = np.searchsorted(owner[order], clusters, side="right")
    starts = np.maximum(np.searchsorted(owner[order], clusters, side="left"), ends - most)
    return [both[order[start:end]] for start, end in zip(starts, ends, strict=True)]


def _widened(table: NDArray[Any], columns: int) -> NDArray[Any]:
    return np.pad(table, ((0, 0), (0, columns - table.shape[1])))
