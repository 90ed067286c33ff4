"""What a run or a sweep holds at this moment: which job is how far, and with which figures."""

import json
import os
import time

import pytest

from odc_lightning.report.jobs import FAILED_JOBS, LISTED, QUIET, read_jobs
from run_folders import write_evaluation, write_run


def states(folder, **more):
    return {job.name: job.state for job in read_jobs(folder, **more)}


def test_a_finished_run(tmp_path):
    folder = write_run(tmp_path / "one", {"knn/top1": 41.0}, epochs=7, curve={"train/loss": [3.0, 2.0, 1.5]})
    (job,) = read_jobs(folder)
    assert (job.name, job.state, job.epochs, job.max_epochs) == ("one", "finished", 7, 7)
    assert job.results == {"train/loss": 1.5, "knn/top1": 41.0}
    assert job.columns["train/loss"] == ([33.0, 66.0, 100.0], [3.0, 2.0, 1.5])


def test_figures_of_evaluations_count_as_the_jobs(tmp_path):
    folder = write_run(tmp_path / "one", {"knn/top1": 41.0})
    write_evaluation(folder, {"svm/gap/map": 50.0}, protocol="voc07_svm")
    write_evaluation(folder, {"knn/top1": 43.0})
    (job,) = read_jobs(folder)
    assert job.results["svm/gap/map"] == 50.0
    assert job.results["knn/top1"] == 43.0


def test_running_until_nothing_is_logged_any_more(tmp_path):
    folder = write_run(tmp_path / "one", curve={"train/loss": [3.0]})
    (folder / "results.json").unlink()
    (folder / "metrics.csv").write_text("epoch,step,train/loss\n0,10,3.0\n2,30,2.5\n")
    (job,) = read_jobs(folder)
    assert (job.state, job.epochs, job.results) == ("running", 2, {"train/loss": 2.5})
    assert states(folder, now=time.time() + QUIET + 60) == {"one": "stopped"}


def test_a_run_of_which_nothing_is_logged_yet(tmp_path):
    folder = write_run(tmp_path / "one")
    (folder / "results.json").unlink()
    (folder / "metrics.csv").unlink()
    (job,) = read_jobs(folder)
    assert (job.state, job.epochs, job.columns) == ("running", 0, {})


def test_jobs_of_a_sweep_with_those_that_failed_and_those_that_wait(tmp_path):
    for size in (20, 5):
        write_run(tmp_path / f"method.min_cluster_size={size}", {"knn/top1": size})
    unfinished = write_run(tmp_path / "method.min_cluster_size=160")
    (unfinished / "results.json").unlink()
    names = [f"method.min_cluster_size={size}" for size in (5, 20, 40, 80, 160)]
    (tmp_path / LISTED).write_text("".join(f"{name}\n" for name in names))
    (tmp_path / FAILED_JOBS).write_text(f"{names[2]}: out of memory: 3 GB\n{names[4]}: stopped: no space\n")
    jobs = read_jobs(tmp_path)
    assert [job.name for job in jobs] == names
    assert [job.state for job in jobs] == ["finished", "finished", "failed", "waiting", "failed"]
    assert [job.detail for job in jobs] == ["", "", "out of memory: 3 GB", "", "stopped: no space"]
    assert [job.settings for job in jobs] == [{"method.min_cluster_size": str(n)} for n in (5, 20, 40, 80, 160)]


def test_settings_are_those_of_the_name(tmp_path):
    write_run(tmp_path / "data.subset.ratio=64,seed=2")
    write_run(tmp_path / "schedule.milestones=[3,4],seed=2")
    write_run(tmp_path / "plain")
    assert {job.name: job.settings for job in read_jobs(tmp_path)} == {
        "data.subset.ratio=64,seed=2": {"data.subset.ratio": "64", "seed": "2"},
        "schedule.milestones=[3,4],seed=2": {"schedule.milestones": "[3,4]", "seed": "2"},
        "plain": {},
    }


def test_evaluations_of_other_weights_are_no_jobs(tmp_path):
    write_run(tmp_path / "one")
    evaluation = write_evaluation(tmp_path / "x", {"knn/top1": 1.0})
    os.rename(evaluation, tmp_path / "random_resnet")
    assert set(states(tmp_path)) == {"one"}


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"status": "failed", "metrics": {}})])
def test_results_that_say_nothing_are_none(tmp_path, text):
    folder = write_run(tmp_path / "one", {"knn/top1": 41.0})
    (folder / "results.json").write_text(text)
    (job,) = read_jobs(folder)
    assert job.state == "running"
    assert "knn/top1" not in job.results


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dashboard.runs must be the folder of a run"):
        read_jobs(tmp_path)
    with pytest.raises(ValueError, match="dashboard.runs must be the folder of a run"):
        read_jobs(tmp_path / "nothing")
