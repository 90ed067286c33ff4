"""Every YAML composes and trains a few steps; the recipes are the paper's and the release's."""

import inspect
import pickle

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from app_runner import run
from odc_lightning.app import conf_dir
from odc_lightning.data.datamodule import DataModule
from odc_lightning.methods.odc import ODC

CONF = conf_dir()
GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name != "hydra"
}
CHOICES = [(group, choice) for group, choices in GROUPS.items() for choice in choices]


def composed(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group, choice):
    cfg = composed(f"{group}={choice}", *(["data.root=/data"] if group in ("data", "experiment") else []))
    assert OmegaConf.to_container(cfg, resolve=True)["run"]["name"]


def pictures(folder, count, side=40):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (side, side + 8, 3)).astype(np.uint8)).save(folder / f"{number}.JPEG")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    for name in ("n01440764", "n01443537"):
        pictures(root / "train" / name, 8)
        pictures(root / "val" / name, 2)
    return root


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """Two batches of ten images in torchvision's layout; checksums are left out by the fixture below."""
    root = tmp_path_factory.mktemp("cifar")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 255, (10, 3072)).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return root


@pytest.fixture
def no_checksums(monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)


# A few steps of anything: little data, few clusters; the rest stays as the experiment says.
SHORT = ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.batch_size=4"]
SHORT += ["method.num_clusters=3", "method.min_cluster_size=2", "method.log_every_n_steps=1", "data.num_workers=0"]
SHORT += ["logger.wandb.mode=disabled", "clustering.backend=torch", "callbacks.measure.k=3"]
HEAVY = [pytest.mark.slow]


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=HEAVY if "alexnet" in name else []) for name in GROUPS["experiment"]]
)
def test_every_experiment_trains(tmp_path, experiment, imagenet, cifar10, no_checksums):
    cfg = composed(f"experiment={experiment}")
    source = OmegaConf.to_container(cfg.data.source)["_target_"].rsplit(".", 1)[-1]
    root = {"ImageNet": imagenet, "ImageFolder": imagenet, "TorchvisionImages": cifar10}.get(source)
    more = [f"data.root={root}"] if root else ["callbacks.measure=null"]
    if "cache_dir" in cfg.data:
        more.append(f"data.cache_dir={tmp_path}")
    if cfg.data.image_size > 64:
        more.append("data.image_size=64")
    outcome = run(f"run.root={tmp_path}", f"experiment={experiment}", *SHORT, *more)
    assert outcome.code == 0, outcome.text
    assert len(list(tmp_path.rglob("results.json"))) == 1


ELSEWHERE = {"experiment", "task", "callbacks", "logger", "method", "data", "trainer"}  # in the runs above or below
HEAVY_CHOICES = {"resnet101", "resnet50", "alexnet", "resnet34", "timm", "torchvision"}
RUNS = [
    pytest.param(group, choice, marks=HEAVY if choice in HEAVY_CHOICES else [])
    for group, choice in CHOICES
    if group not in ELSEWHERE and not (group == "clustering" and choice == "torch")
]


@pytest.mark.parametrize(("group", "choice"), RUNS)
def test_every_choice_trains(tmp_path, group, choice, imagenet):
    args = [f"run.root={tmp_path}", "experiment=folder", f"data.root={imagenet}", f"data.cache_dir={tmp_path}", *SHORT]
    if group != "backbone":
        args += ["backbone=small_resnet", "backbone.width=4", "data.image_size=32"]
    if choice in ("timm", "torchvision"):
        args += ["backbone.name=resnet18"]
    if group == "clustering":
        args.remove("clustering.backend=torch")
    args += [f"{group}={choice}"] if group != "schedule" else []
    if group == "schedule":
        # The experiment sets milestones, which only the step schedule takes.
        args = [arg for arg in args if not arg.startswith("experiment=")] + [f"schedule={choice}", "data=folder"]
        args += ["~experiment", "run.name=schedule", "augment=small", "callbacks.measure=null"]
    outcome = run(*args)
    assert outcome.code == 0, outcome.text


def test_recipes_are_the_papers_and_the_releases():
    paper = composed("experiment=odc_r50", "data.root=/data")
    assert paper.optim.lr == 0.03
    assert (list(paper.schedule.milestones), paper.schedule.gamma, paper.trainer.max_epochs) == ([400], 0.1, 480)
    assert (paper.data.batch_size, paper.data.image_size, paper.data.replacement) == (512, 224, False)
    method = paper.method
    assert (method.num_clusters, method.feature_dim, method.momentum) == (10_000, 256, 0.5)
    assert (method.min_cluster_size, method.centroid_update_interval, method.small_cluster_interval) == (20, 10, 1)
    assert (method.metric, method.renormalize, method.refresh, method.small_means) == (
        "l2",
        False,
        "involved",
        "at_most",
    )
    train = paper.augment.train
    assert (train.degrees, train.grey, list(train.brightness), list(train.contrast)) == (
        2.0,
        0.2,
        [0.6, 1.4],
        [0.6, 1.4],
    )
    assert (list(train.saturation), list(train.hue)) == ([0.0, 2.0], [-0.5, 0.5])
    alexnet = composed("experiment=odc_alexnet", "data.root=/data")
    assert (alexnet.optim.lr, alexnet.trainer.max_epochs) == (0.01, 480)
    assert alexnet.backbone._target_.endswith("alexnet")
    release = composed("experiment=odc_r50_openselfsup", "data.root=/data")
    assert (release.optim.lr, release.schedule.gamma, release.trainer.max_epochs) == (0.06, 0.4, 440)
    assert (release.optim.weight_decay, release.optim.momentum) == (1e-5, 0.9)
    method = release.method
    assert (method.metric, method.renormalize, method.refresh) == ("inner_product", True, "all")
    assert (method.small_means, method.split_side, method.guarantee_size) == ("below", "second", False)
    assert (method.head_momentum, method.neck_bn_momentum, method.neck_bn_affine) == (0.0, 0.001, False)
    assert release.data.replacement


def test_both_fidelities_set_the_same_keys_and_all_are_arguments():
    paper, release = (
        yaml.safe_load((CONF / "fidelity" / f"{name}.yaml").read_text()) for name in ("paper", "openselfsup")
    )
    assert paper.keys() == release.keys()
    for group, cls in (("method", ODC), ("data", DataModule)):
        assert paper[group].keys() == release[group].keys()
        assert paper[group].keys() <= inspect.signature(cls).parameters.keys()
        assert all(paper[group][key] != release[group][key] for key in paper[group])


def test_every_key_of_the_method_is_an_argument():
    keys = yaml.safe_load((CONF / "method" / "odc.yaml").read_text()).keys() - {"_target_"}
    assert keys == inspect.signature(ODC).parameters.keys()


def test_the_primary_config_is_short():
    assert len((CONF / "config.yaml").read_text().splitlines()) <= 40
