"""What a checkpoint is, for people: who wrote it, what to set for it, what to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from odc_lightning.nn.backbone import Backbone
from odc_lightning.weights.match import Match

_LIGHTNESS = (
    "The network was trained on one channel, the lightness of CIE Lab, L - 50 with L in 0..100 (FAIR's colorization)"
)
_Top = Mapping[str, Any]
# The first that is true names the format; it decides nothing else.
_FORMATS: tuple[tuple[str, Callable[[_Top, Match], bool]], ...] = (
    ("FAIR caffe2 Jigsaw pickle", lambda top, match: match.naming.key == "caffe2_jigsaw"),
    ("FAIR caffe2 pickle", lambda top, match: match.naming.key == "caffe2"),
    ("EfficientNet-PyTorch", lambda top, match: match.naming.key == "efficientnet_pytorch"),
    ("odc-lightning checkpoint", lambda top, match: {"method", "pytorch-lightning_version"} <= top.keys()),
    ("lightly checkpoint", lambda top, match: match.naming.key in ("children", "owners", "owners+shortcut")),
    ("Lightning checkpoint", lambda top, match: "pytorch-lightning_version" in top),
    ("VISSL", lambda top, match: "classy_state_dict" in top or "_feature_blocks." in match.prefix),
    ("DeepCluster", lambda top, match: match.naming.key == "parallel" or any("top_layer" in t for t in match.tensors)),
    ("DINO", lambda top, match: bool({"teacher", "student"} & {*match.place, *match.prefix.split(".")})),
    ("MoCo", lambda top, match: "encoder_q." in match.prefix),
    ("SwAV", lambda top, match: any("prototypes" in name or "projection_head" in name for name in match.tensors)),
    ("OpenSelfSup / MMSelfSup", lambda top, match: "state_dict" in top and bool({"meta", "author"} & top.keys())),
    ("state dict", lambda top, match: True),
)


def format_name(content: Any, match: Match) -> str:
    """Who writes files like this one."""
    top = content if isinstance(content, Mapping) else {}
    return next(name for name, fits in _FORMATS if fits(top, match))


def notes(backbone: Backbone, match: Match) -> list[str]:
    """What to know before using the weights that were loaded."""
    said = []
    if match.naming.bgr and _first_channels(match) == 3:
        said.append("first convolution turned from BGR to RGB")
    if match.naming.bgr and _first_channels(match) == 1:
        said.append(
            f"{_LIGHTNESS}: colour images are seen so. Its layer4 had stride 1 where {backbone.name} has 2: conv5 sees "
            f"a coarser map than in training"
        )
    if match.twins:
        said.append(f"taken from {match.where or 'the top'}; also there: {', '.join(match.twins)}")
    return said


def hints(
    backbone: Backbone,
    match: Match,
    missing: tuple[str, ...],
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> list[str]:
    """What to set, for a backbone that is not whole or gets another input."""
    said = []
    there, here = _first_channels(match), backbone.in_channels
    if there == 2 and here != 2:
        said.append("It was trained on Sobel edges: set backbone.in_channels=2")
    elif there == 1 and match.naming.bgr:
        said.append(f"{_LIGHTNESS}: set backbone.in_channels=1, and colour images are seen so")
    elif there and there != here:
        said.append(f"Its images have {there} channel(s): set backbone.in_channels={there}")
    if len(misshapen) > 1 or (len(missing) > len(match.found)):
        said.append(f"Is backbone={backbone.name} the network that was trained?")
    if match.naming.key == "vissl_alexnet" and all(name.startswith("classifier.") for name in missing):
        said.append("VISSL's AlexNets end at conv5: only conv1 to conv5 can be probed")
    return said


def _first_channels(match: Match) -> int | None:
    """Input channels of the first convolution in the file."""
    named = {**match.found, **match.misshapen}
    order = (named[target] for target in match.naming.name if target in named)
    return next((match.tensors[name].shape[1] for name in order if match.tensors[name].ndim == 4), None)
