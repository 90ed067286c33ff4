"""last.ckpt, previous.ckpt and kept epochs: when they are written, what they hold, which one is taken up."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from helpers import datamodule, differences, last_checkpoint, odc, trainer
from odc_lightning.callbacks.checkpoint_file import LARGE, CheckpointFile
from odc_lightning.callbacks.checkpoints import Checkpoints, newest_checkpoint
from odc_lightning.callbacks.metrics_csv import MetricsCSV


class Recorded(Checkpoints):
    """Notes at which step and after how many batches each file was written."""

    def write(self, trainer, kept=None):
        super().write(trainer, kept)
        self.file.wait()
        checkpoint = torch.load(self.folder / "last.ckpt", weights_only=True)
        self.written.append((checkpoint["global_step"], checkpoint["method"]["iteration"]))


def fit(folder, checkpoint=None, data=None, max_epochs=3, accumulate=1, large=LARGE, kind=Recorded, **keys):
    """Train on 64 images in batches of 16, four steps an epoch; returns the callback."""
    callback = kind(folder, **keys)
    callback.file.large = large
    callback.written = []
    pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[callback],
        logger=MetricsCSV(folder / "metrics.csv"),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    ).fit(odc(), datamodule=data or datamodule(), ckpt_path=checkpoint, weights_only=True)
    return callback


def steps_in(folder):
    return {file.name: torch.load(file, weights_only=True)["global_step"] for file in folder.glob("*.ckpt")}


def test_last_and_the_one_before_it(tmp_path):
    callback = fit(tmp_path)
    assert [step for step, _ in callback.written] == [4, 8, 12]
    assert steps_in(tmp_path) == {"last.ckpt": 12, "previous.ckpt": 8}


def test_by_steps_and_at_epoch_ends_once_each(tmp_path):
    callback = fit(tmp_path, every_n_steps=3)
    assert [step for step, _ in callback.written] == [3, 4, 6, 8, 9, 12]
    assert all(step == iteration for step, iteration in callback.written), "a checkpoint of n steps holds n updates"


def test_by_minutes_within_long_epochs(tmp_path):
    data = datamodule(count=96, batch_size=2)  # 48 steps an epoch; the clock is asked every 20th
    often = fit(tmp_path / "a", data=data, max_epochs=1, every_n_minutes=1e-9)
    assert [step for step, _ in often.written] == [20, 40, 48]
    data = datamodule(count=96, batch_size=2)
    assert [step for step, _ in fit(tmp_path / "b", data=data, max_epochs=1, every_n_minutes=None).written] == [48]


def test_never_in_the_middle_of_accumulated_gradients(tmp_path):
    """Gradients are in no checkpoint: one written between two parts of a step would lose half of it."""
    straight = fit(tmp_path / "straight", accumulate=2, every_n_steps=1)
    assert straight.written == [(step, 2 * step) for step in range(1, 13)]
    stopped = fit(tmp_path / "stopped", accumulate=2, every_n_steps=1, max_epochs=1)
    again = fit(tmp_path / "stopped", tmp_path / "stopped" / "previous.ckpt", accumulate=2, every_n_steps=1)
    assert stopped.written + again.written[1:] == straight.written
    weights = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("straight", "stopped")]
    assert differences(*(checkpoint["state_dict"] for checkpoint in weights)) == []


def test_kept_epochs_are_links_that_outlive_the_rotation(tmp_path):
    fit(tmp_path, max_epochs=5, keep_every_n_epochs=2)
    assert steps_in(tmp_path) == {"last.ckpt": 20, "previous.ckpt": 16, "epoch=0002.ckpt": 8, "epoch=0004.ckpt": 16}
    assert os.path.samefile(tmp_path / "epoch=0004.ckpt", tmp_path / "previous.ckpt")


def test_files_are_moved_and_kept_epochs_copied_where_the_disk_has_no_links(tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    fit(tmp_path, max_epochs=3, keep_every_n_epochs=2)
    assert steps_in(tmp_path) == {"last.ckpt": 12, "previous.ckpt": 8, "epoch=0002.ckpt": 8}


def test_a_file_is_never_seen_half_written_and_last_never_missing(tmp_path, monkeypatch):
    replaced, replace = [], os.replace

    def watched(source, target):
        replaced.append((os.path.basename(source), os.path.basename(target), (tmp_path / "last.ckpt").exists()))
        torch.load(source, weights_only=True)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    fit(tmp_path, max_epochs=3)
    assert replaced == [("writing.ckpt", "last.ckpt", existed) for existed in (False, True, True)]
    assert steps_in(tmp_path) == {"last.ckpt": 12, "previous.ckpt": 8}


def test_written_in_the_background_they_are_the_same(tmp_path):
    for name, large in (("in turn", LARGE), ("beside", 0)):
        fit(tmp_path / name, large=large, every_n_steps=3, keep_every_n_epochs=2)
    assert steps_in(tmp_path / "beside") == steps_in(tmp_path / "in turn")
    for file in (tmp_path / "beside").glob("*.ckpt"):
        ours, theirs = (torch.load(tmp_path / name / file.name, weights_only=True) for name in ("beside", "in turn"))
        assert differences(ours["state_dict"], theirs["state_dict"]) == []
        assert differences(ours["method"]["memory"], theirs["method"]["memory"]) == []


class NotWaiting(Checkpoints):
    def on_train_batch_end(self, trainer, *args, **kwargs):
        super().on_train_batch_end(trainer, *args, **kwargs)
        if (self.folder / "writing.ckpt").exists():
            self.meanwhile = getattr(self, "meanwhile", 0) + 1


def test_training_goes_on_while_a_file_is_written(tmp_path, monkeypatch):
    save = torch.save

    def slow(checkpoint, path):
        save(checkpoint, path)
        time.sleep(1)  # in the fork

    monkeypatch.setattr(torch, "save", slow)
    callback = fit(tmp_path, kind=NotWaiting, large=0, max_epochs=2)
    assert callback.meanwhile >= 3, "batches of the second epoch while the first one's file was written"
    assert steps_in(tmp_path) == {"last.ckpt": 8, "previous.ckpt": 4}


def test_a_file_holds_what_was_there_when_it_began(tmp_path):
    values, file = torch.zeros(2**22), CheckpointFile(large=0)
    file.then = lambda: os.replace(tmp_path / "a.writing", tmp_path / "a.ckpt")
    file.save_checkpoint({"values": values}, tmp_path / "a.writing")
    values.fill_(1)
    file.wait()
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["values"].sum() == 0


def test_what_lightning_passes_between_processes_is_there_at_once(tmp_path):
    """By the same file it hands the weights of spawned processes over."""
    file = CheckpointFile(large=0)
    file.save_checkpoint({"values": torch.zeros(3)}, tmp_path / "weights.ckpt")
    assert torch.load(tmp_path / "weights.ckpt", weights_only=True)["values"].sum() == 0


@pytest.mark.parametrize("how", ["error", "killed"])
def test_a_failure_in_the_background_is_told_at_the_next_look(tmp_path, monkeypatch, how):
    def failing(checkpoint, path):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", failing)
    said = "No space left on device" if how == "error" else "ended with code -9"
    with pytest.raises(OSError, match=f"could not write a checkpoint to .*{said}"):
        fit(tmp_path, kind=Checkpoints, large=0, max_epochs=1)
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_writer_ends_with_its_training(tmp_path):
    """Else a run that is started again at once would write beside it."""
    code = """
import os, sys, time, torch
from odc_lightning.callbacks.checkpoint_file import CheckpointFile
def slow(checkpoint, path):
    open(path, "w").write(str(os.getpid()))
    time.sleep(60)
torch.save = slow
file = CheckpointFile(large=0)
file.then = lambda: None
file.save_checkpoint({}, sys.argv[1])
while not (os.path.exists(sys.argv[1]) and open(sys.argv[1]).read()):
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.ckpt")], timeout=120)
    writer = int((tmp_path / "a.ckpt").read_text())
    for _ in range(100):
        try:
            os.kill(writer, 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{writer}/stat").read_text().rsplit(")")[1].split()[0]
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the writer goes on")


def test_the_folder_is_below_the_trainers_by_default(tmp_path):
    callback = Checkpoints()
    pl_trainer = trainer(tmp_path, [callback], max_epochs=1)
    pl_trainer.fit(odc(), datamodule=datamodule())
    assert callback.folder == tmp_path / "checkpoints"


def test_the_newest_that_can_be_read_is_taken(tmp_path, caplog):
    assert newest_checkpoint(tmp_path) is None
    fit(tmp_path, max_epochs=4, keep_every_n_epochs=1)
    os.unlink(tmp_path / "epoch=0004.ckpt")  # the same file as last.ckpt
    order = ["last.ckpt", "previous.ckpt", "epoch=0002.ckpt", "epoch=0001.ckpt"]  # epoch=0003 is previous.ckpt
    for name, before in pairwise(order):
        assert newest_checkpoint(tmp_path).name == name
        os.truncate(tmp_path / name, 1000)
        caplog.clear()
        assert newest_checkpoint(tmp_path).name == before
        assert f"{name} cannot be read" in caplog.text
    os.truncate(tmp_path / "epoch=0001.ckpt", 0)
    with pytest.raises(ValueError, match=r"none of the 5 checkpoints in .* can be read.*resume=never"):
        newest_checkpoint(tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {}, "pytorch-lightning_version": pl.__version__}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no odc-lightning run"):
        fit(tmp_path, tmp_path / "other.ckpt")


def test_a_run_that_ended_holds_everything(tmp_path):
    t = trainer(tmp_path)
    module = odc()
    t.fit(module, datamodule=datamodule())
    saved = last_checkpoint(tmp_path)
    assert differences(saved["state_dict"], module.state_dict()) == []
    assert torch.equal(saved["method"]["memory"]["labels"], module.memory.labels_N)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"every_n_steps": 0}, "callbacks.checkpoints.every_n_steps must be at least 1. Received: 0"),
        ({"keep_every_n_epochs": -1}, "callbacks.checkpoints.keep_every_n_epochs must be at least 1. Received: -1"),
        ({"every_n_minutes": 0}, "callbacks.checkpoints.every_n_minutes must be above 0. Received: 0"),
    ],
)
def test_intervals_are_checked(keys, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(**keys)
