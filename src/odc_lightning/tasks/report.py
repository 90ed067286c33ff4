"""task=report: the paper's tables and figures from run folders, beside the published numbers."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from odc_lightning.console import is_rank_zero, say
from odc_lightning.report.build import Report, build_report
from odc_lightning.report.cells import MISSING
from odc_lightning.report.runs import EVALUATE, TRAIN
from odc_lightning.tasks.evaluation_folder import evaluation_hash
from odc_lightning.tasks.run_folder import config_hash

SHOWN = 12  # left-out folders in the terminal; all are on the page


def report(cfg: DictConfig) -> Path | None:
    """Draw every dossier from the runs below ``report.runs``; returns the page.

    Raises:
        ValueError: a folder is not there, or a dossier cannot be understood.
    """
    if not is_rank_zero():
        return None
    runs = Path(cfg.report.runs).expanduser()
    if not runs.is_dir():
        raise ValueError(f"report.runs must be an existing folder. Received: {cfg.report.runs}")
    experiments = Path(cfg.report.experiments).expanduser() if cfg.report.experiments else experiments_dir()
    out = Path(cfg.report.out).expanduser()
    made = build_report(runs, experiments, out, {TRAIN: config_hash, EVALUATE: evaluation_hash})
    tell(made, runs)
    return made.page


def experiments_dir() -> Path:
    """The packaged experiments/ of an installed wheel, else the repository's."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "experiments"
    return packaged if packaged.is_dir() else package.parents[1] / "experiments"


def tell(made: Report, runs: Path) -> None:
    """What was found, what each dossier has, what was left out."""
    say(f"{runs}: {made.runs} finished trainings and evaluations")
    for one in made.filled:
        full, small, missing = (one.count(mark) for mark in ("full size", "in small", MISSING))
        say(f"  {one.dossier.name}: {full} cells at full size, {small} in small, {missing} missing")
    if made.left_out:
        say(f"Left out, not averaged in ({len(made.left_out)}):")
    for left in made.left_out[:SHOWN]:
        say(f"  {left.folder}: {left.reason}")
    if len(made.left_out) > SHOWN:
        say(f"  and {len(made.left_out) - SHOWN} more, all in {made.page.with_name('left_out.csv')}")
    say(f"{made.page}: open it in a browser; the same as report.md and table.csv beside it")
