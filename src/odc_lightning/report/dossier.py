"""A dossier: one table or figure of the paper, its published numbers and which runs belong to which cell."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from odc_lightning.checks import check_choice

DOSSIER, PUBLISHED = "dossier.yaml", "published.csv"
PLOTS = ("dots", "line", "curve")
SOURCES = ("paper", "release", "axis-only")
COLUMNS = ("row", "column", "value", "unit", "source", "where", "note")
KEYS = {"title", "question", "plot", "unit", "digits", "metric", "rows", "columns", "full", "small", "curve"}
OF_A_CURVE = {"metric", "label", "until"}


@dataclass(frozen=True)
class Published:
    """A line of published.csv; ``axis-only`` lines have no value: the paper draws a curve and prints no number."""

    row: str
    column: str
    value: float | None
    unit: str
    source: str
    where: str
    note: str


@dataclass(frozen=True)
class Dossier:
    """What ``dossier.yaml`` says; experiments/README.md explains its keys.

    Attributes:
        name: of its folder.
        title, question: for people.
        plot: ``dots`` (a panel for each column), ``line`` (columns are numbers), ``curve`` (a metric over the epochs).
        unit, digits: of the values.
        rows, columns: heading to filter; None for a system that is not in this project.
        every: filter that holds in every cell.
        full, small: filters of a run at full size, and of any other.
        curve: of ``plot: curve``: metric, label, and the epoch up to which it is drawn.
        published: the lines of published.csv.
    """

    name: str
    title: str
    question: str
    plot: str
    unit: str
    digits: int
    rows: dict[str, dict[str, Any] | None]
    columns: dict[str, dict[str, Any]]
    every: dict[str, Any]
    full: dict[str, Any]
    small: dict[str, Any]
    curve: dict[str, Any] = field(default_factory=dict)
    published: tuple[Published, ...] = ()

    def wanted(self, row: str, column: str, size: str) -> dict[str, Any] | None:
        """The filter of a cell, ``metric`` among its keys; None where the project has no such system.

        Later ones win: dossier, column, row, then what column and row say of this size, and the dossier's own.
        """
        own = self.rows[row]
        if own is None:
            return None
        parts: list[Mapping[str, Any]] = [self.every, getattr(self, size)]
        for part in (self.columns[column], own):
            parts += [{key: value for key, value in part.items() if key not in ("full", "small")}, part.get(size) or {}]
        return {key: value for part in parts for key, value in part.items()}


def load_dossiers(folder: str | Path) -> list[Dossier]:
    """Every ``<folder>/<name>/dossier.yaml``, by name.

    Raises:
        ValueError: there is none, or one cannot be understood.
    """
    files = sorted(Path(folder).expanduser().glob(f"*/{DOSSIER}"))
    if not files:
        raise ValueError(f"report.experiments must be a folder of dossiers (<name>/{DOSSIER}). Received: {folder}")
    return [load_dossier(file.parent) for file in files]


def load_dossier(folder: Path) -> Dossier:
    """One dossier.

    Raises:
        ValueError: a key is unknown or missing, or a published number stands in no cell.
    """
    content = yaml.safe_load((folder / DOSSIER).read_text())
    _check(folder.name, content)
    every = {"metric": content["metric"]} if "metric" in content else {}
    dossier = Dossier(
        name=folder.name,
        title=content["title"],
        question=content.get("question", ""),
        plot=content.get("plot", "dots"),
        unit=content.get("unit", ""),
        digits=content.get("digits", 1),
        rows=_headings(content["rows"]),
        columns={name: part or {} for name, part in _headings(content["columns"]).items()},
        every=every,
        full=content["full"] or {},
        small=content.get("small") or {},
        curve=content.get("curve") or {},
        published=tuple(read_published(folder / PUBLISHED)),
    )
    _check_cells(dossier)
    return dossier


def read_published(path: Path) -> list[Published]:
    """The lines of a published.csv; none where there is no such file.

    Raises:
        ValueError: a source is unknown, or a line has no number though it is not ``axis-only``.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}. Received: {lines.fieldnames}")
        return [_published(path, line) for line in lines]


def _published(path: Path, line: dict[str, str]) -> Published:
    check_choice(f"source in {path}", line["source"], SOURCES)
    value = float(line["value"]) if line["value"] else None
    if (value is None) != (line["source"] == "axis-only") or (value is not None and not math.isfinite(value)):
        raise ValueError(f"a line of {path} must have a number, or be axis-only. Received: {line}")
    return Published(**{**line, "value": value})  # type: ignore[arg-type]


def _headings(part: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in part.items()}


def _check(name: str, content: Any) -> None:
    if not isinstance(content, dict) or not content.keys() >= {"title", "rows", "columns", "full"}:
        raise ValueError(f"experiments/{name}/{DOSSIER} must have title, rows, columns and full")
    for key in content:
        check_choice(f"a key of experiments/{name}/{DOSSIER}", key, sorted(KEYS))
    check_choice(f"plot in experiments/{name}/{DOSSIER}", content.get("plot", "dots"), PLOTS)
    for key in content.get("curve") or {}:
        check_choice(f"a key of curve in experiments/{name}/{DOSSIER}", key, sorted(OF_A_CURVE))


def _check_cells(dossier: Dossier) -> None:
    place = f"experiments/{dossier.name}/{DOSSIER}"
    for row in dossier.rows:
        for column in dossier.columns:
            wanted = dossier.wanted(row, column, "full")
            if wanted is not None and "metric" not in wanted:
                raise ValueError(f"{place} names no metric for {row}, {column}")
    for line in dossier.published:
        if line.source != "axis-only" and (line.row not in dossier.rows or line.column not in dossier.columns):
            raise ValueError(f"{dossier.name}/{PUBLISHED} has a number for {line.row}, {line.column}; {place} has not")
    if dossier.plot == "line" and not all(_is_number(column) for column in dossier.columns):
        raise ValueError(f"{place}: the columns of plot: line must be numbers. Received: {', '.join(dossier.columns)}")
    if dossier.plot == "curve" and "metric" not in dossier.curve:
        raise ValueError(f"{place}: plot: curve needs curve.metric")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
