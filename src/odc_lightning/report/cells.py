"""Fills a dossier's cells: which runs belong there, their mean and spread over the seeds, and what does not count."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odc_lightning.report.dossier import Dossier, Published
from odc_lightning.report.facts import facts, matches, settings, summary
from odc_lightning.report.runs import TRAIN, LeftOut, Run

FULL, SMALL = "full", "small"
MISSING, NOT_BUILT = "missing", "not in this project"
MARKS = {FULL: "full size", SMALL: "in small"}


@dataclass(frozen=True)
class Figure:
    """Mean and spread of one metric over the seeds of one setting.

    Attributes:
        size: ``full`` or ``small``.
        metric: its name.
        values: one for each seed.
        runs: those that produced them.
        about: their common settings in words.
    """

    size: str
    metric: str
    values: tuple[float, ...]
    runs: tuple[Run, ...]
    about: str

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Cell:
    """One place of a table: what was published and what runs gave, at full size first."""

    row: str
    column: str
    published: tuple[Published, ...]
    figures: tuple[Figure, ...]
    built: bool

    @property
    def marks(self) -> list[str]:
        """``full size`` and ``in small`` as far as they were run, else ``missing`` or ``not in this project``."""
        return [MARKS[figure.size] for figure in self.figures] or [MISSING if self.built else NOT_BUILT]


@dataclass
class Filled:
    """A dossier with its cells, row by row, and the runs that fit a cell but were not averaged in."""

    dossier: Dossier
    cells: list[Cell] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def cell(self, row: str, column: str) -> Cell:
        """By its headings."""
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))

    @property
    def used(self) -> set[Path]:
        """Folders of the runs behind the figures."""
        return {run.folder for cell in self.cells for figure in cell.figures for run in figure.runs}

    def count(self, mark: str) -> int:
        """Cells with this mark."""
        return sum(mark in cell.marks for cell in self.cells)


class Bench:
    """Runs with their facts, worked out once.

    Args:
        runs: finished ones.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        trainings = {run.folder.resolve(): run for run in runs if run.task == TRAIN}
        self.runs = list(runs)
        self.facts: dict[Path, dict[str, Any]] = {run.folder: facts(run, trainings) for run in runs}

    def fill(self, dossier: Dossier) -> Filled:
        """Find the runs of every cell."""
        filled = Filled(dossier)
        for row in dossier.rows:
            for column in dossier.columns:
                filled.cells.append(self._cell(dossier, row, column, filled.left_out))
        filled.left_out = list(dict.fromkeys(filled.left_out))
        return filled

    def unused(self, filled: Iterable[Filled]) -> list[LeftOut]:
        """Finished runs that no dossier asks for.

        A training counts as used where an evaluation of it is.
        """
        filled = list(filled)
        named = {folder for one in filled for folder in one.used} | {
            left.folder for one in filled for left in one.left_out
        }
        named |= {run.trained.folder for run in self.runs if run.folder in named and run.trained}
        return [
            LeftOut(run.folder, f"no dossier asks for it: {summary(run, self.facts[run.folder])}")
            for run in self.runs
            if run.folder not in named
        ]

    def _cell(self, dossier: Dossier, row: str, column: str, left_out: list[LeftOut]) -> Cell:
        published = tuple(one for one in dossier.published if (one.row, one.column) == (row, column))
        figures, taken = [], set[Path]()
        for size in (FULL, SMALL):
            wanted = dossier.wanted(row, column, size)
            if wanted is None:
                return Cell(row, column, published, (), built=False)
            metrics = wanted.pop("metric")
            metrics = metrics if isinstance(metrics, list) else [metrics]
            fitting = [run for run in self.runs if run.folder not in taken and self._fits(run, wanted, metrics)]
            taken |= {run.folder for run in fitting}
            if figure := self._figure(size, metrics, fitting, f"{dossier.name}, {row}", left_out):
                figures.append(figure)
        return Cell(row, column, published, tuple(figures), built=True)

    def _fits(self, run: Run, wanted: dict[str, Any], metrics: list[str]) -> bool:
        return run.metrics.keys() >= set(metrics) and matches(wanted, run, self.facts[run.folder])

    def _figure(
        self, size: str, metrics: list[str], runs: Sequence[Run], place: str, left_out: list[LeftOut]
    ) -> Figure | None:
        """The setting with most seeds, the longest of those; other settings are left out, never averaged in.

        Of several metrics, such as those of five layers, each run's best counts.
        """
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            groups[repr(sorted(self._settings(run).items()))].append(run)
        if not groups:
            return None
        chosen = max(groups.values(), key=self._rank)
        for group in groups.values():
            if group is not chosen:
                reason = f"{place}: other settings than those shown: {self._difference(group[0], chosen[0])}"
                left_out += [LeftOut(run.folder, reason) for run in group]
        by_seed: dict[int, Run] = {}
        for run in chosen:
            if (first := by_seed.setdefault(run.seed, run)) is not run:
                left_out.append(LeftOut(run.folder, f"{place}: same settings and seed as {first.folder.name}"))
        kept = tuple(by_seed[seed] for seed in sorted(by_seed))
        values = tuple(max(run.metrics[metric] for metric in metrics) for run in kept)
        metric = f"best of {', '.join(metrics)}" if len(metrics) > 1 else metrics[0]
        return Figure(size, metric, values, kept, summary(kept[0], self.facts[kept[0].folder]))

    def _rank(self, group: Sequence[Run]) -> tuple[int, int]:
        """More seeds first, then more epochs; among equals ``max`` keeps the first by name."""
        return len({run.seed for run in group}), self.facts[group[0].folder]["epochs"] or 0

    def _settings(self, run: Run) -> dict[str, Any]:
        return settings(run, self.facts[run.folder])

    def _difference(self, run: Run, shown: Run) -> str:
        here, there = self._settings(run), self._settings(shown)
        keys = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
        # What is set once and interpolated elsewhere is named once, by its shortest key.
        named = sorted(keys, key=lambda key: (key.count("."), key))[:3]
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        return "; ".join(f"{key} {here.get(key)} (shown: {there.get(key)})" for key in named) + more
