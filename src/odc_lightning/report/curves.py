"""run.png: the curves of one run, drawn from its metrics.csv and assignments.csv."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS, ASSIGNMENTS, PICTURE = "metrics.csv", Path("clusters/assignments.csv"), "run.png"
Points = tuple[list[float], list[float]]


def draw_run(folder: str | Path) -> Path | None:
    """Draw loss, label-switch ratio, cluster sizes, agreement and kNN; None where nothing was logged yet."""
    folder = Path(folder)
    if not (folder / METRICS).exists():
        return None
    # Figure without pyplot: no window system, no global state.
    from matplotlib.figure import Figure

    columns = read_columns(folder / METRICS)
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    _lines(axes[0], columns, ["train/loss"], "loss", log=False)
    _lines(axes[1], columns, ["train/label_switch_ratio"], "label-switch ratio", limits=(0, 1))
    _knn(axes[2], columns)
    sizes = [f"memory/cluster_size_{which}" for which in ("min", "median", "max")]
    _lines(axes[3], columns, sizes, "cluster size", log=True)
    _lines(
        axes[4],
        columns,
        [f"agreement/{n}" for n in ("nmi", "ari", "purity", "nmi_previous")],
        "agreement",
        limits=(0, 1),
    )
    _histogram(axes[5], cluster_sizes(folder / ASSIGNMENTS))
    figure.suptitle(folder.name)
    figure.savefig(folder / PICTURE, dpi=110)
    return folder / PICTURE


def read_columns(path: Path) -> dict[str, Points]:
    """Column name to (steps, values), empty cells left out."""
    columns: dict[str, Points] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value not in ("", None) and name not in ("epoch", "step"):
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
    return columns


def cluster_sizes(path: Path) -> list[int]:
    """Members of each cluster of an assignments.csv."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(Counter(row["cluster"] for row in csv.DictReader(file)).values())


def _lines(
    axis: Any,
    columns: dict[str, Points],
    names: Sequence[str],
    title: str,
    *,
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> None:
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    drawn = [name for name in names if name in columns]
    for name in drawn:
        axis.plot(*columns[name], label=name.split("/")[1], linewidth=1.4)
    if log and any(value > 0 for name in drawn for value in columns[name][1]):
        axis.set_yscale("log")
    if limits:
        axis.set_ylim(*limits)
    if len(drawn) > 1:
        axis.legend(fontsize=8)
    if not drawn:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes, color="grey")


def _knn(axis: Any, columns: dict[str, Points]) -> None:
    _lines(axis, columns, ["knn/top1"], "kNN top-1 (%)")
    for name, style in (("knn/top1_untrained", "--"), ("knn/top1_pixels", ":")):
        if name in columns:
            axis.axhline(columns[name][1][-1], linestyle=style, color="grey", label=name.split("_")[1])
    if "knn/top1_untrained" in columns:
        axis.legend(fontsize=8)


def _histogram(axis: Any, sizes: list[int]) -> None:
    axis.set_title("cluster sizes at the end")
    axis.set_xlabel("members")
    axis.set_ylabel("clusters")
    if sizes:
        axis.hist(sizes, bins=min(40, max(10, len(sizes) // 3)))
