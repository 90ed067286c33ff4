"""task=train_evaluate: train, then measure what came out by a protocol, in one chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from odc_lightning.console import is_rank_zero, quiet, say
from odc_lightning.data.datamodule import DataModule
from odc_lightning.evaluation.bench import Bench
from odc_lightning.evaluation.network import FrozenNetwork
from odc_lightning.evaluation.protocol import Protocol
from odc_lightning.tasks.evaluate import about_images, about_weights, evaluated, plain_config
from odc_lightning.tasks.evaluation_folder import EvaluationFolder
from odc_lightning.tasks.subject import Subject, named
from odc_lightning.tasks.train import train


def train_evaluate(cfg: DictConfig) -> dict[str, float]:
    """Train as ``task=train`` does, then measure the run as ``task=evaluate`` does; returns the figures of both.

    Each of the two is skipped where its results are there, so that a chain that was stopped goes on where it was. The
    measuring is done by one process, on one device.

    Raises:
        ValueError: for settings that cannot work, those of measuring too, before the training starts.
    """
    quiet()
    overrides = HydraConfig.get().overrides.task
    measured = to_measure(plain_config(cfg), overrides)
    check_protocol(measured)
    metrics = train(cfg)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    if not is_rank_zero():
        return metrics
    run = Path(HydraConfig.get().runtime.output_dir)
    say(f"Measuring by protocol={measured['protocol']['name']}")
    return metrics | measure_run(cfg, measured, run)


def to_measure(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration with the images to measure on in place of those to train on, normalised as these."""
    images = config["measure"]
    if not images:
        return config
    if images["channels"] == config["data"]["channels"]:
        kept = {key: config["data"][key] for key in ("mean", "std") if not named(f"measure.{key}", overrides)}
        images = {**images, **kept}
    return {**config, "data": images}


def check_protocol(config: dict[str, Any]) -> None:
    """Raise ValueError where the protocol cannot measure these images with this backbone: not after days."""
    protocol: Protocol = instantiate(config["protocol"])
    data = images_of(config)
    network = FrozenNetwork(instantiate(config["backbone"]), data.mean, data.std)
    # There will be a checkpoint; which layers and classes there are is known now.
    protocol.check(Bench(network, data, folder=Path(), cache_dir=Path(), checkpoint=Path("last.ckpt")))


def images_of(config: dict[str, Any]) -> DataModule:
    """The images to measure on; a message about them names keys of ``measure`` where they are others."""
    try:
        return instantiate(config["data"])
    except Exception as error:
        cause = error.__cause__ or error
        if not config["measure"] or not isinstance(cause, ValueError | OSError):
            raise
        raise ValueError(str(cause).replace("data.", "measure.")) from error


def measure_run(cfg: DictConfig, config: dict[str, Any], run: Path) -> dict[str, float]:
    """Measure the run that is finished in this folder, below it."""
    subject = Subject.of(str(run))
    init = {**config["init"], "path": str(run), "pretrained": None, "allow_partial": False}
    protocol: Protocol = instantiate(config["protocol"])
    data = images_of(config)
    config = {**config, "init": init, "weights": about_weights(subject, config), "images": about_images(data)}
    folder = EvaluationFolder(run / "evaluations" / protocol.name, config)
    return evaluated(cfg, protocol, data, folder, run, subject, devices=1)
