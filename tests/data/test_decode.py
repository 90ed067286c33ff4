"""Every kind of image file becomes uint8 RGB, as PIL reads it; broken ones are named."""

import io
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from odc_lightning.data.decode import BadImageError, decode_image, read_image

PHOTO = Image.fromarray(load_sample_images().images[0]).resize((120, 90))


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


FILES = {
    "jpeg": encode(PHOTO, "JPEG", quality=92),
    "progressive": encode(PHOTO, "JPEG", progressive=True),
    "grey jpeg": encode(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encode(PHOTO.convert("CMYK"), "JPEG"),
    "png": encode(PHOTO, "PNG"),
    "palette": encode(PHOTO.convert("P"), "PNG"),
    "alpha": encode(PHOTO.convert("RGBA"), "PNG"),
    "grey alpha": encode(PHOTO.convert("LA"), "PNG"),
    "grey png": encode(PHOTO.convert("L"), "PNG"),
    "one bit": encode(PHOTO.convert("1"), "PNG"),
    "gif": encode(PHOTO, "GIF"),
    "webp": encode(PHOTO, "WEBP"),
    "bmp": encode(PHOTO, "BMP"),
    "tiff": encode(PHOTO, "TIFF"),
    "ppm": encode(PHOTO, "PPM"),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_is_rgb_as_pil_reads_it(kind: str) -> None:
    image = decode_image(FILES[kind])
    wanted = np.asarray(Image.open(io.BytesIO(FILES[kind])).convert("RGB")).astype(int)
    assert (image.shape, image.dtype) == ((90, 120, 3), np.uint8)
    assert np.abs(image - wanted).mean() < (1.5 if kind == "cmyk jpeg" else 0.1)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = np.asarray(PHOTO.convert("L"))
    deep = cv2.imencode(".png", grey.astype(np.uint16) * 257)[1].tobytes()
    assert np.array_equal(decode_image(deep), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_ignored(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    assert decode_image(encode(PHOTO, form, exif=exif)).shape == (90, 120, 3)


def test_stray_bytes_in_a_jpeg_are_harmless() -> None:
    data = FILES["jpeg"]
    table = data.index(b"\xff\xdb")  # the marker of the first quantisation table
    stray = data[:table] + b"\x00\x01\x02" + data[table:]
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(stray, "RGB")
    assert np.array_equal(decode_image(stray), decode_image(data))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_errors(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "image"
    path.write_bytes(FILES[kind][: int(len(FILES[kind]) * share)])
    with pytest.raises(BadImageError) as caught:
        read_image(str(path))
    assert str(path) in str(caught.value)
    assert "data.on_bad_image=skip" in str(caught.value)


def test_other_broken_files(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(BadImageError, match="cannot identify image file"):
        read_image(str(tmp_path / "text.jpg"))
    with pytest.raises(BadImageError, match="No such file"):
        read_image(str(tmp_path / "gone.jpg"))
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(BadImageError, match="the file is empty"):
        read_image(str(tmp_path / "empty.jpg"))


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BadImageError("cannot read a.jpg")))
    assert isinstance(error, BadImageError)
    assert str(error) == "cannot read a.jpg"
