"""Where protocols get what they measure: features of a frozen network, extracted once, and true labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odc_lightning.checks import check_choice
from odc_lightning.console import say, size
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Transform
from odc_lightning.data.sources import UNKNOWN, ImageSource
from odc_lightning.evaluation.cache import CachedFeatures, require_space
from odc_lightning.evaluation.features import extract_layers, plain
from odc_lightning.evaluation.network import PIXELS, FrozenNetwork
from odc_lightning.evaluation.taps import GAP, Pools
from odc_lightning.evaluation.views import VIEWS, Stretch
from odc_lightning.memory import Ranks

Log = Callable[[Mapping[str, float], int], None]


class Bench:
    """A network to measure, the images to measure it on, and where results in between are kept.

    Args:
        network: frozen, on its device.
        data: training and validation images.
        folder: of this evaluation.
        cache_dir: of features.
        seed: of everything random.
        checkpoint: the file that the weights are from; None for random weights.
        variant: ``untrained`` or ``pixels`` for a network measured beside; empty for the one that is asked about.
        log: called with values and an epoch.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        data: DataModule,
        *,
        folder: Path,
        cache_dir: Path,
        seed: int = 0,
        checkpoint: Path | None = None,
        variant: str = "",
        log: Log = lambda values, epoch: None,
    ) -> None:
        self.network, self.data, self.folder, self.cache_dir = network, data, folder, cache_dir
        self.seed, self.checkpoint, self.variant, self.log = seed, checkpoint, variant, log
        self.ranks = Ranks.current()

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.network.device

    def file(self, stem: str, ending: str) -> Path:
        """A file of this network in the evaluation's folder."""
        return self.folder / f"{stem}{'_' * bool(self.variant)}{self.variant}{ending}"

    def source(self, split: str) -> ImageSource:
        """Images of a split, ``train`` or ``val``.

        Raises:
            ValueError: there are no validation images.
        """
        source = self.data.train_source if split == "train" else self.data.val_source
        if source is None:
            raise ValueError(
                f"this protocol needs validation images, and {self.data.train_source.name} has none: put them into "
                f"data.root/val beside data.root/train"
            )
        return source

    def targets(self, split: str) -> NDArray[np.int64]:
        """True classes (N,), -1 where unknown.

        Raises:
            ValueError: the images have no labels.
        """
        source = self.source(split)
        if source.targets is None or not (source.targets != UNKNOWN).any():
            raise ValueError(
                f"this protocol needs labels, and the {split} images of {source.name} have none. "
                f"In a folder of images, labels are folders: data.root/train/<class>, data.root/val/<class>"
            )
        return source.targets

    def num_classes(self, wanted: int | None = None) -> int:
        """Number of classes of the training images.

        Raises:
            ValueError: it is not the ``wanted`` one, or validation images have classes that training images do not.
        """
        train, val = self.targets("train"), self.targets("val")
        known = np.unique(train[train != UNKNOWN])
        if wanted is not None and len(known) != wanted:
            raise ValueError(
                f"protocol.num_classes={wanted}, but the training images of {self.source('train').name} have "
                f"{len(known)} classes"
            )
        if extra := sorted(set(np.unique(val[val != UNKNOWN])) - set(known)):
            names = self.source("val").classes or list(map(str, range(max(extra) + 1)))
            raise ValueError(
                f"{len(extra)} classes of the validation images have no training image: "
                f"{', '.join(names[each] for each in extra[:5])}{' ...' * (len(extra) > 5)}"
            )
        return int(known.max()) + 1

    def layers(self, layers: Sequence[str]) -> list[str]:
        """The layers that this network has of those asked for: raw pixels have one."""
        return [GAP] if self.network.backbone.name == PIXELS else list(layers)

    def label(self, layer: str) -> str:
        """What a layer is called in a metric's name."""
        return PIXELS if self.network.backbone.name == PIXELS else layer

    def pools(self, layers: Sequence[str], named: str = "auto") -> Pools:
        """Pools of the layers, for the size of the images; see :func:`odc_lightning.evaluation.taps.pools_for`."""
        return self.network.pools(layers, self.data.image_size, named)

    def view(self, name: str) -> Transform:
        """``crop``: the data's own central crop; ``stretch``: the whole image made square.

        Raises:
            ValueError: for another name.
        """
        check_choice("protocol.view", name, VIEWS)
        return Stretch(self.data.image_size) if name == "stretch" else self.data.eval_transform

    def features(self, split: str, pools: Pools, view: str = "crop") -> dict[str, Tensor]:
        """Features (N, \\*shape) of each layer, from the cache or from one pass for all layers that are not in it.

        They stay on disk and are read where they are looked at. Collective.

        Raises:
            ValueError: NaN or infinite features; names layer and image.
            OSError: not enough room on the disk.
        """
        entries = self._entries(split, pools, view)
        missing = self._missing(entries)
        if missing:
            needed = sum(entries[layer].bytes for layer in missing)
            require_space(self.cache_dir, needed)
            say(f"features of {len(self.source(split)):,} {split} images, {self._named(missing)}: {size(needed)}")
            wanted = {layer: (pools[layer], entries[layer]) for layer in missing}
            extract_layers(self.network, self.data, self.source(split), self.view(view), wanted)
        elif entries:
            say(f"features of the {split} images ({self._named(entries)}) are in the cache, {self.cache_dir}")
        return {layer: entry.features() for layer, entry in entries.items()}

    def known(self, split: str, pools: Pools, view: str = "crop") -> Tensor:
        """Rows of labelled images that could be read, (M,) int64 ascending; call after :meth:`features`."""
        readable = self.readable(split, pools, view)
        return (torch.from_numpy(self.targets(split) != UNKNOWN) & readable).nonzero().flatten()

    def readable(self, split: str, pools: Pools, view: str = "crop") -> Tensor:
        """Which images could be read, (N,) bool; call after :meth:`features`."""
        return next(iter(self._entries(split, pools, view).values())).readable()

    def _named(self, layers: Iterable[str]) -> str:
        return ", ".join(map(self.label, layers))

    def _entries(self, split: str, pools: Pools, view: str) -> dict[str, CachedFeatures]:
        source, transform = self.source(split), self.view(view)
        about: dict[str, Any] = {
            **self.network.about(),
            "images": [source.name, split, source.fingerprint()],
            "view": [type(transform).__name__, plain(vars(transform))],
        }
        shapes = self.network.shapes(pools, transform.size)
        return {
            layer: CachedFeatures(
                self.cache_dir, {**about, "layer": layer, "pool": str(pool)}, len(source), shapes[layer]
            )
            for layer, pool in pools.items()
        }

    def _missing(self, entries: Mapping[str, CachedFeatures]) -> list[str]:
        """Layers to extract: rank 0 looks, so that all ranks decide alike."""
        absent = torch.tensor([not entry.complete() for entry in entries.values()], device=self.device)
        return [layer for layer, gone in zip(entries, self.ranks.broadcast(absent.int()).tolist(), strict=True) if gone]
