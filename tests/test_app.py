"""The command line as people use it: what it leaves behind, what it says, how it goes on."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import torch
import yaml

from app_runner import TINY, TINY_FOLDER, command, kill_when, run, run_alone, write_images
from helpers import differences, last_checkpoint
from odc_lightning import app
from odc_lightning.callbacks.clusters import GALLERY_COLUMNS
from odc_lightning.callbacks.metrics_csv import read_metrics


def tiny(root, *more):
    return [f"run.root={root}", "trainer.max_epochs=1", *TINY, *more]


@pytest.fixture
def small(images, tmp_path):
    """Arguments of a run on those images, in a fraction of a second; its folder is tmp_path/small."""
    own = [f"run.root={tmp_path}", "run.name=small", f"data.root={images}", f"data.cache_dir={tmp_path}"]
    return [*TINY_FOLDER, *own, "data.batch_size=8", NO_PICTURE]


NO_PICTURE = "callbacks.clusters=null"  # drawing takes longer than such a run


def with_clusters(args):
    return [arg for arg in args if arg != NO_PICTURE]


def steps(folder):
    return last_checkpoint(folder)["global_step"]


def one_message(outcome):
    """The only error message of a command that failed."""
    assert outcome.code == 1, outcome.text
    assert "Traceback" not in outcome.text
    messages = [line for line in outcome.text.splitlines() if line.startswith("Error")]
    assert len(messages) == 1, outcome.text
    return outcome.text[outcome.text.index(messages[0]) :]


# -- the run folder ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    outcome = run(*tiny(root))
    assert outcome.code == 0, outcome.text
    return root, outcome


def test_the_run_folder_holds_what_is_promised(finished):
    root, outcome = finished
    folder = root / "demo"
    files = ["config.yaml", "metrics.csv", "results.json", "index.html", "run.png", "run.log"]
    for name in (*files, "checkpoints/last.ckpt", "clusters/assignments.csv", "clusters/history.npz"):
        assert (folder / name).stat().st_size > 0, name
    assert not list(folder.rglob("*writing*"))
    results = json.loads((folder / "results.json").read_text())
    assert results.keys() == {"task", "status", "metrics", "config_hash", "versions", "device", "seconds"}
    assert (results["task"], results["status"], results["device"][:4]) == ("train", "finished", "1 x ")
    names = {"train/loss", "train/label_switch_ratio", "knn/top1", "knn/top1_untrained", "knn/top1_pixels"}
    names |= {f"agreement/{name}" for name in ("nmi", "ari", "purity")}
    names |= {f"memory/cluster_size_{name}" for name in ("min", "median", "max")}
    names |= {"memory/size_entropy", "memory/small_clusters", "memory/splits", "time/data", "time/step", "time/memory"}
    assert names <= set(results["metrics"])
    assert all(math.isfinite(value) for value in results["metrics"].values())
    assert names <= {name for row in read_metrics(folder / "metrics.csv") for name in row}
    assignments = (folder / "clusters" / "assignments.csv").read_text().splitlines()
    assert assignments[0] == "path,cluster,distance"
    assert len(assignments) == 4001
    clusters = [int(line.split(",")[1]) for line in assignments[1:]]
    assert clusters == last_checkpoint(folder)["method"]["memory"]["labels"].tolist()
    assert "knn/top1_untrained" in outcome.text
    assert "start-up k-means" in outcome.text
    assert "checkpoint" in outcome.text


def test_the_config_that_is_kept_makes_the_same_run(finished):
    root, _ = finished
    config = yaml.safe_load((root / "demo" / "config.yaml").read_text())
    assert config["method"]["num_clusters"] == 10
    assert config["method"]["backbone"] == config["backbone"]
    assert "${" not in (root / "demo" / "config.yaml").read_text()
    assert "???" not in (root / "demo" / "config.yaml").read_text()
    assert torch.load(root / "demo" / "checkpoints" / "last.ckpt", weights_only=True)["config"] == config


def test_the_same_command_again_does_nothing(finished):
    root, _ = finished
    files = [path for path in (root / "demo").rglob("*") if path.is_file() and path.name != "run.log"]
    before = {path: path.stat().st_mtime_ns for path in files}
    outcome = run(*tiny(root))
    assert outcome.code == 0
    assert "is finished; nothing to do" in outcome.text
    assert "knn/top1_untrained" in outcome.text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_longer_run_continues(small, tmp_path):
    assert run(*small).code == 0
    start = json.loads((tmp_path / "small" / "results.json").read_text())["metrics"]
    outcome = run(*small, "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.text
    assert "Continuing from" in outcome.text
    assert steps(tmp_path / "small") == 18
    rows = read_metrics(tmp_path / "small" / "metrics.csv")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    metrics = json.loads((tmp_path / "small" / "results.json").read_text())["metrics"]
    for name in ("knn/top1_untrained", "knn/top1_pixels"):
        assert metrics[name] == start[name]


def test_a_shorter_run_does_not_take_over_a_longer_ones_results(small, tmp_path):
    assert run(*small, "trainer.max_epochs=2").code == 0
    before = (tmp_path / "small" / "results.json").read_bytes()
    assert "trainer.max_epochs must be at least 2" in one_message(run(*small, "trainer.max_epochs=1"))
    assert (tmp_path / "small" / "results.json").read_bytes() == before


def test_images_that_moved_are_still_the_same_images(small, images, tmp_path):
    assert run(*small).code == 0
    shutil.copytree(images, tmp_path / "moved")
    outcome = run(*small, f"data.root={tmp_path / 'moved'}", "trainer.max_epochs=2")
    assert outcome.code == 0, outcome.text
    assert steps(tmp_path / "small") == 12


def test_other_settings_need_another_place_or_start_over(small, tmp_path):
    assert run(*small).code == 0
    message = one_message(run(*small, "method.momentum=0.3"))
    assert "method.momentum: 0.5 there, 0.3 now" in message
    assert "run.name=" in message
    assert "resume=never" in message
    outcome = run(*small, "method.momentum=0.3", "resume=never")
    assert outcome.code == 0, outcome.text
    assert f"The run that was here is now {tmp_path}/small.1" in outcome.text
    assert (tmp_path / "small.1" / "results.json").exists()
    assert yaml.safe_load((tmp_path / "small" / "config.yaml").read_text())["method"]["momentum"] == 0.3


def test_resume_must(small, tmp_path):
    assert "resume=must, but" in one_message(run(*small, "resume=must"))
    assert not (tmp_path / "small" / "config.yaml").exists()
    assert run(*small).code == 0
    assert "is finished; nothing to do" in run(*small, "resume=must").text
    assert run(*small, "resume=must", "trainer.max_epochs=2").code == 0
    assert steps(tmp_path / "small") == 12


def test_a_truncated_last_checkpoint_falls_back_and_says_so(small, tmp_path):
    assert run(*small, "trainer.max_epochs=2").code == 0
    last = tmp_path / "small" / "checkpoints" / "last.ckpt"
    os.truncate(last, last.stat().st_size // 3)
    outcome = run(*small, "trainer.max_epochs=3")
    assert outcome.code == 0
    assert "last.ckpt cannot be read" in outcome.text
    assert "Continuing from" in outcome.text
    assert "previous.ckpt" in outcome.text
    assert steps(tmp_path / "small") == 18


def test_nothing_is_written_over_when_no_checkpoint_can_be_read(small, tmp_path):
    assert run(*small, "trainer.max_epochs=2").code == 0
    for checkpoint in (tmp_path / "small" / "checkpoints").iterdir():
        os.truncate(checkpoint, 100)
    before = (tmp_path / "small" / "metrics.csv").read_bytes()
    assert "none of the 2 checkpoints" in one_message(run(*small, "trainer.max_epochs=3"))
    assert (tmp_path / "small" / "metrics.csv").read_bytes() == before
    assert run(*small, "trainer.max_epochs=3", "resume=never").code == 0


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = [
    (["method.num_cluster=5"], "there is no key 'method.num_cluster'. Did you mean method.num_clusters"),
    (["data.bath_size=5"], "there is no key 'data.bath_size'. Did you mean data.batch_size"),
    (["+method.momentun=1"], "there is no key 'method.momentun'. Did you mean method.momentum"),
    (["dat=folder"], "there is no key 'dat'. Did you mean data"),
    (["data=mnist5"], "data=mnist5 is not a choice. Did you mean mnist5k?"),
    (["experiment=odc_r5"], "experiment=odc_r5 is not a choice. Did you mean odc_r50"),
    (["trainer=dpp"], "trainer=dpp is not a choice. Did you mean ddp?"),
    (["fidelity=opensefsup"], "fidelity=opensefsup is not a choice. Did you mean openselfsup?"),
    (["fidelity=facebook"], "fidelity of method=odc must be one of openselfsup, paper. Received: 'facebook'"),
    (["method=deepcluster", "fidelity=papr"], "fidelity=papr is not a choice. Did you mean paper?"),
    (["~experiment"], "run.name must be given"),
    (
        ["method.num_clusters=4001"],
        "Error: method.num_clusters must not exceed the number of samples, 4000. Received: 4001",
    ),
    (["method.num_clusters=1e3"], "method.num_clusters must be a whole number. Received: 1e3"),
    (["method.num_clusters=ten"], "method.num_clusters must be a whole number. Received: ten"),
    (["method.min_cluster_size=500"], "Error: method.min_cluster_size x num_clusters needs 501 x 10 = 5010 samples"),
    (["method.min_cluster_size=0"], "Error: method.min_cluster_size must be at least 1. Received: 0"),
    (["method.feature_dim=0"], "Error: method.feature_dim must be at least 1. Received: 0"),
    (["method.loss_weight_power=-1"], "Error: method.loss_weight_power must be at least 0. Received: -1"),
    (["method.neck_bn_momentum=0"], "Error: method.neck_bn_momentum must be in (0, 1]. Received: 0"),
    (["method.momentum=0"], "Error: method.momentum must be in (0, 1]. Received: 0"),
    (["method.momentum=1.5"], "momentum must be in (0, 1]. Received: 1.5"),
    (["method.momentum=half"], "method.momentum must be a number. Received: half"),
    (["method.renormalize=1"], "method.renormalize must be true or false. Received: 1"),
    (["method.centroid_update_interval=0"], "method.centroid_update_interval must be at least 1. Received: 0"),
    (["method.small_cluster_interval=0"], "method.small_cluster_interval must be at least 1. Received: 0"),
    (["method.log_every_n_steps=0"], "method.log_every_n_steps must be at least 1. Received: 0"),
    (["method.metric=cosine"], "Error: method.metric must be one of l2, inner_product. Received: 'cosine'"),
    (["clustering.backend=fais"], "Error: clustering.backend must be one of auto, faiss, torch. Received: 'fais'"),
    (["backbone.width=0"], "Error: backbone.width must be at least 1. Received: 0"),
    (["data.image_size=0"], "Error: data.image_size must be an integer of at least 1 (pixels). Received: 0"),
    (["augment.train.flip=2"], "Error: augment.train.flip must be a number from 0 to 1. Received: 2"),
    (
        ["augment.eval.resize=3"],
        "Error: augment.eval.resize must be auto, null or at least crop=28 (pixels). Received: 3",
    ),
    (["data.mean=[0.1,0.2]"], "Error: data.mean and std must have one number a channel."),
    (["backbone.in_channels=3"], "backbone.in_channels must be data.channels=1, 2 for Sobel edges. Received: 3"),
    (["optim.lr=fast"], "optim.lr must be a number. Received: fast"),
    (["optim.lr=-1"], "Error: optim.lr must be at least 0. Received: -1"),
    (["optim.weight_decay=-1"], "Error: optim.weight_decay must be at least 0. Received: -1"),
    (["schedule=cosine", "schedule.milestones=[3]"], "no key 'schedule.milestones' in schedule=cosine. It has "),
    (["backbone=timm", "backbone.name=resnet5"], "Did you mean 'resnet50'?"),
    (["data.batch_size=5000"], "data.batch_size must be between 1 and the number of images, 4000. Received: 5000"),
    (["data.batch_size=1"], "at least 2 images"),
    (["data.num_workers=many"], "data.num_workers must be auto or a whole number from 0. Received: 'many'"),
    (["data.on_bad_image=ignore"], "data.on_bad_image must be error or skip. Received: 'ignore'"),
    (["trainer.accumulate_grad_batches=3"], "Received: 256; nearest: 255 or 258"),
    (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches must be a whole number from 1"),
    (["trainer.devices=3", "trainer.strategy=ddp"], "Received: 256; nearest: 255 or 258"),
    (["trainer.devices=none"], "trainer cannot be set up: "),
    (["trainer.max_epochs=x"], "trainer.max_epochs must be a whole number from 1. Received: 'x'"),
    (["trainer.limit_train_batches=0"], "trainer.limit_train_batches must be above 0"),
    (["seed=-1"], "seed must be a whole number from 0 to 4294967295. Received: -1"),
    (["resume=maybe"], "resume must be one of auto, must, never. Received: 'maybe'"),
    (["logger.wandb.mode=on"], "mode must be one of auto, online, offline, disabled"),
    (["callbacks.measure.k=0"], "callbacks.measure.k must be at least 1. Received: 0"),
    (["experiment=folder"], "data.root must name a folder of images"),
    (["experiment=odc_r50"], "data.root must name a folder of images"),
    (["experiment=folder", "data.root=/no/such/place"], "must be an existing folder. Received: /no/such/place"),
    (["experiment=odc_cifar10", "data.root=/no/such/place"], "Fetch it with data.download=true"),
]


@pytest.mark.parametrize(
    ("args", "message"), [pytest.param(args, message, id=" ".join(args)) for args, message in MISTAKES]
)
def test_a_mistake_gets_one_clear_message_before_any_work(tmp_path, args, message):
    width = [] if args[0].startswith(("experiment", "backbone")) else TINY
    outcome = run(f"run.root={tmp_path}", *width, *args)
    assert message in one_message(outcome)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "run.log"]


@pytest.mark.slow
def test_a_mistake_ends_the_real_command_the_same_way(tmp_path):
    outcome = run_alone(*tiny(tmp_path, "method.momentum=2"))
    assert one_message(outcome) == "Error: method.momentum must be in (0, 1]. Received: 2\n"
    assert "Traceback" in (tmp_path / "demo" / "run.log").read_text(), "for people who look for a bug"


@pytest.mark.slow
def test_hydras_switch_shows_the_traceback(tmp_path):
    outcome = run_alone(*tiny(tmp_path, "method.momentum=2"), HYDRA_FULL_ERROR="1")
    assert outcome.code == 1
    assert "Traceback" in outcome.text


def test_a_start_that_failed_does_not_stand_in_the_way(small):
    assert "mean and std must have one number a channel" in one_message(run(*small, "data.mean=[0.1,0.2]"))
    assert run(*small).code == 0


def test_a_bug_is_no_plain_message(small, monkeypatch):
    monkeypatch.setattr("odc_lightning.tasks.train.finish", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*small)


def test_folders_without_images(tmp_path):
    (tmp_path / "images").mkdir()
    args = [f"run.root={tmp_path}", "experiment=folder", f"data.root={tmp_path / 'images'}"]
    message = one_message(run(*args))
    assert "data.root holds no images" in message
    assert ".jpg" in message
    (tmp_path / "images" / "notes.txt").write_text("no image")
    assert "it holds other files" in one_message(run(*args))
    assert "not laid out as ImageNet" in one_message(run(*args, "experiment=odc_r50"))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_unreadable_file_is_named_or_left_out(small, images, tmp_path, workers):
    shutil.copytree(images, tmp_path / "images")
    broken = tmp_path / "images" / "train" / "a" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no image")
    args = [*with_clusters(small), f"data.root={tmp_path / 'images'}", f"data.num_workers={workers}"]
    message = one_message(run(*args))
    assert message.startswith(f"Error: cannot read the image {broken}")
    assert "data.on_bad_image=skip" in message
    outcome = run(*args, "data.on_bad_image=skip", "resume=never", "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.text
    assert outcome.text.count(f"unreadable image left out: {broken}") == 1
    results = json.loads((tmp_path / "small" / "results.json").read_text())
    assert results["metrics"]["data/unreadable_images"] == 1
    assert str(broken) in (tmp_path / "small" / "clusters" / "assignments.csv").read_text(), "it keeps its place"


def test_other_data_in_the_same_folder_is_refused(small, tmp_path):
    assert run(*small).code == 0
    other = write_images(tmp_path / "other", count=50)
    message = one_message(run(*small, f"data.root={other}", "trainer.max_epochs=2"))
    assert "the checkpoint was trained on other data: 48 images there, 50 in folder" in message
    assert steps(tmp_path / "small") == 6


def test_nan_names_the_step_and_keeps_the_last_good_checkpoint(small, tmp_path):
    outcome = run(*small, "optim.lr=1e30", "callbacks.checkpoints.every_n_steps=1", "trainer.max_epochs=3")
    message = one_message(outcome)
    assert "NaN or infinite by step 2" in message
    assert "optim.lr" in message
    kept = torch.load(tmp_path / "small" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 1
    rows = kept["method"]["memory"]["rows"]
    assert torch.isfinite(rows.float()).all()
    assert not (tmp_path / "small" / "results.json").exists()


@pytest.mark.slow
def test_no_space_left_names_the_folder_and_the_run_goes_on_when_there_is_some(small, tmp_path):
    program = ["bash", "-c", 'ulimit -f 64; exec "$0" -m odc_lightning "$@"', sys.executable]
    message = one_message(run_alone(*small, "method.hidden_dim=512", program=program))
    assert f"could not write a checkpoint to {tmp_path / 'small' / 'checkpoints'}" in message
    assert not list(tmp_path.rglob("*.ckpt"))
    assert run(*small, "method.hidden_dim=512").code == 0


# -- choices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "dropped"),
    [("schedule=cosine", "milestones"), ("schedule=constant", "milestones")],
)
def test_an_experiments_keys_do_not_follow_another_choice(small, tmp_path, choice, dropped):
    outcome = run(*small, choice)
    assert outcome.code == 0, outcome.text
    assert f"{choice}: not used from the experiment: {dropped}" in outcome.text
    group = choice.split("=")[0]
    config = yaml.safe_load((tmp_path / "small" / "config.yaml").read_text())
    assert dropped not in config[group]
    assert config["method"]["schedule"] == config["schedule"]


SGD_RATE = "optim=adamw: not used from the experiment: lr=0.05 (now 0.001)"


@pytest.mark.parametrize(
    ("args", "lr", "said"),
    [
        (["optim=adamw"], 0.001, True),
        (["optim=adamw", "optim.lr=0.002"], 0.002, False),
        (["optim=sgd"], 0.05, False),
        ([], 0.05, False),
    ],
    ids=str,
)
def test_a_learning_rate_is_that_of_its_optimiser(small, tmp_path, args, lr, said):
    outcome = run(*small, *args)
    assert outcome.code == 0, outcome.text
    assert (SGD_RATE in outcome.text) == said
    config = yaml.safe_load((tmp_path / "small" / "config.yaml").read_text())
    assert config["optim"]["lr"] == config["method"]["optimizer"]["lr"] == lr
    checkpoint = torch.load(tmp_path / "small" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["initial_lr"] == lr


@pytest.mark.slow
def test_also_in_the_jobs_of_a_sweep_that_run_side_by_side(small, tmp_path):
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    outcome = run_alone("-m", *small, "optim=adamw,sgd", *joblib)
    assert outcome.code == 0, outcome.text
    for choice, lr in (("adamw", 0.001), ("sgd", 0.05)):
        config = yaml.safe_load((tmp_path / "small" / f"optim={choice}" / "config.yaml").read_text())
        assert config["optim"]["lr"] == lr


def test_the_demo_takes_another_backbone(tmp_path):
    args = [arg for arg in tiny(tmp_path, "trainer.limit_train_batches=1") if not arg.startswith("backbone")]
    outcome = run(*args, "callbacks.measure.knn=false", "backbone=timm", "backbone.name=test_resnet")
    assert outcome.code == 0, outcome.text
    assert "backbone=timm: not used from the experiment: width" in outcome.text


def test_a_key_can_be_added_for_what_is_called(small, tmp_path):
    assert run(*small, "+optim.nesterov=true").code == 0
    checkpoint = torch.load(tmp_path / "small" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["nesterov"] is True
    assert "unexpected keyword argument 'warp'" in one_message(run(*small, "+optim.warp=9", "resume=never"))


def test_help_and_config():
    outcome = run("--help")
    assert outcome.code == 0
    assert "python -m odc_lightning experiment=odc_r50" in outcome.text
    for group in app.conf_dir().iterdir():
        assert not group.is_dir() or f"{group.name}: " in outcome.text or group.name == "hydra", group.name
    assert "odc_cifar10" in outcome.text
    config = yaml.safe_load(run("--cfg", "job").text)
    assert config["method"]["num_clusters"] == 50
    assert config["run"]["name"] == "demo"


def test_the_console_script_is_the_same_program():
    script = next(script for script in entry_points(group="console_scripts") if script.name == "odc")
    assert script.load() is app.main


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_a_sweep_has_stable_folders_and_skips_what_is_finished(small, tmp_path):
    outcome = run("-m", *small, "method.min_cluster_size=2,3")
    assert outcome.code == 0, outcome.text
    done = sorted(path.parent.name for path in (tmp_path / "small").rglob("results.json"))
    assert done == ["method.min_cluster_size=2", "method.min_cluster_size=3"]
    outcome = run("-m", *small, "method.min_cluster_size=2,3,4")
    assert outcome.code == 0, outcome.text
    assert outcome.text.count("is finished; nothing to do") == 2
    assert len(list((tmp_path / "small").rglob("results.json"))) == 3


def test_each_impossible_job_of_a_sweep_says_why_and_none_is_started(small, tmp_path):
    outcome = run("-m", *small, "method.momentum=0,2,0.5")
    assert outcome.code == 1
    for value in (0, 2):
        line = f"method.momentum={value}: method.momentum must be in (0, 1]. Received: {value}"
        assert outcome.text.count(line) == 1
    assert not list((tmp_path / "small").iterdir())


@pytest.mark.parametrize(
    "devices",
    [["trainer.devices=2", "trainer.strategy=ddp"], ["trainer.devices=2"], ["trainer=ddp", "trainer.devices=2"]],
    ids=" ".join,
)
def test_a_sweep_refuses_ddp_on_several_devices(small, devices):
    outcome = run("-m", *small, "seed=1,2", *devices, "trainer.accelerator=cpu", "trainer.precision=32-true")
    assert outcome.code == 1
    assert "a sweep (-m) cannot run ddp on several devices: trainer.devices=2" in outcome.text
    assert "Traceback" not in outcome.text


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_where_it_was(small, tmp_path):
    args = ["-m", *small, "seed=1,2,3", "trainer.max_epochs=20", "callbacks.measure.knn=false"]
    process = subprocess.Popen(command(*args), stdout=subprocess.DEVNULL)
    kill_when(process, tmp_path / "small" / "seed=2" / "checkpoints" / "previous.ckpt")
    assert (tmp_path / "small" / "seed=1" / "results.json").exists()
    outcome = run(*args)
    assert outcome.code == 0, outcome.text
    assert outcome.text.count("is finished; nothing to do") == 1
    assert outcome.text.count("Continuing from") == 1
    assert [steps(tmp_path / "small" / f"seed={seed}") for seed in (1, 2, 3)] == [120, 120, 120]


@pytest.mark.slow
def test_joblib_runs_jobs_side_by_side(small, tmp_path):
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    outcome = run_alone("-m", *small, "seed=1,2", *launcher)
    assert outcome.code == 0, outcome.text
    assert len(list((tmp_path / "small").rglob("results.json"))) == 2


# -- W&B ---------------------------------------------------------------------------------------------------------------


def test_wandb_offline_continues_under_its_id_and_closes_between_jobs(small, tmp_path):
    import wandb

    args = [*small, "logger.wandb.mode=offline", "callbacks.measure.knn=false"]
    assert run(*args).code == 0
    first = (tmp_path / "small" / "wandb" / "run_id").read_text()
    outcome = run(*args, "trainer.max_epochs=2")
    assert outcome.code == 0, outcome.text
    assert "wandb leet" in outcome.text
    assert (tmp_path / "small" / "wandb" / "run_id").read_text() == first
    runs = [path.name for path in (tmp_path / "small" / "wandb").glob("offline-run-*")]
    assert runs
    assert all(re.search(rf"-{first}(-\d+)?$", name) for name in runs)  # W&B adds -1 to the second of a second
    assert wandb.run is None
    assert run("-m", *args, "run.name=sweep", "seed=1,2").code == 0
    assert wandb.run is None
    ids = {path.parent.parent.name: path.read_text() for path in (tmp_path / "sweep").rglob("run_id")}
    assert ids.keys() == {"seed=1", "seed=2"}
    assert len({*ids.values(), first}) == 3
    for job, run_id in ids.items():
        assert len(list((tmp_path / "sweep" / job / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))) == 1


def test_wandb_gets_a_gallery_of_the_clusters_and_the_curves(small, tmp_path):
    assert run(*with_clusters(small), "logger.wandb.mode=offline", "callbacks.measure.knn=false").code == 0
    media = next((tmp_path / "small" / "wandb").glob("offline-run-*/files/media"))
    (table,) = media.glob("table/clusters/gallery_*.json")
    rows = json.loads(table.read_text())["data"]
    assert [len(row) for row in rows] == 3 * [len(GALLERY_COLUMNS)], "a row for each cluster"
    assert sum(row[1] for row in rows) == 48
    assert len(list(media.glob("images/run_*.png"))) == 1


def test_wandb_without_a_key_is_offline_and_says_so(small, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    outcome = run(*small, "logger.wandb.mode=auto")
    assert outcome.code == 0, outcome.text
    assert outcome.text.count("W&B runs offline") == 1


# -- stopped and started again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_with_sigkill_and_started_again_ends_in_the_same_bits(small, tmp_path, workers):
    args = [*small, "trainer.max_epochs=30", "callbacks.checkpoints.every_n_steps=1", f"data.num_workers={workers}"]
    process = subprocess.Popen(command(*args, "run.name=broken"), stdout=subprocess.DEVNULL)
    kill_when(process, tmp_path / "broken" / "checkpoints" / "previous.ckpt")
    assert process.returncode == -signal.SIGKILL
    stopped_at = steps(tmp_path / "broken")
    again = run(*args, "run.name=broken")
    assert again.code == 0, again.text
    assert "Continuing from" in again.text
    assert run(*args, "run.name=straight").code == 0
    straight, broken = (last_checkpoint(tmp_path / name) for name in ("straight", "broken"))
    for part in ("state_dict", "method", "optimizer_states", "lr_schedulers"):
        assert differences(straight[part], broken[part]) == [], f"stopped at step {stopped_at}"
    straight, broken = (
        [
            {k: v for k, v in row.items() if not k.startswith("time/")}
            for row in read_metrics(tmp_path / n / "metrics.csv")
        ]
        for n in ("straight", "broken")
    )
    assert straight == broken, f"stopped at step {stopped_at}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_or_by_the_batch_system_it_says_how_to_go_on(small, tmp_path, number):
    args = [*small, "trainer.max_epochs=1000"]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and so would theirs
    process = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGINT, before)
    said = kill_when(process, tmp_path / "small" / "checkpoints" / "last.ckpt", number)
    assert process.returncode == 1, said
    assert said.rstrip().endswith("Stopped. The same command continues from the last checkpoint.")
    assert "Traceback" not in said
    assert not (tmp_path / "small" / "results.json").exists()
    assert steps(tmp_path / "small") >= 6


# -- several processes -------------------------------------------------------------------------------------------------

DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


def updates(folder):
    return last_checkpoint(folder)["method"]["memory"]["updates"]


def test_ddp_from_the_command_line_and_on_one_process_again(small, tmp_path):
    outcome = run_alone(*with_clusters(small), *DDP)
    assert outcome.code == 0, outcome.text
    assert "8 = 2 x 4 x 1 accumulated" in outcome.text
    assert outcome.text.count("train finished") == 1
    assert updates(tmp_path / "small") == 6
    assert len((tmp_path / "small" / "clusters" / "assignments.csv").read_text().splitlines()) == 49
    outcome = run(*small, "trainer.max_epochs=2")
    assert outcome.code == 0, outcome.text
    assert updates(tmp_path / "small") == 12


@pytest.mark.slow
def test_ddp_continues_on_two_processes_and_does_nothing_when_finished(small, tmp_path):
    assert run_alone(*small, *DDP).code == 0
    outcome = run_alone(*small, *DDP, "trainer.max_epochs=2")
    assert outcome.code == 0, outcome.text
    assert updates(tmp_path / "small") == 12
    assert run_alone(*small, *DDP, "run.name=straight", "trainer.max_epochs=2").code == 0
    straight, again = (last_checkpoint(tmp_path / name) for name in ("straight", "small"))
    for part in ("state_dict", "optimizer_states"):
        assert differences(straight[part], again[part]) == []
    assert differences(straight["method"]["memory"], again["method"]["memory"]) == []
    assert "is finished; nothing to do" in run_alone(*small, *DDP, "trainer.max_epochs=2").text


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_ddp_tells_an_error_of_any_process_and_ends(small, images, tmp_path, process):
    shutil.copytree(images, tmp_path / "images")
    broken = sorted((tmp_path / "images" / "train" / "a").iterdir())[
        process
    ]  # rows of even numbers belong to process 0
    broken.write_bytes(b"\xff\xd8 no image")
    outcome = run_alone(*small, *DDP, f"data.root={tmp_path / 'images'}", "callbacks.measure.knn=false", timeout=120)
    assert outcome.code == 1
    assert "Traceback" not in outcome.text
    assert outcome.text.count(f"{'Error on process 1' if process else 'Error'}: cannot read the image {broken}") == 1


@pytest.mark.slow
def test_torchrun_trains_and_continues(small, tmp_path):
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program += ["-m", "odc_lightning"]
    for epochs in (1, 2):
        outcome = run_alone(*small, *DDP, f"trainer.max_epochs={epochs}", program=program)
        assert outcome.code == 0, outcome.text
        assert updates(tmp_path / "small") == 6 * epochs
    assert (tmp_path / "small" / "results.json").exists()
