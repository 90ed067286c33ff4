"""What a sweep's jobs cannot do: start the command line again."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric.strategies.launchers import _SubprocessScriptLauncher as OfFabric
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher as OfLightning


def require_one_device_per_job(launcher: object, devices: int) -> None:
    """``ddp`` starts its other processes with the command line, which in a sweep is the whole sweep again.

    Args:
        launcher: of the strategy, of Lightning or Fabric; None where there is one process.
        devices: of each job.

    Raises:
        ValueError: in a sweep, for several devices by ``ddp``.
    """
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeping and devices > 1 and isinstance(launcher, OfFabric | OfLightning):
        raise ValueError(
            f"a sweep (-m) cannot run ddp on several devices: trainer.devices={devices}. Use trainer.devices=1 and as "
            f"many jobs at a time as there are devices, or, to train, trainer.strategy=ddp_spawn"
        )
