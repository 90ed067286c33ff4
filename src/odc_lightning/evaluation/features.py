"""Features of many images in one pass, with the network in eval mode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from odc_lightning.memory import Ranks


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, every submodule's own mode restored after: batch-norm statistics and dropout stay untouched."""
    training = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in training:
            submodule.training = mode


@torch.no_grad()
def extract(encode: Callable[[Tensor], Tensor], module: nn.Module, loader: DataLoader, title: str) -> Tensor:
    """Encode every image of a loader, float32 (len(dataset), D) on the module's device, in the loader's order.

    Args:
        encode: uint8 images (B, C, H, W) to features (B, D).
        module: what runs in eval mode meanwhile and tells the device.
        loader: yields batches with ``image``.
        title: of the progress bar; rank 0 of a terminal shows it.
    """
    device = next(module.parameters()).device
    with eval_mode(module):
        parts = [encode(batch.image.to(device, non_blocking=True)).float() for batch in progress(loader, title)]
    return torch.cat(parts)


def progress(batches: Sequence | DataLoader, title: str) -> Iterable:
    """A bar with the time left, on rank 0 of a terminal."""
    shown = Ranks.current().rank == 0 and sys.stdout.isatty()
    return track(batches, description=title, transient=True, disable=not shown, total=len(batches))
