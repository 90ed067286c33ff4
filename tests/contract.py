"""What every method must keep, as checks that a method's own tests call with a function that builds it."""

import os
import signal

import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp

from helpers import datamodule, differences, last_checkpoint, trainer
from odc_lightning.callbacks.checkpoints import newest_checkpoint


class Killed(pl.Callback):
    """SIGKILL to this process before the step with this number."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(folder, build, data=None, kill=None, devices=1, max_epochs=3, checkpoint_every=1):
    """Train the method that ``build`` makes on tiny images, from the folder's last checkpoint if it has one."""
    callbacks = [Killed(kill)] if kill else []
    strategy = "ddp_spawn" if devices > 1 else "auto"
    t = trainer(
        folder, callbacks, max_epochs, checkpoint_every, devices=devices, strategy=strategy, num_sanity_val_steps=0
    )
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint:
        t.logger.rewind(torch.load(checkpoint, weights_only=True)["global_step"])
    method = build()
    torch.manual_seed(os.getpid())  # nothing may depend on the generator's state at start
    t.fit(method, datamodule=datamodule(**(data or {})), ckpt_path=checkpoint, weights_only=True)
    return method


def check_resumes_bit_for_bit(folder, build, data=None, kill_at=(5, 8)):
    """Killed within the second epoch, and where the third begins: the same bits at the end."""
    fit(folder / "straight", build, data)
    straight = last_checkpoint(folder / "straight")
    for step in kill_at:
        there = folder / f"killed_{step}"
        process = mp.get_context("spawn").Process(target=fit, args=(there, build, data, step))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"was to be killed at {step}"
        fit(there, build, data)
        again = last_checkpoint(there)
        for part in ("state_dict", "optimizer_states", "method"):
            assert differences(straight[part], again[part]) == [], f"killed at {step}: {part}"


def check_two_processes(folder, build, data=None):
    """Two gloo processes train, one goes on, two finish: the number of devices may change."""
    for devices, epochs in ((2, 1), (1, 2), (2, 3)):
        fit(folder, build, data, devices=devices, max_epochs=epochs)
        checkpoint = last_checkpoint(folder)
        assert checkpoint["global_step"] == checkpoint["method"]["iteration"] == 4 * epochs
        assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    return checkpoint
