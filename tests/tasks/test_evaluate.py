"""task=evaluate as people use it: every protocol on data in its public layout, and what goes wrong."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from app_runner import TINY_FOLDER, run, run_alone
from odc_lightning.callbacks.metrics_csv import read_metrics
from odc_lightning.data.voc import CLASSES
from odc_lightning.evaluation.protocols import saved_labels

KINDS = ("blue", "green", "red")
RUN = ["data.num_workers=0", "logger.wandb.mode=disabled"]
SMALL = ["protocol.epochs=2", "protocol.batch_size=8"]
LAYERS = [f"conv{depth}" for depth in range(1, 6)]


def picture(path, kind, rng, side=20):
    pixels = rng.integers(0, 90, (side, side + 4, 3))
    pixels[..., kind % 3] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Three classes in ImageNet's layout."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for kind, name in enumerate(KINDS):
            for number in range(count):
                picture(root / split / name / f"{number}.JPEG", 2 - kind, rng)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory, imagenet):
    """A run folder."""
    root = tmp_path_factory.mktemp("runs")
    outcome = run(*TINY_FOLDER, f"run.root={root}", f"data.root={imagenet}", f"data.cache_dir={root}", "run.name=demo")
    assert outcome.code == 0, outcome.text
    return root / "demo"


@pytest.fixture
def finished_run(trained, tmp_path):
    """A copy of the run folder that a test may add to."""
    return shutil.copytree(trained, tmp_path / "demo")


def evaluate(folder, *more):
    return run("task=evaluate", f"init.path={folder}", f"run.root={folder.parent}", *RUN, *more)


def results(folder, protocol):
    found = json.loads((folder / "evaluations" / protocol / "results.json").read_text())
    assert found["status"] == "finished"
    return found


def test_knn_of_a_run_with_baselines_and_again(finished_run):
    outcome = evaluate(finished_run, "baseline=true", "protocol.k=5")
    assert outcome.code == 0, outcome.text
    found = results(finished_run, "knn")
    names = ("knn/top1", "knn/top1_untrained", "knn/top1_pixels")
    assert set(found["metrics"]) == {*names, *(name.replace("knn", "knn/10") for name in names), *_at(20)}
    assert found["metrics"]["knn/top1_pixels"] == 100
    assert {"task", "metrics", "config_hash", "versions", "device", "seconds", "protocol", "recipe"} <= set(found)
    assert found["weights"]["file"] == "last.ckpt"
    assert len(found["weights"]["sha256"]) == 64
    assert found["split"]["val"] == {**found["split"]["val"], "name": "folder", "images": 12}
    assert "60 of 60 backbone tensors" in outcome.text
    again = evaluate(finished_run, "protocol.k=5")
    assert again.code == 0
    assert "is finished; nothing to do" in again.text
    assert "knn/top1_pixels" in again.text
    assert not (finished_run.parent / "run.log").exists()


def _at(k):
    return {f"knn/{k}/top1{variant}" for variant in ("", "_untrained", "_pixels")}


def test_linear_on_kept_features_and_a_second_start_finds_them(finished_run):
    args = ["protocol=linear", "protocol.augment=none", "protocol.epochs=20", "protocol.batch_size=12"]
    outcome = evaluate(finished_run, *args, "baseline=true")
    assert outcome.code == 0, outcome.text
    found = results(finished_run, "linear")["metrics"]
    layers = {f"linear/{layer}/top1{variant}" for layer in LAYERS for variant in ("", "_untrained")}
    assert set(found) == {*layers, "linear/pixels/top1"}
    assert found["linear/conv1/top1"] > 90
    rows = read_metrics(finished_run / "evaluations" / "linear" / "metrics.csv")
    assert sum("linear/conv5/loss" in row for row in rows) == 20
    (finished_run / "evaluations" / "linear" / "results.json").unlink()
    again = evaluate(finished_run, *args)
    assert "are in the cache" in again.text
    assert "continuing after epoch 20" in again.text
    assert results(finished_run, "linear")["metrics"]["linear/conv1/top1"] == found["linear/conv1/top1"]


@pytest.mark.parametrize("recipe", ["paper", "openselfsup"])
def test_linear_with_augmentation(finished_run, recipe):
    outcome = evaluate(finished_run, "protocol=linear", f"protocol.recipe={recipe}", *SMALL)
    assert outcome.code == 0, outcome.text
    found = results(finished_run, "linear")
    assert found["recipe"] == recipe
    assert found["settings"]["augment"] == {"paper": "crop", "openselfsup": "crop_jitter"}[recipe]
    assert set(found["metrics"]) == {f"linear/{layer}/top1" for layer in LAYERS}


def test_linear_on_the_pooled_feature(finished_run):
    outcome = evaluate(finished_run, "protocol=linear_gap", *SMALL)
    assert outcome.code == 0, outcome.text
    assert set(results(finished_run, "linear_gap")["metrics"]) == {"linear/gap/top1"}
    assert results(finished_run, "linear_gap")["settings"]["lr"] == 30


def test_semi_supervised_and_agreement(finished_run):
    grid = ["protocol.lrs=[0.01]", "protocol.head_multipliers=[1,10]", "protocol.epochs=1"]
    outcome = evaluate(finished_run, "protocol=semi", "protocol.fraction=0.1", *grid)
    assert outcome.code == 0, outcome.text
    assert "semi/10pct/top1" in results(finished_run, "semi_0.1")["metrics"]
    assert len((finished_run / "evaluations" / "semi_0.1" / "labelled.txt").read_text().splitlines()) == 3
    assert evaluate(finished_run, "protocol=agreement").code == 0
    found = results(finished_run, "agreement")["metrics"]
    assert set(found) == {f"agreement/{name}" for name in ("nmi", "ari", "purity", "accuracy")}
    trained = json.loads((finished_run / "results.json").read_text())["metrics"]
    assert found["agreement/nmi"] == pytest.approx(trained["agreement/nmi"])


@pytest.fixture(scope="module")
def devkit(tmp_path_factory):
    """VOCdevkit with 20 classes and annotations: three training and two test images show each class first."""
    root, rng = tmp_path_factory.mktemp("voc") / "VOCdevkit", np.random.default_rng(0)
    folder = root / "VOC2007"
    for image_set, count in (("trainval", 80), ("test", 40)):
        ids = [f"{image_set[0]}{number:05d}" for number in range(count)]
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(ids))
        (folder / "Annotations").mkdir(exist_ok=True)
        for number, name in enumerate(ids):
            picture(folder / "JPEGImages" / f"{name}.jpg", number, rng)
            objects = "".join(
                f"<object><name>{CLASSES[kind]}</name><difficult>{int(kind == 3 and number > 30)}</difficult></object>"
                for kind in {number % 20, (number + 7) % 20}
            )
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    return root


def test_voc_svm_and_low_shot_in_the_layout_of_the_archives(finished_run, devkit):
    voc = ["data=voc2007", f"data.root={devkit}", "data.image_size=16", "protocol.costs=[0.1,1]", "protocol.jobs=1"]
    outcome = evaluate(finished_run, "protocol=voc07_svm", *voc, "baseline=true")
    assert outcome.code == 0, outcome.text
    found = results(finished_run, "voc07_svm")["metrics"]
    assert {f"svm/{layer}/map" for layer in LAYERS} | {"svm/map", "svm/pixels/map", "svm/map_pixels"} <= set(found)
    assert found["svm/map"] == max(found[f"svm/{layer}/map"] for layer in LAYERS)
    assert len((finished_run / "evaluations" / "voc07_svm" / "ap.csv").read_text().splitlines()) == 101
    outcome = evaluate(finished_run, "protocol=voc07_low_shot", *voc, "protocol.shots=[1,2]", "protocol.samples=2")
    assert outcome.code == 0, outcome.text
    found = results(finished_run, "voc07_low_shot")["metrics"]
    assert set(found) == {"lowshot/1/map", "lowshot/2/map", "lowshot/map"}
    saved = yaml.safe_load((finished_run / "config.yaml").read_text())["data"]
    assert (
        yaml.safe_load((finished_run / "evaluations/voc07_svm/config.yaml").read_text())["data"]["mean"]
        == (saved["mean"])
    )


def test_any_images_with_a_csv_of_labels(finished_run, tmp_path):
    rng, lines = np.random.default_rng(0), ["path,split,red,light"]
    for number in range(30):
        picture(tmp_path / "images" / f"{number}.jpg", 0 if number % 2 else 1, rng)
        lines.append(f"{number}.jpg,{'train' if number < 20 else 'val'},{number % 2},{int(number % 3 == 0)}")
    (tmp_path / "images" / "labels.csv").write_text("\n".join(lines))
    args = ["data=multilabel", f"data.root={tmp_path / 'images'}", "data.image_size=16", "protocol=voc07_svm"]
    outcome = evaluate(finished_run, *args, "protocol.num_classes=20")
    assert outcome.code == 1
    assert "protocol.num_classes=20, but labels has 2 classes" in outcome.text
    outcome = evaluate(finished_run, *args, "protocol.layers=[conv1,gap]")
    assert outcome.code == 0, outcome.text
    assert {"svm/conv1/map", "svm/gap/map", "svm/map"} == set(results(finished_run, "voc07_svm")["metrics"])


def test_places205_by_its_lists(finished_run, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        names = [f"a/scene{kind:03d}/{split}.jpg" for kind in range(205)]
        for kind, name in enumerate(names):
            picture(tmp_path / "places" / name, kind, rng, side=16)
        lines = "".join(f"{name} {kind}\n" for kind, name in enumerate(names))
        (tmp_path / "places" / f"{split}_places205.csv").write_text(lines)
    args = ["data=places205", f"data.root={tmp_path / 'places'}", "data.image_size=16", "protocol=linear_places205"]
    outcome = evaluate(finished_run, *args, "protocol.epochs=1", "protocol.layers=[conv1,conv5]")
    assert outcome.code == 0, outcome.text
    assert set(results(finished_run, "linear_places205")["metrics"]) == {"linear/conv1/top1", "linear/conv5/top1"}


def test_a_file_of_another_library_and_random_weights_have_folders_of_their_own(imagenet, tmp_path):
    import torchvision

    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r18.pth")
    args = ["task=evaluate", f"run.root={tmp_path}", f"data.root={imagenet}", f"data.cache_dir={tmp_path}", *RUN]
    args += ["experiment=folder", "data.image_size=32", "protocol.k=3", "protocol.ks=[]"]
    outcome = run(*args, f"init.path={tmp_path / 'r18.pth'}")
    assert outcome.code == 0, outcome.text
    assert (tmp_path / "r18" / "evaluations" / "knn" / "results.json").exists()
    outcome = run(*args, "baseline=true", "seed=3")
    assert outcome.code == 0, outcome.text
    found = json.loads((tmp_path / "random_resnet18" / "evaluations" / "knn" / "results.json").read_text())
    assert set(found["metrics"]) == {"knn/top1", "knn/top1_pixels"}
    assert found["weights"] == {"file": None, "pretrained": None, "sha256": None}
    assert run(*args, "run.name=mine").code == 0
    assert (tmp_path / "mine" / "evaluations" / "knn" / "results.json").exists()


def test_other_settings_are_refused_other_weights_replace(finished_run):
    assert evaluate(finished_run, "protocol.k=5").code == 0
    outcome = evaluate(finished_run, "protocol.k=6")
    assert outcome.code == 1
    assert "protocol.k: 5 there, 6 now" in outcome.text
    assert evaluate(finished_run, "protocol.k=6", "protocol.name=six").code == 0
    checkpoint = finished_run / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["backbone.net.conv1.weight"] += 1
    torch.save(state, checkpoint)
    outcome = evaluate(finished_run, "protocol.k=5")
    assert outcome.code == 0, outcome.text
    assert "The evaluation of other weights that was here is now" in outcome.text
    assert (finished_run / "evaluations" / "knn.1" / "results.json").exists()


def test_svm_and_low_shot_on_single_labels_are_one_against_the_rest(finished_run):
    costs = "protocol.costs=[0.1,1.0]"
    outcome = evaluate(finished_run, "protocol=voc07_svm", "protocol.layers=[conv1,gap]", costs, "baseline=true")
    assert outcome.code == 0, outcome.text
    metrics = results(finished_run, "voc07_svm")["metrics"]
    assert metrics["svm/pixels/map"] == 100  # the colour tells the kind
    table = list(csv.DictReader((finished_run / "evaluations" / "voc07_svm" / "ap.csv").open()))
    assert [row["class"] for row in table] == [*KINDS, *KINDS]
    each = [np.mean([float(row["ap"]) for row in table if row["layer"] == layer]) for layer in ("conv1", "gap")]
    assert [metrics["svm/conv1/map"], metrics["svm/gap/map"]] == pytest.approx(each, rel=1e-4)
    shots = ["protocol=voc07_low_shot", "protocol.layer=gap", "protocol.shots=[1]", costs, "protocol.samples=2"]
    outcome = evaluate(finished_run, *shots, "protocol.jobs=1")
    assert outcome.code == 0, outcome.text
    assert 0 < results(finished_run, "voc07_low_shot")["metrics"]["lowshot/1/map"] <= 100


def test_kmeans_finds_colours_in_pixels(finished_run):
    """36 flat pictures of three colours: raw pixels fall into the three classes."""
    outcome = evaluate(finished_run, "protocol=kmeans", "clustering.backend=torch", "baseline=true")
    assert outcome.code == 0, outcome.text
    found = results(finished_run, "kmeans")["metrics"]
    names = {f"kmeans/{name}" for name in ("nmi", "ari", "purity", "accuracy")}
    assert set(found) == {f"{name}{variant}" for name in names for variant in ("", "_untrained", "_pixels")}
    assert all(found[f"{name}_pixels"] == pytest.approx(1) for name in names)


def tensors(node):
    return {name: tensors(value) if isinstance(value, dict) else torch.tensor(value) for name, value in node.items()}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"memory": {"labels": [1, 0, 2]}}, [1, 0, 2]),
        ({"labels": [2, 2, 1]}, [2, 2, 1]),
        ({"labels": [[0, 0, 0], [1, 2, 0]]}, [1, 2, 0]),
    ],
    ids=["odc", "deepcluster", "local aggregation"],
)
def test_pseudo_labels_of_every_method(tmp_path, method, expected):
    class Images:
        def fingerprint(self):
            return "f"

    bench = SimpleNamespace(source=lambda split: Images())
    saved = tensors(method)
    torch.save({"method": {**saved, "data": {"fingerprint": "f"}}}, tmp_path / "last.ckpt")
    assert saved_labels(tmp_path / "last.ckpt", bench).tolist() == expected


def test_a_sweep_over_protocols_and_their_keys(finished_run):
    args = ["-m", "task=evaluate", f"init.path={finished_run}", f"run.root={finished_run.parent}", *RUN]
    outcome = run(*args, "protocol=knn,agreement")
    assert outcome.code == 0, outcome.text
    assert {path.parent.name for path in finished_run.rglob("evaluations/*/results.json")} == {"knn", "agreement"}
    outcome = run(*args, "protocol=knn", "protocol.k=3,5")
    assert outcome.code == 0, outcome.text
    names = {path.parent.name for path in finished_run.rglob("evaluations/knn/*/results.json")}
    assert names == {"protocol.k=3", "protocol.k=5"}
    outcome = run(*args, "protocol.k=2,4", "trainer.devices=2")
    assert outcome.code == 1
    assert "a sweep (-m) cannot run ddp on several devices: trainer.devices=2" in outcome.text


def test_wandb_is_in_the_group_of_the_training(finished_run, monkeypatch):
    seen = {}
    monkeypatch.setattr("odc_lightning.tasks.evaluate.wandb_logger", lambda folder, **keys: seen.update(keys))
    assert evaluate(finished_run, "protocol=agreement").code == 0
    assert (seen["group"], seen["name"]) == ("demo", "demo/evaluations/agreement")


@pytest.mark.slow
def test_two_processes_measure_what_one_does(finished_run):
    args = ["task=evaluate", f"init.path={finished_run}", f"run.root={finished_run.parent}", *RUN, "protocol.k=5"]
    assert run(*args).code == 0
    outcome = run_alone(*args, "trainer.devices=2", "protocol.name=two", f"evaluate.cache_dir={finished_run}/two")
    assert outcome.code == 0, outcome.text
    assert results(finished_run, "two")["metrics"] == results(finished_run, "knn")["metrics"]
    assert results(finished_run, "two")["device"].startswith("2 x")
    one, two = (sorted(path.rglob("features.npy")) for path in (finished_run / "evaluations", finished_run / "two"))
    assert [path.parent.name for path in one] == [path.parent.name for path in two]
    for left, right in zip(one, two, strict=True):
        assert np.allclose(np.load(left), np.load(right), atol=1e-5)


WITHOUT_VAL = "this protocol needs validation images, and folder has none"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["protocol=linear", "protocol.recipe=papers"], "protocol.recipe must be one of paper, openselfsup"),
        (["protocol=linears"], "protocol=linears is not a choice. Did you mean linear"),
        (["protocol.num_classes=5"], "protocol.num_classes=5, but the training images of folder have 3 classes"),
        (["protocol=voc07_svm", "protocol.num_classes=20"], "protocol.num_classes=20, but folder has 3 classes"),
        (["protocol.layer=conv9"], "protocol.layers of small_resnet must be one of"),
        (["evaluate.precision=8-bit"], "evaluate.precision must be one of 32-true"),
        (["data.image_size=32"], "data.image_size can be given together with data=... or experiment=..."),
        (["augment=none"], "augment can be given together with data=... or experiment=..."),
        (["init.path=nothing.pth"], "init.path must be a checkpoint or a run folder. Nothing is at: nothing.pth"),
        (["protocol=agreement", "init.path=null", "data=mnist5k"], "protocol=agreement needs a run"),
        (["data=mnist5k"], "backbone.in_channels must be data.channels=1, 2 for Sobel edges. Received: 3"),
        (["resume=maybe"], "resume must be one of auto, must, never"),
    ],
)
def test_what_cannot_work_is_said_in_one_message(finished_run, args, message):
    outcome = evaluate(finished_run, *args)
    assert outcome.code == 1
    assert message in outcome.text
    assert "Traceback" not in outcome.text
    assert not list(finished_run.parent.rglob("evaluations/*/results.json"))


def test_images_without_val_labels_or_with_other_classes(finished_run, tmp_path):
    rng = np.random.default_rng(0)
    args = ["data=folder", f"data.root={tmp_path / 'own'}", "data.image_size=16", f"data.cache_dir={tmp_path / 'c'}"]
    for number in range(4):
        picture(tmp_path / "own" / f"{number}.jpg", number, rng)
    outcome = evaluate(finished_run, *args)
    assert "this protocol needs labels, and the train images of folder have none" in outcome.text
    shutil.rmtree(tmp_path / "own")
    for name in ("a", "b"):
        picture(tmp_path / "own" / name / "1.jpg", 0, rng)
    assert WITHOUT_VAL in evaluate(finished_run, *args).text
    shutil.rmtree(tmp_path / "own")
    for name in ("train/a", "train/b", "val/a", "val/c"):
        picture(tmp_path / "own" / name / "1.jpg", 0, rng)
    assert "1 classes of the validation images have no training image: c" in evaluate(finished_run, *args).text
    outcome = evaluate(finished_run, *args, "protocol=agreement")
    assert "was trained on other images (36) than the 2 of folder" in outcome.text
