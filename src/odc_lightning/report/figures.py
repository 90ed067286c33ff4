"""Draws a dossier: published numbers hollow, ours filled, in small lighter and with another mark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odc_lightning.report.cells import FULL, Filled
from odc_lightning.report.cells import Figure as Ours
from odc_lightning.report.curves import METRICS, read_columns
from odc_lightning.report.runs import Run

# Inks of the page in daylight and at night: text, lines, ours, in small, published.
INKS = {
    "light": {"text": "#1c1c1e", "grid": "#d9d9de", "full": "#0b5fa5", "small": "#c2570c", "published": "#5d5d66"},
    "dark": {"text": "#ececf0", "grid": "#45454d", "full": "#6db3f2", "small": "#f0a35e", "published": "#a9a9b4"},
}
PANELS = 6  # side by side at most
MARKERS = {"full": "o", "small": "s"}
PUBLISHED = {"paper": ("D", "paper"), "release": ("^", "release")}
SERIES = ("#0b7ec4", "#d9730d", "#2e9e5b", "#a05cc9", "#c43c5a", "#8a7a1f", "#35a3a3", "#8c6d5a", "#e07ba0", "#7d7d85")
Curve = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def draw(filled: Filled, files: Sequence[Path], theme: str = "light") -> None:
    """Write the figure of a dossier to each file, in the format of its ending (PNG, SVG)."""
    # Figure without pyplot: no window system, no global state.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = INKS[theme]
    colours: dict[Any, Any] = {f"{part}.color": ink["text"] for part in ("xtick", "ytick")} | {
        "text.color": ink["text"]
    }
    colours |= {"axes.labelcolor": ink["text"], "axes.edgecolor": ink["grid"], "axes.titlecolor": ink["text"]}
    # A fixed salt and no date: the same runs give the same file.
    with rc_context({**colours, "font.size": 9, "legend.frameon": False, "svg.hashsalt": filled.dossier.name}):
        figure = Figure(layout="constrained")
        {"dots": _dots, "line": _line, "curve": _curves}[filled.dossier.plot](figure, filled, ink)
        for file in files:
            plain = {"Date": None} if file.suffix == ".svg" else {}
            figure.savefig(file, dpi=130, transparent=theme == "dark" or file.suffix == ".svg", metadata=plain)


def curve_over_seeds(runs: Sequence[Run], metric: str) -> Curve | None:
    """(epochs, mean, spread) of a logged metric, at the steps that every seed has logged; None where there are none.

    The spread is the sample standard deviation, zero for a single seed.
    """
    logged = []
    for run in runs:
        columns = read_columns(run.folder / METRICS)
        steps, values = columns.get(metric, ([], []))
        length = max((step for each, _ in columns.values() for step in each), default=0.0)
        scale = run.training["trainer"]["max_epochs"] / length if length else 0.0
        logged.append({step: (step * scale, value) for step, value in zip(steps, values, strict=True)})
    steps = sorted(set.intersection(*(set(one) for one in logged))) if logged else []
    if not steps:
        return None
    values_SK = np.array([[one[step][1] for step in steps] for one in logged])
    spread = values_SK.std(axis=0, ddof=1) if len(logged) > 1 else np.zeros(len(steps))
    return np.array([logged[0][step][0] for step in steps]), values_SK.mean(axis=0), spread


def _dots(figure: Any, filled: Filled, ink: dict[str, str]) -> None:
    """A panel for each column, a line for each row: read across."""
    rows, columns = list(filled.dossier.rows), list(filled.dossier.columns)
    lines = math.ceil(len(columns) / PANELS)
    wide = math.ceil(len(columns) / lines)
    figure.set_size_inches(2.2 + 1.9 * wide, 0.8 + lines * (0.6 + 0.24 * len(rows)))
    panels = list(figure.subplots(lines, wide, sharey=True, squeeze=False).flatten())
    for axis, column in zip(panels, columns, strict=False):
        for height, row in enumerate(rows):
            cell = filled.cell(row, column)
            for one in cell.published:
                if one.value is not None:
                    _hollow(axis, one.value, height, one.source, ink)
            for ours in cell.figures:
                _filled(axis, ours.mean, height, ours, ink)
        _panel(axis, column, rows, ink)
    for axis in panels[len(columns) :]:
        axis.set_visible(False)
    # A label of the whole figure would lie on the legend.
    panels[(lines - 1) * wide].set_xlabel(filled.dossier.unit)
    _legend(figure, panels)


def _panel(axis: Any, column: str, rows: Sequence[str], ink: dict[str, str]) -> None:
    axis.set_title(column, fontsize=9)
    axis.margins(x=0.12)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.grid(axis="both", color=ink["grid"], linewidth=0.6)
    axis.set_axisbelow(True)
    if not axis.lines:  # nothing published, nothing run: no scale either
        axis.set_xticks([])
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _line(figure: Any, filled: Filled, ink: dict[str, str]) -> None:
    """Columns are numbers along the axis; a line for each row, source and size."""
    figure.set_size_inches(8, 4.2)
    axis = figure.subplots()
    columns = list(filled.dossier.columns)
    for number, row in enumerate(filled.dossier.rows):
        colour = SERIES[number % len(SERIES)]
        for source in PUBLISHED:
            points = [
                (float(column), one.value)
                for column in columns
                for one in filled.cell(row, column).published
                if one.source == source and one.value is not None
            ]
            if points:
                marker, name = PUBLISHED[source]
                label = f"{row}, {name}"
                axis.plot(
                    *zip(*points, strict=True), "--", marker=marker, mfc="none", color=colour, label=label, lw=1, ms=5
                )
        for size, words in (("full", "ours"), ("small", "ours, in small")):
            _line_of_ours(axis, filled, row, size, f"{row}, {words}", colour)
    xs = sorted(float(column) for column in columns)
    if xs[0] > 0 and xs[-1] >= 8 * xs[0]:
        axis.set_xscale("log", base=2)
    axis.set_xticks(xs, [f"{x:g}" for x in xs])
    axis.minorticks_off()
    _finish(axis, filled.dossier.unit, ink)


def _line_of_ours(axis: Any, filled: Filled, row: str, size: str, label: str, colour: str) -> None:
    points = [
        (float(column), ours.mean, ours.spread or 0.0)
        for column in filled.dossier.columns
        for ours in filled.cell(row, column).figures
        if ours.size == size
    ]
    if points:
        x, y, spread = zip(*points, strict=True)
        style = "-" if size == FULL else ":"
        axis.errorbar(x, y, spread, marker=MARKERS[size], color=colour, ls=style, label=label, capsize=3, ms=5)


def _curves(figure: Any, filled: Filled, ink: dict[str, str]) -> None:
    """A logged metric over the epochs, a line for each row and size; the band is the spread over the seeds."""
    figure.set_size_inches(8, 4.2)
    axis, curve = figure.subplots(), filled.dossier.curve
    for label, colour, ours in _series(filled):
        points = curve_over_seeds(ours.runs, curve["metric"])
        if points is None:
            continue
        epochs, mean, spread = (part[points[0] <= curve.get("until", np.inf)] for part in points)
        axis.plot(epochs, mean, "-" if ours.size == FULL else "--", color=colour, label=label, lw=1.4)
        axis.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
    axis.set_xlabel("epoch")
    _finish(axis, curve.get("label", curve["metric"]), ink)


def _series(filled: Filled) -> Iterator[tuple[str, str, Ours]]:
    column = next(iter(filled.dossier.columns))
    for number, row in enumerate(filled.dossier.rows):
        for ours in filled.cell(row, column).figures:
            size = "" if ours.size == FULL else ", in small"
            yield f"{row}{size}", SERIES[number % len(SERIES)], ours


def _hollow(axis: Any, x: float, y: float, source: str, ink: dict[str, str]) -> None:
    marker, label = PUBLISHED[source]
    axis.plot([x], [y], marker, mfc="none", color=ink["published"], ms=6, label=label, zorder=2)


def _filled(axis: Any, x: float, y: float, ours: Ours, ink: dict[str, str]) -> None:
    label = "ours, full size" if ours.size == FULL else "ours, in small"
    colour = ink[ours.size]
    axis.errorbar(
        [x], [y], xerr=ours.spread, fmt=MARKERS[ours.size], color=colour, ms=5, capsize=2, label=label, zorder=3
    )


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """Each label once."""
    found = {label: handle for axis in panels for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=len(found))


def _finish(axis: Any, label: str, ink: dict[str, str]) -> None:
    axis.set_ylabel(label)
    axis.grid(color=ink["grid"], linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        axis.text(0.5, 0.5, "no run yet", ha="center", va="center", transform=axis.transAxes, color=ink["published"])
