"""Fills a dossier's cells: which runs belong there, their mean and spread over the seeds, and what does not count."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odc_lightning.report.dossier import Dossier, Published
from odc_lightning.report.facts import BY_PATH, facts, matches, settings, summary
from odc_lightning.report.runs import TRAIN, LeftOut, Run

FULL, SMALL = "full", "small"
MISSING, NOT_BUILT = "missing", "not in this project"
MARKS = {FULL: "full size", SMALL: "in small"}
Candidates = list[tuple[str, list[str], list[Run]]]  # size, metrics, runs


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
        """Find the runs of every cell. In small, all cells show runs on the same images, or rows would not compare."""
        filled, places = Filled(dossier), [(row, column) for row in dossier.rows for column in dossier.columns]
        fitting = {place: self._fitting(dossier, *place) for place in places}
        shown = self._images_in_small(fitting.values())
        for (row, column), candidates in fitting.items():
            published = tuple(one for one in dossier.published if (one.row, one.column) == (row, column))
            place, figures = f"{dossier.name}, {row}", []
            for size, metrics, runs in candidates or ():
                if size == SMALL:
                    runs = self._on_these_images(runs, shown, place, filled.left_out)
                if figure := self._figure(size, metrics, runs, place, filled.left_out):
                    figures.append(figure)
            filled.cells.append(Cell(row, column, published, tuple(figures), built=candidates is not None))
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

    def _fitting(self, dossier: Dossier, row: str, column: str) -> Candidates | None:
        """The runs that fit a cell, at full size and in small; None for a system that this project does not have."""
        found, taken = [], set[Path]()
        for size in (FULL, SMALL):
            wanted = dossier.wanted(row, column, size)
            if wanted is None:
                return None
            named = wanted.pop("metric")
            metrics = named if isinstance(named, list) else [named]
            runs = [run for run in self.runs if run.folder not in taken and self._fits(run, wanted, metrics)]
            taken |= {run.folder for run in runs}
            found.append((size, metrics, runs))
        return found

    def _images_in_small(self, fitting: Iterable[Candidates | None]) -> str | None:
        """The images on which most cells have a run in small, then most runs."""
        cells, runs_on = Counter[str](), Counter[str]()
        for candidates in fitting:
            in_small = [self._images(run) for size, _, runs in candidates or () if size == SMALL for run in runs]
            runs_on.update(in_small)
            cells.update(set(in_small))
        return max(sorted(cells), key=lambda images: (cells[images], runs_on[images]), default=None)

    def _on_these_images(self, runs: list[Run], shown: str | None, place: str, left_out: list[LeftOut]) -> list[Run]:
        for run in runs:
            if (images := self._images(run)) != shown:
                left_out.append(LeftOut(run.folder, f"{place}: on other images than those shown in small: {images}"))
        return [run for run in runs if self._images(run) == shown]

    def _images(self, run: Run) -> str:
        """Those measured on, or trained on where nothing was measured; a folder by its path."""
        known, data = self.facts[run.folder], run.config["data"]
        name = known["measured_on"] or known["trained_on"]
        root = data.get("root") or data["source"].get("root")
        return f"{name}{f' {root}' if name in BY_PATH else ''}, {data.get('image_size')} px"

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
