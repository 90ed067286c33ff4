"""What stands between an image and the backbone, decided by the channels of both."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from odc_lightning.nn.lab import Lightness
from odc_lightning.nn.normalize import Normalize
from odc_lightning.nn.sobel import Sobel


def network_input(in_channels: int, mean: Sequence[float], std: Sequence[float]) -> nn.Sequential:
    """uint8 images to the input of a backbone: normalised as they are, as Sobel edges (2), or as lightness (1).

    Args:
        in_channels: of the backbone.
        mean, std: of the images, one number a channel.

    Raises:
        ValueError: for another number of channels.
    """
    normalize, channels = Normalize(mean, std), len(mean)
    if in_channels == channels:
        return nn.Sequential(normalize)
    if in_channels == Sobel.out_channels:
        return nn.Sequential(normalize, Sobel())
    if in_channels == Lightness.out_channels and channels == 3:
        return nn.Sequential(Lightness())
    lightness = f", or {Lightness.out_channels} for lightness" if channels == 3 else ""
    raise ValueError(
        f"backbone.in_channels must be data.channels={channels}, {Sobel.out_channels} for Sobel edges{lightness}. "
        f"Received: {in_channels}"
    )


def input_name(in_channels: int, channels: int) -> str:
    """What a backbone sees, for people: ``colours``, ``grey``, ``Sobel edges`` or ``lightness``."""
    if in_channels == channels:
        return "colours" if channels == 3 else "grey"
    return {Sobel.out_channels: "Sobel edges", Lightness.out_channels: "lightness"}[in_channels]
