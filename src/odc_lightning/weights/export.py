"""A backbone into files that torchvision, timm, safetensors and ONNX users load without this package."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.library import timm_backbone, torchvision_backbone
from odc_lightning.whole_file import whole_file

ONNX_CHOICES = ("auto", "true", "false")
_ONNX_NEEDS = ("onnx", "onnxscript")
_LIBRARIES: dict[str, Callable[..., Backbone]] = {"torchvision": torchvision_backbone, "timm": timm_backbone}
_TOLERANCE = 1e-4  # relative; the libraries order the same float32 sums differently


class Exported(NamedTuple):
    """What `export_backbone` wrote.

    Attributes:
        files: path to how one loads it.
        skipped: library to why it has no file.
    """

    files: dict[Path, str]
    skipped: dict[str, str]


def export_backbone(
    backbone: Backbone,
    folder: str | Path,
    *,
    image_size: int = 224,
    onnx: str = "auto",
    info: Mapping[str, Any] | None = None,
) -> Exported:
    """Write `backbone.*` into `folder`; each file is loaded back by its library's own class and compared.

    - `backbone.safetensors`: always, with the names of `backbone.net`.
    - `backbone.torchvision.pth`, `backbone.timm.pth`: where that library has this network under `backbone.name`,
      for its class without classifier and `strict=True`.
    - `backbone.onnx`: of normalised images (B, C, image_size, image_size) to pooled features (B, D); any B.
    - `backbone.json`: the network, its files, and `info`.

    Args:
        image_size: side of the images that the comparison and ONNX see, in pixels.
        onnx: `auto` (where onnx is installed), `true` or `false`.
        info: of its training and of the images it expects.

    Raises:
        ValueError: for another value of `onnx`, or `true` where it is not installed.
        RuntimeError: when a library's network gives other features than this one.
    """
    _require_onnx(onnx)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    net = copy.deepcopy(backbone.net).cpu().float().eval()
    images = torch.randn(2, backbone.in_channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    state = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    exported = Exported({}, {})
    _write(folder / "backbone.safetensors", lambda path: path.write_bytes(save(state, {"backbone": backbone.name})))
    exported.files[folder / "backbone.safetensors"] = "safetensors.torch.load_file(...)"
    for library, build in _LIBRARIES.items():
        path = folder / f"backbone.{library}.pth"
        if reason := _differs(library, build, backbone, net, images):
            exported.skipped[library] = reason
        else:
            _write(path, lambda path: torch.save(state, path))
            exported.files[path] = _how(library, backbone)
    _export_onnx(net, images, folder / "backbone.onnx", onnx, exported)
    _write(folder / "backbone.json", lambda path: path.write_text(_about(backbone, exported, info or {})))
    return exported


def missing_onnx() -> list[str]:
    """The packages that writing ONNX needs and this installation does not have."""
    return [package for package in _ONNX_NEEDS if find_spec(package) is None]


def _require_onnx(onnx: str) -> None:
    if onnx not in ONNX_CHOICES:
        raise ValueError(f"task.onnx must be one of: {', '.join(ONNX_CHOICES)}. Received: {onnx!r}")
    if onnx == "true" and missing_onnx():
        raise ValueError(f"task.onnx=true, but {_how_to_get_onnx()}")


def _how_to_get_onnx() -> str:
    return f"{' and '.join(missing_onnx())} not installed: pip install 'odc-lightning[export]'"


def _differs(library: str, build: Callable[..., Backbone], backbone: Backbone, net: nn.Module, images: Tensor) -> str:
    """Why the library cannot load the network's weights; empty where it can, and gives the same features."""
    try:
        theirs = build(backbone.name, in_channels=backbone.in_channels).net
    except ValueError:
        return f"it has no network {backbone.name}"
    if _shapes(theirs) != _shapes(net):
        return f"its {backbone.name} is another network"
    theirs.load_state_dict(net.state_dict(), strict=True)
    _require_same(library, net, theirs.eval(), images)
    return ""


@torch.no_grad()
def _require_same(library: str, ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    one, other = ours(images), theirs(images)
    difference = float((one - other).abs().max() / one.abs().max().clamp_min(1e-12))
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"{library}'s network gives other features from the same weights: {difference:.1e} relative")


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def _how(library: str, backbone: Backbone) -> str:
    if library == "timm":
        channels = "" if backbone.in_channels == 3 else f", in_chans={backbone.in_channels}"
        return f"timm.create_model({backbone.name!r}, num_classes=0{channels}, checkpoint_path=...)"
    note = "" if backbone.in_channels == 3 else f" and conv1 of {backbone.in_channels} channels"
    return (
        f"torchvision.models.{backbone.name}(), its last layer replaced by torch.nn.Identity(){note}, "
        f".load_state_dict(torch.load(...))"
    )


def _export_onnx(net: nn.Module, images: Tensor, path: Path, onnx: str, exported: Exported) -> None:
    if onnx == "false" or (onnx == "auto" and missing_onnx()):
        exported.skipped["onnx"] = "task.onnx=false" if onnx == "false" else _how_to_get_onnx()
        return
    _write(path, lambda writing: _write_onnx(net, images, writing))
    exported.files[path] = "onnxruntime.InferenceSession(...), input images, output features"


def _write_onnx(net: nn.Module, images: Tensor, path: Path) -> None:
    for name in ("onnxscript", "onnx_ir"):  # they tell every rewritten node
        logging.getLogger(name).setLevel(logging.WARNING)
    torch.onnx.export(
        net,
        (images,),
        str(path),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _about(backbone: Backbone, exported: Exported, info: Mapping[str, Any]) -> str:
    about = {
        "backbone": backbone.name,
        "feature_dim": backbone.feature_dim,
        "in_channels": backbone.in_channels,
        "parameters": sum(parameter.numel() for parameter in backbone.net.parameters()),
        "files": {path.name: how for path, how in exported.files.items()},
        "not_written": exported.skipped,
        **info,
    }
    return json.dumps(about, indent=2) + "\n"


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file completely or not at all."""
    with whole_file(path) as writing:
        write(writing)
