"""task=evaluate: measure a network by one protocol, beside random weights and raw pixels if asked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger

from odc_lightning.callbacks.metrics_csv import MetricsCSV
from odc_lightning.callbacks.wandb import finish_wandb, wandb_logger
from odc_lightning.checks import check_choice
from odc_lightning.console import is_rank_zero, quiet, say
from odc_lightning.data.datamodule import DataModule
from odc_lightning.evaluation.bench import Bench
from odc_lightning.evaluation.network import PIXELS, FrozenNetwork, pixel_backbone
from odc_lightning.evaluation.protocol import Protocol
from odc_lightning.nn.backbone import Backbone
from odc_lightning.tasks.evaluation_folder import EvaluationFolder, log_into
from odc_lightning.tasks.one_device import require_one_device_per_job
from odc_lightning.tasks.run_folder import RESUME
from odc_lightning.tasks.show import show_results
from odc_lightning.tasks.subject import Subject
from odc_lightning.weights.read import sha256

UNTRAINED = "untrained"


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Measure, write results.json; returns the metrics.

    Raises:
        ValueError: for settings that cannot work, before anything is written over.
    """
    check_choice("resume", cfg.resume, RESUME)
    quiet()
    overrides = HydraConfig.get().overrides.task
    subject = Subject.of(cfg.init.path)
    config = subject.settings(plain_config(cfg), overrides)
    home = subject.home(config, overrides)
    protocol: Protocol = instantiate(config["protocol"])
    data: DataModule = instantiate(config["data"])
    config |= {"weights": about_weights(subject, config), "images": about_images(data)}
    folder = EvaluationFolder(folder_of(home, protocol), config)
    log_into(folder.path)
    return evaluated(cfg, protocol, data, folder, home, subject, cfg.trainer.devices, cfg.trainer.num_nodes)


def evaluated(
    cfg: DictConfig,
    protocol: Protocol,
    data: DataModule,
    folder: EvaluationFolder,
    home: Path,
    subject: Subject,
    devices: Any,
    num_nodes: int = 1,
) -> dict[str, float]:
    """Metrics of this evaluation: those that are in its folder already, else measured now."""
    if (results := folder.finished()) is not None and cfg.resume != "never":
        say(f"{folder.path} is finished; nothing to do. Start over with resume=never.")
        show_results(results, folder.path)
        return results["metrics"]
    fabric = Fabric(accelerator=cfg.trainer.accelerator, devices=devices, num_nodes=num_nodes)
    require_one_device_per_job(fabric.strategy.launcher, fabric.world_size // num_nodes)
    fabric.launch()
    benches = list(networks(protocol, data, folder, home, subject, fabric.device))
    for bench in benches:
        protocol.check(bench)
    take_up(cfg.resume, folder)
    group = cfg.run.group or subject.group(home)
    return measure(protocol, benches, folder, fabric, loggers(cfg, folder, home, group))


def measure(
    protocol: Protocol, benches: list[Bench], folder: EvaluationFolder, fabric: Fabric, loggers: list[Logger]
) -> dict[str, float]:
    """Run the protocol on each network, write and show the results."""
    began, log = time.monotonic(), _Log(loggers)
    try:
        metrics: dict[str, float] = {}
        for bench in benches:
            bench.log = partial(log, variant=bench.variant)
            metrics |= {metric_name(name, bench.variant): value for name, value in protocol.run(bench).items()}
        log(metrics, 0)
        if fabric.is_global_zero:
            config = folder.config
            about = {"protocol": protocol.name, "recipe": protocol.recipe, "weights": config["weights"]}
            about |= {"split": config["images"], "settings": config["protocol"], "baseline": config["baseline"]}
            name = device_name(fabric.device, fabric.world_size)
            results = folder.write_results("evaluate", metrics, name, time.monotonic() - began, **about)
            show_results(results, folder.path)
        return metrics
    finally:
        finish_wandb()


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain containers, the chosen recipe's values in place.

    Raises:
        ValueError: for a recipe that the protocol does not have.
    """
    recipes = cfg.protocol.get("recipes")
    if recipes is not None:
        check_choice("protocol.recipe", cfg.protocol.recipe, tuple(recipes))
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    config["protocol"].pop("recipes", None)
    return config


def folder_of(home: Path, protocol: Protocol) -> Path:
    """``<home>/evaluations/<protocol>``; a sweep's jobs get one each."""
    folder = home / "evaluations" / protocol.name
    job = HydraConfig.get()
    if job.mode != RunMode.MULTIRUN:
        return folder
    others = [part for part in job.overrides.task if not part.startswith(("protocol=", "init.path="))]
    name = OmegaConf.create({"others": others, "name": "${sweep_job:${others}}"}).name
    return folder / name if "=" in name else folder


def about_weights(subject: Subject, config: Mapping[str, Any]) -> dict[str, Any]:
    """Which weights are measured: hash of the file, or what stands for one."""
    if subject.checkpoint is not None:
        return {"file": subject.checkpoint.name, "sha256": sha256(subject.checkpoint)}
    return {"file": None, "pretrained": config["init"].get("pretrained"), "sha256": None}


def about_images(data: DataModule) -> dict[str, Any]:
    """Which images are measured on."""
    sources = {"train": data.train_source, "val": data.val_source}
    return {
        split: {"name": source.name, "images": len(source), "fingerprint": source.fingerprint()}
        for split, source in sources.items()
        if source is not None
    }


def networks(
    protocol: Protocol,
    data: DataModule,
    folder: EvaluationFolder,
    home: Path,
    subject: Subject,
    device: torch.device,
) -> Iterator[Bench]:
    """The network that is asked about, then those measured beside it."""
    config = folder.config
    random = subject.checkpoint is None and not config["init"].get("pretrained")
    beside = [name for name in protocol.baselines if config["baseline"] and not (random and name == UNTRAINED)]
    for variant in ("", *beside):
        seed_everything(config["seed"], verbose=False)
        if variant == PIXELS:
            backbone = pixel_backbone(config["data"]["channels"], data.image_size)
        else:
            backbone = instantiate(config["backbone"])
            if variant == "":
                initialise(backbone, config, random)
        network = FrozenNetwork(backbone, data.mean, data.std, precision=config["evaluate"]["precision"])
        yield Bench(
            network.to(device),
            data,
            folder=folder.path,
            cache_dir=Path(config["evaluate"]["cache_dir"] or home / "evaluations" / "features").expanduser(),
            seed=config["seed"],
            checkpoint=subject.checkpoint if variant == "" else None,
            variant=variant,
        )


def initialise(backbone: Backbone, config: dict[str, Any], random: bool) -> None:
    """Weights by ``init``, with a line on what was found."""
    report = instantiate(config["init"])(backbone)
    say(f"random weights, seed {config['seed']}: {backbone.description}" if random else str(report))


def take_up(resume: str, folder: EvaluationFolder) -> None:
    """Make the folder ours: an evaluation of older weights, or any with ``resume=never``, is moved aside."""
    outdated = folder.outdated()
    if resume != "never" and not outdated:
        folder.require_same_run()
    if is_rank_zero():
        if (resume == "never" or outdated) and (aside := folder.set_aside()):
            say(f"The evaluation{' of other weights' * outdated} that was here is now {aside}")
        folder.write_config()


def loggers(cfg: DictConfig, folder: EvaluationFolder, home: Path, group: str) -> list[Logger]:
    """metrics.csv, and W&B in the group of the training."""
    name = str(Path(home.name) / folder.path.relative_to(home))
    wandb = wandb_logger(folder.path, **cfg.logger.wandb, name=name, group=group, config=folder.config)
    return [MetricsCSV(folder.metrics), *([] if wandb is None else [wandb])]


def metric_name(name: str, variant: str) -> str:
    """``knn/top1_untrained``; a layer that is called ``pixels`` says it already."""
    return f"{name}_{variant}" if variant and f"/{variant}/" not in name else name


def device_name(device: torch.device, world_size: int) -> str:
    """For results.json: ``1 x NVIDIA H100``, ``1 x 2 CPU threads``."""
    threads = f"{torch.get_num_threads()} CPU threads"
    return f"{world_size} x {torch.cuda.get_device_name(device) if device.type == 'cuda' else threads}"


class _Log:
    """Values to every logger, in rising steps whatever epoch they are of; behind those of an earlier start."""

    def __init__(self, loggers: list[Logger]) -> None:
        self.loggers = loggers
        rows = [row for logger in loggers if isinstance(logger, MetricsCSV) for row in logger.rows]
        self.step = int(max((row["step"] for row in rows), default=0))

    def __call__(self, values: Mapping[str, float], epoch: int, variant: str = "") -> None:
        self.step += 1
        named = {metric_name(name, variant): value for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics({"epoch": epoch, **named}, step=self.step)
