"""task=report as people use it."""

import csv
import shutil
from pathlib import Path

import pytest

from app_runner import run
from run_folders import write_evaluation, write_run

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def report(tmp_path, *more):
    return run("task=report", f"report.runs={tmp_path / 'runs'}", f"report.out={tmp_path / 'out'}", *more)


def two_dossiers(tmp_path):
    for name in ("fig1_loss", "table3_voc07_svm"):
        shutil.copytree(EXPERIMENTS / name, tmp_path / "experiments" / name)
    return f"report.experiments={tmp_path / 'experiments'}"


def test_from_run_folders_to_the_page(tmp_path):
    full = {"backbone": "resnet50", "data": "imagenet", "batch_size": 512, "size": 224, "clusters": 10000}
    big = write_run(tmp_path / "runs" / "big", {"train/loss": 2.0}, steps=480 * 2502, epochs=480, **full)
    svm = {"protocol": "voc07_svm", "data": "voc2007", "backbone": "resnet50", "size": 224}
    write_evaluation(big, {"svm/conv5/map": 78.0, "svm/map": 78.0}, settings={"costs": None, "folds": 3}, **svm)
    write_run(tmp_path / "runs" / "small", {"train/loss": 3.0})
    (write_run(tmp_path / "runs" / "half", seed=1) / "results.json").unlink()
    outcome = report(tmp_path, two_dossiers(tmp_path))
    assert outcome.code == 0, outcome.text
    assert "3 finished trainings and evaluations" in outcome.text
    assert "table3_voc07_svm: 1 cells at full size, 0 in small, 19 missing" in outcome.text
    assert f"{tmp_path / 'runs' / 'half'}: unfinished: no results.json yet" in outcome.text
    lines = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    found = {
        (line["dossier"], line["row"], line["column"], line["mark"]): line["mean"] for line in lines if line["mean"]
    }
    assert found == {
        ("fig1_loss", "ODC", "loss at the end", "full size"): "2.0",
        ("fig1_loss", "ODC", "loss at the end", "in small"): "3.0",
        ("table3_voc07_svm", "ODC", "SVM", "full size"): "78.0",
    }
    assert (tmp_path / "out" / "index.html").exists()
    assert not (tmp_path / "runs" / "run.log").exists(), "a report only reads"


@pytest.mark.slow
def test_by_default_it_draws_every_dossier_of_the_repository(tmp_path):
    write_run(tmp_path / "runs" / "a", {"train/loss": 3.0})
    outcome = report(tmp_path)
    assert outcome.code == 0, outcome.text
    drawn = {path.parent.name for path in (tmp_path / "out").glob("*/figure.png")}
    assert drawn == {path.parent.name for path in EXPERIMENTS.glob("*/dossier.yaml")}


def test_what_cannot_work_is_said_in_one_message(tmp_path):
    outcome = report(tmp_path)
    assert outcome.code == 1
    assert f"Error: report.runs must be an existing folder. Received: {tmp_path / 'runs'}" in outcome.text
    (tmp_path / "runs").mkdir()
    outcome = report(tmp_path, f"report.experiments={tmp_path}")
    assert outcome.code == 1
    assert "report.experiments must be a folder of dossiers" in outcome.text
    assert "Traceback" not in outcome.text
    assert not (tmp_path / "out" / "index.html").exists()
