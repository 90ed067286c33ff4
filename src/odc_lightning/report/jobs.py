"""What a run folder, or the folder of a sweep, holds at this moment, finished or not."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from odc_lightning.report.curves import METRICS, Points, read_columns
from odc_lightning.report.runs import CONFIG, EVALUATE, RESULTS, TRAIN, YAML_LOADER

LISTED, FAILED_JOBS = "jobs.txt", "failed_jobs.txt"  # in a sweep's folder, a line for each job
FINISHED, RUNNING, STOPPED, WAITING, BROKEN = "finished", "running", "stopped", "waiting", "failed"
QUIET = 600  # seconds without a logged value after which a run counts as stopped


@dataclass(frozen=True)
class Job:
    """A training, as far as it is.

    Attributes:
        name: of its folder.
        folder: where it lies, or would.
        state: finished, running, stopped, failed or waiting.
        detail: the message of one that failed.
        config: its config.yaml; empty while it waits.
        epochs: how many are done.
        results: final figures by name, those of evaluations in its folder too; the newest logged ones until then.
        columns: every logged metric as (steps, values).
    """

    name: str
    folder: Path
    state: str
    detail: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 0
    results: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, Points] = field(default_factory=dict)

    @property
    def max_epochs(self) -> int | None:
        """How many epochs there will be."""
        return (self.config.get("trainer") or {}).get("max_epochs")

    @property
    def settings(self) -> dict[str, str]:
        """What tells the jobs of a sweep apart: the ``key=value`` of the folder's name."""
        parts = [part.partition("=") for part in re.split(r",(?=[^,=]+=)", self.name)]
        return {key: value for key, _, value in parts} if all(key and mark for key, mark, _ in parts) else {}


def is_run(folder: Path) -> bool:
    """Does a folder hold one training, not a sweep of them?"""
    return (folder / CONFIG).is_file()


def read_jobs(folder: str | Path, now: float | None = None) -> list[Job]:
    """The run in a folder, or each run in the folders right below it, 5 before 10; then those that wait.

    Args:
        folder: of a run, of a sweep, or of runs to compare.
        now: seconds since 1970, to tell a running job from a stopped one.

    Raises:
        ValueError: there is no run.
    """
    folder, now = Path(folder).expanduser(), time.time() if now is None else now
    if is_run(folder):
        return [_read(folder, "", now)]
    failed = dict(line.split(": ", 1) for line in _lines(folder / FAILED_JOBS) if ": " in line)
    there = [path.parent for path in folder.glob(f"*/{CONFIG}")]
    listed = [folder / name for name in [*_lines(folder / LISTED), *failed] if not (folder / name / CONFIG).exists()]
    jobs = [_read(path, failed.get(path.name, ""), now) for path in sorted({*there, *listed}, key=_natural)]
    jobs = [job for job in jobs if not job.config or job.config.get("task", {}).get("name", TRAIN) != EVALUATE]
    if not jobs:
        raise ValueError(f"dashboard.runs must be the folder of a run, of a sweep, or of runs. Received: {folder}")
    return jobs


def _read(folder: Path, failure: str, now: float) -> Job:
    if not is_run(folder):
        return Job(folder.name, folder, BROKEN if failure else WAITING, failure)
    config = yaml.load((folder / CONFIG).read_text(), YAML_LOADER) or {}
    columns = read_columns(folder / METRICS) if (folder / METRICS).exists() else {}
    results = _results(folder / RESULTS)
    logged = {name: values[-1] for name, (_, values) in columns.items()}
    figures: dict[str, float] = {**logged, **results.get("metrics", {})}
    for file in sorted(folder.glob(f"evaluations/*/{RESULTS}")):
        figures |= _results(file).get("metrics", {})
    state = BROKEN if failure else _state(folder, bool(results), now)
    epochs = config.get("trainer", {}).get("max_epochs", 0) if results else _epochs(folder / METRICS)
    return Job(folder.name, folder, state, failure, config, epochs, figures, columns)


def _state(folder: Path, finished: bool, now: float) -> str:
    if finished:
        return FINISHED
    touched = [path.stat().st_mtime for path in (folder / METRICS, folder / CONFIG) if path.exists()]
    return RUNNING if now - max(touched) < QUIET else STOPPED


def _epochs(metrics: Path) -> int:
    """Epochs that are done, by the last line of metrics.csv: the one it is in is not."""
    lines = _lines(metrics)
    last = lines[-1].split(",")[0] if len(lines) > 1 else ""
    return int(last) if last.isdigit() else 0


def _results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) and results.get("status") == "finished" else {}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _natural(path: Path) -> list[tuple[int, float | str]]:
    parts = re.split(r"(\d+(?:\.\d+)?)", path.name)
    return [(0, float(part)) if part[:1].isdigit() else (1, part) for part in parts]
