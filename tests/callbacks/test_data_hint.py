"""The line on loading comes where loading takes long, once, and names the keys."""

import time
from functools import partial

import pytest
from PIL import Image

from helpers import datamodule, odc, trainer
from odc_lightning.callbacks.data_hint import DataHint, advice
from odc_lightning.callbacks.metrics_csv import read_metrics
from odc_lightning.data.augment import EvalTransform, TrainTransform
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.folder import ImageFolder


class Slow(TrainTransform):
    """A transform that takes its time."""

    def __call__(self, image, rng):
        time.sleep(0.02)
        return super().__call__(image, rng)


def hints(tmp_path, monkeypatch, data, **keys):
    said = []
    monkeypatch.setattr("odc_lightning.callbacks.data_hint.say", said.append)
    trainer(tmp_path, [DataHint(**keys)], max_epochs=2).fit(odc(log_every_n_steps=1), datamodule=data)
    return said


def test_it_is_said_once(tmp_path, monkeypatch):
    data = datamodule(count=96, batch_size=8)
    data.transform = Slow(12)
    (line,) = hints(tmp_path, monkeypatch, data)
    assert line.startswith("Data is the bottleneck: waiting for images takes ")
    assert int(line.split(" % ")[0].split("takes ")[-1].rstrip("%")) / 100 >= 0.25 if " % " in line else "%" in line
    assert "data.num_workers=" in line
    assert "data.store" not in line  # images in memory
    rows = read_metrics(tmp_path / "metrics.csv")
    waits = [row.get("time/data") for row in rows if "time/step" in row]
    assert [wait is None for wait in waits] == [number % 12 == 0 for number in range(24)]  # not between epochs
    assert all(wait > 0.1 for wait in waits if wait is not None)


def test_it_is_not_said_where_loading_is_quick(tmp_path, monkeypatch):
    assert hints(tmp_path, monkeypatch, datamodule(count=96, batch_size=8), share=0.9) == []


def test_short_epochs_tell_nothing(tmp_path, monkeypatch):
    data = datamodule(count=64, batch_size=8)
    data.transform = Slow(12)
    assert hints(tmp_path, monkeypatch, data) == []


def test_advice_for_files(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / f"{name}.png")
    source = partial(ImageFolder, tmp_path / "images", cache_dir=tmp_path)
    data = DataModule(source, TrainTransform(8), EvalTransform(8, 8), batch_size=2, num_workers=1)
    monkeypatch.setattr(data, "cores_per_device", lambda: 4)
    keys = "data.num_workers=4 (now 1, for 4 cores per device)", "data.store=<folder> (once: the same data keys with"
    assert all(key in advice(data) for key in keys)
    data.num_workers, data.store = 4, "store"
    assert advice(data) == "It needs more cores, or a lighter augment."


def test_a_wrong_share_is_refused():
    with pytest.raises(ValueError, match="callbacks.data_hint.share must be a number from 0 to 1. Received: 25"):
        DataHint(25)
