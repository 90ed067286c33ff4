import json

import pytest
import yaml

from odc_lightning.tasks.run_folder import RunFolder, config_hash, versions


def config(**changes):
    whole = {
        "seed": 0,
        "run": {"name": "a"},
        "method": {"momentum": 0.5, "num_clusters": 10, "log_every_n_steps": 50},
        "data": {"batch_size": 64, "num_workers": 2, "root": "/one", "source": {"root": "/one"}},
        "trainer": {"max_epochs": 10, "devices": 1, "precision": "32-true"},
    }
    for dotted, value in changes.items():
        node = whole
        *path, last = dotted.split("__")
        for key in path:
            node = node[key]
        node[last] = value
    return whole


@pytest.mark.parametrize(
    "change",
    [
        {"data__num_workers": 8},
        {"data__root": "/two", "data__source": {"root": "/two"}},
        {"trainer__devices": 8},
        {"trainer__max_epochs": 20},
        {"method__log_every_n_steps": 1},
        {"run": {"name": "b"}},
    ],
)
def test_what_may_change_between_two_starts(tmp_path, change):
    RunFolder(tmp_path, config()).write_config()
    RunFolder(tmp_path, config()).results.touch()
    RunFolder(tmp_path, config(**change)).require_same_run()


def test_other_settings_are_refused_by_name(tmp_path):
    RunFolder(tmp_path, config()).write_config()
    RunFolder(tmp_path, config(method__momentum=0.3)).require_same_run()  # nothing to lose yet
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"method.momentum: 0.5 there, 0.3 now\n(.*\n)?.*run.name=.*resume=never"):
        RunFolder(tmp_path, config(method__momentum=0.3)).require_same_run()
    with pytest.raises(ValueError, match="trainer.precision: 32-true there, bf16-mixed now"):
        RunFolder(tmp_path, config(trainer__precision="bf16-mixed")).require_same_run()


def test_finished_means_these_settings_and_this_length(tmp_path):
    folder = RunFolder(tmp_path, config())
    assert folder.finished() is None
    folder.write_config()
    folder.write_results("train", {"train/loss": 1.5}, "cpu", 3.21)
    assert folder.finished()["metrics"] == {"train/loss": 1.5}
    assert RunFolder(tmp_path, config(trainer__max_epochs=20)).finished() is None
    assert RunFolder(tmp_path, config(seed=1)).finished() is None
    written = json.loads((tmp_path / "results.json").read_text())
    assert set(written) == {"task", "status", "metrics", "config_hash", "versions", "device", "seconds"}
    assert written["config_hash"] == config_hash(config())
    assert written["versions"]["torch"] == versions()["torch"]


def test_starting_over_keeps_what_was_there(tmp_path):
    path = tmp_path / "run"
    for number in (1, 2):
        folder = RunFolder(path, config(seed=number))
        folder.write_config()
        (path / "run.log").write_text("log")
        assert folder.set_aside() == tmp_path / f"run.{number}"
        assert yaml.safe_load((tmp_path / f"run.{number}" / "config.yaml").read_text())["seed"] == number
        assert [file.name for file in path.iterdir()] == ["run.log"]
    assert RunFolder(path, config()).set_aside() is None
