"""The W&B side of a run: offline without a key, and always the same W&B run for the same folder."""

from __future__ import annotations

import netrc
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import Logger

from odc_lightning.checks import check_choice
from odc_lightning.console import is_rank_zero, say

MODES = ("auto", "online", "offline", "disabled")


def wandb_logger(
    folder: Path, *, project: str, mode: str, name: str, group: str, config: dict[str, Any]
) -> Logger | None:
    """A WandbLogger that continues this folder's W&B run; None when disabled.

    Args:
        folder: the run folder; its ``wandb/run_id`` keeps the id.
        project, name, group: on W&B.
        mode: ``auto`` is online where there is a key and offline where there is none.
        config: what W&B shows as the run's configuration.

    Raises:
        ValueError: for an unknown mode.
    """
    mode = resolved_mode(require_mode(mode))
    if mode == "disabled":
        return None
    if mode == "offline":
        os.environ.setdefault("WANDB_SILENT", "true")  # its summary repeats ours; must be set before W&B is imported
        say(f"W&B runs offline: `wandb sync {folder}/wandb/offline-run-*` uploads it, `wandb leet` shows it")
    return _start(folder, project, mode, name, group, config)


def require_mode(mode: str) -> str:
    """Return the mode; ValueError for an unknown one."""
    return check_choice("logger.wandb.mode", mode, MODES)


def _start(folder: Path, project: str, mode: str, name: str, group: str, config: dict[str, Any]) -> Logger:
    """Start the run ourselves: Lightning's own start sets what W&B warns of."""
    from pytorch_lightning.loggers import WandbLogger

    if not is_rank_zero():
        return WandbLogger(project=project, save_dir=folder)
    import wandb

    run = wandb.init(
        project=project,
        name=name,
        group=group,
        id=run_id(folder),
        dir=folder,
        mode="online" if mode == "online" else "offline",
        resume="allow" if mode == "online" else None,
        config=config,
    )
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, project=project, save_dir=folder)


def resolved_mode(mode: str) -> str:
    """What ``auto`` means here."""
    if mode != "auto":
        return mode
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted in ("disabled", "offline"):
        return wanted
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Is there a W&B key in the environment or in the netrc file? Asked without starting W&B."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def run_id(folder: Path) -> str:
    """The id of the folder's W&B run, made at the first start."""
    path = folder / "wandb" / "run_id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def finish_wandb() -> None:
    """Close the W&B run, so that the next job of a sweep does not log into it."""
    import sys

    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()
