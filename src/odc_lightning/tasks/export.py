"""task=export: the backbone of a run or of any checkpoint, as files for other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from odc_lightning.console import say, size
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.network_input import input_name
from odc_lightning.tasks.run_folder import versions
from odc_lightning.weights.export import Exported, export_backbone
from odc_lightning.weights.load import load_content
from odc_lightning.weights.read import find_checkpoint, read_checkpoint, sha256

_BACKBONES = ("odc_lightning.nn.resnet", "odc_lightning.nn.alexnet", "odc_lightning.nn.library")


def export(cfg: DictConfig) -> dict[str, str]:
    """Write the backbone of `init.path` (default: this run's last checkpoint) for other libraries.

    A checkpoint of ours says itself which backbone and images it was trained with; for others the command line does.

    Returns:
        Path of each file to how one loads it.

    Raises:
        ValueError: when there is no checkpoint, or it does not fit the backbone.
    """
    run_folder = Path(HydraConfig.get().runtime.output_dir)
    path = _checkpoint(cfg, run_folder)
    content = read_checkpoint(path)
    config = own_config(content)
    if config is None:
        backbone: Backbone = instantiate(cfg.backbone)
        config = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    else:
        backbone = build_backbone(config["backbone"])
    assert config is not None
    report = load_content(backbone, content, str(path), allow_partial=cfg.init.allow_partial)
    say(str(report))
    folder = Path(cfg.task.folder or _run_of(path, run_folder) / "export").expanduser()
    image_size = cfg.task.image_size or config["data"]["image_size"]
    info = {**about(content, config, path), "loaded": str(report)}
    exported = export_backbone(backbone, folder, image_size=image_size, onnx=str(cfg.task.onnx).lower(), info=info)
    _show(exported)
    return {str(file): how for file, how in exported.files.items()}


def own_config(content: Any) -> dict[str, Any] | None:
    """The configuration that a checkpoint of ours was trained with; None for any other file."""
    config = content.get("config") if isinstance(content, Mapping) else None
    return config if isinstance(config, dict) and {"backbone", "data", "method"} <= config.keys() else None


def build_backbone(config: Mapping[str, Any]) -> Backbone:
    """Build the backbone that a checkpoint's configuration names: only the functions of this package's `nn`.

    Raises:
        ValueError: for any other function, so that a file cannot choose what runs.
    """
    target = str(config.get("_target_"))
    module, _, name = target.rpartition(".")
    function = getattr(import_module(module), name, None) if module in _BACKBONES else None
    if getattr(function, "__module__", None) != module or name.startswith("_") or isinstance(function, type):
        raise ValueError(f"the checkpoint's backbone must be built by {' or '.join(_BACKBONES)}. Received: {target}")
    assert function is not None
    return function(**{key: value for key, value in config.items() if key != "_target_"})


def about(content: Any, config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a person needs to use the weights: their images, where they come from, with which versions."""
    data, method = config["data"], config["method"]
    side = data["image_size"]
    training: dict[str, Any] = {}
    if own_config(content) is not None:
        progress = {key: content[key] for key in ("epoch", "global_step")}
        training = {"run": config["run"]["name"], "method": method["_target_"].rpartition(".")[2], **progress}
    return {
        "images": {
            "size": [data["channels"], side, side],
            "scale": "0..1, then (x - mean) / std",
            "mean": list(data["mean"]),
            "std": list(data["std"]),
            "network_sees": input_name(config["backbone"].get("in_channels", 3), data["channels"]),
        },
        "training": training,
        "source": {"file": path.name, "sha256": sha256(path)},
        "versions": versions(),
    }


def _checkpoint(cfg: DictConfig, run_folder: Path) -> Path:
    if cfg.init.path is not None:
        return find_checkpoint(cfg.init.path)
    if not (run_folder / "checkpoints").is_dir():
        raise ValueError(f"task=export needs init.path, or a run that was trained. No checkpoints are in: {run_folder}")
    return find_checkpoint(run_folder)


def _run_of(path: Path, otherwise: Path) -> Path:
    """The run folder that a checkpoint lies in."""
    return path.parent.parent if path.parent.name == "checkpoints" else otherwise


def _show(exported: Exported) -> None:
    for file, how in exported.files.items():
        say(f"{file} ({size(file.stat().st_size)}): {how}")
    for library, reason in exported.skipped.items():
        say(f"not written for {library}: {reason}")
