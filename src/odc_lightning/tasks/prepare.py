"""task=prepare: a store of small JPEG files with random access, from any images in files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from odc_lightning.checks import check_number
from odc_lightning.console import clock, is_rank_zero, quiet, say, size, steps_bar, warn
from odc_lightning.data.datamodule import DataModule, cores
from odc_lightning.data.prepare_store import (
    Made,
    Shard,
    alone,
    begin,
    finish,
    forecast,
    make,
    require_room,
    shards,
)
from odc_lightning.data.sources import ImageSource
from odc_lightning.data.store import About
from odc_lightning.tasks.evaluation_folder import log_into

SHOWN = 5  # unreadable images in the terminal; all are in unreadable.txt


def prepare(cfg: DictConfig) -> Path | None:
    """Make or complete the store ``data.store`` of the training and validation images; returns its folder.

    Subsets draw from it too: it holds all images, whatever ``subset`` is.

    Raises:
        ValueError: for settings that cannot work, or a folder that holds another store, before any work starts.
        BadImageError: an image cannot be read, with ``data.on_bad_image=error``.
    """
    if not is_rank_zero():
        return None
    quiet()
    require_settings(cfg)
    store = Path(cfg.data.store).expanduser().absolute()
    workers = processes(cfg.prepare.num_workers)
    keys: dict[str, Any] = OmegaConf.to_container(cfg.data, resolve=True)  # type: ignore[assignment]
    data: DataModule = instantiate({**keys, "store": None, "subset": None})
    sources = [source for source in (data.train_source, data.val_source) if source is not None]
    require_files(sources[0])
    abouts = [About.of(source, cfg.prepare.short_side, cfg.prepare.quality) for source in sources]
    abouts = [begin(store / about.split, about) for about in abouts]
    log_into(store)
    with alone(store):
        parts = [
            shards(store / about.split, source, about, data.on_bad_image == "skip", cfg.prepare.verify)
            for source, about in zip(sources, abouts, strict=True)
        ]
        tell_forecast([shard for part in parts for shard in part], store, workers)
        for source, part in zip(sources, parts, strict=True):
            prepare_split(source, part, workers)
    say(f"{store} is complete, {size(used(store))}. Train from it with data.store={cfg.data.store}")
    return store


def prepare_split(source: ImageSource, parts: list[Shard], workers: int) -> None:
    """Make the archives of a split and their index, and tell what came of it."""
    began, there = time.monotonic(), sum(part.file.exists() for part in parts)
    with steps_bar(f"{source.split} images", len(source), "images") as advance:
        made = make(parts, workers, advance)
    unreadable = finish(parts[0].file.parent, made, source.path)
    archives = f"{len(parts)} archive{'s' * (len(parts) > 1)}"
    say(f"{source.split}: {len(source):,} images in {archives} ({there} were there), {took(began)}")
    tell_faults(made, unreadable, parts)


def tell_faults(made: list[Made], unreadable: dict[int, str], parts: list[Shard]) -> None:
    """Damaged archives that were made anew, and images that are left out."""
    for part, one in zip(parts, made, strict=True):
        if one.again:
            warn(f"{part.file} was damaged and has been made anew")
    for reason in list(unreadable.values())[:SHOWN]:
        warn(reason)
    if unreadable:
        listed = parts[0].file.with_name("unreadable.txt")
        warn(f"{len(unreadable)} images could not be read, see {listed}: train with data.on_bad_image=skip")


def tell_forecast(parts: list[Shard], store: Path, workers: int) -> None:
    """Room and time that the missing images will take; ValueError if the disk is too small."""
    expected = forecast(parts)
    require_room(store, expected)
    if expected.images:
        each = expected.seconds / max(1, workers)
        say(
            f"{expected.images:,} images to store: about {size(expected.bytes_)} and {clock(each)} on "
            f"{max(1, workers)} process{'es' * (workers > 1)}"
        )


def require_settings(cfg: DictConfig) -> None:
    """Raise ValueError for a key that is missing or out of range."""
    if "store" not in cfg.data:
        raise ValueError("task=prepare is for images in files, such as data=imagenet or data=folder")
    if cfg.data.store is None:
        raise ValueError("data.store must name the folder to make: data.store=/path/to/store. Received: None")
    for key, least, most in (("short_side", 16, 4096), ("quality", 1, 100)):
        check_number(f"prepare.{key}", value := cfg.prepare[key], least, most)
        if not isinstance(value, int):
            raise ValueError(f"prepare.{key} must be a whole number from {least} to {most}. Received: {value!r}")
    if not isinstance(cfg.prepare.verify, bool):
        raise ValueError(f"prepare.verify must be true or false. Received: {cfg.prepare.verify!r}")


def require_files(source: ImageSource) -> None:
    """Raise ValueError unless each image is a file of its own."""
    if not os.path.isabs(source.path(0)):
        raise ValueError(f"task=prepare is for images in files. Received: data={source.name}, in memory anyway")


def processes(num_workers: int | str) -> int:
    """``auto`` resolved; ValueError for what is no number of processes."""
    if num_workers == "auto":
        return cores()
    if type(num_workers) is not int or num_workers < 0:
        raise ValueError(f"prepare.num_workers must be auto or a whole number from 0. Received: {num_workers!r}")
    return num_workers


def used(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def took(began: float) -> str:
    """Time since, in words."""
    return clock(time.monotonic() - began)
