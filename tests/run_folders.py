"""Run folders with known figures, as training and evaluation leave them."""

import json

import yaml

from odc_lightning.tasks.evaluation_folder import evaluation_hash
from odc_lightning.tasks.run_folder import config_hash

METHODS = {"odc": "odc.ODC", "deepcluster": "deepcluster.DeepCluster", "rotation": "rotation.Rotation"}
SOURCES = {
    "folder": "folder.ImageFolder",
    "imagenet": "folder.ImageNet",
    "voc2007": "voc.VOC2007",
    "mnist5k": "sources.Mnist5k",
    "places205": "places.Places205",
}


def images(name, batch_size=64, size=32):
    """The data part of a configuration."""
    source = {"_target_": f"odc_lightning.data.{SOURCES[name]}", "root": f"/data/{name}"}
    return {"root": source["root"], "source": source, "batch_size": batch_size, "image_size": size, "num_workers": 0}


def backbone_of(name):
    """The backbone part of a configuration."""
    module = "alexnet" if name == "alexnet" else "resnet"
    return {"_target_": f"odc_lightning.nn.{module}.{name}", "in_channels": 3}


def write_run(folder, metrics=None, *, method="odc", seed=0, data="folder", backbone="small_resnet", epochs=4, **more):
    """A finished training; `more`: start, clusters, steps, batch_size, size, curve {column: [values at each step]}."""
    seen = images(data, more.get("batch_size", 64), more.get("size", 32))
    config = {
        "run": {"root": str(folder.parent), "name": folder.name},
        "seed": seed,
        "task": {"name": "train"},
        "data": {**seen, "seed": seed},
        "backbone": backbone_of(backbone),
        "init": {"path": more.get("start"), "pretrained": None},
        "method": {"_target_": f"odc_lightning.methods.{METHODS[method]}", "num_clusters": more.get("clusters", 50)},
        "trainer": {"max_epochs": epochs, "precision": "32-true"},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_curve(folder, more.get("curve") or {"train/loss": [3.0, 2.0]}, more.get("steps", 100))
    results = {"task": "train", "status": "finished", "metrics": metrics or {}, "config_hash": config_hash(config)}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def write_curve(folder, curve, steps):
    """metrics.csv with evenly spaced steps, the last at `steps`."""
    length = max(map(len, curve.values()))
    lines = [",".join(["epoch", "step", *curve])]
    for row in range(length):
        lines.append(",".join(map(str, [0, steps * (row + 1) // length, *(values[row] for values in curve.values())])))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def write_evaluation(home, metrics, *, protocol="knn", seed=0, data="folder", backbone="small_resnet", **more):
    """A finished evaluation below `home`; `more`: weights (file), settings of the protocol, size."""
    folder = home / "evaluations" / more.get("name", protocol)
    config = {
        "run": {"root": str(home.parent), "name": "demo"},
        "seed": seed,
        "task": {"name": "evaluate"},
        "data": images(data, size=more.get("size", 32)),
        "backbone": backbone_of(backbone),
        "method": {"_target_": "odc_lightning.methods.odc.ODC"},
        "protocol": {"name": protocol, **more.get("settings", {})},
        "images": {"train": {"name": data, "images": more.get("images", 100), "fingerprint": "f"}},
        "weights": more.get("weights", {"file": "last.ckpt", "sha256": "0"}),
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    results = {"task": "evaluate", "status": "finished", "metrics": metrics, "weights": config["weights"]}
    (folder / "results.json").write_text(json.dumps({**results, "config_hash": evaluation_hash(config)}))
    return folder
