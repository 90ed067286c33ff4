"""A filled dossier as CSV and Markdown, and how its numbers are written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from odc_lightning.report.cells import MARKS, Cell, Figure, Filled
from odc_lightning.report.dossier import Dossier, Published
from odc_lightning.report.runs import LeftOut

HEADER = (
    "dossier",
    "row",
    "column",
    "mark",
    "metric",
    "unit",
    "mean",
    "spread",
    "seeds",
    "values",
    "paper",
    "release",
    "settings",
    "runs",
)


def ours_in_words(figure: Figure, digits: int) -> str:
    """``78.1 ± 0.3 (3 seeds)``."""
    spread = "" if figure.spread is None else f" ± {figure.spread:.{digits}f}"
    seeds = len(figure.values)
    return f"{figure.mean:.{digits}f}{spread} ({seeds} seed{'s' * (seeds > 1)})"


def published_in_words(one: Published) -> str:
    """As it was printed: 78.2, 70.0, 57.70 as 57.7; empty where nothing was."""
    return "" if one.value is None else f"{one.value:.1f}" if round(one.value, 1) == one.value else f"{one.value:g}"


def as_csv(filled: Iterable[Filled], relative_to: Path) -> str:
    """A line for each cell and size; a cell without a run has no number of ours. Values in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for one in filled:
        for cell in one.cells:
            writer.writerows(_lines(one.dossier, cell, relative_to))
    return text.getvalue()


def _lines(dossier: Dossier, cell: Cell, relative_to: Path) -> Iterable[list[object]]:
    place = [dossier.name, cell.row, cell.column]
    published = [" ".join(published_in_words(p) for p in cell.published if p.source == s) for s in ("paper", "release")]
    for figure in cell.figures:
        spread = "" if figure.spread is None else repr(figure.spread)
        values = " ".join(map(repr, figure.values))
        numbers = [repr(figure.mean), spread, len(figure.values), values]
        runs = " ".join(name_of(run.folder, relative_to) for run in figure.runs)
        yield [*place, MARKS[figure.size], figure.metric, dossier.unit, *numbers, *published, figure.about, runs]
    if not cell.figures:
        yield [*place, cell.marks[0], "", dossier.unit, "", "", 0, "", *published, "", ""]


def as_markdown(filled: Filled) -> str:
    """Heading, question, picture, table, what stands behind the numbers."""
    dossier = filled.dossier
    lines = [f"## {dossier.title}", "", dossier.question.strip(), "", counts(filled), ""]
    lines += [f"![{dossier.title}]({dossier.name}/figure.png)", ""]
    lines += ["| | " + " | ".join(map(_escaped, dossier.columns)) + " |", "|---" * (len(dossier.columns) + 1) + "|"]
    for row in dossier.rows:
        cells = [_cell(filled.cell(row, column), dossier.digits) for column in dossier.columns]
        lines.append(f"| {_escaped(row)} | " + " | ".join(cells) + " |")
    if words := in_words(dossier):
        lines += ["", "The paper's figure, in words:", "", *(f"- {text}" for text in words)]
    if behind := runs_behind(filled):
        lines += ["", "Behind our numbers:", "", *(f"- {text}" for text in behind)]
    return "\n".join(lines) + "\n"


def counts(filled: Filled) -> str:
    """``Of 20 cells: 2 at full size, 5 in small, 12 missing, 1 not in this project.``"""
    words = {"full size": "at full size", "in small": "in small", "missing": "missing"}
    found = [f"{filled.count(mark)} {word}" for mark, word in words.items()]
    others = filled.count("not in this project")
    return f"Of {len(filled.cells)} cells: {', '.join(found)}" + (f", {others} not in this project." if others else ".")


def in_words(dossier: Dossier) -> list[str]:
    """What the paper says of a curve whose points it does not print."""
    lines = [one for one in dossier.published if one.source == "axis-only"]
    return [f"{': '.join(filter(None, (one.row, one.note)))} ({one.where})" for one in lines]


def runs_behind(filled: Filled) -> list[str]:
    """Row, size, metric and settings of every figure, each once."""
    found = [
        f"{cell.row}, {MARKS[figure.size]}: {figure.metric.partition('/')[0]}; {figure.about}"
        for cell in filled.cells
        for figure in cell.figures
    ]
    return list(dict.fromkeys(found))


def left_out_csv(left_out: Iterable[LeftOut], relative_to: Path) -> str:
    """Folder and reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["folder", "reason"])
    writer.writerows([name_of(one.folder, relative_to), one.reason] for one in left_out)
    return text.getvalue()


def left_out_markdown(left_out: list[LeftOut], relative_to: Path) -> str:
    """The same as a list."""
    lines = [f"- `{name_of(one.folder, relative_to)}`: {one.reason}" for one in left_out]
    return "\n".join(["## Left out", "", *(lines or ["Nothing."])]) + "\n"


def name_of(folder: Path, relative_to: Path) -> str:
    """Below the runs' root, as people know it."""
    return folder.relative_to(relative_to).as_posix() if folder.is_relative_to(relative_to) else folder.as_posix()


def _cell(cell: Cell, digits: int) -> str:
    parts = [f"{published_in_words(one)} ({one.source})" for one in cell.published if one.value is not None]
    ours = [f"**{ours_in_words(figure, digits)}**, {MARKS[figure.size]}" for figure in cell.figures]
    return "<br>".join([*parts, *(ours or [f"*{cell.marks[0]}*"])])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
