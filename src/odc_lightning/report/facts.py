"""What a dossier may ask of a run: method, network, images, epochs, and every key of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from odc_lightning.nested import leaves
from odc_lightning.report.curves import METRICS
from odc_lightning.report.runs import EVALUATE, TRAIN, Run

# Class of a source of images to its `data=` choice; torchvision's carry their own name.
SOURCES = {
    "Mnist5k": "mnist5k",
    "ImageFolder": "folder",
    "ImageNet": "imagenet",
    "VOC2007": "voc2007",
    "Places205": "places205",
    "MultiLabelCSV": "multilabel",
}
# Images of which only the path tells one set from another.
BY_PATH = ("folder", "imagenet", "multilabel")
OF_AN_EVALUATION = ("protocol", "evaluate", "baseline")
# Two runs are the same settings, and may be averaged, if they differ in nothing else than these.
GROUPS = ("method", "backbone", "data", "subset", "augment", "clustering", "optim", "schedule")
OF_THE_TRAINER = (
    "precision",
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "limit_train_batches",
)
OF_DATA = ("image_size", "channels", "mean", "std", "eval_transform")
MAY_DIFFER = ("seed", "cache_dir", "download", "num_workers", "log_every_n_steps", "jobs")


def facts(run: Run, known: Mapping[Path, Run] | None = None) -> dict[str, Any]:
    """Name to value.

    Returns:
        task: ``train`` or ``evaluate``.
        method: ``odc``, ``deepcluster``, ...; ``random`` for untrained weights, ``file`` for weights of unknown origin.
        backbone: ``resnet50``, ...
        trained_on, measured_on: as in ``data=``; None where that was not done.
        epochs: of training.
        images: that an epoch of training went over, from its steps; of an evaluation's training, likewise.
        measured_images: on which an evaluation's classifier was trained.
        start: the method of the run that it was fine-tuned from, else the name of that file; None for random weights.
        origin: start, or method where there is none: what the network learned first.

    Args:
        run: of which.
        known: finished trainings by resolved folder, in which ``start`` is looked up.
    """
    training = run if run.task == TRAIN else run.trained
    config = run.training
    method = config["method"]["_target_"].split(".")[-2] if training else _untrained(run)
    start = _start(training, known or {}) if training else None
    return {
        "task": run.task,
        "method": method,
        "backbone": config["backbone"]["_target_"].rpartition(".")[2],
        "trained_on": _source(config) if training else None,
        "measured_on": _source(run.config) if run.task == EVALUATE else None,
        "epochs": config["trainer"]["max_epochs"] if training else None,
        "images": _images(training) if training else None,
        "measured_images": _measured_images(run),
        "start": start,
        "origin": start or method,
    }


def matches(wanted: Mapping[str, Any], run: Run, known: Mapping[str, Any]) -> bool:
    """Does a run have every value that a filter wants?

    Args:
        wanted: fact, or dotted key of the configuration (that of the training, ``protocol.*`` that of the evaluation),
            to a value, a pattern such as ``resnet*``, ``>=1000``, or a list of which one must fit.
        run: the run.
        known: its facts.
    """
    return all(_fits(value, known[key] if key in known else _of_config(run, key)) for key, value in wanted.items())


def settings(run: Run, known: Mapping[str, Any]) -> dict[str, Any]:
    """All that two runs must have in common to be averaged: dotted key to value.

    Folders of images count, as nothing else tells one from another, except for data sets that are always the same.
    """
    config = run.training
    tree = {group: config.get(group) for group in GROUPS}
    tree["trainer"] = {key: config.get("trainer", {}).get(key) for key in OF_THE_TRAINER}
    tree["start"] = known["start"]
    if run.task == EVALUATE:
        if run.trained is None:
            tree = {"backbone": run.config["backbone"], "weights": run.results.get("weights")}
        data = run.config["data"]
        tree["protocol"] = {key: value for key, value in run.config["protocol"].items() if key != "name"}
        tree["measured"] = {key: data.get(key) for key in OF_DATA} | {"images": run.config.get("images")}
        tree["precision"] = run.config.get("evaluate", {}).get("precision")
    always_same = known["trained_on"] not in BY_PATH
    return {
        key: value
        for key, value in leaves(tree)
        if key.rpartition(".")[2] not in MAY_DIFFER and not (always_same and key.endswith(".root"))
    }


def summary(run: Run, known: Mapping[str, Any]) -> str:
    """``odc, resnet50, 480 epochs on imagenet (1,281,024 images)``, for the people who read the report."""
    parts = [str(known["method"]), str(known["backbone"])]
    if known["start"]:
        parts.append(f"from {known['start']}")
    if known["trained_on"]:
        images = f" ({known['images']:,} images)" if known["images"] else ""
        parts.append(f"{known['epochs']} epochs on {known['trained_on']}{images}")
    if known["measured_on"]:
        parts.append(f"measured on {known['measured_on']}")
    return ", ".join(parts)


def _untrained(run: Run) -> str:
    weights = run.results.get("weights") or {}
    return "file" if weights.get("file") or weights.get("pretrained") else "random"


def _source(config: Mapping[str, Any]) -> str:
    source = config["data"]["source"]
    name = source["_target_"].rpartition(".")[2]
    return SOURCES.get(name, source.get("name") or name)


def _images(training: Run) -> int | None:
    """Images of an epoch: a subset, or a run cut short, must not pass for the whole data set."""
    path = training.folder / METRICS
    last = path.read_text().rstrip().rpartition("\n")[2].split(",") if path.is_file() else []
    epochs = training.config["trainer"]["max_epochs"]
    if len(last) < 2 or not last[1].isdigit() or not epochs:
        return None
    return round(int(last[1]) * training.config["data"]["batch_size"] / epochs)


def _measured_images(run: Run) -> int | None:
    train = (run.config.get("images") or {}).get("train")
    return train.get("images") if run.task == EVALUATE and isinstance(train, Mapping) else None


def _start(training: Run, known: Mapping[Path, Run]) -> str | None:
    init = training.config.get("init") or {}
    if not init.get("path"):
        return init.get("pretrained")
    path = Path(init["path"])
    # The command ran where runs/ is; the report may be made elsewhere.
    for place in (path, training.folder.parent / path.name, training.folder.parents[1] / path.parent.name / path.name):
        if (run := known.get(place.resolve())) is not None:
            return str(facts(run, {})["method"])
    return path.stem


def _of_config(run: Run, key: str) -> Any:
    node: Any = run.config if key.split(".")[0] in OF_AN_EVALUATION else run.training
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _fits(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, list):
        return any(_fits(one, value) for one in wanted)
    if isinstance(wanted, str) and wanted.startswith(">="):
        return isinstance(value, int | float) and value >= float(wanted[2:])
    if isinstance(wanted, str):
        return value is not None and fnmatchcase(str(value), wanted)
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
