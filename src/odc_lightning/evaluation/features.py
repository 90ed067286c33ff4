"""Features of many images in one pass, with the network in eval mode."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import Progress, track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from odc_lightning.console import clock, say, warn
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import EvalDataset, Transform, collate
from odc_lightning.data.sources import ImageSource
from odc_lightning.evaluation.cache import CachedFeatures
from odc_lightning.evaluation.network import FrozenNetwork
from odc_lightning.memory import Ranks

_MOST_IMAGES = 128  # of one pass: the maps of ResNet-50's five layers take 13 MiB an image
_SAY_EVERY = 30.0  # seconds between two lines of progress where there is no terminal


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
def extract(
    encode: Callable[[Tensor], Tensor],
    module: nn.Module,
    loader: DataLoader,
    title: str,
    keep_on: torch.device | str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Encode every image of a loader, float32 (len(dataset), D), in the loader's order.

    Args:
        encode: uint8 images (B, C, H, W) to features (B, D).
        module: what runs in eval mode meanwhile and tells the device.
        loader: yields batches with ``image``.
        title: of the progress bar; rank 0 of a terminal shows it.
        keep_on: where the rows are gathered; default: the module's device.
        out: (len(dataset), D), of any type, to gather them in instead.
    """
    device, start = next(module.parameters()).device, 0
    with eval_mode(module):
        for batch in progress(loader, title):
            rows = encode(batch.image.to(device, non_blocking=True))
            if out is None:  # in one piece from the beginning: parts that are joined at the end take twice the memory
                out = torch.empty(len(loader.dataset), rows.shape[1], device=keep_on or device)  # type: ignore[arg-type]
            out[start : start + len(rows)] = rows
            start += len(rows)
    return torch.empty(0, 0) if out is None else out


def progress(batches: Sequence | DataLoader, title: str) -> Iterable:
    """A bar with the time left, on rank 0 of a terminal."""
    shown = Ranks.current().rank == 0 and sys.stdout.isatty()
    return track(batches, description=title, transient=True, disable=not shown, total=len(batches))


@contextmanager
def step_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left, on rank 0: call it with the number of steps done since.

    In a terminal a live bar; elsewhere a line every half a minute, so that a log shows life.
    """
    if Ranks.current().rank != 0:
        yield lambda steps: None
        return
    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task, began, said, done = bar.add_task(title, total=total), time.monotonic(), time.monotonic(), 0

        def advance(steps: int) -> None:
            nonlocal said, done
            bar.advance(task, steps)
            done += steps
            now = time.monotonic()
            if bar.disable and now - said > _SAY_EVERY and done:
                said = now
                say(f"{title}: {done:,} of {total:,}, {clock((now - began) / done * (total - done))} left")

        yield advance


def extract_layers(
    network: FrozenNetwork,
    data: DataModule,
    source: ImageSource,
    view: Transform,
    layers: Mapping[str, tuple[nn.Module, CachedFeatures]],
) -> None:
    """Write the features of several layers in one pass. Collective.

    Rank r takes images r, r + W, r + 2 W, ...; rank 0 writes, so that no row is there twice.

    Args:
        network: frozen.
        data: how images are loaded.
        source: N images.
        view: of each image.
        layers: to the layer's pool and the place for its rows.

    Raises:
        ValueError: NaN or infinite features; names layer and image.
    """
    ranks, pools = Ranks.current(), {layer: pool for layer, (pool, _) in layers.items()}
    places = {layer: place for layer, (_, place) in layers.items()} if ranks.rank == 0 else {}
    for place in places.values():
        place.begin()
    loader, start, bad = eval_loader(data, source, view, padded_share(len(source), ranks)), 0, 0
    with step_bar(f"features of {source.split} images", len(source)) as advance:
        for batch in loader:
            features = network(batch.image.to(network.device, non_blocking=True), pools)
            ok = _in_order(batch.ok.to(network.device), ranks)
            for layer, feature in features.items():
                rows = _in_order(feature, ranks)
                _require_finite(layer, rows, start, source)
                if layer in places:
                    places[layer].write(start, rows, ok)
            start, bad = start + len(ok), bad + int((~ok[: len(source) - start]).sum())
            advance(len(ok))
    for place in places.values():
        place.finish()
    ranks.sum(torch.zeros(1, device=network.device))  # nobody reads before rank 0 has written
    if bad:
        warn(f"{bad} of {len(source)} {source.split} images could not be read and are left out")


def padded_share(count: int, ranks: Ranks) -> list[int]:
    """Indices of this rank, as many on each rank: the last ones repeat an image, and land beyond the last row."""
    share = range(ranks.rank, -(-count // ranks.world_size) * ranks.world_size, ranks.world_size)
    return [min(index, count - 1) for index in share]


def eval_loader(data: DataModule, source: ImageSource, view: Transform, indices: Sequence[int]) -> DataLoader:
    """The view of the given images, in this order."""
    dataset = Subset(EvalDataset(source, view, data.on_bad_image), list(indices))
    workers = min(data.workers(), len(indices) // 64)  # a process more costs more than it loads
    return DataLoader(
        dataset, batch_size=_MOST_IMAGES, collate_fn=collate, num_workers=workers, pin_memory=torch.cuda.is_available()
    )


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that JSON can hold, the rest as text."""
    return {key: value if isinstance(value, str | int | float | None) else str(value) for key, value in values.items()}


def _in_order(local: Tensor, ranks: Ranks) -> Tensor:
    """Rows of all ranks in the order of the images: rank r has every W-th."""
    if ranks.world_size == 1:
        return local
    return ranks.gather(local[None]).transpose(0, 1).flatten(0, 1)


def _require_finite(layer: str, rows: Tensor, start: int, source: ImageSource) -> None:
    finite = rows.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        first = min(start + int((~finite).nonzero()[0]), len(source) - 1)
        raise ValueError(
            f"features of {layer} are NaN or infinite for {int((~finite).sum())} of {len(rows)} images, the first is "
            f"{source.path(first)}. The weights are damaged, or the precision is too low (evaluate.precision)"
        )
