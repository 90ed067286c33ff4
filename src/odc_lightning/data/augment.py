"""Augmentation of the paper (Sec. 3.4), on uint8 arrays, drawn from one generator per (seed, epoch, image)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from odc_lightning.checks import check_number, check_range, check_size
from odc_lightning.data import image_ops as ops
from odc_lightning.data.image_ops import Box, Image

_CROP_TRIES = 10
_WORD = (1 << 64) - 1
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation, hue that change nothing


def sample_rng(seed: int, epoch: int, index: int) -> Generator:
    """Return the generator of one image in one epoch, a function of these three numbers only (10 us)."""
    # Philox is counter-based: any two keys, or counters 2^64 apart, give unrelated streams without warming up.
    return Generator(Philox(key=(epoch & _WORD) << 64 | seed & _WORD, counter=(index & _WORD) << 64))


def draw_crop(height: int, width: int, scale: Sequence[float], ratio: Sequence[float], rng: Generator) -> Box:
    """Draw the box of a random resized crop as torchvision does: area share from `scale`, width/height from `ratio`.

    The area is uniform and the ratio log-uniform; after ten boxes that do not fit, the central box whose ratio is
    nearest to the image's. Returns (top, left, height, width), always inside the image.
    """
    for share, stretch, down, right in rng.random((_CROP_TRIES, 4)).tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** stretch
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 1 <= rows <= height and 1 <= columns <= width:
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    return _central_crop(height, width, ratio)


def _central_crop(height: int, width: int, ratio: Sequence[float]) -> Box:
    nearest = min(max(width / height, ratio[0]), ratio[1])
    box_width = min(width, max(1, round(height * nearest)))
    box_height = min(height, max(1, round(width / nearest)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class TrainTransform:
    """Random resized crop, flip, small rotation, colour jitter, random grey: the paper's augmentation by default.

    The four parts of the jitter are always applied, in random order. Ranges [1, 1], or [0, 0] for hue, and
    probabilities and degrees of 0 switch a part off. Images of one channel have no saturation, hue and grey.

    Args:
        size: side of the result in pixels.
        scale: share of the image's area that the crop takes.
        ratio: width / height of the crop.
        flip: probability of a horizontal flip.
        degrees: rotation between -degrees and degrees, nearest neighbour, zeros outside.
        brightness, contrast, saturation: range of the factor; 1 changes nothing.
        hue: range of the shift in full circles, within -0.5..0.5.
        grey: probability of dropping the colours.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        size: int,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        degrees: float = 2.0,
        brightness: Sequence[float] = (0.6, 1.4),
        contrast: Sequence[float] = (0.6, 1.4),
        saturation: Sequence[float] = (0.0, 2.0),
        hue: Sequence[float] = (-0.5, 0.5),
        grey: float = 0.2,
    ) -> None:
        self.size = check_size("size", size)
        self.scale = _check_positive("scale", scale, 1.0)
        self.ratio = _check_positive("ratio", ratio, math.inf)
        self.flip = check_number("flip", flip, 0, 1)
        self.degrees = check_number("degrees", degrees, 0, 180)
        self.brightness = check_range("brightness", brightness, 0, math.inf)
        self.contrast = check_range("contrast", contrast, 0, math.inf)
        self.saturation = check_range("saturation", saturation, 0, math.inf)
        self.hue = check_range("hue", hue, -0.5, 0.5)
        self.grey = check_number("grey", grey, 0, 1)

    def __call__(self, image: Image, rng: Generator) -> Image:
        """Return a random view, uint8 (size, size, C), contiguous, of an image uint8 (H, W, C)."""
        return np.ascontiguousarray(recolour(*self.uncoloured(image, rng)))

    def uncoloured(self, image: Image, rng: Generator) -> tuple[Image, NDArray[np.float64]]:
        """The same view before its colours change, and how they are to change, float64 (9,).

        These are the factors of brightness, contrast and saturation, the shift of the hue, 1 or 0 for grey, and the
        order of the four: 0 brightness, 1 contrast, 2 saturation, 3 hue.
        """
        box = draw_crop(image.shape[0], image.shape[1], self.scale, self.ratio, rng)
        flip, angle, grey = rng.random(3)
        image = ops.crop_resize(image, box, self.size, self.size)
        image = self._turn(image, flip < self.flip, self.degrees * (2 * angle - 1))
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        factors = [low + (high - low) * u for (low, high), u in zip(ranges, rng.random(4).tolist(), strict=True)]
        return image, np.array([*factors, grey < self.grey, *rng.permutation(4)], dtype=np.float64)

    def _turn(self, image: Image, mirrored: bool, degrees: float) -> Image:
        if self.degrees:
            return ops.rotate(image, degrees, mirrored)
        return ops.flip(image) if mirrored else image


def recolour(image: Image, colour: NDArray[np.float64]) -> Image:
    """Change the colours of a view, uint8 (H, W, C), as :meth:`TrainTransform.uncoloured` has drawn it."""
    adjusts = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation, ops.adjust_hue)
    factors, is_grey, order = colour[:4].tolist(), bool(colour[4]), colour[5:].astype(int).tolist()
    for number in order:
        if factors[number] == _NEUTRAL[number] or (number >= 2 and image.shape[2] == 1):
            continue
        image = adjusts[number](image, factors[number])
    return ops.to_grey(image) if is_grey and image.shape[2] == 3 else image


class CropTransform:
    """Resize the short side, cut out a random square, flip, drop the colours: what patches are cut from.

    Unlike :class:`TrainTransform` it keeps the scale of things and never stretches them.

    Args:
        size: side of the result in pixels.
        short_side: of the image before the crop, in sizes: 1.1451 is 292 pixels for 255.
        flip: probability of a horizontal flip.
        grey: probability of dropping the colours.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, size: int, short_side: float = 292 / 255, flip: float = 0.0, grey: float = 0.66) -> None:
        self.size = check_size("size", size)
        self.short_side = round(size * check_number("short_side", short_side, 1, 10))
        self.flip = check_number("flip", flip, 0, 1)
        self.grey = check_number("grey", grey, 0, 1)

    def __call__(self, image: Image, rng: Generator) -> Image:
        """Return a random view, uint8 (size, size, C), contiguous, of an image uint8 (H, W, C)."""
        row, column, flip, grey = rng.random(4)
        height, width = image.shape[:2]
        scale = self.short_side / min(height, width)
        height, width = max(round(height * scale), self.size), max(round(width * scale), self.size)
        image = ops.crop_resize(image, (0, 0, *image.shape[:2]), height, width)
        top, left = int(row * (height - self.size + 1)), int(column * (width - self.size + 1))
        image = image[top : top + self.size, left : left + self.size]
        if flip < self.flip:
            image = ops.flip(image)
        if grey < self.grey and image.shape[2] == 3:
            image = ops.to_grey(image)
        return np.ascontiguousarray(image)


class EvalTransform:
    """Resize the short side, cut out the middle: the same view each time.

    Args:
        resize: short side in pixels before the crop; `auto`: 8/7 of the crop, hence 256 for 224; None: as it is.
            An image that is then smaller than the crop is enlarged to it.
        crop: side of the result in pixels.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, resize: int | str | None, crop: int) -> None:
        self.size = check_size("crop", crop)
        if resize == "auto":
            resize = round(crop * 8 / 7)
        if resize is not None and (not isinstance(resize, int) or isinstance(resize, bool) or resize < crop):
            raise ValueError(f"resize must be auto, null or at least crop={crop} (pixels). Received: {resize!r}")
        self.resize: int | None = resize

    def __call__(self, image: Image, rng: Generator | None = None) -> Image:
        """Return the central view, uint8 (crop, crop, C), contiguous; `rng` is not used."""
        height, width = image.shape[:2]
        short = min(height, width)
        wanted = self.resize or max(short, self.size)
        if wanted != short:
            new_height, new_width = height * wanted // short, width * wanted // short
            image = ops.crop_resize(image, (0, 0, height, width), new_height, new_width)
        return ops.crop_resize(image, ops.central_box(image, self.size, self.size), self.size, self.size)


def _check_positive(key: str, value: Sequence[float], high: float) -> tuple[float, float]:
    pair = check_range(key, value, 0, high)
    if pair[0] == 0:
        raise ValueError(f"{key} must be above 0. Received: {value!r}")
    return pair
