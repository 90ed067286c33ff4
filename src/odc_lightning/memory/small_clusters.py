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
            self._refill(small, samples, centroids)
        return small

    def _dissolve(self, small_C: Tensor, samples: SamplesMemory, centroids: CentroidsMemory) -> None:
        """Assign the members of all small clusters to the nearest normal centroids, as stale as these are."""
        index_M = samples.members_of(small_C)
        own = samples.ranks.owned(index_M)
        rows = samples.owned_rows(index_M[own])
        labels_M = torch.zeros_like(index_M)
        labels_M[own] = centroids.nearest(rows, self.metric, allowed_C=~small_C)
        self._move(index_M, samples.ranks.sum(labels_M), samples, centroids)

    def _refill(self, empty: list[int], samples: SamplesMemory, centroids: CentroidsMemory) -> None:
        """Give each emptied cluster one side of the largest, or its share of several where the largest is too small.

        First all is decided, which reads rows only, then all that moved is moved at once.
        """
        members = _Members(samples, centroids.sizes_C, len(empty))
        donors: set[int] = set()
        for cluster in empty:
            largest = int(members.sizes_C.argmax())
            if members.sizes_C[largest] >= 2 * self.smallest_half:
                taken = {largest: self._half(members.of(largest), samples)}
            else:
                taken = self._borders(members, samples)
            for donor, taken_M in taken.items():
                self.events.append((SPLIT, cluster, donor, members.give(donor, cluster, taken_M)))
            donors.update(taken)
        index_M = torch.cat([members.of(cluster) for cluster in empty])  # whoever moved is in one of these now
        labels_M = torch.tensor(empty).repeat_interleave(torch.from_numpy(members.sizes_C[empty])).to(index_M)
        self._move(index_M, labels_M, samples, centroids)
        centroids.refresh_few(sorted(donors.union(empty)))

    def _half(self, index_M: Tensor, samples: SamplesMemory) -> Tensor:
        """Which members are on the side of a 2-means split that becomes the new cluster; rank 0 decides."""
        second_M = two_way_split(samples.gathered_rows(index_M), self.smallest_half).to(torch.uint8)
        second_M = samples.ranks.broadcast(second_M).bool()
        takes_first = self.side == "random" and bool(torch.randint(2, (1,), generator=self.generator))
        return ~second_M if takes_first else second_M

    def _borders(self, members: _Members, samples: SamplesMemory) -> dict[int, Tensor]:
        """Which members of the largest clusters leave: at their border, as many as each can spare, until it suffices.

        Needed when the threshold is close to N / C, where no cluster can be split into two that are large enough.
        """
        taken, missing = {}, self.smallest_half
        for donor in np.argsort(-members.sizes_C, kind="stable").tolist():
            spare = min(int(members.sizes_C[donor]) - self.smallest_half, missing)
            rows_MD = samples.gathered_rows(members.of(donor)).double()
            outermost = (rows_MD - rows_MD.mean(0)).square().sum(1).argsort(descending=True, stable=True)[:spare]
            taken[donor] = torch.zeros(len(rows_MD), dtype=torch.bool, device=rows_MD.device)
            taken[donor][samples.ranks.broadcast(outermost)] = True
            missing -= spare
            if missing == 0:
                break
        return taken

    def _move(self, index_M: Tensor, labels_M: Tensor, samples: SamplesMemory, centroids: CentroidsMemory) -> None:
        old_labels_M, own = samples.labels(index_M), samples.ranks.owned(index_M)
        rows = samples.owned_rows(index_M[own])
        centroids.move_rows(rows, old_labels_M[own], rows, labels_M[own])
        centroids.move_members(old_labels_M, labels_M)
        samples.relabel(index_M, labels_M)


class _Members:
    """Who would be in which cluster while it is decided who refills the empty ones.

    One pass over all labels finds the members of as many of the largest clusters as there are empty ones: each is
    refilled from what is the largest then, one of these or a part of one.

    Attributes:
        sizes_C: (C,) int64 on the host.
    """

    def __init__(self, samples: SamplesMemory, sizes_C: Tensor, count: int) -> None:
        self.samples, self.sizes_C = samples, sizes_C.cpu().numpy().copy()
        largest_C = torch.zeros_like(sizes_C, dtype=torch.bool)
        largest_C[sizes_C.argsort(descending=True, stable=True)[:count]] = True
        index_M = samples.members_of(largest_C)
        labels_M, order_M = samples.labels(index_M).sort(stable=True)
        clusters, sizes = (part.tolist() for part in labels_M.unique_consecutive(return_counts=True))
        self._index = dict(zip(clusters, index_M[order_M].split(sizes), strict=True))

    def of(self, cluster: int) -> Tensor:
        """Indices of the members, ascending."""
        if cluster not in self._index:
            self._index[cluster] = self.samples.members(cluster)
        return self._index[cluster]

    def give(self, donor: int, cluster: int, taken_M: Tensor) -> int:
        """Those members of ``donor`` that are True in ``taken_M`` go to ``cluster``. Returns how many."""
        index_M, before = self.of(donor), self.of(cluster) if self.sizes_C[cluster] else None
        given_G, self._index[donor] = index_M[taken_M], index_M[~taken_M]
        self._index[cluster] = given_G if before is None else torch.cat([before, given_G]).sort().values
        self.sizes_C[donor] -= len(given_G)
        self.sizes_C[cluster] += len(given_G)
        return len(given_G)
