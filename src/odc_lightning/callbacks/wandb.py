"""The W&B side of a run: offline without a key, and always the same W&B run for the same folder."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from odc_lightning.console import say

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
    if mode not in MODES:
        raise ValueError(f"logger.wandb.mode must be one of {', '.join(MODES)}. Received: {mode!r}")
    mode = resolved_mode(mode)
    if mode == "disabled":
        return None
    from pytorch_lightning.loggers import WandbLogger

    if mode == "offline":
        os.environ.setdefault("WANDB_SILENT", "true")  # its closing summary repeats ours
        say(f"W&B runs offline: `wandb sync {folder}/wandb/offline-run-*` uploads it, `wandb leet` shows it")
    logger = WandbLogger(
        project=project,
        name=name,
        group=group,
        id=run_id(folder),
        save_dir=folder,
        mode=mode,
        resume="allow" if mode == "online" else None,
    )
    logger.log_hyperparams(config)
    return logger


def resolved_mode(mode: str) -> str:
    """What ``auto`` means here."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return "disabled" if os.environ["WANDB_MODE"] == "disabled" else "offline"
    import wandb

    return "online" if wandb.login(prompt=False) else "offline"


@rank_zero_only
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
