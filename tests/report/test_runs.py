"""Which folders count, and why the others do not."""

import hashlib
import json

import pytest
import yaml

from odc_lightning.report.facts import facts, matches
from odc_lightning.report.runs import find_runs
from odc_lightning.tasks.evaluation_folder import evaluation_hash
from odc_lightning.tasks.run_folder import config_hash
from run_folders import write_evaluation, write_run

HASHES = {"train": config_hash, "evaluate": evaluation_hash}


def reasons(root):
    return {left.folder.relative_to(root).as_posix(): left.reason for left in find_runs(root, HASHES).left_out}


def test_finished_trainings_and_their_evaluations_are_found(tmp_path):
    run = write_run(tmp_path / "sweep" / "a", {"train/loss": 2.5}, seed=3)
    write_evaluation(run, {"knn/top1": 50.0})
    random = {"file": None, "pretrained": None, "sha256": None}
    write_evaluation(tmp_path / "random", {"knn/top1": 10.0}, weights=random, seed=7)
    found = find_runs(tmp_path, HASHES)
    assert found.left_out == []
    random, training, evaluation = found.runs
    assert (training.metrics, training.seed) == ({"train/loss": 2.5}, 3)
    assert (evaluation.metrics, evaluation.seed, evaluation.trained) == ({"knn/top1": 50.0}, 3, training)
    assert (random.trained, random.seed) == (None, 7)
    assert [facts(run)["method"] for run in found.runs] == ["random", "odc", "odc"]


def change(path, **keys):
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda run: (run / "results.json").unlink(), "unfinished: no results.json yet"),
        (lambda run: change(run / "results.json", status="running"), "unfinished: its status is 'running'"),
        (lambda run: (run / "config.yaml").unlink(), "foreign: results.json without config.yaml"),
        (lambda run: (run / "config.yaml").write_text("lr: 1"), "foreign: config.yaml is not one of a run"),
        (lambda run: (run / "config.yaml").write_text("[1"), "damaged: config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_text("- 1"), "foreign: config.yaml is not one of a run"),
        (lambda run: (run / "results.json").write_text('{"task": "tr'), "damaged: results.json cannot be read"),
        (lambda run: (run / "results.json").write_bytes(b"\xff\xfe"), "damaged: results.json cannot be read"),
        (lambda run: (run / "results.json").write_text("[]"), "foreign: results.json is not one of a run"),
        (lambda run: (run / "results.json").write_text('{"accuracy": 1}'), "foreign: results.json is not one of a run"),
        (
            lambda run: change(run / "results.json", metrics={"loss": "low"}),
            "foreign: results.json is not one of a run",
        ),
        (lambda run: change(run / "results.json", task="cook"), "results of task=cook"),
        (lambda run: change(run / "results.json", config_hash="old"), "was started again"),
    ],
)
def test_what_is_no_finished_run_is_left_out_with_its_reason(tmp_path, harm, reason):
    harm(write_run(tmp_path / "a"))
    assert find_runs(tmp_path, HASHES).runs == []
    assert reason in reasons(tmp_path)["a"]


def test_longer_training_in_the_same_folder_is_not_taken_for_finished(tmp_path):
    run = write_run(tmp_path / "a", epochs=4)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 8
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "other settings than config.yaml" in reasons(tmp_path)["a"]


def test_runs_that_were_started_over_do_not_count_twice(tmp_path):
    for name in ("a", "a.1", "v1.5"):
        write_run(tmp_path / name)
    assert reasons(tmp_path) == {"a.1": "moved aside: a was started over (resume=never)"}


def test_files_of_wandb_and_hidden_folders_are_no_runs(tmp_path):
    run = write_run(tmp_path / "a")
    for folder in (run / "wandb" / "offline-run-1" / "files", tmp_path / ".trash" / "b"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("wandb_version: 1")
    assert reasons(tmp_path) == {}


def test_evaluations_count_for_finished_trainings_and_their_present_weights_only(tmp_path):
    run = write_run(tmp_path / "a")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    write_evaluation(run, {"knn/top1": 1.0}, weights={"file": "last.ckpt", "sha256": digest})
    assert reasons(tmp_path) == {}
    (run / "checkpoints" / "last.ckpt").write_bytes(b"trained on")
    assert reasons(tmp_path) == {"a/evaluations/knn": "of other weights than a has now: measure it again"}
    (run / "results.json").unlink()
    assert reasons(tmp_path)["a/evaluations/knn"] == "of a training that does not count: a"


def test_figures_that_are_not_finite_are_named(tmp_path):
    write_run(tmp_path / "a", {"train/loss": float("nan"), "knn/top1": 3.0})
    found = find_runs(tmp_path, HASHES)
    assert found.runs[0].metrics == {"knn/top1": 3.0}
    assert reasons(tmp_path) == {"a": "train/loss is not a finite number"}


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"report.runs must be an existing folder. Received: .*nothing"):
        find_runs(tmp_path / "nothing")


def test_facts_of_a_fine_tuned_run(tmp_path):
    first = write_run(tmp_path / "rotation_r50", method="rotation")
    write_run(tmp_path / "tuned", start="runs/rotation_r50", batch_size=512, steps=10008, epochs=4)
    runs = {run.folder.name: run for run in find_runs(tmp_path, HASHES).runs}
    found = facts(runs["tuned"], {first.resolve(): runs["rotation_r50"]})
    assert found == {
        "task": "train",
        "method": "odc",
        "backbone": "small_resnet",
        "trained_on": "folder",
        "measured_on": None,
        "epochs": 4,
        "images": 1281024,
        "measured_images": None,
        "start": "rotation",
        "origin": "rotation",
    }
    assert facts(runs["tuned"])["start"] == "rotation_r50"
    assert facts(runs["rotation_r50"])["origin"] == "rotation"


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"method": "odc", "backbone": "*resnet"}, True),
        ({"method": ["deepcluster", "odc"]}, True),
        ({"method": "deepcluster"}, False),
        ({"start": None}, True),
        ({"start": "*"}, False),
        ({"images": ">=1600"}, True),
        ({"images": ">=1601"}, False),
        ({"measured_images": ">=0"}, False),
        ({"method.num_clusters": 50, "trainer.max_epochs": 4}, True),
        ({"method.num_clusters": 51}, False),
        ({"method.nonsense.deeper": 1}, False),
        ({"seed": False}, False),
    ],
)
def test_filters(tmp_path, wanted, fits):
    write_run(tmp_path / "a")
    run = find_runs(tmp_path).runs[0]
    assert matches(wanted, run, facts(run)) is fits
