"""Folder of an evaluation: as a run's, but what makes it another one is what is measured and how."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import yaml

from odc_lightning.tasks.run_folder import RunFolder, changes, listed

_OF_DATA = ("image_size", "channels", "mean", "std", "eval_transform", "on_bad_image")
_WEIGHTS = "weights."
_WORTH_KEEPING = ("results.json", "heads*.pt", "grid*.json")


class EvaluationFolder(RunFolder):
    """``<run>/evaluations/<protocol>``: config.yaml, metrics.csv, results.json and what the protocol writes."""

    def finished(self) -> dict[str, Any] | None:
        """The results of this very evaluation, if they are there: with baselines, or if none are asked for."""
        if not self.results.exists():
            return None
        results = json.loads(self.results.read_text())
        same = results.get("status") == "finished" and results.get("config_hash") == self.hash()
        return results if same and (results.get("baseline") or not self.config["baseline"]) else None

    def differences(self) -> list[str]:
        """Keys that were others in the evaluation that is here, with both values.

        One that has failed before it could keep anything does not count.
        """
        saved = self.path / "config.yaml"
        if not saved.exists() or not any(any(self.path.glob(pattern)) for pattern in _WORTH_KEEPING):
            return []
        return changes(identity(yaml.safe_load(saved.read_text())), identity(self.config))

    def outdated(self) -> bool:
        """Is the evaluation that is here one of other weights, and the same in all else?"""
        changed = self.differences()
        return bool(changed) and all(line.startswith(_WEIGHTS) for line in changed)

    def require_same_run(self) -> None:
        """Raise ValueError if the folder holds an evaluation of other settings, naming each."""
        if changed := self.differences():
            raise ValueError(
                f"{self.path} holds an evaluation with other settings:\n{listed(changed)}\n"
                f"Give this one a folder of its own (protocol.name=...), or start over in the same place (resume=never)"
            )

    def hash(self) -> str:
        return evaluation_hash(self.config)


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that makes it another evaluation when it changes."""
    part = {key: config.get(key) for key in ("seed", "protocol", "backbone", "weights", "images")}
    data = config.get("data", {})
    return {
        **part,
        "data": {key: data.get(key) for key in _OF_DATA},
        "evaluate": {"precision": config.get("evaluate", {}).get("precision")},
    }


def evaluation_hash(config: dict[str, Any]) -> str:
    """Short hash of the identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True, default=str).encode()).hexdigest()[:16]


def log_into(folder: Path) -> None:
    """Let this process's run.log lie in a folder that is known only now."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).name == "run.log":
            folder.mkdir(parents=True, exist_ok=True)
            handler.close()
            handler.baseFilename = str((folder / "run.log").absolute())
