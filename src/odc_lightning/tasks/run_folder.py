"""The run folder: stable per command, so that the same command finds its own work again."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from odc_lightning.nested import leaves
from odc_lightning.whole_file import write_whole

RESUME = ("auto", "must", "never")
STOPPED = "Stopped. The same command continues from the last checkpoint."
# What decides whether two commands mean the same run; the rest (devices, loggers, workers, folders) may change.
IDENTITY = ("seed", "init", "method", "backbone", "data", "augment", "clustering", "optim", "schedule")
MAY_CHANGE = {"method.log_every_n_steps"}
MAY_CHANGE |= {f"data.{key}" for key in ("root", "num_workers", "augment_on", "cache_dir", "download")}
STORE = "data.store"
TRAINER_IDENTITY = ("precision", "accumulate_grad_batches", "gradient_clip_val", "limit_train_batches")
LENGTH = ("max_epochs", "max_steps")
PACKAGES = (
    "odc-lightning",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "faiss-gpu",
    "faiss-cpu",
    "numpy",
)


class RunFolder:
    """Where a run keeps its config, metrics, checkpoints and results.

    Args:
        path: of the folder.
        config: the composed configuration as plain containers.
    """

    def __init__(self, path: str | Path, config: dict[str, Any]) -> None:
        self.path, self.config = Path(path), config
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.csv"
        self.results = self.path / "results.json"

    def finished(self) -> dict[str, Any] | None:
        """The results of this very configuration, if they are there."""
        if not self.results.exists():
            return None
        results = json.loads(self.results.read_text())
        same = results.get("status") == "finished" and results.get("config_hash") == config_hash(self.config)
        return results if same else None

    def require_same_run(self) -> None:
        """Raise ValueError if the folder holds a run of other settings, naming each.

        A start that failed before its first checkpoint left nothing to lose.
        """
        saved = self.path / "config.yaml"
        if not saved.exists() or not (self.results.exists() or any(self.checkpoints.glob("*.ckpt"))):
            return
        if changed := changes(identity(yaml.safe_load(saved.read_text())), identity(self.config)):
            raise ValueError(
                f"{self.path} holds a run with other settings:\n{listed(changed)}\n"
                f"Give this one a name of its own (run.name=...), or start over in the same place (resume=never)"
            )

    def set_aside(self) -> Path | None:
        """Move an earlier run to <name>.1, <name>.2, ...: starting over loses nothing."""
        if not (self.path / "config.yaml").exists():
            return None
        number = next(n for n in range(1, 10_000) if not self.path.with_name(f"{self.path.name}.{n}").exists())
        aside = self.path.with_name(f"{self.path.name}.{number}")
        log = self.path / "run.log"
        self.path.rename(aside)
        self.path.mkdir()
        if (aside / log.name).exists():
            (aside / log.name).rename(log)  # the log handler of this process holds it open
        return aside

    def write_config(self) -> None:
        """Write config.yaml, what the run was really made with."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))

    def hash(self) -> str:
        """Of what decides whether the results are those of this configuration."""
        return config_hash(self.config)

    def write_results(
        self, task: str, metrics: dict[str, float], device: str, seconds: float, **about: Any
    ) -> dict[str, Any]:
        """Write results.json, the last thing a run does."""
        results = {
            "task": task,
            "status": "finished",
            "metrics": metrics,
            **about,
            "config_hash": self.hash(),
            "versions": versions(),
            "device": device,
            "seconds": round(seconds, 1),
        }
        write_whole(self.results, json.dumps(results, indent=2) + "\n")
        return results


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that makes it another run when it changes."""
    part = {key: config.get(key) for key in IDENTITY}
    part["trainer"] = {key: config.get("trainer", {}).get(key) for key in TRAINER_IDENTITY}
    return part


def config_hash(config: dict[str, Any]) -> str:
    """Short hash of the identity and the length of training: a longer run of the same identity is not finished yet."""
    length = {key: config.get("trainer", {}).get(key) for key in LENGTH}
    whole = {**_deciding(identity(config)), **{f"length.{key}": value for key, value in length.items()}}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:16]


def changes(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Keys whose values differ, a line each with both values."""
    old, new = _deciding(there), _deciding(here)
    return [
        f"{key}: {old.get(key, '(not set)')} there, {new.get(key, '(not set)')} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def listed(lines: list[str], most: int = 12) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(f"  {line}" for line in [*lines[:most], *more])


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted key to value, without what may change.

    Where a prepared store lies may change, not whether one is used; its images are in the data's fingerprint.
    """
    found = {
        key: value
        for key, value in leaves(config)
        # Paths also appear where they are interpolated into a group's parts.
        if key not in MAY_CHANGE and not key.endswith((".root", ".cache_dir", ".download"))
    }
    if found.pop(STORE, None) is not None:
        found[STORE] = "used"
    return found
