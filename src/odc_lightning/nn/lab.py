"""CIE Lab, the colour space that the colorization pretext splits images in: lightness in, colours to be predicted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# IEC 61966-2-1: linear sRGB to CIE XYZ; the rows' sums are the white point, D65.
_XYZ_OF_RGB = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_CUBE_ROOT_FROM, _SLOPE, _OFFSET = (6 / 29) ** 3, (29 / 6) ** 2 / 3, 4 / 29
MIDDLE_LIGHTNESS = 50.0


def rgb_to_lab(images: Tensor) -> Tensor:
    """Map uint8 sRGB images (B, 3, H, W) to float32 Lab of the same shape: L in 0..100, a and b within ±128 (D65)."""
    values = images.float() / 255
    linear = torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    of_rgb = torch.tensor(_XYZ_OF_RGB, device=images.device)
    relative = torch.einsum("xc,bchw->bxhw", of_rgb / of_rgb.sum(1, keepdim=True), linear)
    rooted = torch.where(relative > _CUBE_ROOT_FROM, relative.clamp(min=0) ** (1 / 3), relative * _SLOPE + _OFFSET)
    x, y, z = rooted.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


class Lightness(nn.Module):
    """Colour images to lightness - 50: the one-channel input of colorization networks (Zhang et al. 2016)."""

    out_channels = 1

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (B, 3, H, W) to float32 (B, 1, H, W), within ±50."""
        return rgb_to_lab(images)[:, :1] - MIDDLE_LIGHTNESS
