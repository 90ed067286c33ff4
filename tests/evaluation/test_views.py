"""Views that protocols ask for by name."""

import numpy as np
import pytest

from odc_lightning.data.augment import sample_rng
from odc_lightning.evaluation.views import AUGMENTATIONS, Lighting, SquareCrop, Stretch, augmentation, crop_and_flip


def picture(height=60, width=90, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_views_are_square_and_depend_on_their_generator_alone(name, channels):
    transform, image = augmentation(name, 32), picture(channels=channels)
    views = [transform(image, sample_rng(0, 0, index)) for index in (1, 1, 2)]
    assert views[0].shape == (32, 32, channels)
    assert views[0].dtype == np.uint8
    assert np.array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])


def test_no_augmentation_and_unknown_ones():
    assert augmentation("none", 32) is None
    with pytest.raises(ValueError, match="protocol.augment must be one of none, crop, crop_jitter, square_crop"):
        augmentation("paper", 32)


def test_the_crop_keeps_colours_and_lighting_shifts_them_together():
    grey = np.full((40, 40, 3), 128, dtype=np.uint8)
    assert (crop_and_flip(16)(grey, sample_rng(0, 0, 0)) == 128).all()
    still = Lighting(16, std=0.0)(grey, sample_rng(0, 0, 0)).astype(int)
    moved = Lighting(16, std=1.0)(grey, sample_rng(0, 0, 0)).astype(int)
    assert len(np.unique(moved.reshape(-1, 3), axis=0)) == 1
    assert 0 < np.abs(moved - still).max() <= 255


def test_the_square_crop_lies_within_the_central_square():
    image = np.zeros((64, 128, 3), dtype=np.uint8)
    image[:, 32:96] = 200
    assert all((SquareCrop(56)(image, sample_rng(0, 0, index)) == 200).all() for index in range(8))


def test_stretch_keeps_the_whole_image_whatever_its_shape():
    image = np.zeros((70, 140, 3), dtype=np.uint8)
    image[:, :70] = 200
    view = Stretch(32)(image)
    assert view.shape == (32, 32, 3)
    assert (view[:, :15] > 190).all()
    assert (view[:, 17:] < 10).all()
