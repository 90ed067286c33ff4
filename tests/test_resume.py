"""Stopped anywhere and started again, a run ends in the same bits as one that ran through."""

import os
import random
import signal

import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp

from helpers import datamodule, differences, last_checkpoint, odc, trainer
from odc_lightning.callbacks.checkpoints import newest_checkpoint
from odc_lightning.callbacks.measure import Measure
from odc_lightning.callbacks.metrics_csv import read_metrics


class Kill(pl.Callback):
    """SIGKILL to this process at a step: before the step, or between its optimizer step and its memory update."""

    def __init__(self, step, hook):
        self.step, self.hook = step, hook

    def on_train_batch_start(self, trainer, *args):
        self.kill_if(self.hook == "start" and trainer.global_step == self.step)

    def on_train_batch_end(self, trainer, *args):
        self.kill_if(self.hook == "end" and trainer.global_step == self.step)

    def on_train_epoch_end(self, trainer, *args):
        self.kill_if(self.hook == "epoch" and trainer.global_step >= self.step)

    @staticmethod
    def kill_if(now):
        if now:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, workers, checkpoint_every, kill=None):
    callbacks = [Measure(every_n_epochs=1, k=5), *([Kill(*kill)] if kill else [])]
    t = trainer(folder, callbacks, max_epochs=3, checkpoint_every=checkpoint_every)
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint:
        t.logger.rewind(torch.load(checkpoint, weights_only=True)["global_step"])
    torch.manual_seed(os.getpid())  # nothing may depend on the generator's state at start
    t.fit(odc(), datamodule=datamodule(num_workers=workers), ckpt_path=checkpoint, weights_only=True)


def rows_but_clocks(folder):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(folder / "metrics.csv")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    train(folder, workers=0, checkpoint_every=None)
    return folder


# Four steps per epoch, twelve in all.
@pytest.mark.parametrize(
    ("workers", "checkpoint_every", "kill"),
    [
        pytest.param(0, 1, (random.choice([1, 2, 5, 6, 9, 10]), "start"), id="mid-epoch"),
        pytest.param(0, 1, (random.choice([2, 3, 5, 7, 9, 11]), "end"), id="before the memory update"),
        pytest.param(0, 3, (random.choice([4, 8]), "end"), id="last batch of an epoch"),
        pytest.param(0, None, (random.choice([4, 8]), "start"), id="between epochs"),
        pytest.param(0, 1, (random.choice([4, 8, 12]), "epoch"), id="end of an epoch"),
        pytest.param(2, 1, (random.choice([3, 6, 7, 10]), "start"), id="mid-epoch, two workers"),
        pytest.param(2, None, (random.choice([5, 9, 11]), "end"), id="epochs only, two workers"),
    ],
)
def test_killed_and_started_again_ends_in_the_same_bits(tmp_path, straight, workers, checkpoint_every, kill):
    process = mp.get_context("spawn").Process(target=train, args=(tmp_path, workers, checkpoint_every, kill))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"was to be killed: {kill}"
    train(tmp_path, workers, checkpoint_every)
    one, other = last_checkpoint(straight), last_checkpoint(tmp_path)
    for checkpoint in (one, other):
        del checkpoint["loops"], checkpoint["callbacks"]
    assert differences(one, other) == [], f"killed at {kill}"
    assert rows_but_clocks(tmp_path) == rows_but_clocks(straight), f"killed at {kill}"


def test_a_finished_run_resumed_does_nothing(straight):
    before = last_checkpoint(straight)
    train(straight, workers=0, checkpoint_every=None)
    assert differences(before["method"], last_checkpoint(straight)["method"]) == []


def test_a_truncated_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, straight, caplog):
    train(tmp_path, workers=0, checkpoint_every=3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    os.truncate(last, last.stat().st_size // 2)
    assert newest_checkpoint(tmp_path / "checkpoints").name == "previous.ckpt"
    assert "last.ckpt cannot be read" in caplog.text
    assert "falling back to the checkpoint before it" in caplog.text
    train(tmp_path, workers=0, checkpoint_every=3)
    assert differences(last_checkpoint(straight)["state_dict"], last_checkpoint(tmp_path)["state_dict"]) == []


def test_another_data_set_or_shape_is_refused_before_any_work(tmp_path, straight):
    checkpoint = straight / "checkpoints" / "last.ckpt"
    for module, data, message in (
        (odc(), datamodule(count=96), "trained on other data: 64 images there, 96 in squares"),
        (odc(num_clusters=5), datamodule(), r"num_clusters \(C\) = 6, this run has 5"),
        (odc(feature_dim=9), datamodule(), r"feature_dim \(D\) = 8, this run has 9"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path).fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        assert not (tmp_path / "metrics.csv").exists()


def test_no_space_left_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    class Full(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:

                def save(*args, **kwargs):
                    raise OSError(28, "No space left on device")

                monkeypatch.setattr(torch, "save", save)

    with pytest.raises(OSError, match=r"No space left on device.*last.ckpt, is untouched: free some space"):
        trainer(tmp_path, [Full()]).fit(odc(), datamodule=datamodule())
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt"]
    assert last_checkpoint(tmp_path)["global_step"] == 4
