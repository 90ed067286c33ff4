"""What every evaluation protocol has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from odc_lightning.evaluation.bench import Bench

BASELINES = ("untrained", "pixels")


class Protocol(ABC):
    """A way to measure a frozen network.

    Attributes:
        name: of the evaluation's folder.
        recipe: which variant of the protocol, for results.json; None where there is one.
        baselines: what it can measure beside: ``untrained`` (random weights), ``pixels`` (the images themselves).
    """

    name: str
    recipe: str | None = None
    baselines: tuple[str, ...] = BASELINES

    def check(self, bench: Bench) -> None:  # noqa: B027
        """Raise ValueError if it cannot work on this data; called before any work starts."""

    @abstractmethod
    def run(self, bench: Bench) -> dict[str, float]:
        """Measure; returns metrics by name, in percent unless the name says otherwise. Collective.

        On other ranks than 0 the result may be empty.
        """


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with steps of the learning rate, epochs counted from 0.

    Raises:
        ValueError: for a value outside its range.
    """

    epochs: int
    lr: float
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    batch_size: int = field(default=256)

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"protocol.{key} must be at least 1. Received: {getattr(self, key)}")
        for key in ("lr", "gamma"):
            if not 0 < getattr(self, key) < np.inf:
                raise ValueError(f"protocol.{key} must be above 0. Received: {getattr(self, key)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"protocol.momentum must be in [0, 1). Received: {self.momentum}")
        if self.weight_decay < 0:
            raise ValueError(f"protocol.weight_decay must be at least 0. Received: {self.weight_decay}")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"protocol.milestones must rise. Received: {list(self.milestones)}")

    def factor(self, epoch: int) -> float:
        """What the learning rate is multiplied with in an epoch."""
        return self.gamma ** bisect_right(list(self.milestones), epoch)
