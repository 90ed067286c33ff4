"""How other libraries name the tensors of a backbone.

A naming maps each tensor name of the backbone (`layer1.0.conv1.weight`) to the name in the file, without its prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

_CAFFE2_LEAF = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
_CAFFE2_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(?:(conv|bn)([123])|downsample\.([01]))$")
# Convolutions of AlexNet-BN: position in DeepCluster's `features` to position in VISSL's list of blocks.
_VISSL_ALEXNET = {0: 0, 4: 2, 8: 4, 11: 5, 14: 6}
_EFFICIENTNET_STEM = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
_EFFICIENTNET_BLOCK = {
    # timm's first stage has no expansion, so its layers count from another start.
    "ds": {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"},
    "ir": {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    },
}
_SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}


class Naming(NamedTuple):
    """One way to name a backbone's tensors.

    Attributes:
        key: for code and tests.
        name: of each tensor of the backbone in the file; those that cannot be in such a file are left out.
        bgr: the first convolution reads blue, green, red.
    """

    key: str
    name: dict[str, str]
    bgr: bool = False


def namings(net: nn.Module) -> list[Naming]:
    """All namings that `net` can have; the plain one first."""
    targets = list(net.state_dict())
    children = [name for name, _ in net.named_children()]
    owners = [name for name, child in net.named_children() if child.state_dict()]
    renames: list[tuple[str, Callable[[str], str | None], bool]] = [
        ("plain", lambda target: target, False),
        ("parallel", _inside_data_parallel, False),
        ("children", partial(_numbered, children), False),
        ("owners", partial(_numbered, owners), False),
        ("shortcut", _shortcut, False),
        ("owners+shortcut", lambda target: _numbered(owners, _shortcut(target)), False),
        ("vissl_alexnet", _vissl_alexnet, False),
        ("efficientnet_pytorch", partial(_efficientnet, _block_numbers(targets)), False),
        ("caffe2", partial(_caffe2, ""), True),
        ("caffe2_jigsaw", partial(_caffe2, "_s0"), True),
    ]
    return [Naming(key, _apply(rename, targets), bgr) for key, rename, bgr in renames]


def rgb(tensor: Tensor) -> Tensor:
    """Turn a first convolution (O, 3, h, w) from BGR to RGB; others stay as they are."""
    return tensor.flip(1) if tensor.shape[1] == 3 else tensor


def _apply(rename: Callable[[str], str | None], targets: Iterable[str]) -> dict[str, str]:
    named = {target: rename(target) for target in targets}
    return {target: name for target, name in named.items() if name is not None}


def _inside_data_parallel(target: str) -> str:
    """`features.module.0.weight`: DeepCluster wraps the convolutions, not the classifier."""
    return re.sub(r"^features\.", "features.module.", target)


def _numbered(children: list[str], target: str) -> str | None:
    """`4.0.conv1.weight`: lightly's backbones are a Sequential of a ResNet's children."""
    first, _, rest = target.partition(".")
    return f"{children.index(first)}.{rest}" if first in children else None


def _shortcut(target: str) -> str:
    """ResNets for small images, as lightly's, call `downsample` `shortcut`."""
    return target.replace(".downsample.", ".shortcut.")


def _vissl_alexnet(target: str) -> str | None:
    """`_feature_blocks.2.0.weight`: VISSL's list of (convolution, batch norm, ReLU) and pools, without fc6 and fc7."""
    if not (place := re.match(r"features\.(\d+)\.(.+)$", target)):
        return None
    number = int(place[1])
    for part, start in enumerate((number, number - 1)):  # the convolution, or the batch norm behind it
        if start in _VISSL_ALEXNET:
            return f"{_VISSL_ALEXNET[start]}.{part}.{place[2]}"
    return None


def _caffe2(tower: str, target: str) -> str | None:
    """`res2_0_branch2a_bn_riv`: FAIR's ResNets; `tower` is `_s0` in siamese Jigsaw files."""
    module, _, leaf = target.rpartition(".")
    base = _caffe2_module(module)
    if base is None:
        return None
    letter = _CAFFE2_LEAF.get(leaf) if base.endswith("_bn") else leaf[0]
    return f"{base}{tower}_{letter}" if letter else None


def _caffe2_module(module: str) -> str | None:
    if module in ("conv1", "bn1"):
        return "conv1" if module == "conv1" else "res_conv1_bn"
    if not (place := _CAFFE2_BLOCK.match(module)):
        return None
    stage, block, kind, number, shortcut = place.groups()
    branch = f"res{int(stage) + 1}_{block}_branch" + ("1" if shortcut else f"2{'abc'[int(number) - 1]}")
    return branch + ("_bn" if kind == "bn" or shortcut == "1" else "")


def _block_numbers(targets: Iterable[str]) -> dict[str, tuple[int, str]]:
    """timm's `blocks.2.1` to its place in EfficientNet-PyTorch's flat list, and its kind."""
    targets = list(targets)
    blocks = dict.fromkeys(block[0] for target in targets if (block := re.match(r"blocks\.\d+\.\d+", target)))
    inverted = {target.removesuffix(".conv_pwl.weight") for target in targets if target.endswith(".conv_pwl.weight")}
    return {block: (number, "ir" if block in inverted else "ds") for number, block in enumerate(blocks)}


def _efficientnet(numbers: dict[str, tuple[int, str]], target: str) -> str | None:
    """`_blocks.3._depthwise_conv.weight`: EfficientNet-PyTorch, for timm's tf_efficientnet networks."""
    module, _, leaf = target.rpartition(".")
    if module in _EFFICIENTNET_STEM:
        return f"{_EFFICIENTNET_STEM[module]}.{leaf}"
    place = re.match(r"(blocks\.\d+\.\d+)\.(.+)$", module)
    if not place or place[1] not in numbers:
        return None
    number, kind = numbers[place[1]]
    layer = {**_EFFICIENTNET_BLOCK[kind], **_SQUEEZE}.get(place[2])
    return f"_blocks.{number}.{layer}.{leaf}" if layer else None
