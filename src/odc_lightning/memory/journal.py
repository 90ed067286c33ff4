"""What changed pseudo-labels in the running epoch: moved features, moved centroids, small clusters.

Shapes: B batch, D feature width, E events.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odc_lightning.clustering.nearest import is_nearer
from odc_lightning.memory.ranks import Ranks

DISSOLVED, SPLIT = 0, 1
NO_EPOCH = -1
Event = tuple[int, int, int, int]  # kind, cluster, donor (-1 for a dissolved cluster), members that moved


class Journal:
    """Counts by cause and the list of events, from the beginning of an epoch on.

    Why a label changes in an update from cluster a to cluster b is told by the image's feature as it was before the
    update, held against the centroids of now: nearer to b than to a, the **centroids** have moved enough to explain
    the change; else the **feature** had to move. That is O(B D), stays on the device and asks for no host. What
    small-cluster handling moves is the sum of its events' members; an image of a dissolved cluster may count twice.

    Attributes:
        epoch: the running one; -1 before training, when the start-up clustering's small clusters are handled.
        counts_3: (3,) int64 of this rank: changes by features, changes by centroids, images updated.
        events: (iteration, kind, cluster, donor, members): kind 0, a cluster was dissolved; kind 1, it got members
            of the donor. Iterations count batches from 1; 0 is the start-up clustering.
    """

    def __init__(self, metric: str, ranks: Ranks) -> None:
        self.metric, self.ranks = metric, ranks
        self.epoch = NO_EPOCH
        self.counts_3 = torch.zeros(3, dtype=torch.int64)
        self.events: list[tuple[int, int, int, int, int]] = []

    def to(self, device: torch.device) -> None:
        """Move the counts."""
        self.counts_3 = self.counts_3.to(device)

    def begin(self, epoch: int) -> None:
        """Forget what was before this epoch; nothing if it has begun already, also before a resume."""
        if epoch != self.epoch:
            self.epoch, self.events = epoch, []
            self.counts_3.zero_()

    def count(self, old_BD: Tensor, old_labels_B: Tensor, new_labels_B: Tensor, centroids_CD: Tensor) -> None:
        """Count a batch's changes by cause, from the rows before the update and the centroids that gave the labels."""
        changed_B = old_labels_B != new_labels_B
        looked_at = slice(None) if old_BD.is_cuda else changed_B.nonzero().flatten()  # to list them, a host would wait
        from_MD, to_MD = (
            centroids_CD.index_select(0, labels_B[looked_at]) for labels_B in (old_labels_B, new_labels_B)
        )
        by_centroids = (changed_B[looked_at] & is_nearer(old_BD[looked_at].float(), from_MD, to_MD, self.metric)).sum()
        self.counts_3[0] += changed_B.sum() - by_centroids
        self.counts_3[1] += by_centroids
        self.counts_3[2] += len(changed_B)

    def add(self, iteration: int, events: list[Event]) -> None:
        """Note the events of one handling of small clusters."""
        self.events += [(iteration, *event) for event in events]

    def state_dict(self) -> dict[str, Any]:
        """Epoch, counts of all ranks (3,) int64 and events (E, 5) int64, on the host. Collective."""
        events = torch.tensor(self.events, dtype=torch.int64).reshape(-1, 5)
        return {"epoch": self.epoch, "counts": self.ranks.sum(self.counts_3).cpu(), "events": events}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved journal on any number of ranks."""
        counts_3 = state["counts"] if self.ranks.rank == 0 else torch.zeros(3, dtype=torch.int64)
        self.epoch, self.counts_3 = state["epoch"], counts_3.to(self.counts_3.device, copy=True)
        self.events = [tuple(event) for event in state["events"].tolist()]
