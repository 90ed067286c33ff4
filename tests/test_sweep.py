"""Sweeps of chains that train and then measure: what is left behind, what is refused, how a broken-off one goes on."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app_runner import TINY, TINY_FOLDER, command, kill_when, run, run_alone, write_images
from helpers import differences, last_checkpoint
from odc_lightning.callbacks.metrics_csv import read_metrics
from odc_lightning.data import subset
from odc_lightning.report import dashboard
from odc_lightning.report.dashboard import write_dashboard
from odc_lightning.report.jobs import read_jobs
from odc_lightning.tasks.sweep import sweep_job


@pytest.fixture(autouse=True)
def draws(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(subset, "DEFAULT_CACHE", tmp_path_factory.mktemp("draws"))


@pytest.fixture
def chain(images, tmp_path):
    """Arguments of a chain on those images; its folder is tmp_path/small."""
    own = [f"run.root={tmp_path}", "run.name=small", f"data.root={images}", f"data.cache_dir={tmp_path}"]
    quick = ["callbacks.clusters=null", "callbacks.measure.knn=false", "data.batch_size=8"]
    return [*TINY_FOLDER, *own, *quick, "task=train_evaluate", "protocol=knn", "protocol.ks=[5]", "protocol.k=5"]


def metrics(folder):
    return json.loads((folder / "results.json").read_text())["metrics"]


def jobs(folder):
    return sorted(path.parent.name for path in folder.glob("*/results.json"))


# -- the chain ---------------------------------------------------------------------------------------------------------


def test_a_chain_trains_and_measures_and_is_done_when_both_are(chain, tmp_path):
    outcome = run(*chain)
    assert outcome.code == 0, outcome.text
    small = tmp_path / "small"
    measured = small / "evaluations" / "knn"
    assert set(metrics(measured)) == {"knn/top1", "knn/5/top1"}
    assert "train/loss" in metrics(small)
    assert run(*chain).text.count("is finished; nothing to do") == 2
    alone = run("task=evaluate", f"init.path={small}", *chain[-2:], f"run.root={tmp_path}", "data.num_workers=0")
    assert "is finished; nothing to do" in alone.text
    found = metrics(measured)
    shutil.rmtree(measured)
    again = run(*chain)
    assert again.text.count("is finished; nothing to do") == 1
    assert metrics(measured) == found


def test_a_chain_measures_on_other_images(chain, tmp_path):
    others = write_images(tmp_path / "others" / "train", 20, ("a", "b", "c")).parent
    write_images(others / "val", 6, ("a", "b", "c"))
    outcome = run(*chain, "measure=folder", f"measure.root={others}", f"measure.cache_dir={tmp_path}", "baseline=true")
    assert outcome.code == 0, outcome.text
    results = json.loads((tmp_path / "small" / "evaluations" / "knn" / "results.json").read_text())
    assert (results["split"]["train"]["images"], results["split"]["val"]["images"]) == (20, 6)
    assert {"knn/top1", "knn/top1_untrained", "knn/top1_pixels"} <= results["metrics"].keys()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["measure=folder"], "measure.root must name a folder of images"),
        (["measure=voc2007", "measure.root=nowhere"], "measure.root must be the folder of VOCdevkit"),
        (["protocol=linear", "protocol.layers=[conv9]"], "conv9"),
        (["protocol.num_classes=7"], "protocol.num_classes=7"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_training(chain, tmp_path, args, message):
    base = chain if args[0] != "protocol=linear" else [arg for arg in chain if not arg.startswith("protocol")]
    outcome = run(*base, *args)
    assert outcome.code == 1
    assert message in outcome.text
    assert "Traceback" not in outcome.text
    assert not (tmp_path / "small" / "checkpoints").exists()


@pytest.mark.slow
def test_a_chain_on_two_processes_measures_on_one(chain, tmp_path):
    outcome = run_alone(*chain, "trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")
    assert outcome.code == 0, outcome.text
    results = json.loads((tmp_path / "small" / "evaluations" / "knn" / "results.json").read_text())
    assert results["device"].startswith("1 x")
    assert json.loads((tmp_path / "small" / "results.json").read_text())["device"].startswith("2 x")


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_a_sweep_of_the_group_runs_chains_and_the_command_line_goes_before_it(chain, tmp_path):
    args = ["-m", *chain, "sweep=min_cluster_size", "measure=none", "method.min_cluster_size=2,3"]
    outcome = run(*args)
    assert outcome.code == 0, outcome.text
    assert jobs(tmp_path / "small") == ["method.min_cluster_size=2", "method.min_cluster_size=3"]
    for job in jobs(tmp_path / "small"):
        assert "knn/top1" in metrics(tmp_path / "small" / job / "evaluations" / "knn")
    outcome = run(*args)
    assert outcome.text.count("is finished; nothing to do") == 4
    assert not (tmp_path / "small" / "failed_jobs.txt").exists()


def test_jobs_are_named_by_what_the_sweep_and_the_command_line_vary(monkeypatch):
    def named(arguments, *overrides):
        monkeypatch.setenv("ODC_ARGUMENTS", "\n".join(["-m", *arguments]))
        return sweep_job(overrides)

    swept = "method.centroid_update_interval=10"
    assert named(["sweep=update_interval"], swept, "sweep=update_interval") == swept
    assert named(["sweep=update_interval", "seed=1,2"], swept, "sweep=update_interval", "seed=2") == f"{swept},seed=2"
    assert named(["~experiment", "seed=1,2"], "~experiment", "seed=2") == "seed=2"
    assert named(["+data.new=1,2", "data=folder"], "+data.new=1", "data=folder") == "+data.new=1"


def test_the_long_tail_is_swept_and_every_job_keeps_its_draw(chain, tmp_path):
    draw = ["subset=classes", "data.subset.num_images=20", "data.subset.file=null", "data.subset.ratio=1,4"]
    outcome = run("-m", *chain, "sweep=longtail", "measure=none", *draw)
    assert outcome.code == 0, outcome.text
    for ratio, expected in ((1, [10, 10]), (4, [4, 16])):
        rows = (tmp_path / "small" / f"data.subset.ratio={ratio}" / "subset.csv").read_text().splitlines()[2:]
        assert sorted(sum(row.endswith(f",{kind}") for row in rows) for kind in "ab") == expected


def test_a_sweep_with_an_impossible_cell_is_refused_before_anything_runs(chain, tmp_path):
    outcome = run("-m", *chain, "sweep=min_cluster_size", "measure=none", "method.min_cluster_size=2,16,3,99")
    assert outcome.code == 1
    assert "Error: nothing was started, for 2 jobs of the sweep cannot run:" in outcome.text
    for size in (16, 99):
        assert re.search(rf"\n  method.min_cluster_size={size}: .*min_cluster_size can be at most 15", outcome.text)
    assert "Traceback" not in outcome.text
    assert list((tmp_path / "small").iterdir()) == []


def test_a_subset_larger_than_the_data_is_such_a_cell(chain, tmp_path):
    outcome = run("-m", *chain, "subset=classes", "data.subset.num_images=24,49")
    assert outcome.code == 1
    assert "data.subset.num_images=49: data.subset.num_images must be at most 48, the images of the 2" in outcome.text
    assert list((tmp_path / "small").iterdir()) == []


def test_what_is_wrong_with_all_jobs_is_said_once(tmp_path):
    outcome = run("-m", "sweep=update_interval", f"run.root={tmp_path}", "trainer=cpu")
    assert outcome.code == 1
    assert outcome.text.strip().startswith("Error: no job of the sweep can run: data.root must name a folder of images")


def broken(tmp_path):
    """Images of which one cannot be read: seen only when it is loaded."""
    root = tmp_path / "broken"
    for split in ("train", "val"):
        write_images(root / split, 12)
    (root / "train" / "a" / "000.jpg").write_bytes(b"no image")
    return root


def test_a_failed_job_is_reported_at_the_end_and_does_not_stop_the_others(chain, images, tmp_path):
    args = [arg for arg in chain if not arg.startswith("data.root=")]
    outcome = run("-m", *args, f"data.root={images},{broken(tmp_path)}", "seed=1,2")
    assert outcome.code == 1
    assert len(jobs(tmp_path / "small")) == 2
    last = outcome.text.rstrip().splitlines()[-3:]
    assert last[0] == "2 jobs of the sweep failed:"
    for line, seed in zip(last[1:], (1, 2), strict=True):
        assert re.match(rf"  data.root=.*broken,seed={seed}: .*000.jpg", line)
    assert (tmp_path / "small" / "failed_jobs.txt").read_text().splitlines() == [line.strip() for line in last[1:]]
    assert sorted(job.state for job in read_jobs(tmp_path / "small")) == ["failed", "failed", "finished", "finished"]


def test_the_page_of_a_running_sweep_is_new_after_each_job(chain, tmp_path, monkeypatch):
    small, seen = tmp_path / "small", []

    def spy(folder):
        if Path(folder).resolve() == small.resolve():
            seen.append([(job.state, "knn/top1" in job.results) for job in read_jobs(folder)])
        return write_dashboard(folder)

    monkeypatch.setattr(dashboard, "write_dashboard", spy)
    outcome = run("-m", *chain, "seed=1,2")
    assert outcome.code == 0, outcome.text
    waiting, done = ("waiting", False), ("finished", True)
    assert seen == [[waiting, waiting], [done, waiting], [done, done]]
    assert f"{small / 'index.html'}: the sweep's page" in outcome.text
    assert (small / "seed=1" / "index.html").exists()


def test_a_sweep_of_something_else_has_no_page(tmp_path):
    outcome = run("-m", "task=report", f"report.runs={tmp_path}", f"report.out={tmp_path / 'a'},{tmp_path / 'b'}")
    assert outcome.code == 0, outcome.text
    assert "the sweep's page" not in outcome.text


@pytest.mark.slow
def test_joblib_runs_chains_and_a_failing_one_is_named(chain, images, tmp_path):
    args = [arg for arg in chain if not arg.startswith("data.root=")]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    outcome = run_alone("-m", *args, f"data.root={images},{broken(tmp_path)}", *launcher)
    assert outcome.code == 1
    assert "1 job of the sweep failed:\n" in outcome.text
    assert len(list((tmp_path / "small").rglob("evaluations/knn/results.json"))) == 1
    assert sorted(job.state for job in read_jobs(tmp_path / "small")) == ["failed", "finished"]
    assert '"state":"failed"' in (tmp_path / "small" / "index.html").read_text()


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_and_started_again_gives_what_one_that_ran_through_gives(tmp_path):
    tiny = ["experiment=odc_mnist5k", *TINY, "backbone.width=4", "trainer.max_epochs=3", "schedule.milestones=[2]"]
    tiny += ["callbacks.clusters=null", "callbacks.measure=null", f"run.root={tmp_path}", "subset=classes"]
    tiny += [f"data.subset.file={tmp_path / 'draw.csv'}", "callbacks.checkpoints.every_n_steps=1"]
    tiny += ["data.subset.num_images=1000", "data.batch_size=32", "protocol=knn", "measure=none"]
    tiny = [arg for arg in tiny if not arg.startswith("callbacks.measure.")]
    args = ["-m", "sweep=update_interval", *tiny, "method.centroid_update_interval=1,5,10"]
    assert run_alone(*args, "run.name=through").code == 0
    process = subprocess.Popen(command(*args, "run.name=killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    names = [f"method.centroid_update_interval={k}" for k in (1, 5, 10)]
    kill_when(process, tmp_path / "killed" / names[1] / "checkpoints" / "previous.ckpt")
    assert jobs(tmp_path / "killed") == names[:1]
    outcome = run_alone(*args, "run.name=killed")
    assert outcome.code == 0, outcome.text
    assert outcome.text.count("Continuing from") == 1
    for name in names:
        through, killed = (tmp_path / sweep / name for sweep in ("through", "killed"))
        assert _but_for_time(metrics(through)) == _but_for_time(metrics(killed))
        assert metrics(through / "evaluations" / "knn") == metrics(killed / "evaluations" / "knn")
        assert not differences(last_checkpoint(through)["state_dict"], last_checkpoint(killed)["state_dict"])
        assert len(read_metrics(through / "metrics.csv")) == len(read_metrics(killed / "metrics.csv"))


def _but_for_time(found):
    return {name: value for name, value in found.items() if not name.startswith("time/")}


@pytest.mark.parametrize("name", [path.stem for path in (Path(__file__).parents[1] / "conf" / "sweep").glob("*.yaml")])
def test_every_sweep_composes(name):
    outcome = run(
        f"sweep={name}", "data.root=/data", *([] if name == "none" else ["measure.root=/voc"]), "--cfg", "job"
    )
    assert outcome.code == 0, outcome.text
