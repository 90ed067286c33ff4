"""The command line as people use it."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from app_runner import TINY, TINY_FOLDER, command, run, run_alone, write_images
from helpers import differences, last_checkpoint
from odc_lightning.callbacks.metrics_csv import read_metrics


def tiny(tmp_path, *more):
    return [f"run.root={tmp_path}", "trainer.max_epochs=1", *TINY, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    outcome = run(*tiny(root))
    assert outcome.code == 0, outcome.text
    return root, outcome


def test_the_run_folder_holds_what_is_promised(finished):
    root, outcome = finished
    folder = root / "demo"
    files = ["config.yaml", "metrics.csv", "results.json", "run.png", "run.log"]
    for name in (*files, "checkpoints/last.ckpt", "clusters/assignments.csv"):
        assert (folder / name).stat().st_size > 0, name
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "finished"
    names = {"train/loss", "train/label_switch_ratio", "knn/top1", "knn/top1_untrained", "knn/top1_pixels"}
    names |= {f"agreement/{name}" for name in ("nmi", "ari", "purity")}
    names |= {f"memory/cluster_size_{name}" for name in ("min", "median", "max")}
    names |= {"memory/size_entropy", "memory/small_clusters", "memory/splits", "time/data", "time/step", "time/memory"}
    assert names <= set(results["metrics"])
    assert names <= {name for row in read_metrics(folder / "metrics.csv") for name in row}
    assignments = (folder / "clusters" / "assignments.csv").read_text().splitlines()
    assert assignments[0] == "path,cluster,distance"
    assert len(assignments) == 4001
    assert yaml.safe_load((folder / "config.yaml").read_text())["method"]["num_clusters"] == 10
    assert "knn/top1_untrained" in outcome.text
    assert "start-up k-means" in outcome.text
    assert "checkpoint" in outcome.text


def test_the_same_command_again_does_nothing(finished):
    root, _ = finished
    before = {
        path: path.stat().st_mtime_ns
        for path in (root / "demo").rglob("*")
        if path.is_file() and path.name != "run.log"
    }
    outcome = run(*tiny(root))
    assert outcome.code == 0
    assert "is finished; nothing to do" in outcome.text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_longer_run_continues(tmp_path):
    assert run(*tiny(tmp_path)).code == 0
    outcome = run(*tiny(tmp_path, "trainer.max_epochs=2"))
    assert outcome.code == 0
    assert "Continuing from" in outcome.text
    assert last_checkpoint(tmp_path / "demo")["global_step"] == 30


def test_other_settings_and_starting_over(finished, tmp_path):
    root, _ = finished
    outcome = run(*tiny(root, "method.momentum=0.3"))
    assert outcome.code == 1
    assert "method.momentum: 0.5 there, 0.3 now" in outcome.text
    assert run(*tiny(tmp_path)).code == 0
    outcome = run(*tiny(tmp_path, "method.momentum=0.3", "resume=never"))
    assert outcome.code == 0
    assert f"The run that was here is now {tmp_path}/demo.1" in outcome.text
    assert (tmp_path / "demo.1" / "results.json").exists()
    assert yaml.safe_load((tmp_path / "demo" / "config.yaml").read_text())["method"]["momentum"] == 0.3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["method.num_cluster=5"], "there is no key 'method.num_cluster'. Did you mean method.num_clusters"),
        (["data=mnist5"], "data=mnist5 is not a choice. Did you mean mnist5k?"),
        (["experiment=odc_r5"], "experiment=odc_r5 is not a choice. Did you mean odc_r50"),
        (["method.num_clusters=4001"], "num_clusters must not exceed the number of samples, 4000. Received: 4001"),
        (["method.min_cluster_size=500"], "min_cluster_size can be at most 399"),
        (["method.momentum=0"], "momentum must be in (0, 1]. Received: 0"),
        (["method.momentum=1.5"], "momentum must be in (0, 1]. Received: 1.5"),
        (["method.centroid_update_interval=0"], "method.centroid_update_interval must be at least 1. Received: 0"),
        (["data.batch_size=5000"], "data.batch_size must be between 1 and the number of images, 4000. Received: 5000"),
        (["trainer.accumulate_grad_batches=3"], "Received: 256; nearest: 255 or 258"),
        (["trainer.devices=3", "trainer.strategy=ddp"], "Received: 256; nearest: 255 or 258"),
        (["trainer.max_epochs=x"], "trainer.max_epochs must be a whole number from 1. Received: 'x'"),
        (["resume=must"], "resume=must, but"),
        (["resume=maybe"], "resume must be one of auto, must, never. Received: 'maybe'"),
        (["method.metric=cosine"], "metric must be one of l2, inner_product. Received: 'cosine'"),
        (["clustering.backend=fais"], "fais"),
        (["logger.wandb.mode=on"], "mode must be one of auto, online, offline, disabled"),
        (["data.on_bad_image=ignore"], "data.on_bad_image must be error or skip. Received: 'ignore'"),
        (["experiment=folder"], "data.root must name a folder of images"),
        (
            ["experiment=folder", "data.root=/no/such/place"],
            "must be an existing folder. Received: /no/such/place",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_clear_message_before_any_work(tmp_path, args, message):
    width = [] if "experiment=folder" in args else TINY
    outcome = run(f"run.root={tmp_path}", *width, *args)
    assert outcome.code == 1
    assert message in outcome.text
    assert outcome.text.count("Error") == 1
    assert "Traceback" not in outcome.text
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_empty_folder_names_the_endings_looked_for(tmp_path):
    (tmp_path / "images").mkdir()
    outcome = run(f"run.root={tmp_path}", "experiment=folder", f"data.root={tmp_path / 'images'}")
    assert outcome.code == 1
    assert "data.root holds no images" in outcome.text
    assert ".jpg" in outcome.text


def test_an_unreadable_file_is_named_or_left_out(tmp_path):
    folder = write_images(tmp_path / "images")
    (folder / "a" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    args = [f"run.root={tmp_path}", f"data.root={folder}", f"data.cache_dir={tmp_path}", *TINY_FOLDER]
    outcome = run(*args)
    assert outcome.code == 1
    assert "broken.jpg" in outcome.text
    assert "data.on_bad_image=skip" in outcome.text
    assert "Traceback" not in outcome.text
    outcome = run(*args, "data.on_bad_image=skip", "resume=never", "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.text
    assert "unreadable image left out" in outcome.text
    results = json.loads((tmp_path / "folder" / "results.json").read_text())
    assert results["metrics"]["data/unreadable_images"] == 1


def test_other_data_in_the_same_folder_is_refused(tmp_path):
    first, second = write_images(tmp_path / "one"), write_images(tmp_path / "two", count=16)
    args = [f"run.root={tmp_path}", f"data.cache_dir={tmp_path}", *TINY_FOLDER]
    assert run(*args, f"data.root={first}").code == 0
    outcome = run(*args, f"data.root={second}", "trainer.max_epochs=2")
    assert outcome.code == 1
    assert "the checkpoint was trained on other data: 12 images there, 16 in folder" in outcome.text


def test_help_and_config():
    outcome = run("--help")
    assert "python -m odc_lightning experiment=odc_r50" in outcome.text
    assert "odc_cifar10" in outcome.text
    assert "num_clusters: 50" in run("--cfg", "job").text


def test_a_sweep_has_stable_folders_skips_what_is_finished_and_survives_a_failing_job(tmp_path):
    args = ["-m", *tiny(tmp_path), "callbacks.measure.knn=false", "trainer.limit_train_batches=2"]
    outcome = run(*args, "method.min_cluster_size=5,5000,8")
    assert outcome.code == 1
    assert "min_cluster_size can be at most 399" in outcome.text
    assert "Traceback" not in outcome.text
    done = sorted(path.parent for path in (tmp_path / "demo").rglob("results.json"))
    assert len(done) == 2
    assert "method.min_cluster_size=5" in done[0].name
    outcome = run(*args, "method.min_cluster_size=5,8")
    assert outcome.code == 0
    assert outcome.text.count("is finished; nothing to do") == 2


def test_a_sweep_refuses_ddp_on_several_devices(tmp_path):
    outcome = run("-m", *tiny(tmp_path), "seed=1,2", "trainer.devices=2", "trainer.strategy=ddp")
    assert outcome.code == 1
    assert "a sweep (-m) cannot run ddp on several devices: trainer.devices=2" in outcome.text


def test_wandb_offline_keeps_one_run_per_folder(tmp_path):
    args = [
        *tiny(tmp_path),
        "logger.wandb.mode=offline",
        "callbacks.measure.knn=false",
        "trainer.limit_train_batches=2",
    ]
    assert run(*args).code == 0
    first = (tmp_path / "demo" / "wandb" / "run_id").read_text()
    outcome = run(*args, "trainer.max_epochs=2")
    assert outcome.code == 0
    assert "wandb leet" in outcome.text
    assert (tmp_path / "demo" / "wandb" / "run_id").read_text() == first
    assert len(list((tmp_path / "demo" / "wandb").glob(f"offline-run-*-{first}"))) >= 1
    assert run(*args, "run.name=other").code == 0
    assert (tmp_path / "other" / "wandb" / "run_id").read_text() != first


def test_killed_with_sigkill_and_started_again_ends_in_the_same_bits(tmp_path):
    args = ["trainer.max_epochs=4", *TINY, "callbacks.checkpoints.every_n_steps=1"]
    process = subprocess.Popen(command(f"run.root={tmp_path}/broken", *args), stdout=subprocess.DEVNULL)
    last = tmp_path / "broken" / "demo" / "checkpoints" / "previous.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng().uniform(0, 0.5)))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = run_alone(f"run.root={tmp_path}/broken", *args)
    assert again.code == 0, again.text
    assert "Continuing from" in again.text
    assert run_alone(f"run.root={tmp_path}/straight", *args).code == 0
    straight, broken = (last_checkpoint(tmp_path / name / "demo") for name in ("straight", "broken"))
    for part in ("state_dict", "method", "optimizer_states"):
        assert differences(straight[part], broken[part]) == []


DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


def test_ddp_from_the_command_line_and_on_one_process_again(tmp_path):
    outcome = run_alone(*tiny(tmp_path, *DDP))
    assert outcome.code == 0, outcome.text
    assert "batch" in outcome.text
    assert last_checkpoint(tmp_path / "demo")["method"]["memory"]["updates"] == 15
    outcome = run(*tiny(tmp_path, "trainer.max_epochs=2"))
    assert outcome.code == 0, outcome.text
    assert last_checkpoint(tmp_path / "demo")["method"]["memory"]["updates"] == 30


@pytest.mark.slow
def test_torchrun(tmp_path):
    program = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "odc_lightning",
    ]
    outcome = run_alone(*tiny(tmp_path, *DDP), program=program)
    assert outcome.code == 0, outcome.text
    assert last_checkpoint(tmp_path / "demo")["method"]["memory"]["updates"] == 15
    assert (tmp_path / "demo" / "results.json").exists()


@pytest.mark.slow
def test_joblib_runs_jobs_side_by_side(tmp_path):
    args = ["-m", *tiny(tmp_path), "callbacks.measure.knn=false", "trainer.limit_train_batches=2"]
    outcome = run_alone(*args, "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert outcome.code == 0, outcome.text
    assert len(list((tmp_path / "demo").rglob("results.json"))) == 2


def test_a_truncated_last_checkpoint_falls_back_and_says_so(tmp_path):
    args = tiny(tmp_path, "trainer.max_epochs=2")
    assert run(*args).code == 0
    last = tmp_path / "demo" / "checkpoints" / "last.ckpt"
    os.truncate(last, last.stat().st_size // 3)
    outcome = run(*args, "trainer.max_epochs=3")
    assert outcome.code == 0
    assert "last.ckpt cannot be read" in outcome.text
    assert "previous.ckpt" in outcome.text
    assert torch.load(last, weights_only=True)["global_step"] == 45
