"""task=dashboard: one HTML page of a run or a sweep, and the same panels as a saved workspace on W&B."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from odc_lightning.callbacks.wandb import require_mode, resolved_mode
from odc_lightning.console import is_rank_zero, say
from odc_lightning.report.dashboard import write_dashboard
from odc_lightning.report.jobs import read_jobs
from odc_lightning.report.panels import GALLERY, HISTOGRAM, PICTURE, SECTIONS, Panel

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

STEP = "trainer/global_step"
INSTALL = "pip install 'odc-lightning[dashboard]'"


def dashboard(cfg: DictConfig) -> Path | None:
    """Write ``index.html`` into ``dashboard.runs`` and, with a W&B key, save the workspace; returns the page.

    Raises:
        ValueError: there is no run, or ``dashboard.workspace=true`` and something that it needs is missing.
    """
    if not is_rank_zero():
        return None
    require_workspace(cfg.dashboard.workspace)
    page = write_dashboard(cfg.dashboard.runs)
    say(f"{page}: open it in a browser")
    missing = missing_for_workspace(cfg.logger.wandb.mode)
    if cfg.dashboard.workspace is True and missing:
        raise ValueError(f"dashboard.workspace=true needs {missing}")
    if cfg.dashboard.workspace is not False and not missing:
        save(workspace(cfg.dashboard.name, entity_of(cfg.dashboard.entity), cfg.logger.wandb.project))
    elif cfg.dashboard.workspace == "auto":
        say(f"No workspace on W&B was saved, for that needs {missing}")
        tell_offline(page.parent)
    return page


def require_workspace(value: Any) -> None:
    """Raise ValueError unless it is one of the three."""
    if value not in ("auto", True, False):
        raise ValueError(f"dashboard.workspace must be auto, true or false. Received: {value}")


def missing_for_workspace(mode: str) -> str:
    """What a workspace needs and is not there; nothing if all is."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        return f"the package wandb-workspaces ({INSTALL})"
    if (resolved := resolved_mode(require_mode(mode))) != "online":
        why = "WANDB_API_KEY, or `wandb login`" if mode == "auto" else f"logger.wandb.mode={resolved} to be online"
        return f"a W&B key ({why})" if mode == "auto" else why
    return ""


def tell_offline(folder: Path) -> None:
    """Where the same curves are without an account."""
    for job in read_jobs(folder):
        if list((job.folder / "wandb").glob("offline-run-*")):
            say(f"The same curves in this terminal: wandb leet {job.folder / 'wandb' / 'latest-run'}")
            return


def entity_of(entity: str | None) -> str:
    """User or team that the workspace belongs to; ValueError where neither it nor a default of the key is there."""
    import wandb

    found = entity or wandb.Api().default_entity
    if not found:
        raise ValueError("dashboard.entity must name a user or team on W&B: the key has no default. Received: null")
    return found


def workspace(name: str, entity: str, project: str) -> Workspace:
    """The sections of :data:`odc_lightning.report.panels.SECTIONS`, then the media, as W&B's own objects."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=title, panels=[_line_plot(panel) for panel in panels], is_open=number < 2)
        for number, (title, panels) in enumerate(SECTIONS.items())
    ]
    media = [wr.MediaBrowser(title=title, media_keys=[key]) for title, key in (("Curves", PICTURE),)]
    media += [wr.MediaBrowser(title="Cluster sizes", media_keys=[HISTOGRAM])]
    table = wr.WeavePanelSummaryTable(table_name=GALLERY)
    sections.insert(2, ws.Section(name="Browse", panels=[table, *media], is_open=True))
    return ws.Workspace(name=name, entity=entity, project=project, sections=sections)


def _line_plot(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    low, high = panel.limits or (None, None)
    return wr.LinePlot(
        title=panel.title, x=STEP, y=[*panel.metrics], range_y=(low, high), log_y=panel.log or None, title_x="step"
    )


def save(made: Workspace) -> None:
    """Save it on W&B.

    Raises:
        ValueError: W&B does not take it.
    """
    try:
        url = made.save().url
    except Exception as error:  # W&B raises errors of several libraries
        raise ValueError(f"W&B did not save the workspace in {made.entity}/{made.project}: {error}") from error
    say(f"Workspace saved: {url}")
