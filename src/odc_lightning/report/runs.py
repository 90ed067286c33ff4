"""Finds the finished runs and evaluations below a folder, and says of every other folder why it does not count."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

CONFIG, RESULTS, METRICS = "config.yaml", "results.json", "metrics.csv"
TRAIN, EVALUATE = "train", "evaluate"
# What lies in a run folder and is none: W&B writes config.yaml files of its own.
NOT_RUNS = {"wandb", "checkpoints", "clusters", "export", "features"}
OURS = {"task", "run", "data", "backbone", "seed"}
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Hash = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not in a figure, and why."""

    folder: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training or evaluation.

    Attributes:
        folder: where it lies.
        config: its config.yaml.
        results: its results.json.
        trained: of an evaluation, the training whose network was measured; None for weights of another origin.
    """

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    trained: Run | None = None

    @property
    def task(self) -> str:
        """``train`` or ``evaluate``."""
        return self.results["task"]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The final figures, without those that are not finite."""
        return {name: value for name, value in self.results["metrics"].items() if math.isfinite(value)}

    @property
    def training(self) -> dict[str, Any]:
        """Configuration of the training: its own, or that of the network it measured, or its own for want of one."""
        return self.trained.config if self.trained else self.config

    @property
    def seed(self) -> int:
        """Of the training; of the evaluation where nothing was trained."""
        return self.training["seed"]


@dataclass
class Found:
    """What lies below a folder."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


class _NotARun(Exception):
    """Carries the reason."""


def find_runs(root: str | Path, hashes: Mapping[str, Hash] | None = None) -> Found:
    """Read every run folder below ``root``, in the order of their names.

    Args:
        root: of the runs.
        hashes: by task, the function that makes a ``config_hash`` of a configuration. With it, results of an earlier
            configuration of the folder (a run that was started again with more epochs) are told from its own.

    Raises:
        ValueError: ``root`` is not a folder.
    """
    root, hashes = Path(root).expanduser(), hashes or {}
    if not root.is_dir():
        raise ValueError(f"report.runs must be an existing folder. Received: {root}")
    found, trainings = Found(), {}
    # A training comes before the evaluations in it, for its path is shorter.
    for folder in sorted(_folders(root)):
        try:
            run = _read(folder, hashes)
            if run.task == TRAIN:
                trainings[folder] = run
            else:
                run = _with_training(run, trainings)
        except _NotARun as reason:
            found.left_out.append(LeftOut(folder, str(reason)))
            continue
        found.runs.append(run)
        found.left_out += [
            LeftOut(folder, f"{name} is not a finite number")
            for name in run.results["metrics"]
            if name not in run.metrics
        ]
    return found


def _folders(root: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(root):
        if CONFIG in files or RESULTS in files:
            yield Path(path)
            folders[:] = [name for name in folders if name not in NOT_RUNS]
        folders[:] = [name for name in folders if not name.startswith(".")]


def _read(folder: Path, hashes: Mapping[str, Hash]) -> Run:
    if not (folder / CONFIG).is_file():
        raise _NotARun(f"foreign: {RESULTS} without {CONFIG}")
    config = _parsed(folder / CONFIG, lambda text: yaml.load(text, YAML_LOADER))
    if not config.keys() >= OURS or not all(isinstance(config[key], dict) for key in ("task", "data", "backbone")):
        raise _NotARun(f"foreign: {CONFIG} is not one of a run of this program")
    if not (folder / RESULTS).is_file():
        raise _NotARun(f"unfinished: no {RESULTS} yet")
    results = _parsed(folder / RESULTS, json.loads)
    _require_ours(results)
    if results["status"] != "finished":
        raise _NotARun(f"unfinished: its status is {results['status']!r}")
    hash_of = hashes.get(results["task"])
    if hash_of and hash_of(config) != results.get("config_hash"):
        raise _NotARun(
            f"unfinished: {RESULTS} is of other settings than {CONFIG}: it was started again, or made by another "
            f"version of this program"
        )
    if (original := _moved_aside_from(folder)) is not None:
        raise _NotARun(f"moved aside: {original.name} was started over (resume=never)")
    return Run(folder, config, results)


def _parsed(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        raise _NotARun(f"damaged: {path.name} cannot be read") from None
    if not isinstance(content, dict):
        raise _NotARun(f"foreign: {path.name} is not one of a run of this program")
    return content


def _require_ours(results: dict[str, Any]) -> None:
    metrics = results.get("metrics")
    numbers = isinstance(metrics, dict) and all(type(value) in (int, float) for value in metrics.values())
    if not {"task", "status"} <= results.keys() or not numbers:
        raise _NotARun(f"foreign: {RESULTS} is not one of a run of this program")
    if results["task"] not in (TRAIN, EVALUATE):
        raise _NotARun(f"results of task={results['task']}, which the report does not draw")


def _moved_aside_from(folder: Path) -> Path | None:
    """The run that was started over when this one was called ``<name>.1``."""
    name, dot, number = folder.name.rpartition(".")
    original = folder.with_name(name) if dot and number.isdigit() else None
    return original if original is not None and (original / CONFIG).is_file() else None


def _with_training(run: Run, trainings: Mapping[Path, Run]) -> Run:
    """Join an evaluation to the training in whose folder it lies.

    ``<run>/evaluations/<protocol>``, or a folder below it for a job of a sweep.
    """
    weights = run.results.get("weights") or {}
    home = next((parent.parent for parent in run.folder.parents if parent.name == "evaluations"), None)
    if home is None or weights.get("file") is None or not (home / CONFIG).is_file():
        return run
    if home not in trainings:
        raise _NotARun(f"of a training that does not count: {home.name}")
    checkpoint = home / "checkpoints" / str(weights["file"])
    if checkpoint.is_file() and weights.get("sha256") not in (None, _sha256(checkpoint)):
        raise _NotARun(f"of other weights than {home.name} has now: measure it again")
    return Run(run.folder, run.config, run.results, trainings[home])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
