"""Which images make which batch, as a function of (seed, epoch, position) alone: a run can be taken up anywhere.

Positions are counted in global batches, hence do not depend on the number of ranks or workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

Key = tuple[int, int]  # (epoch, index): the data set derives the augmentation from both


class GlobalBatches:
    """Keys of this rank's part of each global batch.

    Every epoch is a fresh permutation; a global batch never repeats or pads an index, the tail of N mod B is left to
    the next epochs. ``replacement=True`` draws with replacement instead, as the authors' release does (63.2 % of the
    images are seen per epoch). A rank takes a contiguous block, so the gathered batch is in the global order.

    Args:
        num_samples: N, images in the data set.
        batch_size: B, over all ranks.
        seed: of the permutations.
        rank, world_size: which part is ours.
        replacement: draw with replacement.
        order: of an epoch, (N,) indices, by its number; None for the permutation. Called when the epoch begins.

    Raises:
        ValueError: if B exceeds N or is not divisible by the number of ranks.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        replacement: bool = False,
        order: Callable[[int], np.ndarray | None] | None = None,
    ) -> None:
        local_batch_size(batch_size, world_size)
        if not 1 <= batch_size <= num_samples:
            raise ValueError(
                f"data.batch_size must be between 1 and the number of images, {num_samples}. Received: {batch_size}"
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size, self.replacement = rank, world_size, replacement
        self._given_order = order
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        return self.num_samples // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """Indices of an epoch in the order of training, (N,) int64."""
        if self._given_order is not None and (given := self._given_order(epoch)) is not None:
            return given
        rng = np.random.default_rng([self.seed, epoch])
        if self.replacement:
            return rng.integers(self.num_samples, size=self.num_samples)
        return rng.permutation(self.num_samples)

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world_size
        order, epoch = self.order(self.epoch), self.epoch
        for position in range(self.position, len(self)):
            start = position * self.batch_size + self.rank * share
            yield [(epoch, int(index)) for index in order[start : start + share]]


class TrainLoader:
    """A DataLoader over :class:`GlobalBatches` that can begin anywhere.

    Where it stands follows from the number of batches that were trained on, so nothing of it needs saving. It is no
    DataLoader itself, so that Lightning leaves the sampler alone: ranks are already taken care of.

    Args:
        dataset: takes (epoch, index) keys.
        batches: of this rank.
        limit: batches of an epoch that are used (the trainer's ``limit_train_batches``).
        done: batches that were trained on before.
        options: keyword arguments of the DataLoader.
    """

    def __init__(
        self, dataset: Dataset, batches: GlobalBatches, *, limit: int | None = None, done: int = 0, **options: Any
    ) -> None:
        self.batches = batches
        self.length = len(batches) if limit is None else min(limit, len(batches))
        self.loader = DataLoader(dataset, batch_sampler=batches, **options)
        self.epoch, self.position = divmod(done, self.length)

    def __len__(self) -> int:
        return self.length

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands. Lightning asks for it, else it warns that a mid-epoch resume is not exact."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load: ``done`` has placed the loader already, also where Lightning would not call this."""

    def __iter__(self) -> Iterator[Any]:
        if self.position >= self.length:
            self.epoch, self.position = self.epoch + 1, 0
        self.batches.epoch, self.batches.position = self.epoch, self.position
        for batch in self.loader:
            self.position += 1
            yield batch
            if self.position >= self.length:
                return


def local_batch_size(batch_size: int, parts: int) -> int:
    """Images a device takes at once: the global batch over ``parts`` = devices x gradient accumulation.

    Raises:
        ValueError: if that leaves a remainder, with the nearest sizes that do not.
    """
    if batch_size % parts:
        below = batch_size // parts * parts
        nearest = [str(size) for size in (below, below + parts) if size]
        raise ValueError(
            f"data.batch_size is the batch over all devices and must be divisible by devices x accumulation = {parts}. "
            f"Received: {batch_size}; nearest: {' or '.join(nearest)}"
        )
    return batch_size // parts
