"""What a run is about to do, in numbers, before it does it."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.table import Table

from odc_lightning.console import size
from odc_lightning.methods.base import Method


class Forecast(Callback):
    """Prints images, batches, steps, memory and start-up time once, with every ``auto`` filled in."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        lines = forecast(trainer, pl_module)
        if trainer.is_global_zero:
            Console().print(key_values("This run", lines))


def forecast(trainer: pl.Trainer, method: Method) -> dict[str, str]:
    """Name to text; every rank takes part, as the timing of the start-up clustering does."""
    data, accumulate = method.datamodule, trainer.accumulate_grad_batches
    devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision}"
    per_device = data.batch_size // trainer.world_size // accumulate
    weights = sum(p.numel() * p.element_size() for p in method.parameters())
    steps = int(trainer.num_training_batches) // accumulate
    return {
        "folder": trainer.default_root_dir,
        "images": f"{data.num_samples:,} of {data.train_source.name}, {data.workers()} loading processes per device"
        f"{', colours on the device' if data.colours_on_device() else ''}",
        "devices": devices,
        "batch": f"{data.batch_size} = {trainer.world_size} x {per_device} x {accumulate} accumulated",
        "steps per epoch": f"{steps:,} ({trainer.max_epochs} epochs, {steps * (trainer.max_epochs or 0):,} steps)",
        **method.forecast(),
        # weights, their SGD momentum, and what the method keeps
        "checkpoint": f"about {size(2 * weights + method.state_bytes())}",
    }


def key_values(title: str, lines: dict[str, str]) -> Table:
    """A plain two-column table."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, text in lines.items():
        table.add_row(name, text)
    return table
