"""Image files to arrays: always uint8 RGB, whatever the file holds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

_JPEG_START = b"\xff\xd8\xff"


class BadImageError(ValueError):
    """An image file could not be read or decoded; the message names it.

    Takes the message alone, as PyTorch wants of errors that cross from a loading process.
    """


def read_image(path: str) -> NDArray[np.uint8]:
    """Read an image file as uint8 (H, W, 3) RGB; BadImageError names a file that cannot be read."""
    with naming(path), open(path, "rb") as file:
        return decode_image(file.read())


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a BadImageError that names the file."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # each decoder has its own kinds of error
        raise BadImageError(
            f"cannot read the image {path} ({error}). "
            "Repair or remove the file, or leave such images out with data.on_bad_image=skip"
        ) from error


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode the bytes of an image file to uint8 (H, W, 3) RGB.

    Grey becomes three equal channels, alpha is dropped, 16-bit is scaled to 8, the first frame of an animation is
    taken. EXIF orientation is ignored, as it is in the usual ImageNet pipelines (TIFF has a tag of its own, which
    is followed). Truncated data is an error (ValueError or OSError, from the decoder).
    """
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(_JPEG_START):
        try:
            return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
        except ValueError:
            pass  # PIL knows which of libjpeg's complaints are harmless, such as stray bytes between markers
    return _decode_with_pil(data)


def _decode_with_pil(data: bytes) -> NDArray[np.uint8]:
    # Not cv2.imdecode: it saves 10 % on PNG, but older releases return half an image for a truncated file.
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would clip it to white
            grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.array(image.convert("RGB"))
