"""Reads ``clusters/history.npz``: labels at any epoch, sizes over time, who exchanges members, why labels changed.

Shapes: N samples, C clusters, R records (one before training where a run starts with a clustering, one an epoch).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

HISTORY, FORMAT = Path("clusters/history.npz"), "v1"
PARTS = ("about", "changed", "labels", "sizes", "events", "switched", "renumbered")
ABOUT = ("epoch", "iteration", "by_features", "by_centroids", "images")
NOT_COUNTED = -1
EVENTS = ("iteration", "kind", "cluster", "donor", "members")
_DISSOLVED, _SPLIT = 0, 1
Labels = NDArray[np.int32]


class History:
    """The history of a run. Nothing but the table of contents is read before it is asked for.

    Args:
        path: of history.npz, or the run folder.

    Attributes:
        epochs: epochs done at each record, ascending, (R,); 0 is the start-up clustering.

    Raises:
        FileNotFoundError: there is no history.
        ValueError: the file is not of this format.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path / HISTORY if path.is_dir() else path
        if not self.path.exists():
            raise FileNotFoundError(f"there is no history at {self.path}; callbacks.history writes one while training")
        self._file = np.load(self.path, allow_pickle=False)
        names = [name.split("/") for name in self._file.files]
        if any(len(name) != 3 or name[0] != FORMAT for name in names):
            raise ValueError(f"{self.path} is not a history of format {FORMAT}")
        self.epochs = sorted({int(epoch) for _, epoch, _ in names})

    def about(self, epoch: int) -> dict[str, int]:
        """Numbers of a record by the names of ``ABOUT``; counts are -1 where the method keeps none."""
        return dict(zip(ABOUT, self._part(epoch, "about").tolist(), strict=True))

    @property
    def renumbered(self) -> bool:
        """Does each clustering number its clusters anew, so that a number means nothing over time?"""
        return bool(self.epochs) and bool(self._part(self.epochs[-1], "renumbered"))

    def labels(self, epoch: int) -> Labels:
        """Label bank after so many epochs, (N,) int32. ValueError for an epoch without a record."""
        self._require(epoch)
        return next(labels_N for at, labels_N, _ in self._replay() if at == epoch)

    def sizes(self) -> NDArray[np.int64]:
        """Members of each cluster at each record, (R, C)."""
        rows = [self._part(epoch, "sizes") for epoch in self.epochs]
        table = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
        for line, sizes in zip(table, rows, strict=True):
            line[: len(sizes)] = sizes
        return table

    def last_change(self) -> NDArray[np.int32]:
        """Epoch after which each image has its present label, (N,): that of the first record for those that stayed."""
        last_N = np.zeros(0, dtype=np.int32)
        for epoch, _, changed_N in self._replay():
            last_N = np.where(changed_N, epoch, last_N if len(last_N) else epoch).astype(np.int32)
        return last_N

    def flow(self, before: int, after: int) -> csr_array:
        """Images that were in cluster i after one epoch and are in j after another: (C, C) sparse int64, i != j too."""
        one_N, other_N = self.labels(before), self.labels(after)
        return flow(one_N, other_N, int(max(one_N.max(), other_N.max())) + 1)

    def events(self) -> NDArray[np.int64]:
        """Dissolved and split clusters, (E, 6): epoch of the record, then the columns of ``EVENTS``.

        Kind 0: the cluster was dissolved, its members went to their nearest normal clusters (donor -1). Kind 1: it
        was filled again by members of the donor.
        """
        parts = [self._part(epoch, "events").astype(np.int64) for epoch in self.epochs]
        return np.concatenate(
            [np.column_stack([np.full(len(part), epoch), part]) for epoch, part in zip(self.epochs, parts, strict=True)]
            or [np.empty((0, 6), dtype=np.int64)]
        )

    def switches(self) -> dict[str, NDArray[np.float64]]:
        """Label-switch ratio of each record and its parts by cause, each (R,); NaN where it was not counted.

        ``bank``: share of the labels that differ from the record before (after matching, if clusters are renumbered).
        ``features``, ``centroids``, ``small_clusters``: label changes during the epoch, an image's every change
        counted, over the images updated in it; see :class:`odc_lightning.memory.journal.Journal` for what tells the
        causes apart. Changes that undo each other are in the parts but not in the bank.
        """
        table = np.array([list(self.about(epoch).values()) for epoch in self.epochs], dtype=np.float64).reshape(-1, 5)
        moved = [self._part(epoch, "events")[:, 4].sum() for epoch in self.epochs]
        images = np.where(table[:, 4] > 0, table[:, 4], np.nan)
        counts = {"features": table[:, 2], "centroids": table[:, 3], "small_clusters": np.array(moved, float)}
        bank = [float(self._part(epoch, "switched")) for epoch in self.epochs]
        return {"bank": np.array(bank), **{name: count / images for name, count in counts.items()}}

    def cluster_switches(self) -> NDArray[np.float32]:
        """Share of each cluster's members that were not in it one record before, (R, C); NaN for the first record.

        Where clusters are renumbered, "in it" means: in the old cluster that most of the members come from.
        """
        sizes = self.sizes()
        table = np.full(sizes.shape, np.nan, dtype=np.float32)
        before_N = None
        for row, (_, labels_N, changed_N) in enumerate(self._replay()):
            if before_N is not None:
                stayed_C = self._stayed(before_N, labels_N, changed_N, sizes.shape[1])
                table[row] = 1 - stayed_C / np.maximum(sizes[row], 1)
            before_N = labels_N.copy()
        return table

    def ages(self) -> NDArray[np.int64]:
        """Epochs since each cluster was last filled anew, (C,): by a split, a clustering, or the start."""
        if self.renumbered:
            return np.zeros(self.sizes().shape[1], dtype=np.int64)
        born_C = np.full(self.sizes().shape[1], self.epochs[0])
        events = self.events()
        splits = events[events[:, 2] == _SPLIT]
        np.maximum.at(born_C, splits[:, 3], splits[:, 0])
        return self.epochs[-1] - born_C

    def _stayed(self, before_N: Labels, labels_N: Labels, changed_N: NDArray[np.bool_], clusters: int) -> NDArray:
        if not self.renumbered:
            return np.bincount(labels_N[~changed_N], minlength=clusters)
        return flow(before_N, labels_N, clusters).max(axis=0).toarray()

    def _replay(self) -> Iterator[tuple[int, Labels, NDArray[np.bool_]]]:
        """Epoch, labels and which of them changed, record by record; the labels are overwritten by the next."""
        labels_N: Labels | None = None
        for epoch in self.epochs:
            labels = self._part(epoch, "labels")
            bits = np.unpackbits(self._part(epoch, "changed"))
            count = int(self._part(epoch, "sizes").sum())
            changed_N = bits[:count].astype(bool)
            labels_N = np.empty(count, dtype=np.int32) if labels_N is None else labels_N
            labels_N[changed_N] = labels
            yield epoch, labels_N, changed_N

    def _part(self, epoch: int, part: str) -> NDArray:
        return self._file[f"{FORMAT}/{epoch:05d}/{part}"]

    def _require(self, epoch: int) -> None:
        if epoch not in self.epochs:
            known = f"{self.epochs[0]} to {self.epochs[-1]}" if self.epochs else "none"
            raise ValueError(f"the history has no record of epoch {epoch}. It has {known}")


def flow(before_N: Labels, after_N: Labels, clusters: int) -> csr_array:
    """How many images each pair of clusters shares, before and after: (C, C) sparse int64."""
    ones = np.ones(len(before_N), dtype=np.int64)
    table = coo_array((ones, (before_N, after_N)), shape=(clusters, clusters)).tocsr()
    table.sum_duplicates()
    return table
