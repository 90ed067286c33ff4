"""Means of what happened since the last log line, kept on the device until it is written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from odc_lightning.memory import Ranks


class Meters:
    """Sums and counts per name; saved in checkpoints, so that a resumed run logs what a straight one does."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Take one iteration's values in, without waiting for the device."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def flush(self, ranks: Ranks, device: torch.device) -> dict[str, float]:
        """Means over the iterations and ranks since the last flush. Collective."""
        sums = self._mean_sums(ranks, device)
        means = {name: value / self.counts[name] for name, value in sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self, ranks: Ranks, device: torch.device) -> dict[str, dict]:
        """Plain numbers, averaged over the ranks. Collective."""
        return {"sums": self._mean_sums(ranks, device), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Take saved sums over."""
        self.sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])

    def _mean_sums(self, ranks: Ranks, device: torch.device) -> dict[str, float]:
        names = sorted(self.sums)
        if not names:
            return {}
        sums = ranks.sum(torch.stack([self.sums[name].to(device) for name in names])) / ranks.world_size
        return dict(zip(names, sums.tolist(), strict=True))
