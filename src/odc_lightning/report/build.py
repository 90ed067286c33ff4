"""From run folders and dossiers to the files of a report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from odc_lightning.report.cells import Bench, Filled
from odc_lightning.report.dossier import load_dossiers
from odc_lightning.report.figures import draw
from odc_lightning.report.page import as_page
from odc_lightning.report.runs import Hash, LeftOut, find_runs
from odc_lightning.report.text import as_csv, as_markdown, left_out_csv, left_out_markdown
from odc_lightning.whole_file import write_whole

TITLE = "Online Deep Clustering: runs beside the published numbers"


@dataclass(frozen=True)
class Report:
    """What was written and why.

    Attributes:
        page: index.html.
        runs: how many finished ones were found.
        filled: dossiers with their cells.
        left_out: folders that are in no figure, or not in all that they fit, with reasons.
    """

    page: Path
    runs: int
    filled: list[Filled]
    left_out: list[LeftOut]


def build_report(runs: Path, experiments: Path, out: Path, hashes: Mapping[str, Hash] | None = None) -> Report:
    """Write index.html, report.md, table.csv, left_out.csv, and a folder for each dossier with its pictures and table.

    Args:
        runs: root of the run folders.
        experiments: folder of the dossiers.
        out: folder to write; made if it is not there.
        hashes: see :func:`odc_lightning.report.runs.find_runs`.

    Raises:
        ValueError: a folder is not there, or a dossier cannot be understood; nothing has been written then.
    """
    dossiers, found = load_dossiers(experiments), find_runs(runs, hashes)
    bench = Bench(found.runs)
    filled = [bench.fill(dossier) for dossier in dossiers]
    of_dossiers = [left for one in filled for left in one.left_out]
    left_out = [*found.left_out, *of_dossiers, *bench.unused(filled)]
    left_out = sorted(dict.fromkeys(left_out), key=lambda one: (str(one.folder), one.reason))
    out.mkdir(parents=True, exist_ok=True)
    for one in filled:
        _write_dossier(one, out / one.dossier.name, runs)
    write_whole(out / "table.csv", as_csv(filled, runs))
    write_whole(out / "left_out.csv", left_out_csv(left_out, runs))
    parts = [f"# {TITLE}\n", *map(as_markdown, filled), left_out_markdown(left_out, runs)]
    write_whole(out / "report.md", "\n".join(parts))
    write_whole(out / "index.html", _page(filled, left_out, runs, out))
    return Report(out / "index.html", len(found.runs), filled, left_out)


def _write_dossier(filled: Filled, folder: Path, runs: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw(filled, [folder / "figure.png", folder / "figure.svg"])
    write_whole(folder / "table.csv", as_csv([filled], runs))


def _page(filled: list[Filled], left_out: list[LeftOut], runs: Path, out: Path) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        pictures = {}
        for one in filled:
            night = Path(scratch) / f"{one.dossier.name}.svg"
            draw(one, [night], theme="dark")
            pictures[one.dossier.name] = (out / one.dossier.name / "figure.svg", night)
        return as_page(filled, left_out, pictures, runs, TITLE)
