"""Every YAML composes and trains a few steps; the recipes are the paper's and the release's."""

import inspect
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

from app_runner import run, write_images
from odc_lightning.app import conf_dir
from odc_lightning.data.datamodule import DataModule
from odc_lightning.methods.base import Method
from odc_lightning.methods.deepcluster import DeepCluster
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
    roots = {
        "data": ["data.root=/data"],
        "experiment": ["data.root=/data"],
        "measure": [],
        "sweep": ["data.root=/data"],
    }
    cfg = composed(f"{group}={choice}", *roots.get(group, []))
    # An initialisation or a protocol may need keys of a certain backbone or data set.
    assert OmegaConf.to_container(cfg, resolve=group not in ("init", "protocol", "task"))["run"]["name"]


# -- a few steps of everything -----------------------------------------------------------------------------------------

# Little data, few clusters, a CPU; the rest stays as it is.
SHORT = ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.batch_size=4"]
SHORT += ["method.num_clusters=3", "method.min_cluster_size=2", "method.log_every_n_steps=1", "data.num_workers=0"]
SHORT += ["method.num_negatives=20"]  # thousands of 16 images: each new row counts hundreds of times, weights explode
SHORT += ["logger.wandb.mode=disabled", "clustering.backend=torch", "callbacks.measure.max_images=20"]
NO_PICTURE = ["callbacks.measure.knn=false", "callbacks.clusters=null"]  # they take longer than the steps
SMALL = ["backbone=small_resnet", "backbone.width=4", "method.hidden_dim=16", "data.image_size=32"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """ImageNet's layout, which is also that of a folder with class folders."""
    root = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 16), ("val", 6)):
        write_images(root / split, count, classes=("n01440764", "n01443537"), side=40, ending="JPEG")
    return root


@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    """CIFAR-10, CIFAR-100 and STL-10 as torchvision has them on disk, with ten images to a file."""
    root = tmp_path_factory.mktemp("torchvision")
    rng = np.random.default_rng(0)
    cifar10 = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for folder, files, labels, names in (
        ("cifar-10-batches-py", cifar10, "labels", ("batches.meta", "label_names")),
        ("cifar-100-python", ["train", "test"], "fine_labels", ("meta", "fine_label_names")),
    ):
        (root / folder).mkdir()
        for file in files:
            data = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
            (root / folder / file).write_bytes(pickle.dumps({"data": data, labels: list(range(10))}))
        (root / folder / names[0]).write_bytes(pickle.dumps({names[1]: [str(number) for number in range(100)]}))
    stl10 = root / "stl10_binary"
    stl10.mkdir()
    for part in ("train", "unlabeled", "test"):
        (stl10 / f"{part}_X.bin").write_bytes(rng.integers(0, 256, (10, 3, 96, 96), dtype=np.uint8).tobytes())
        (stl10 / f"{part}_y.bin").write_bytes(bytes(range(1, 11)))
    (stl10 / "class_names.txt").write_text("\n".join("abcdefghij"))
    return root


def method_of(*overrides):
    """The method that a command chooses."""
    GlobalHydra.instance().clear()
    chosen = [override for override in overrides if override.startswith(("experiment=", "method=", "~experiment"))]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=chosen, return_hydra_config=True).hydra.runtime.choices["method"]


def key_of_method(override):
    """``num_clusters`` of ``method.num_clusters=3``; None for what is no key of a method."""
    return override.partition("=")[0].removeprefix("method.") if override.startswith("method.") else None


@pytest.fixture
def few_steps(tmp_path, photographs, binaries, monkeypatch):
    """Runs a few steps of what the arguments name and returns the results."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)  # sums of the real files

    def go(*args):
        own = set(OmegaConf.load(CONF / "method" / f"{method_of(*args)}.yaml"))
        args = [arg for arg in args if key_of_method(arg) is None or key_of_method(arg) in own]
        cfg = composed(*args)
        source = str(cfg.data.source["_target_"]).rsplit(".", 1)[-1]
        root = {"ImageNet": photographs, "ImageFolder": photographs, "TorchvisionImages": binaries}.get(source)
        data = [f"data.root={root}"] if root else []
        data += [f"data.cache_dir={tmp_path}"] if "cache_dir" in cfg.data else []
        if OmegaConf.select(cfg, "init.path"):
            torch.save(instantiate(cfg.backbone).net.state_dict(), tmp_path / "start.pth")
            data += [f"init.path={tmp_path / 'start.pth'}"]
        data += ["backbone.in_channels=1"] if "method=colorization" in args else []
        data += [f"method.num_classes={2 if root == photographs else 10}"] if "num_classes" in own else []
        if cfg.data.get("subset"):
            data += ["data.subset.num_classes=2", "data.subset.num_images=12", f"data.subset.file={tmp_path}/draw.csv"]
        short = [arg for arg in SHORT if key_of_method(arg) is None or key_of_method(arg) in own]
        outcome = run(f"run.root={tmp_path}", *short, *data, *args)
        assert outcome.code == 0, outcome.text
        (results,) = tmp_path.rglob("results.json")
        metrics = json.loads(results.read_text())["metrics"]
        assert metrics["train/loss"] > 0
        return metrics

    return go


def slow(*names):
    return lambda name: pytest.param(name, marks=[pytest.mark.slow] if name in names else [], id=name)


SMALL_ONES = ("cifar10", "mnist5k", "demo", "folder", "odc_r50")
LARGE = [name for name in GROUPS["experiment"] if not name.endswith(SMALL_ONES)]
# The full-size ones differ only in the starting network, and in small they all train.
TRAINED = [name for name in GROUPS["experiment"] if name not in LARGE or not name.startswith("finetune_")]
TRAINED += ["finetune_col_odc", "finetune_dc_dc"]


@pytest.mark.parametrize("name", map(slow(*LARGE), TRAINED))
def test_every_experiment_trains(few_steps, name):
    size = composed(f"experiment={name}").data.image_size
    few_steps(f"experiment={name}", *(["data.image_size=64"] if size > 64 else []))


OF_METHODS = [
    name
    for name in GROUPS["data"]
    if name in ("cifar10", "cifar100", "folder", "mnist5k", "stl10") or "imagenet" in name
]


@pytest.mark.parametrize("name", OF_METHODS)
def test_every_data_set_trains(few_steps, name):
    metrics = few_steps(f"data={name}", f"run.name={name}", "~experiment", "augment=small", *SMALL, NO_PICTURE[1])
    assert {"knn/top1", "agreement/nmi"} <= metrics.keys()


@pytest.mark.parametrize("name", map(slow("resnet50", "resnet101", "alexnet"), GROUPS["backbone"]))
def test_every_backbone_trains(few_steps, name):
    named = {"timm": ["backbone.name=test_resnet"], "torchvision": ["backbone.name=squeezenet1_1"]}.get(name, [])
    few_steps("experiment=folder", f"backbone={name}", *named, "data.image_size=64", *NO_PICTURE)


OTHERS = [
    f"{group}={choice}"
    for group in ("augment", "clustering", "fidelity", "method", "optim", "schedule")
    for choice in GROUPS[group]
    if choice != "facebook"  # DeepCluster's, see below
]


@pytest.mark.parametrize("choice", OTHERS)
def test_every_other_choice_trains(few_steps, choice):
    few_steps("experiment=folder", *SMALL, choice, *NO_PICTURE)


@pytest.mark.parametrize("fidelity", GROUPS["fidelity"])
@pytest.mark.parametrize("method", ["deepcluster", "supervised"])
def test_every_fidelity_trains_with_other_methods(few_steps, method, fidelity):
    few_steps("experiment=folder", *SMALL, f"method={method}", f"fidelity={fidelity}", *NO_PICTURE)


@pytest.mark.parametrize(
    "keys",
    [["method.balance=reweight"], ["method.balance=none", "data.replacement=true"], ["trainer.precision=bf16-mixed"]],
    ids=" ".join,
)
def test_keys_of_deepcluster(few_steps, keys):
    few_steps("experiment=folder", *SMALL, "method=deepcluster", "method.reassign_every=2", *NO_PICTURE, *keys)


def test_trainer_gpu_trains_where_there_is_none(few_steps):
    few_steps("experiment=folder", *SMALL, "trainer=gpu", "trainer.accelerator=cpu", *NO_PICTURE)


ORDINARY_KEYS = [
    ["trainer.accumulate_grad_batches=2", "data.batch_size=8"],
    ["trainer.precision=bf16-mixed"],
    ["trainer.gradient_clip_val=1.0"],
    ["method.channels_last=true", "backbone.width=8"],  # at width 4 PyTorch 2.14 may crash, see test_odc.py
    ["backbone.in_channels=2"],
    ["method.row_dtype=float16"],
    ["method.loss_weight_power=0"],
    ["method=local_aggregation", "method.warmup_epochs=0", "method.num_clusterings=2"],
    ["method=npid", "method.loss=softmax"],
    ["method.small_cluster_interval=2", "method.centroid_update_interval=1"],
    ["data.replacement=true"],
    ["data.num_workers=1"],
    ["callbacks.checkpoints.every_n_steps=1", "callbacks.checkpoints.keep_every_n_epochs=1"],
    ["callbacks.measure=null"],
    pytest.param(["method.compile=true", "backbone.width=8"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("keys", ORDINARY_KEYS, ids=" ".join)
def test_ordinary_keys(few_steps, keys):
    if "method.compile=true" in keys and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    few_steps("experiment=folder", *SMALL, *NO_PICTURE, *keys)


# -- the recipes -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("update_interval", "method.centroid_update_interval", "1,10,50,100"),
        ("min_cluster_size", "method.min_cluster_size", "5,10,20,40,80,160"),
        ("longtail", "data.subset.ratio", "1,2,4,8,16,32,64"),
    ],
)
def test_sweeps_are_the_papers(name, key, values):
    sweep = yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text())
    assert sweep["hydra"]["sweeper"]["params"] == {key: values}
    cfg = composed(f"sweep={name}", "data.root=/data", "measure.root=/voc")
    assert (cfg.data.subset.num_classes, cfg.data.subset.ratio) == (300, 1)
    assert cfg.data.subset.num_images == (100_000 if name == "longtail" else 90_000)
    assert (cfg.task.name, cfg.protocol.name) == ("train_evaluate", "voc07_svm")
    assert cfg.measure.source._target_.endswith("VOC2007")
    assert cfg.backbone._target_.endswith("resnet50")
    assert cfg.data.subset.num_images / cfg.method.num_clusters > 160


def test_recipe_of_deepcluster_is_odcs_but_for_what_the_paper_names():
    odc, dc = (composed(f"experiment={name}_r50", "data.root=/data") for name in ("odc", "dc"))
    assert (dc.optim.lr, dc.backbone.in_channels) == (0.1, 2)
    dc.optim.lr, dc.backbone.in_channels, dc.run.name = odc.optim.lr, odc.backbone.in_channels, odc.run.name
    for group in odc:
        if group != "method":
            assert dc[group] == odc[group], group
    assert (dc.method.num_clusters, dc.method.balance, dc.method.reassign_every) == (10_000, "uniform", 1)
    alexnet = composed("experiment=dc_alexnet", "data.root=/data")
    assert (alexnet.optim.lr, alexnet.data.batch_size, alexnet.trainer.max_epochs) == (0.05, 256, 500)
    assert (alexnet.method.clustered, alexnet.method.head_momentum) == ("before_relu", 0.0)


def rules(method):
    """What each fidelity sets for a method."""
    folder = CONF / "fidelity" / "method" / method
    return {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}


def test_instance_discrimination_is_the_releases_and_local_aggregation_its_authors():
    npid = composed("experiment=npid_r50", "data.root=/data")
    assert (npid.optim.lr, npid.optim.weight_decay, npid.data.batch_size) == (0.03, 1e-4, 256)
    assert (list(npid.schedule.milestones), npid.schedule.gamma, npid.trainer.max_epochs) == ([120, 160], 0.1, 200)
    method = npid.method
    assert (method.loss, method.num_negatives, method.temperature) == ("softmax", 65536, 0.07)
    assert (method.feature_dim, method.momentum) == (128, 0.5)
    train = npid.augment.train
    assert (list(train.scale), train.grey, train.degrees, train.flip) == ([0.2, 1.0], 0.2, 0.0, 0.5)
    assert list(train.brightness) == list(train.contrast) == list(train.saturation) == [0.6, 1.4]
    assert list(train.hue) == [-0.4, 0.4]
    local = composed("experiment=local_aggregation_r50", "data.root=/data")
    assert (local.optim.lr, local.optim.momentum, local.optim.weight_decay) == (0.03, 0.9, 1e-4)
    assert (list(local.schedule.milestones), local.trainer.max_epochs) == ([160, 190], 200)
    method = local.method
    assert (method.num_clusterings, method.num_clusters, method.num_background) == (10, 30_000, 4096)
    assert (method.temperature, method.feature_dim, method.warmup_epochs) == (0.07, 128, 10)
    assert (method.loss, method.num_negatives) == ("nce", 4096)


@pytest.mark.parametrize(
    ("name", "lr", "milestones", "epochs", "batch", "size"),
    [
        ("rotation", 0.2, [30, 50], 70, 128, 224),
        ("relative_location", 0.2, [30, 50], 70, 512, 255),
        ("jigsaw", 0.1, [30, 60, 90, 100], 105, 256, 255),
        ("colorization", 0.1, [30, 50], 70, 256, 224),
    ],
)
def test_recipes_of_the_pretext_tasks(name, lr, milestones, epochs, batch, size):
    cfg = composed(f"experiment={name}_r50", "data.root=/data")
    assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.momentum) == (lr, 1e-4, 0.9)
    assert (list(cfg.schedule.milestones), cfg.schedule.gamma, cfg.schedule.warmup_epochs) == (milestones, 0.1, 5)
    assert (cfg.trainer.max_epochs, cfg.data.batch_size, cfg.data.image_size) == (epochs, batch, size)
    assert cfg.augment.train.grey == (0.66 if size == 255 else 0.0)


def test_both_fidelities_set_the_same_keys_and_all_are_arguments():
    paper, release = rules("odc")["paper"], rules("odc")["openselfsup"]
    assert paper.keys() == release.keys()
    for group, cls in (("method", ODC), ("data", DataModule)):
        assert paper[group].keys() == release[group].keys()
        assert paper[group].keys() <= inspect.signature(cls).parameters.keys()
        assert all(paper[group][key] != release[group][key] for key in paper[group])


@pytest.mark.parametrize("method", ["odc", "deepcluster"])
def test_fidelities_agree_on_keys_and_the_papers_are_the_defaults(method):
    assert rules(method).keys() <= set(GROUPS["fidelity"])
    own = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text())
    for name, sets in rules(method).items():
        assert sets["method"].keys() == rules(method)["paper"]["method"].keys(), name
    assert rules(method)["paper"]["method"].items() <= own.items()


@pytest.mark.parametrize(
    "choice", [("method=odc", "paper"), ("method=odc", "openselfsup"), ("method=supervised", "paper")]
)
def test_fidelity_sets_exactly_its_keys(choice):
    method, fidelity = choice
    cfg, plain = (composed(method, "~experiment", *more) for more in ([f"fidelity={fidelity}"], []))
    sets = rules(method.removeprefix("method=")).get(fidelity, {"method": {}, "data": {"replacement": False}})
    assert cfg.method == {**plain.method, **sets["method"]}
    assert cfg.data == {**plain.data, **sets["data"]}
    assert {k: v for k, v in cfg.items() if k not in ("method", "data")} == {
        k: v for k, v in plain.items() if k not in ("method", "data")
    }


def test_every_key_of_the_method_is_an_argument():
    for name, cls in (("odc", ODC), ("deepcluster", DeepCluster)):
        keys = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text()).keys() - {"_target_"}
        assert keys == {**inspect.signature(cls).parameters, **inspect.signature(Method).parameters}.keys() - {"keys"}


def test_the_primary_config_is_short():
    assert len((CONF / "config.yaml").read_text().splitlines()) <= 40
