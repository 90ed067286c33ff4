"""Learning-rate schedules that PyTorch has the pieces of. They are stepped once an epoch, as all schedules here."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, MultiStepLR


def warmup_step(
    optimizer: Optimizer,
    milestones: Sequence[int],
    gamma: float = 0.1,
    warmup_epochs: int = 5,
    warmup_factor: float = 0.1,
) -> ChainedScheduler:
    """The learning rate rises in a line for some epochs, and falls by a factor at each milestone.

    In warm-up epoch e = 0, 1, ... it is (warmup_factor + (1 - warmup_factor) e / warmup_epochs) of its full value.
    The release does the same with a finer step, every iteration.

    Args:
        optimizer: its learning rate is the full one.
        milestones: epochs, counted from the start of training, warm-up included.
        gamma: factor at each milestone.
        warmup_epochs: 0 for none.
        warmup_factor: share of the full learning rate in the first epoch, above 0.

    Raises:
        ValueError: for a value outside its range.
    """
    if warmup_epochs < 0:
        raise ValueError(f"schedule.warmup_epochs must be at least 0. Received: {warmup_epochs}")
    if not 0 < warmup_factor <= 1:
        raise ValueError(f"schedule.warmup_factor must be above 0 and at most 1. Received: {warmup_factor}")
    steps = MultiStepLR(optimizer, list(milestones), gamma)
    if not warmup_epochs:
        return ChainedScheduler([steps])
    return ChainedScheduler([LinearLR(optimizer, warmup_factor, total_iters=warmup_epochs), steps])
