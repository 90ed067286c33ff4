"""What an evaluation is about: the file that ``init.path`` means, and the settings that go with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from odc_lightning.weights.read import find_checkpoint

# Keys of data that a command may change of a run's own images: how they are read, not what they are.
OF_READING = ("root", "store", "cache_dir", "download", "num_workers", "augment_on", "batch_size", "on_bad_image")


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        checkpoint: its file; None for random weights or weights by name.
        run: folder of the training that wrote it, if it is one of ours.
        saved: configuration of that training.
    """

    checkpoint: Path | None = None
    run: Path | None = None
    saved: dict[str, Any] | None = None

    @classmethod
    def of(cls, path: str | None) -> Subject:
        """Look at ``init.path``: a run folder (its last checkpoint), a file in one, or any checkpoint.

        Raises:
            ValueError, FileNotFoundError: there is no checkpoint.
        """
        if path is None:
            return cls()
        checkpoint = find_checkpoint(Path(path).expanduser())
        for folder in (checkpoint.parent.parent, checkpoint.parent):
            saved = folder / "config.yaml"
            if saved.is_file() and isinstance(config := yaml.safe_load(saved.read_text()), dict):
                return (
                    cls(checkpoint, folder, config) if {"backbone", "data", "run"} <= config.keys() else cls(checkpoint)
                )
        return cls(checkpoint)

    def home(self, config: dict[str, Any], overrides: Sequence[str]) -> Path:
        """The folder that evaluations of this network go below: its run's, else ``<run.root>/<name of the file>``."""
        root, name = Path(config["run"]["root"]), config["run"]["name"]
        if named("run.name", overrides):
            return root / name
        if self.run is not None:
            return self.run
        if self.checkpoint is not None:
            return root / self.checkpoint.stem
        pretrained = config.get("init", {}).get("pretrained")
        return root / (pretrained or f"random_{config['backbone']['_target_'].rpartition('.')[2]}")

    def group(self, home: Path) -> str:
        """W&B group: that of the training."""
        run = (self.saved or {}).get("run", {})
        return run.get("group") or run.get("name") or home.name

    def settings(self, config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
        """The configuration with a run's own backbone, and its own images unless the command names others.

        Images that the command names are normalised as the run's were.

        Raises:
            ValueError: the command changes what the run's images are without naming images.
        """
        if self.saved is None:
            return config
        config = {**config, "backbone": _backbone(self.saved["backbone"], config["backbone"], overrides)}
        if named("data", overrides) or named("experiment", overrides):
            if self.saved["data"]["channels"] == config["data"]["channels"]:
                kept = {key: self.saved["data"][key] for key in ("mean", "std") if not named(f"data.{key}", overrides)}
                config["data"] = {**config["data"], **kept}
            return config
        return {**config, "data": _images(self.saved["data"], config["data"], overrides)}


def named(key: str, overrides: Sequence[str]) -> bool:
    """Does the command line set this key or group?"""
    return any(override.lstrip("+~").split("=")[0] == key for override in overrides)


def _keys(group: str, overrides: Sequence[str]) -> list[str]:
    """Keys below a group that the command line sets."""
    names = [override.lstrip("+~").split("=")[0] for override in overrides]
    return [name.removeprefix(f"{group}.") for name in names if name.startswith(f"{group}.")]


def _backbone(saved: dict[str, Any], given: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    if named("backbone", overrides):
        return given
    return {**saved, **{key: given[key] for key in _keys("backbone", overrides) if key in given}}


def _images(saved: dict[str, Any], given: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    keys = [*_keys("data", overrides), *(["augment"] if named("augment", overrides) else [])]
    if wrong := [key for key in keys if key not in OF_READING]:
        raise ValueError(
            f"{wrong[0] if wrong[0] == 'augment' else 'data.' + wrong[0]} can be given together with data=... or "
            f"experiment=...; alone, the images are those that the run was trained on"
        )
    changed = {key: given[key] for key in keys}
    source = {key: changed.get(key, value) for key, value in saved["source"].items()}
    return {**saved, **changed, "source": source}
