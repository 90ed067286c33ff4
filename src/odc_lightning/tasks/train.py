"""task=train: from a composed config to a finished, observable, resumable run."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from odc_lightning.callbacks.checkpoints import newest_checkpoint
from odc_lightning.callbacks.forecast import Forecast
from odc_lightning.callbacks.metrics_csv import MetricsCSV, final_values
from odc_lightning.callbacks.progress import progress_callback
from odc_lightning.callbacks.wandb import finish_wandb, require_mode, wandb_logger
from odc_lightning.checks import check_choice
from odc_lightning.console import is_rank_zero, quiet, say, warn
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.subset import ClassSubset
from odc_lightning.methods.base import Method
from odc_lightning.report.dashboard import write_dashboard
from odc_lightning.tasks.one_device import require_one_device_per_job
from odc_lightning.tasks.run_folder import RESUME, STOPPED, RunFolder
from odc_lightning.tasks.show import show_results


def train(cfg: DictConfig) -> dict[str, float]:
    """Train, measure and write results.json; returns the metrics.

    Raises:
        ValueError: for settings that cannot work, before anything is written over.
    """
    check_choice("resume", cfg.resume, RESUME)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    folder = RunFolder(HydraConfig.get().runtime.output_dir, config)
    if cfg.resume != "never":
        if (results := folder.finished()) is not None:
            say(f"{folder.path} is finished; nothing to do. Start over with resume=never.")
            show_results(results, folder.path)
            return results["metrics"]
        folder.require_same_run()
    datamodule, method, trainer = build(cfg)
    start_from(cfg, method, folder)
    checkpoint, step = take_up(cfg.resume, folder, cfg.trainer.max_epochs)
    method.run_config = config
    if checkpoint is None and is_rank_zero() and isinstance(datamodule.train_source, ClassSubset):
        datamodule.train_source.save(folder.path / "subset.csv")
    trainer.loggers = loggers(cfg, folder, step, config)
    try:
        trainer.fit(method, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        return finish(trainer, method, folder)
    except SystemExit:  # Lightning's answer to Ctrl-C and SIGTERM, for the latter with exit code 0
        sys.exit(STOPPED)
    except Exception:
        end_other_processes(trainer)
        raise
    finally:
        finish_wandb()


def end_other_processes(trainer: pl.Trainer) -> None:
    """After an error they would wait for this one, and on GPUs for long."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGKILL)


def build(cfg: DictConfig) -> tuple[DataModule, Method, pl.Trainer]:
    """Everything a run is made of; settings that cannot work raise here."""
    quiet()
    pl.seed_everything(cfg.seed, verbose=False)
    datamodule: DataModule = instantiate(cfg.data)
    method: Method = instantiate(cfg.method)
    if cfg.trainer.sync_batchnorm and cfg.trainer.accelerator == "cpu":
        warn("trainer.sync_batchnorm is for GPUs: each process keeps its own batch-norm statistics")
        cfg.trainer.sync_batchnorm = False
    require_mode(cfg.logger.wandb.mode)
    callbacks = [instantiate(one) for one in cfg.callbacks.values() if one is not None]
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        callbacks=[Forecast(), *callbacks, progress_callback()],
        logger=False,
        enable_progress_bar=sys.stdout.isatty(),
        default_root_dir=HydraConfig.get().runtime.output_dir,
    )
    require_one_device_per_job(trainer.strategy.launcher, trainer.num_devices)
    datamodule.require_divisible(trainer.world_size * trainer.accumulate_grad_batches)
    method.require_possible(datamodule)
    return datamodule, method, trainer


def start_from(cfg: DictConfig, method: Any, folder: RunFolder) -> None:
    """Load the backbone that ``init`` names, at the first start only: a resume never needs that file again."""
    if cfg.resume != "never" and any(folder.checkpoints.glob("*.ckpt")):
        return
    report = instantiate(cfg.init)(method.backbone)
    if report is not None:
        say(str(report))


def take_up(resume: str, folder: RunFolder, max_epochs: int) -> tuple[Path | None, int]:
    """The checkpoint to continue from and its step, -1 for none; ``resume=never`` moves an earlier run aside.

    Raises:
        ValueError: for ``resume=must`` and nothing to continue, or a run that is further than ``max_epochs``.
    """
    checkpoint = None if resume == "never" else newest_checkpoint(folder.checkpoints)
    if resume == "must" and checkpoint is None:
        raise ValueError(f"resume=must, but {folder.checkpoints} holds no checkpoint that can be read")
    reached = torch.load(checkpoint, weights_only=True, mmap=True) if checkpoint else {"epoch": -1, "global_step": -1}
    if (epochs := reached["epoch"] + 1) > max_epochs:
        raise ValueError(
            f"trainer.max_epochs must be at least {epochs}, the epoch that the run in {folder.path} is in. "
            f"Received: {max_epochs}. Give a shorter run a name of its own (run.name=...)"
        )
    if is_rank_zero():
        if resume == "never" and (aside := folder.set_aside()):
            say(f"The run that was here is now {aside}")
        folder.write_config()
    return checkpoint, reached["global_step"]


def loggers(cfg: DictConfig, folder: RunFolder, step: int, config: dict[str, Any]) -> list:
    """metrics.csv, put back to the step of the checkpoint, and W&B."""
    metrics = MetricsCSV(folder.metrics)
    metrics.rewind(step)
    group = cfg.run.group or cfg.run.name
    name = folder.path.name if folder.path.name == cfg.run.name else f"{cfg.run.name}/{folder.path.name}"
    wandb = wandb_logger(folder.path, **cfg.logger.wandb, name=name, group=group, config=config)
    return [metrics] if wandb is None else [metrics, wandb]


def finish(trainer: pl.Trainer, method: Method, folder: RunFolder) -> dict[str, float]:
    """Write results.json and show it."""
    metrics_csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
    metrics = final_values(metrics_csv.rows)
    if trainer.is_global_zero and trainer.state.finished:
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        results = folder.write_results("train", metrics, f"{trainer.world_size} x {name}", method.seconds)
        write_dashboard(folder.path)
        show_results(results, folder.path)
    return metrics
