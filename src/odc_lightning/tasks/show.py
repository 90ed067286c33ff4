"""The table that a finished run shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from odc_lightning.console import clock

# The first pattern found in the name decides.
FORMATS = {
    r"/(top1|map)(_|$)": "{:.1f} %",
    r"^(agreement|kmeans)/": "{:.3f}",
    r"^memory/(cluster|splits)": "{:.0f}",
}


def show_results(results: dict[str, Any], folder: Path) -> None:
    """Metrics, then where to look."""
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in sorted(results["metrics"].items()):
        table.add_row(name, formatted(name, value))
    console = Console()
    console.print(f"{folder.name}: {results['task']} finished, {clock(results['seconds'])} of work", soft_wrap=True)
    console.print(table)
    for file, what in (
        ("index.html", "the dashboard of the run, to open in a browser"),
        ("results.json", "these figures"),
        ("metrics.csv", "every logged value"),
        ("run.png", "loss, label switches, cluster sizes as curves"),
        ("clusters/assignments.csv", "which image is in which cluster"),
        ("clusters/history.npz", "labels of every epoch; task=clusters makes a page of them"),
        ("clusters/index.html", "the clusters to browse, as of the latest task=clusters"),
        ("checkpoints/last.ckpt", "weights and memory"),
    ):
        if (folder / file).exists():
            console.print(f"  {folder / file}  [dim]{what}[/dim]", soft_wrap=True)
    if list((folder / "wandb").glob("offline-run-*")):
        console.print(
            f"  wandb leet {folder / 'wandb' / 'latest-run'}  [dim]the dashboard in this terminal[/dim]", soft_wrap=True
        )


def formatted(name: str, value: float) -> str:
    """A value as its kind is read."""
    pattern = next((pattern for part, pattern in FORMATS.items() if re.search(part, name)), "{:.4g}")
    return pattern.format(value)
