"""Colour jitter and random grey of a batch on its device, each image by parameters of its own that a worker has drawn.

The workers then only decode, crop and turn. As on the host, each operation ends in whole numbers, cut off after blends
as PIL does; the result is that of :func:`odc_lightning.data.augment.recolour` to 1/255 on average.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odc_lightning.console import warn

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the operations, as an order names them
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_WHOLE = 0.001  # whole numbers stay themselves, whatever the last bit of a product
_FIRST_OF_HEXAGON = (5.0, 3.0, 1.0)  # of red, green, blue: where the channel stands on the hue's hexagon


def jitter(image_BCHW: Tensor, colour_BP: Tensor) -> Tensor:
    """Jittered uint8 images (B, C, H, W), C = 3 or 1.

    Args:
        image_BCHW: uint8.
        colour_BP: float32 (B, 9): the factors of brightness, contrast, saturation, the shift of the hue in circles,
            1 or 0 for grey, and the order of the four, as :meth:`TrainTransform.uncoloured` draws them.
    """
    pixels, order_B4 = image_BCHW.float(), colour_BP[:, 5:]
    for turn in range(4):
        which_B = order_B4[:, turn].long()
        factor_B111 = colour_BP.gather(1, which_B[:, None])[:, :, None, None]
        pixels = _adjust(pixels, which_B[:, None, None, None], factor_B111)
    if pixels.shape[1] == 3:
        pixels = torch.where(colour_BP[:, 4, None, None, None] > 0, luma(pixels), pixels)
    return pixels.to(torch.uint8)


def jitter_on_device(image_BCHW: Tensor, colour_BP: Tensor) -> Tensor:
    """As :func:`jitter`; on a GPU in fused kernels, where they can be compiled."""
    if not image_BCHW.is_cuda or _compiled.failed:
        return jitter(image_BCHW, colour_BP)
    return _compiled(image_BCHW, colour_BP)


class _Compiled:
    """:func:`jitter` compiled at its first call, or as it is, said once, where there is no compiler."""

    def __init__(self) -> None:
        self.failed = False
        self._jitter: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, image_BCHW: Tensor, colour_BP: Tensor) -> Tensor:
        try:
            self._jitter = self._jitter or torch.compile(jitter, dynamic=False)
            return self._jitter(image_BCHW, colour_BP)
        except Exception as error:  # what a missing compiler raises depends on the release of PyTorch
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.failed = True
            warn(f"colours are jittered without compiling, more slowly ({str(error).splitlines()[0]})")
            return jitter(image_BCHW, colour_BP)


_compiled = _Compiled()


def _adjust(pixels: Tensor, which_B111: Tensor, factor_B111: Tensor) -> Tensor:
    """One operation of each image. All but the hue are blends: with black, the mean grey, the pixel's own grey."""
    grey = luma(pixels)
    other = torch.where(which_B111 == CONTRAST, grey.mean((1, 2, 3), keepdim=True).round(), grey)
    other = torch.where(which_B111 == BRIGHTNESS, 0.0, other)
    blended = (factor_B111 * pixels + (1 - factor_B111) * other + _WHOLE).clamp(0, 255).floor()
    turned = pixels if pixels.shape[1] == 1 else turn_hue(pixels, factor_B111).round()
    return torch.where(which_B111 == HUE, turned, blended)


def luma(pixels_BCHW: Tensor) -> Tensor:
    """Grey images (B, 1, H, W) in whole numbers, of images on the scale 0..255."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    red, green, blue = pixels_BCHW.split(1, dim=1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).round()


def turn_hue(pixels_BCHW: Tensor, shift_B111: Tensor) -> Tensor:
    """Turn the hue by a shift in circles. Value and chroma stay, so there is no way over HSV images.

    Args:
        pixels_BCHW: RGB, on any scale.
        shift_B111: of each image, -0.5..0.5.
    """
    red, green, blue = pixels_BCHW.split(1, dim=1)
    value, least = pixels_BCHW.amax(1, keepdim=True), pixels_BCHW.amin(1, keepdim=True)
    chroma = value - least
    per = 1 / torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(value == green, (blue - red) * per + 2, (red - green) * per + 4)
    hue = torch.where(value == red, (green - blue) * per, hue) + 6 * shift_B111  # on the hexagon, 0..6
    channels = []
    for first in _FIRST_OF_HEXAGON:
        place = (first + hue) % 6
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.cat(channels, dim=1)
