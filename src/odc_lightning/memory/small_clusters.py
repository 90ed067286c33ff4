"""Small clusters: dissolve them, then refill each by splitting the largest cluster (paper, Sec. 3.2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from odc_lightning.memory.centroids import CentroidsMemory
from odc_lightning.memory.journal import DISSOLVED, SPLIT, Event
from odc_lightning.memory.samples import SamplesMemory
from odc_lightning.memory.split import two_way_split

SIDES = ("random", "second")


class SmallClusters:
    """Empties every small cluster into its nearest normal ones and fills it again from the largest.

    Args:
        largest_small: a cluster of this many members or fewer is small.
        smallest_half: members that each part of a split gets at least. With ``largest_small + 1`` no cluster is
            small after one call; the authors' release asks for 1 only and may find its halves small again.
        side: which part of a split becomes the new cluster: ``random`` (paper) or the ``second`` (release).
        metric: rule of nearness for the members of a dissolved cluster.
        generator: CPU generator of the random sides.

    Attributes:
        events: of the latest call, see :class:`odc_lightning.memory.journal.Journal`.
    """

    def __init__(
        self, *, largest_small: int, smallest_half: int, side: str, metric: str, generator: torch.Generator
    ) -> None:
        self.largest_small, self.smallest_half = largest_small, smallest_half
        self.side, self.metric, self.generator = side, metric, generator
        self.events: list[Event] = []

    def among(self, sizes_C: Tensor) -> Tensor:
        """Which clusters are small, (C,) bool."""
        return sizes_C <= self.largest_small

    def handle(self, samples: SamplesMemory, centroids: CentroidsMemory) -> list[int]:
        """Dissolve and refill all small clusters; returns their numbers, ascending."""
        small_C = self.among(centroids.sizes_C)
        small = small_C.nonzero().flatten().tolist()
        self.events = []
        if small:
            sizes = centroids.sizes_C[small_C].tolist()
            self.events = [(DISSOLVED, cluster, -1, size) for cluster, size in zip(small, sizes, strict=True)]
            self._dissolve(small_C, samples, centroids)
            for cluster in small:
                self._refill(cluster, samples, centroids)
        return small

    def _dissolve(self, small_C: Tensor, samples: SamplesMemory, centroids: CentroidsMemory) -> None:
        """Assign the members of all small clusters to the nearest normal centroids, as stale as these are."""
        index_M = samples.members_of(small_C)
        own = samples.ranks.owned(index_M)
        rows = samples.owned_rows(index_M[own])
        labels_M = torch.zeros_like(index_M)
        labels_M[own] = centroids.nearest(rows, self.metric, allowed_C=~small_C)
        self._move(index_M, samples.ranks.sum(labels_M), samples, centroids)

    def _refill(self, cluster: int, samples: SamplesMemory, centroids: CentroidsMemory) -> None:
        """Give an emptied cluster one side of the largest, or its share of several where the largest is too small."""
        sizes = centroids.sizes_C.cpu().numpy()
        largest = int(sizes.argmax())
        if sizes[largest] >= 2 * self.smallest_half:
            index_M = self._half(samples.members(largest), samples)
            donors = {largest: len(index_M)}
        else:
            index_M, donors = self._borders(sizes, samples)
        self.events += [(SPLIT, cluster, donor, members) for donor, members in donors.items()]
        self._move(index_M, torch.full_like(index_M, cluster), samples, centroids)
        centroids.refresh_few([*donors, cluster])

    def _half(self, index_M: Tensor, samples: SamplesMemory) -> Tensor:
        """The side of a 2-means split that becomes the new cluster; rank 0 decides."""
        second_M = two_way_split(samples.gathered_rows(index_M), self.smallest_half).to(torch.uint8)
        second_M = samples.ranks.broadcast(second_M).bool()
        takes_first = self.side == "random" and bool(torch.randint(2, (1,), generator=self.generator))
        return index_M[~second_M if takes_first else second_M]

    def _borders(self, sizes: np.ndarray, samples: SamplesMemory) -> tuple[Tensor, dict[int, int]]:
        """Border members of the largest clusters, as many as each can spare, until a new cluster is not small.

        Needed when the threshold is close to N / C, where no cluster can be split into two that are large enough.
        """
        taken, donors, missing = [], {}, self.smallest_half
        for donor in np.argsort(-sizes, kind="stable").tolist():
            spare = min(int(sizes[donor]) - self.smallest_half, missing)
            index_M = samples.members(donor)
            rows_MD = samples.gathered_rows(index_M).double()
            outermost = (rows_MD - rows_MD.mean(0)).square().sum(1).argsort(descending=True, stable=True)[:spare]
            taken.append(index_M[samples.ranks.broadcast(outermost)])
            donors[donor] = spare
            missing -= spare
            if missing == 0:
                break
        return torch.cat(taken), donors

    def _move(self, index_M: Tensor, labels_M: Tensor, samples: SamplesMemory, centroids: CentroidsMemory) -> None:
        old_labels_M, own = samples.labels(index_M), samples.ranks.owned(index_M)
        rows = samples.owned_rows(index_M[own])
        centroids.move_rows(rows, old_labels_M[own], rows, labels_M[own])
        centroids.move_members(old_labels_M, labels_M)
        samples.relabel(index_M, labels_M)
