"""What stands before the backbone: by channels; Lab against OpenCV's and published values."""

import cv2
import numpy as np
import pytest
import torch

from odc_lightning.nn.lab import Lightness, rgb_to_lab
from odc_lightning.nn.network_input import input_name, network_input
from odc_lightning.nn.normalize import Normalize
from odc_lightning.nn.sobel import Sobel


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 9, 7), dtype=torch.uint8)


def test_lab_against_opencv(images):
    ours = rgb_to_lab(images).permute(0, 2, 3, 1).numpy()
    theirs = [cv2.cvtColor(i.permute(1, 2, 0).numpy().astype(np.float32) / 255, cv2.COLOR_RGB2Lab) for i in images]
    assert np.abs(ours - np.stack(theirs)).max() < 0.3  # OpenCV rounds its matrix and interpolates its cube root


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_of_known_colours(rgb, lab):
    pixel = torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)
    assert rgb_to_lab(pixel).flatten().tolist() == pytest.approx(lab, abs=0.02)


def test_channels_decide(images):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normalized = Normalize(mean, std)(images)
    assert torch.equal(network_input(3, mean, std)(images), normalized)
    assert torch.equal(network_input(2, mean, std)(images), Sobel()(normalized))
    assert torch.equal(network_input(1, mean, std)(images), Lightness()(images))
    grey = images[:, :1]
    assert torch.equal(network_input(1, [0.4], [0.2])(grey), Normalize([0.4], [0.2])(grey))
    assert network_input(2, [0.4], [0.2])(grey).shape == (3, 2, 9, 7)
    assert Lightness()(images).abs().max() <= 50


def test_nothing_is_saved():
    assert all(network_input(channels, [0.5] * 3, [0.5] * 3).state_dict() == {} for channels in (1, 2, 3))


@pytest.mark.parametrize(
    ("channels", "images", "wanted"),
    [
        (4, 3, "must be data.channels=3, 2 for Sobel edges, or 1 for lightness. Received: 4"),
        (3, 1, "must be data.channels=1, 2 for Sobel edges. Received: 3"),
    ],
)
def test_other_channels_are_refused(channels, images, wanted):
    with pytest.raises(ValueError, match=wanted):
        network_input(channels, [0.5] * images, [0.5] * images)


def test_names():
    assert [input_name(c, 3) for c in (3, 2, 1)] == ["colours", "Sobel edges", "lightness"]
    assert input_name(1, 1) == "grey"
