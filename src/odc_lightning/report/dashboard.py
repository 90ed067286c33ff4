"""index.html of a run or of a sweep: the curves of W&B in one file that needs no account, no server, no network."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odc_lightning.nested import leaves
from odc_lightning.report.curves import PICTURE, Points
from odc_lightning.report.history import HISTORY, History
from odc_lightning.report.jobs import RUNNING, WAITING, Job, is_run, read_jobs
from odc_lightning.report.panels import CAUSES, SECTIONS, Panel
from odc_lightning.whole_file import whole_file

PAGE = "index.html"
MOST_POINTS, LEAST_POINTS, ALL_POINTS, BARS = 400, 60, 8000, 40
FACTS = (
    "method._target_",
    "backbone._target_",
    "data.source._target_",
    "data.root",
    "data.batch_size",
    "method.num_clusters",
    "method.min_cluster_size",
    "method.centroid_update_interval",
    "optim.lr",
    "trainer.max_epochs",
    "seed",
)
LINKS = {
    "clusters/index.html": "the clusters",
    PICTURE: "the curves as a picture",
    "metrics.csv": "every logged value",
    "config.yaml": "all settings",
    "results.json": "final figures and versions",
}


def write_dashboard(folder: str | Path) -> Path:
    """Write ``index.html`` into the folder of a run, or into one that holds runs; returns it.

    Raises:
        ValueError: there is no run.
    """
    folder = Path(folder).expanduser()
    jobs = read_jobs(folder)
    page = folder / PAGE
    with whole_file(page, shared=True) as writing:  # jobs of a sweep end at the same time
        writing.write_text(as_page(folder.resolve().name, jobs, single=is_run(folder)), encoding="utf-8")
    return page


def as_page(title: str, jobs: Sequence[Job], *, single: bool) -> str:
    """The page, with everything that it shows inside.

    Args:
        title: name of the run or of the sweep.
        jobs: one for a run.
        single: a run, not a sweep of one job.
    """
    curves = [dict(job.columns) for job in jobs]
    sections = {name: list(panels) for name, panels in SECTIONS.items()}
    history = _history(jobs[0]) if single else None
    if history and (causes := causes_of(history)):
        curves[0] |= causes
        sections["Clusters"].append(CAUSES)
    known = [metric for panels in sections.values() for panel in panels for metric in panel.metrics]
    other = sorted({metric for each in curves for metric in each} - {*known})
    sections["Other"] = [Panel(metric, (metric,)) for metric in other]
    most = max(LEAST_POINTS, min(MOST_POINTS, ALL_POINTS // max(len(jobs), 1)))
    data = {
        "title": title,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "single": single,
        "open": any(job.state in (RUNNING, WAITING) for job in jobs),
        "sections": _sections(sections, curves, single),
        "keys": list(dict.fromkeys(key for job in jobs for key in job.settings)),
        "figures": figures(jobs),
        "jobs": [_job(job, each, most, single) for job, each in zip(jobs, curves, strict=True)],
        "sizes": histogram(history) if history else None,
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/", text)


def _sections(
    sections: Mapping[str, Iterable[Panel]], curves: Sequence[Mapping[str, Points]], single: bool
) -> list[dict[str, Any]]:
    """Panels of which something was logged; of several runs each metric is a panel of its own, a line for each run."""
    there = {metric for each in curves for metric in each}
    shown = []
    for name, panels in sections.items():
        parts = [panel if single else one for panel in panels for one in ([panel] if single else _apart(panel))]
        drawn = [{**vars(panel), "metrics": [m for m in panel.metrics if m in there]} for panel in parts]
        if drawn := [panel for panel in drawn if set(panel["metrics"]) - {*panel["level"]}]:
            shown.append({"name": name, "panels": drawn})
    return shown


def _apart(panel: Panel) -> list[Panel]:
    metrics = [metric for metric in panel.metrics if metric not in panel.level]
    if len(metrics) == 1:
        return [Panel(panel.title, tuple(metrics), panel.log, panel.limits)]
    return [Panel(metric, (metric,), panel.log, panel.limits) for metric in metrics]


def figures(jobs: Sequence[Job]) -> list[str]:
    """Names of the final figures, what evaluations measured first: a sweep is made for these."""
    names = {name for job in jobs for name in job.results if not re.match(r"knn/\d+/", name)}
    logged = {name for job in jobs for name in job.columns}
    return sorted(names, key=lambda name: (name in logged, not name.startswith(("knn/", "train/")), name))


def _job(job: Job, curves: Mapping[str, Points], most: int, single: bool) -> dict[str, Any]:
    return {
        "name": job.name,
        "state": job.state,
        "detail": job.detail,
        "epochs": job.epochs,
        "of": job.max_epochs,
        "settings": job.settings,
        "results": {name: _finite(value) for name, value in job.results.items()},
        "curves": {name: thinned(points, most) for name, points in curves.items()},
        "facts": facts(job),
        "links": [[file, words] for file, words in LINKS.items() if (job.folder / file).exists()] if single else [],
        "page": None if single or not (job.folder / PAGE).exists() else f"{job.folder.name}/{PAGE}",
    }


def facts(job: Job) -> list[list[str]]:
    """Settings that say what the run is, as [key, value]; of a class its name."""
    found, settings = [], dict(leaves(job.config))
    for key in FACTS:
        if (value := settings.get(key)) is not None:
            group, target, _ = key.partition("._target_")
            found.append([group, str(value).rpartition(".")[2] if target else str(value)])
    return found


def thinned(points: Points, most: int) -> list[list[float | None]]:
    """[steps, values] of at most so many points: means over equally many neighbours, at the last one's step."""
    steps, values = (np.asarray(part, float) for part in points)
    ends = np.linspace(0, len(steps), min(most, len(steps)) + 1).round().astype(int)[1:]
    sizes = np.diff(ends, prepend=0)
    means = np.add.reduceat(values, ends - sizes) / sizes
    return [steps[ends - 1].tolist(), [_finite(value) for value in means.tolist()]]


def causes_of(history: History) -> dict[str, Points]:
    """Label changes by cause: metric name to (iterations, changes per image)."""
    iterations = np.array([history.about(epoch)["iteration"] for epoch in history.epochs], float)
    found = {}
    for name, ratio in history.switches().items():
        known = ~np.isnan(ratio)
        if name != "bank" and known.any():
            found[f"switches/{name}"] = (iterations[known].tolist(), ratio[known].tolist())
    return found


def histogram(history: History) -> dict[str, list[float]]:
    """Edges and counts of the cluster sizes at the newest record of the history."""
    sizes = history.sizes()[-1]
    counts, edges = np.histogram(sizes, bins=min(BARS, max(1, int(sizes.max() - sizes.min()))))
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _history(job: Job) -> History | None:
    if not (job.folder / HISTORY).exists():
        return None
    history = History(job.folder)
    return history if history.epochs else None


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
