"""conv1 … conv5 of a network, average-pooled to about 9,000 dimensions (paper, Sec. 4.1, after Zhang et al. 2017).

Shapes: B images · C channels · s side of a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import NamedTuple

import torch
from torch import nn

from odc_lightning.checks import check_choice

GAP = "gap"  # the backbone's pooled feature: the global average of a ResNet, fc7 of AlexNet
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
MOST_DIMS = 9600  # the most that any published pool leaves
Shape = tuple[int, ...]  # of one image's feature: (C, s, s) or (D,)
Pools = dict[str, nn.Module]


class Published(NamedTuple):
    """An average pool and the map (C, s, s) that it was published for; padding zeros count."""

    channels: int
    side: int
    kernel: int
    stride: int
    padding: int


_ALEXNET_MAPS = {"conv1": (96, 55), "conv2": (256, 27), "conv3": (384, 13), "conv4": (384, 13), "conv5": (256, 13)}


def _alexnet(**pools: tuple[int, int, int]) -> dict[str, Published]:
    return {layer: Published(*_ALEXNET_MAPS[layer], *pool) for layer, pool in pools.items()}


# At 224 pixels. ResNet-50 as in OpenSelfSup (and FAIR's benchmark); AlexNet as in DeepCluster's evaluation, or VISSL's.
POOL_SETS: dict[str, dict[str, Published]] = {
    "resnet50": {
        "conv1": Published(64, 112, 10, 10, 4),
        "conv2": Published(256, 56, 16, 8, 0),
        "conv3": Published(512, 28, 13, 5, 0),
        "conv4": Published(1024, 14, 8, 3, 0),
        "conv5": Published(2048, 7, 6, 1, 0),
    },
    "alexnet_deepcluster": _alexnet(
        conv1=(6, 6, 3), conv2=(4, 4, 0), conv3=(3, 3, 1), conv4=(3, 3, 1), conv5=(2, 2, 0)
    ),
    "alexnet_vissl": _alexnet(conv1=(19, 4, 0), conv2=(12, 3, 0), conv3=(9, 1, 0), conv4=(9, 1, 0), conv5=(8, 1, 0)),
}
POOL_CHOICES = ("auto", "adaptive", *POOL_SETS)


def pools_for(maps: Mapping[str, Shape], pools: str = "auto") -> Pools:
    """The pool of each layer.

    Args:
        maps: layer to the shape (C, s, s) of its map.
        pools: a published set by name; ``adaptive``: the finest grid of equal windows with at most 9,600 dimensions,
            which gives the published dimensions for ResNet-50 and AlexNet too; ``auto``: the first published set that
            was made for these very maps, else ``adaptive``.

    Raises:
        ValueError: for an unknown name, or a set that was published for other maps; names the layer and both.
    """
    check_choice("protocol.pools", pools, POOL_CHOICES)
    if pools == "auto":
        fitting = (name for name, published in POOL_SETS.items() if not _misfit(maps, published))
        pools = next(fitting, "adaptive")
    if pools == "adaptive":
        return {layer: adaptive_pool(shape) for layer, shape in maps.items()}
    published = POOL_SETS[pools]
    if layer := _misfit(maps, published):
        wanted = f"{published[layer].channels} x {published[layer].side}" if layer in published else "no such layer"
        raise ValueError(
            f"protocol.pools={pools} was published for other maps: {layer} is {wanted} there, "
            f"{maps[layer][0]} x {maps[layer][-1]} here. Take protocol.pools=adaptive"
        )
    return {layer: nn.AvgPool2d(*published[layer][2:]) for layer in maps}


def _misfit(maps: Mapping[str, Shape], published: Mapping[str, Published]) -> str:
    """The first layer whose map is not the published one; empty when all fit. No map fits nothing."""
    for layer, (channels, *sides) in maps.items():
        expected = published.get(layer)
        if expected is None or [channels, *sides] != [expected.channels, expected.side, expected.side]:
            return layer
    return "" if maps else "any"


def adaptive_pool(shape: Shape, most: int = MOST_DIMS) -> nn.Module:
    """Average over a k x k grid, the largest k with C k k <= ``most``, and no larger than the map (C, s, s)."""
    channels, *sides = shape
    return nn.AdaptiveAvgPool2d(max(1, min(isqrt(most // channels), *sides)))


def pooled_shape(pool: nn.Module, shape: Shape) -> Shape:
    """Shape of a map (C, s, s) after its pool."""
    return tuple(pool(torch.zeros(1, *shape)).shape[1:])
