"""Each operation beside torchvision's on PIL images; the draws beside the text of the paper."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize
from torchvision.transforms import functional as F

from odc_lightning.data import image_ops as ops
from odc_lightning.data.augment import CropTransform, EvalTransform, TrainTransform, draw_crop, sample_rng

PHOTOS = load_sample_images().images
NOISE = np.random.default_rng(0).integers(0, 256, (224, 200, 3), dtype=np.uint8)
SMALL = [np.asarray(Image.fromarray(photo).resize((200, 224))) for photo in PHOTOS] + [NOISE]
IDS = ["china", "flower", "noise"]
each_image = pytest.mark.parametrize("image", SMALL, ids=IDS)


def difference(image: np.ndarray, wanted: Image.Image) -> np.ndarray:
    """Absolute difference, of 255."""
    reference = np.asarray(wanted).astype(int)
    assert (image.shape, image.dtype) == (reference.shape, np.uint8)
    return np.abs(image - reference)


# parity of the operations


@each_image
@pytest.mark.parametrize("factor", [0.0, 0.6, 0.937, 1.0, 1.4, 3.0])
def test_brightness_and_contrast_equal_pil(image: np.ndarray, factor: float) -> None:
    picture = Image.fromarray(image)
    assert difference(ops.adjust_brightness(image, factor), F.adjust_brightness(picture, factor)).max() == 0
    contrast = difference(ops.adjust_contrast(image, factor), F.adjust_contrast(picture, factor))
    assert contrast.max() <= 1
    assert contrast.mean() < 0.01


@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_grey_images_have_brightness_and_contrast(factor: float) -> None:
    image = NOISE[:, :, :1]
    picture = Image.fromarray(image[:, :, 0])
    bright = ops.adjust_brightness(image, factor)
    assert bright.shape == image.shape
    assert difference(bright[:, :, 0], F.adjust_brightness(picture, factor)).max() == 0
    contrast = difference(ops.adjust_contrast(image, factor)[:, :, 0], F.adjust_contrast(picture, factor))
    assert contrast.max() <= 1
    assert contrast.mean() < 0.02


@each_image
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.5, 2.0])
def test_saturation(image: np.ndarray, factor: float) -> None:
    error = difference(ops.adjust_saturation(image, factor), F.adjust_saturation(Image.fromarray(image), factor))
    assert error.max() <= 1
    assert error.mean() < 0.01


@each_image
def test_grey(image: np.ndarray) -> None:
    error = difference(ops.to_grey(image), F.rgb_to_grayscale(Image.fromarray(image), 3))
    assert error.max() <= 1
    assert error.mean() < 0.01


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("shift", [-0.5, -0.3, -0.01, 0.0, 0.2, 0.5])
def test_hue(number: int, shift: float) -> None:
    image = SMALL[number]
    error = difference(ops.adjust_hue(image, shift), F.adjust_hue(Image.fromarray(image), shift))
    # PIL cuts 8-bit hue and saturation off, OpenCV rounds: on uniform noise that alone is 1.1 of 255.
    assert error.mean() < (1.2 if number == 2 else 0.6)
    assert np.percentile(error, 99.9) <= 12


@each_image
@pytest.mark.parametrize("degrees", [-2.0, -0.7, 0.3, 1.9, 10.0, 90.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_takes_the_same_pixels(image: np.ndarray, degrees: float, mirrored: bool) -> None:
    picture = Image.fromarray(image)
    wanted = F.rotate(F.hflip(picture) if mirrored else picture, degrees)
    error = difference(ops.rotate(image, degrees, mirrored), wanted)
    assert (error.max(axis=2) > 0).mean() < 0.005  # pixels on the border between two
    assert error.mean() < 0.5


def test_flip() -> None:
    assert np.array_equal(ops.flip(NOISE), NOISE[:, ::-1])
    assert np.array_equal(ops.flip(NOISE[:, :, :1]), NOISE[:, ::-1, :1])


BOXES = [
    (10, 20, 300, 290),  # shrinks by 1.3
    (0, 0, 427, 640),  # all of it
    (50, 60, 100, 120),  # grows
    (5, 5, 230, 240),  # hardly shrinks
    (5, 5, 400, 210),  # shrinks and grows
    (0, 0, 224, 224),  # exact
]


@pytest.mark.parametrize("photo", PHOTOS, ids=IDS[:2])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [224, 96, 40])
def test_crop_is_near_antialiased_bilinear(photo: np.ndarray, box: ops.Box, size: int) -> None:
    wanted = F.resized_crop(Image.fromarray(photo), *box, [size, size])
    error = difference(ops.crop_resize(photo, box, size, size), wanted)
    assert error.mean() < 2  # of 255; plain bilinear sampling is off by up to 6, area averages by up to 3
    assert error.mean() < 0.3 or max(box[2:]) > size


def test_crop_of_the_same_size_copies_nothing_else() -> None:
    assert np.array_equal(ops.crop_resize(NOISE, (3, 4, 50, 60), 50, 60), NOISE[3:53, 4:64])


# the draws


sides = st.integers(1, 700)


@settings(max_examples=300, deadline=None)
@given(
    sides,
    sides,
    st.floats(0.001, 1),
    st.floats(0, 1),
    st.floats(0.05, 5),
    st.floats(1, 9),
    st.integers(0, 2**32),
)
def test_crop_boxes_lie_inside(
    height: int, width: int, least: float, share: float, ratio: float, wider: float, seed: int
) -> None:
    scale = (least, least + share * (1 - least))
    top, left, rows, columns = draw_crop(height, width, scale, (ratio, ratio * wider), np.random.default_rng(seed))
    assert 0 <= top < top + rows <= height
    assert 0 <= left < left + columns <= width


def test_crop_boxes_are_distributed_as_torchvisions() -> None:
    """Area, ratio and place of 3,000 boxes: two-sample Kolmogorov-Smirnov."""
    rng, picture = np.random.default_rng(1), Image.fromarray(np.zeros((375, 500), np.uint8))
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    ours = np.array([draw_crop(375, 500, scale, ratio, rng) for _ in range(3000)], dtype=float)
    theirs = np.array([RandomResizedCrop.get_params(picture, scale, ratio) for _ in range(3000)], dtype=float)
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-4


def test_crop_that_never_fits_is_central() -> None:
    rng = np.random.default_rng(0)
    assert draw_crop(100, 1000, (1.0, 1.0), (3 / 4, 4 / 3), rng) == (0, 433, 100, 133)
    assert draw_crop(1000, 100, (1.0, 1.0), (3 / 4, 4 / 3), rng) == (433, 0, 133, 100)


def test_sample_rng_is_a_function_of_its_three_numbers() -> None:
    draws = {
        (seed, epoch, index): sample_rng(seed, epoch, index).random(4).tobytes()
        for seed in (0, 1, 2**63, 2**64 - 1)
        for epoch in (0, 1, 500)
        for index in (0, 1, 1_281_166)
    }
    assert len(set(draws.values())) == len(draws)
    assert all(sample_rng(*key).random(4).tobytes() == value for key, value in draws.items())


def test_first_draws_of_neighbours_are_uniform_and_uncorrelated() -> None:
    first = np.array([sample_rng(0, 3, index).random() for index in range(5000)])
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.06


# the transforms


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3]), st.integers(1, 70), st.integers(0, 2**32))
def test_result_has_the_size_for_every_image(height: int, width: int, channels: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    before = image.copy()
    results = [
        TrainTransform(size)(image, np.random.default_rng(seed)),
        EvalTransform("auto", size)(image),
        EvalTransform(None, size)(image),
    ]
    for result in results:
        assert (result.shape, result.dtype) == ((size, size, channels), np.uint8)
        assert result.flags["C_CONTIGUOUS"]
    assert np.array_equal(image, before)


NEUTRAL = {
    "scale": (1, 1),
    "ratio": (1, 1),
    "flip": 0,
    "degrees": 0,
    "brightness": (1, 1),
    "contrast": (1, 1),
    "saturation": (1, 1),
    "hue": (0, 0),
    "grey": 0,
}


def test_neutral_values_change_nothing() -> None:
    square = NOISE[:200]
    assert np.array_equal(TrainTransform(200, **NEUTRAL)(square, np.random.default_rng(0)), square)
    tall = TrainTransform(200, **NEUTRAL)(NOISE, np.random.default_rng(0))
    assert np.array_equal(tall, NOISE[12:212])  # the central square


@pytest.mark.parametrize(("key", "value", "share"), [("flip", 0.5, 0.5), ("flip", 1, 1.0), ("grey", 0.2, 0.2)])
def test_probabilities(key: str, value: float, share: float) -> None:
    image = NOISE[:8, :8]
    transform = TrainTransform(8, **(NEUTRAL | {key: value}))
    changed = [not np.array_equal(transform(image, sample_rng(0, 0, i)), image) for i in range(1500)]
    assert np.mean(changed) == pytest.approx(share, abs=0.045)


def test_flip_and_rotation_together_are_flip_then_rotation() -> None:
    turned = TrainTransform(200, **(NEUTRAL | {"flip": 1, "degrees": 2}))(NOISE[:200], sample_rng(0, 0, 5))
    rng = sample_rng(0, 0, 5)
    rng.random((10, 4))
    angle = 2 * (2 * rng.random(3)[1] - 1)
    wanted = F.rotate(F.hflip(Image.fromarray(NOISE[:200])), float(angle))
    assert (difference(turned, wanted).max(axis=2) > 0).mean() < 0.005


def test_jitter_draws_its_whole_range_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float]] = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        adjust = lambda image, factor, name=name: calls.append((name, factor)) or image  # noqa: E731
        monkeypatch.setattr(ops, f"adjust_{name}", adjust)
    transform, image = TrainTransform(8), NOISE[:8, :8]
    for index in range(600):
        transform(image, sample_rng(0, 0, index))
    assert len(calls) == 4 * 600  # always all four
    orders = {tuple(name for name, _ in calls[i : i + 4]) for i in range(0, len(calls), 4)}
    assert len(orders) == 24
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0, 2), "hue": (-0.5, 0.5)}
    for name, (low, high) in ranges.items():
        values = np.array([factor for called, factor in calls if called == name])
        assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-4


def test_grey_images_skip_the_colours() -> None:
    image = NOISE[:28, :28, :1]
    loud = TrainTransform(28, **(NEUTRAL | {"saturation": (2, 2), "hue": (0.5, 0.5), "grey": 1}))
    assert np.array_equal(loud(image, sample_rng(0, 0, 0)), image)


@pytest.mark.parametrize("photo", PHOTOS, ids=IDS[:2])
def test_eval_is_near_torchvisions_resize_and_centre_crop(photo: np.ndarray) -> None:
    picture = CenterCrop(224)(Resize(256)(Image.fromarray(photo)))
    for resize in (256, "auto"):
        assert difference(EvalTransform(resize, 224)(photo), picture).mean() < 2.5


def test_eval_without_resize_is_a_centre_crop() -> None:
    wanted = CenterCrop(101)(Image.fromarray(NOISE))
    assert difference(EvalTransform(None, 101)(NOISE), wanted).max() == 0


# messages


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, r"size must be an integer of at least 1 \(pixels\). Received: 0"),
        ({"size": 32.5}, "size must be an integer"),
        ({"scale": (0.0, 1.0)}, "scale must be above 0. Received"),
        (
            {"scale": (0.5, 1.5)},
            r"scale must be a pair \[least, most\] of numbers from 0 to 1. Received: \(0.5, 1.5\)",
        ),
        ({"scale": (0.9, 0.1)}, "scale must be a pair"),
        ({"scale": 0.5}, "scale must be a pair"),
        ({"ratio": (0, 1)}, "ratio must be above 0"),
        ({"flip": 1.5}, "flip must be a number from 0 to 1. Received: 1.5"),
        ({"flip": "yes"}, "flip must be a number from 0 to 1. Received: 'yes'"),
        ({"degrees": -1}, "degrees must be a number from 0 to 180. Received: -1"),
        ({"brightness": (-0.1, 1)}, "brightness must be a pair .* of numbers of at least 0. Received"),
        ({"contrast": (0.5,)}, "contrast must be a pair"),
        ({"saturation": (0, math.nan)}, "saturation must be a pair"),
        (
            {"hue": (-0.6, 0.5)},
            r"hue must be a pair \[least, most\] of numbers from -0.5 to 0.5. Received: \(-0.6, 0.5\)",
        ),
        ({"grey": -0.2}, "grey must be a number from 0 to 1. Received: -0.2"),
    ],
)
def test_wrong_values_are_refused_at_construction(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainTransform(**({"size": 32} | wrong))


@pytest.mark.parametrize("resize", [100, "car", 0, 256.0, True])
def test_wrong_resize(resize: object) -> None:
    with pytest.raises(ValueError, match=r"resize must be auto, null or at least crop=224 \(pixels\). Received: "):
        EvalTransform(resize, 224)


# crops at one scale


@given(st.integers(4, 40), st.integers(4, 40), st.integers(2, 24), st.floats(1, 1.5), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_crop_transform_is_a_window_of_the_resized_image(
    height: int, width: int, size: int, short_side: float, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    view = CropTransform(size, short_side, grey=0.0)(image, sample_rng(seed, 0, 0))
    short = round(size * short_side)
    rows, columns = (short * side / min(height, width) for side in (height, width))
    whole = ops.crop_resize(image, (0, 0, height, width), max(size, round(rows)), max(size, round(columns)))
    assert (view.shape, view.dtype, view.flags.c_contiguous) == ((size, size, 3), np.uint8, True)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (size, size, 3)).reshape(-1, size, size, 3)
    assert (windows == view).all(axis=(1, 2, 3)).any()


def test_crop_transform_flips_and_drops_colours() -> None:
    plain = CropTransform(32, 1.2, grey=0.0)(SMALL[0], sample_rng(0, 0, 0))
    assert np.array_equal(CropTransform(32, 1.2, flip=1.0, grey=0.0)(SMALL[0], sample_rng(0, 0, 0)), plain[:, ::-1])
    grey = CropTransform(32, 1.2, grey=1.0)(SMALL[0], sample_rng(0, 0, 0))
    assert np.array_equal(grey, ops.to_grey(plain))
    views = [CropTransform(32)(SMALL[0], sample_rng(0, 0, index)) for index in range(300)]
    assert 0.56 < np.mean([(view[..., 0] == view[..., 1]).all() for view in views]) < 0.76
    assert CropTransform(255).short_side == 292
    digits = CropTransform(8)(SMALL[0][..., :1], sample_rng(0, 0, 0))
    assert digits.shape == (8, 8, 1)


def test_crop_transform_refuses() -> None:
    with pytest.raises(ValueError, match="short_side must be a number from 1 to 10. Received: 0.9"):
        CropTransform(32, 0.9)
    with pytest.raises(ValueError, match="grey must be a number from 0 to 1. Received: 2"):
        CropTransform(32, grey=2)
