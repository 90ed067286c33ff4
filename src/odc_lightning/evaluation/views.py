"""Views of an image that the evaluation protocols ask for, by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from odc_lightning.checks import check_choice, check_size
from odc_lightning.data import image_ops as ops
from odc_lightning.data.augment import EvalTransform, TrainTransform
from odc_lightning.data.dataset import Transform
from odc_lightning.data.image_ops import Image

NO_AUGMENTATION = "none"
# Krizhevsky et al. 2012, Sec. 4.1: principal components of ImageNet's colours, on the scale 0..1.
_COLOUR_SPREADS = np.array((0.2175, 0.0188, 0.0045))
_COLOUR_AXES = np.array(((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)))


def crop_and_flip(size: int, jitter: float = 0.0) -> TrainTransform:
    """Random resized crop and flip; ``jitter`` also changes brightness, contrast and saturation by up to that share."""
    factors = (1 - jitter, 1 + jitter)
    return TrainTransform(
        size, degrees=0.0, brightness=factors, contrast=factors, saturation=factors, hue=(0.0, 0.0), grey=0.0
    )


class Lighting:
    """Crop, flip, jitter of 0.4, then a shift along the principal colours (the release's linear evaluation).

    The shift is rounded to whole levels, since images stay uint8 until they are on the device.

    Args:
        size: side of the result in pixels.
        std: of the shift's Gaussian factors.
    """

    def __init__(self, size: int, std: float = 0.1) -> None:
        self.size, self.std = check_size("size", size), std
        self._first = crop_and_flip(size, jitter=0.4)

    def __call__(self, image: Image, rng: Generator) -> Image:
        image = self._first(image, rng)
        if image.shape[2] != 3:
            return image
        shift_C = 255 * _COLOUR_AXES @ (rng.normal(0.0, self.std, 3) * _COLOUR_SPREADS)
        return np.clip(np.rint(image + shift_C), 0, 255).astype(np.uint8)


class SquareCrop:
    """The central square at 8/7 of the size, a random crop of it, flip (the release's Places205 evaluation)."""

    def __init__(self, size: int) -> None:
        self.size = check_size("size", size)
        self.square = round(size * 8 / 7)

    def __call__(self, image: Image, rng: Generator) -> Image:
        image = EvalTransform(self.square, self.square)(image)
        top, left = rng.integers(0, self.square - self.size + 1, 2)
        image = image[top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(ops.flip(image) if rng.random() < 0.5 else image)


class Stretch:
    """Short side to 8/7 of the size, then the whole image to a square, whatever its shape (VOC2007 benchmarks)."""

    def __init__(self, size: int) -> None:
        self.size = check_size("size", size)

    def __call__(self, image: Image, rng: Generator | None = None) -> Image:
        height, width = image.shape[:2]
        short = min(height, width)
        for box in (
            (height * self.size * 8 // 7 // short, width * self.size * 8 // 7 // short),
            (self.size, self.size),
        ):
            image = ops.crop_resize(image, (0, 0, *image.shape[:2]), *box)
        return image


AUGMENTATIONS: dict[str, Callable[[int], Transform]] = {
    "crop": crop_and_flip,
    "crop_jitter": Lighting,
    "square_crop": SquareCrop,
}
VIEWS = ("crop", "stretch")


def augmentation(name: str, size: int) -> Transform | None:
    """The training view of a protocol by name; None for ``none``.

    Raises:
        ValueError: for another name.
    """
    check_choice("protocol.augment", name, (NO_AUGMENTATION, *AUGMENTATIONS))
    return None if name == NO_AUGMENTATION else AUGMENTATIONS[name](size)
