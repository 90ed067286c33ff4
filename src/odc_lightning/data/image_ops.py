"""Image operations on uint8 (H, W, C) arrays, RGB order, C = 1 or 3, with the conventions of PIL and torchvision.

On photographs each agrees with torchvision's operation on PIL images to 1/255 on average; the crop, whose
antialiasing is a Gaussian instead of PIL's triangle, to 2/255. Together they take a quarter of the time.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width

# PIL cuts blended values off after the point; the SIMD routines round. Not 0.5, so that whole numbers stay themselves.
_CUT_OFF = -0.499
_BLUR_UP_TO = 4.0  # times; wider blurs cost more than PIL itself
_LEAST_VARIANCE, _THREE_TAPS_UP_TO = 0.004, 0.45


def crop_resize(image: Image, box: Box, height: int, width: int) -> Image:
    """Cut out `box` and resize it to (height, width, C), bilinear, antialiased along each side that shrinks."""
    top, left, rows, columns = box
    part = image[top : top + rows, left : left + columns]
    if (rows, columns) == (height, width):
        return np.ascontiguousarray(part)
    if max(rows / height, columns / width) > _BLUR_UP_TO:
        picture = PIL.Image.fromarray(part.squeeze(2) if part.shape[2] == 1 else part)
        return _with_channels(np.array(picture.resize((width, height), PIL.Image.Resampling.BILINEAR)))
    smooth = _smooth(part, rows / height, columns / width)
    return _with_channels(cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR))


def _smooth(image: Image, shrink_y: float, shrink_x: float) -> cv2.typing.MatLike:
    """Blur so that bilinear sampling afterwards has the spread of PIL's antialiasing filter.

    That filter is a triangle of variance s^2/6 at shrinkage s; sampling has 1/6 of it. This is two to three times as
    fast as OpenCV's area averages, and nearer to PIL.
    """
    taps_y, sigma_y = _gaussian((shrink_y**2 - 1) / 6)
    taps_x, sigma_x = _gaussian((shrink_x**2 - 1) / 6)
    if taps_x == taps_y == 1:
        return image
    size = (taps_x, taps_y)
    return cv2.GaussianBlur(image, size, sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REPLICATE)


def _gaussian(variance: float) -> tuple[int, float]:
    """Number of taps and sigma of a sampled Gaussian with this variance in pixels squared."""
    if variance < _LEAST_VARIANCE:
        return 1, 1.0
    if variance < _THREE_TAPS_UP_TO:  # so narrow that sigma^2 is not the variance of the three samples
        return 3, math.sqrt(-0.5 / math.log(variance / 2 / (1 - variance)))
    sigma = math.sqrt(variance)
    return 2 * math.ceil(2.2 * sigma) + 1, sigma


def flip(image: Image) -> Image:
    """Mirror left and right."""
    return _with_channels(cv2.flip(image, 1))


def rotate(image: Image, degrees: float, mirrored: bool = False) -> Image:
    """Rotate about the centre, counter-clockwise, nearest neighbour, zeros outside; first mirror left and right."""
    height, width = image.shape[:2]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle_x, middle_y = width / 2, height / 2
    to_source = np.array(  # from output to input, both measured from the image's corner
        [
            [cosine, -sine, middle_x - cosine * middle_x + sine * middle_y],
            [sine, cosine, middle_y - sine * middle_x - cosine * middle_y],
        ]
    )
    if mirrored:
        to_source[0] = -to_source[0]
        to_source[0, 2] += width
    to_source[:, 2] += to_source[:, :2].sum(axis=1) / 2 - 0.5  # pixel centres lie at half coordinates
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return _with_channels(cv2.warpAffine(image, to_source, (width, height), flags=flags))


def adjust_brightness(image: Image, factor: float) -> Image:
    """Multiply by `factor`: 0 gives black, 1 the image."""
    return _scale(image, factor, 0.0)


def adjust_contrast(image: Image, factor: float) -> Image:
    """Scale the distance to the mean luma, rounded: 0 gives flat grey, 1 the image."""
    mean = int(cv2.mean(_luma(image))[0] + 0.5)
    return _scale(image, factor, mean * (1 - factor))


def adjust_saturation(image: Image, factor: float) -> Image:
    """Blend with the grey image, C = 3: 0 gives grey, 1 the image, 2 doubles the distance from grey."""
    return np.asarray(cv2.addWeighted(image, factor, to_grey(image), 1 - factor, _CUT_OFF), dtype=np.uint8)


def adjust_hue(image: Image, shift: float) -> Image:
    """Turn the hue of an RGB image by `shift` of a full circle (-0.5..0.5), in 8-bit HSV as PIL does."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    # PIL counts 255 steps to the circle and cuts the shift off to whole steps; OpenCV counts 256.
    turn = np.zeros(hsv.shape[1] * 3, dtype=np.uint8)
    turn[::3] = round(int(shift * 255) * 256 / 255) % 256
    flat = hsv.reshape(len(hsv), -1)
    flat += turn  # whole rows: three times as fast as every third byte
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), dtype=np.uint8)


def to_grey(image: Image) -> Image:
    """Luma (ITU-R 601) in three equal channels, from an RGB image."""
    return np.asarray(cv2.cvtColor(_luma(image), cv2.COLOR_GRAY2RGB), dtype=np.uint8)


def central_box(image: Image, height: int, width: int) -> Box:
    """The box of this size in the middle of the image, placed as torchvision's CenterCrop."""
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return top, left, height, width


def _luma(image: Image) -> Image:
    return image if image.shape[2] == 1 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def _scale(image: Image, factor: float, plus: float) -> Image:
    """factor x image + plus, cut off to 0..255; a look-up in a table takes twice as long."""
    return _with_channels(cv2.addWeighted(image, factor, image, 0.0, plus + _CUT_OFF))


def _with_channels(image: NDArray[np.generic]) -> Image:
    """OpenCV drops the last axis of grey images; put it back."""
    return np.asarray(image if image.ndim == 3 else image[:, :, None], dtype=np.uint8)
