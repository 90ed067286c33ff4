"""Subsets: sizes that follow the ratio exactly, draws that are seeded, saved and reloaded, and every message."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app_runner import write_images
from odc_lightning.data import subset
from odc_lightning.data.folder import ImageFolder, ImageNet
from odc_lightning.data.sources import ArraySource, Mnist5k
from odc_lightning.data.subset import ClassDraw, class_sizes, draw


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(subset, "DEFAULT_CACHE", folder)
    return folder


def source(counts, split="train", extra=0):
    """Tiny images: so many of each class in turn, then some without a label."""
    targets = np.array([n for n, count in enumerate(counts) for _ in range(count)] + [-1] * extra, dtype=np.int64)
    pixels = np.arange(len(targets), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return ArraySource(pixels, "tiny", split, targets, [f"class {n}" for n in range(len(counts))])


def sizes_of(part):
    return sorted(np.bincount(part.targets).tolist(), reverse=True)


# -- sizes of the classes ----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 60), st.integers(1, 3000), st.integers(1, 100), st.integers(1, 400) | st.none())
def test_sizes_have_the_sum_and_the_ratio_exactly(num_classes, num_images, ratio, largest):
    try:
        sizes = class_sizes(num_classes, num_images, ratio, largest)
    except ValueError:
        assume(False)
    assert sizes.shape == (num_classes,)
    assert sizes.sum() == num_images
    assert (np.diff(sizes) <= 0).all()
    assert sizes[-1] >= 1
    if ratio == 1:
        assert sizes[0] - sizes[-1] == (num_images % num_classes > 0)
    else:
        assert sizes[0] == ratio * sizes[-1]
        assert largest is None or sizes[0] <= largest


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 6), st.integers(2, 60), st.integers(2, 9), st.integers(2, 40))
def test_sizes_are_refused_only_where_there_are_none(num_classes, num_images, ratio, largest):
    """By trying every smallest size: those in between can be anything from the smallest to the largest."""
    possible = any(
        low * (num_classes - 1 + ratio) <= num_images <= low * (1 + (num_classes - 1) * ratio)
        and ratio * low <= largest
        for low in range(1, num_images + 1)
    )
    if possible:
        assert class_sizes(num_classes, num_images, ratio, largest).sum() == num_images
    else:
        with pytest.raises(ValueError, match="data.subset"):
            class_sizes(num_classes, num_images, ratio, largest)


@pytest.mark.parametrize("ratio", [2, 4, 8, 16, 32])
def test_the_papers_sizes_are_the_exponential_profile(ratio):
    sizes = class_sizes(300, 100_000, ratio, largest=1300)
    powers = [ratio ** ((300 - i) / 299) for i in range(1, 301)]
    exponential = [100_000 / math.fsum(powers) * power for power in powers]
    assert np.allclose(sizes, exponential, rtol=0.015, atol=1)
    assert sizes[0] == ratio * sizes[-1]


def test_ratio_64_is_bent_to_what_imagenet_has():
    sizes = class_sizes(300, 100_000, 64, largest=1300)
    assert (sizes[0], sizes[-1], sizes.sum()) == (1280, 20, 100_000)
    assert class_sizes(300, 100_000, 64)[0] > 1300


# -- the draw ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=3, max_size=12), st.integers(1, 12), st.integers(1, 60), st.integers(0, 9))
def test_a_draw_has_the_sizes_and_never_the_same_image_twice(counts, num_classes, num_images, seed):
    targets = source(counts, extra=5).targets
    try:
        indices = draw(targets, num_classes, num_images, 2 if num_classes > 1 else 1, seed, [str(n) for n in counts])
    except ValueError:
        assume(False)
    assert len(set(indices.tolist())) == len(indices) == num_images
    assert indices.tolist() == sorted(indices.tolist())
    found = sorted((int((targets[indices] == n).sum()) for n in np.unique(targets[indices])), reverse=True)
    expected = class_sizes(num_classes, num_images, 2 if num_classes > 1 else 1, found[0])
    assert found == expected.tolist()
    assert (targets[indices] >= 0).all()


def test_draws_of_other_ratios_share_classes_and_images():
    targets = Mnist5k().targets
    draws = {ratio: set(draw(targets, 5, 600, ratio, 3, list("0123456789")).tolist()) for ratio in (1, 4, 16)}
    classes = {ratio: {int(targets[i]) for i in indices} for ratio, indices in draws.items()}
    assert classes[1] == classes[4] == classes[16]
    assert len(draws[1] & draws[4]) > 400  # two independent draws of these sizes would share about 200
    assert draws[1] != set(draw(targets, 5, 600, 1, 4, list("0123456789")).tolist())


def test_every_image_is_as_likely_as_any():
    taken = np.zeros(40)
    for seed in range(300):
        taken[draw(source([10] * 4).targets, 2, 10, 1, seed, list("abcd"))] += 1
    assert abs(taken - 75).max() < 5 * math.sqrt(300 * 0.25 * 0.75)


def test_validation_images_are_those_of_the_classes_numbered_anew(cache):
    train, val = ClassDraw(num_classes=3, num_images=90, ratio=4, seed=1)(Mnist5k("train"), Mnist5k("val"))
    assert train.classes == val.classes
    assert len(train.classes) == 3
    assert len(val) == 300
    assert np.bincount(val.targets).tolist() == [100, 100, 100]
    for part in (train, val):
        for i in (0, len(part) // 2, len(part) - 1):
            original = int(part.path(i).rsplit("/", 1)[1])
            assert str(part.source.targets[original]) == part.classes[part.targets[i]]
            assert np.array_equal(part.load(i), part.source.load(original))
    assert sizes_of(train)[0] == 4 * sizes_of(train)[-1]
    assert [file.name.split("-")[0] for file in cache.iterdir()] == ["mnist5k"]


def test_a_draw_is_saved_and_reloaded_instead_of_drawn_anew(cache, monkeypatch):
    settings = {"num_classes": 2, "num_images": 8}
    first, _ = ClassDraw(**settings)(source([9, 9, 9]), None)
    monkeypatch.setattr(subset, "draw", lambda *args: pytest.fail("drawn anew"))
    again, _ = ClassDraw(**settings)(source([9, 9, 9]), None)
    assert again.indices.tolist() == first.indices.tolist()
    assert again.fingerprint() == first.fingerprint()
    (file,) = cache.iterdir()
    rows = list(csv.DictReader(file.read_text().splitlines()[1:]))
    assert [row["path"] for row in rows] == [first.path(i) for i in range(8)]
    assert {row["class"] for row in rows} == set(first.classes)


def test_the_fingerprint_changes_with_the_subset_and_with_the_data():
    parts = [ClassDraw(num_images=8, seed=seed)(source([9, 9]), None)[0] for seed in (0, 1)]
    parts += [ClassDraw(num_images=8)(source([10, 9]), None)[0]]
    assert len({part.fingerprint() for part in parts} | {source([9, 9]).fingerprint()}) == 4


@pytest.mark.parametrize("kind", [ImageFolder, ImageNet])
def test_a_file_of_paths_fits_the_data_wherever_they_lie(tmp_path, kind):
    for place in ("here", "there"):
        for split in ("train", "val"):
            write_images(tmp_path / place / split, 12, classes=("b", "a,c", "d"))
    kept = {"cache_dir": tmp_path / "lists"}
    file = tmp_path / "draws" / "mine.csv"
    settings = ClassDraw(num_classes=2, num_images=4, file=file)
    here, there = (
        settings(*(kind(tmp_path / p, split, **kept) for split in ("train", "val"))) for p in ("here", "there")
    )
    assert [here[0].relative_path(i) for i in range(4)] == [there[0].relative_path(i) for i in range(4)]
    assert str(tmp_path) not in file.read_text()
    assert len(here[1]) == 8
    plain = tmp_path / "plain.csv"
    plain.write_text("path\n" + "".join(f'"{here[0].relative_path(i)}"\n' for i in range(4)))
    other, _ = ClassDraw(file=plain)(kind(tmp_path / "there", **kept), None)
    assert other.indices.tolist() == here[0].indices.tolist()


def test_images_without_a_label_are_left_out_and_all_classes_can_be_taken():
    part, val = ClassDraw()(source([3, 0, 2], extra=4), source([0, 5, 0], split="val"))
    assert part.targets.tolist() == [0, 0, 0, 1, 1]
    assert part.classes == ["class 0", "class 2"]
    assert val is None


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "data.subset.num_classes must be a whole number of at least 1 or null. Received: 0"),
        ({"num_images": 2.5}, "data.subset.num_images must be a whole number of at least 1 or null. Received: 2.5"),
        ({"ratio": 0}, "data.subset.ratio must be a whole number of at least 1. Received: 0"),
        ({"ratio": None}, "data.subset.ratio must be a whole number of at least 1. Received: None"),
        ({"seed": -1}, "data.subset.seed must be a whole number of at least 0. Received: -1"),
        ({"ratio": 2}, "data.subset.num_images must be given with data.subset.ratio=2. Received: None"),
        ({"num_classes": 4}, "data.subset.num_classes must be at most 3, the classes .* Received: 4"),
        ({"num_images": 19}, "data.subset.num_images must be at most 18, the images of the 3 classes .* Received: 19"),
        ({"num_images": 2}, "data.subset.num_images must be at least 3, one for each class. Received: 2"),
        ({"num_images": 16}, "needs a class of 5 images, and none is left: .* class 1 with 3"),
        ({"num_images": 12, "ratio": 12}, "data.subset.ratio must be one that 12 images in 3 classes.* Received: 12"),
    ],
)
def test_what_cannot_be_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassDraw(**settings)(source([9, 3, 6]), None)


def test_data_without_labels_and_files_of_something_else(tmp_path):
    bare = ArraySource(np.zeros((4, 1, 1, 1), dtype=np.uint8), "bare")
    with pytest.raises(ValueError, match="data.subset needs one label for each image, and the train images of bare"):
        ClassDraw(num_images=2)(bare, None)
    file = tmp_path / "draw.csv"
    ClassDraw(num_images=4, file=file)(source([9, 3]), None)
    with pytest.raises(ValueError, match=r"was drawn with num_images=4. Received: num_images=6"):
        ClassDraw(num_images=6, file=file)(source([9, 3]), None)
    with pytest.raises(ValueError, match="of the 4 images of .* are not among the training images: tiny/train/"):
        ClassDraw(num_images=4, file=file)(source([1, 1]), None)
    file.write_text("name\na\n")
    with pytest.raises(ValueError, match="must have a column path. Received: name"):
        ClassDraw(file=file)(source([9, 3]), None)
    file.write_text("path\n")
    with pytest.raises(ValueError, match="must name labelled images, and at least one"):
        ClassDraw(file=file)(source([9, 3]), None)
