"""Normalisation and the Sobel filter against slow loops in float64."""

import numpy as np
import pytest
import torch

from odc_lightning.nn import Normalize, Sobel


def slow_sobel(image_CHW):
    _, height, width = image_CHW.shape
    grey = np.zeros((height + 2, width + 2))
    grey[1:-1, 1:-1] = sum(channel / len(image_CHW) for channel in image_CHW)
    filters = ([[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
    edges = np.zeros((2, height, width))
    for index, weights in enumerate(filters):
        for y in range(height):
            for x in range(width):
                edges[index, y, x] = sum(weights[i][j] * grey[y + i, x + j] for i in range(3) for j in range(3))
    return edges


def test_sobel_against_a_loop():
    images = torch.randn(2, 3, 7, 9)
    expected = np.stack([slow_sobel(image) for image in images.double().numpy()])
    torch.testing.assert_close(Sobel()(images).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_sobel_sees_a_vertical_edge_in_the_first_channel_only():
    image = torch.zeros(1, 3, 6, 6)
    image[..., 3:] = 1
    edges = Sobel()(image)[0, :, 1:-1, 1:-1]
    assert edges[0].abs().max() == 4
    assert edges[1].abs().max() == 0


def test_sobel_has_nothing_to_train_and_nothing_to_save():
    sobel = Sobel()
    assert list(sobel.parameters()) == []
    assert sobel.state_dict() == {}
    assert sobel.out_channels == 2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalize_against_its_formula(memory_format):
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.3, 1.7]
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8).contiguous(memory_format=memory_format)
    before = images.clone()
    output = Normalize(mean, std)(images)
    column = np.array(mean)[:, None, None], np.array(std)[:, None, None]
    expected = torch.from_numpy((images.numpy() / 255.0 - column[0]) / column[1])
    assert output.dtype == torch.float32
    assert output.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)
    torch.testing.assert_close(output.double(), expected, rtol=1e-6, atol=1e-6)


def test_normalize_defaults_to_imagenet_and_saves_nothing():
    normalize = Normalize()
    black = normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).flatten().tolist()
    assert black == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert normalize.state_dict() == {}


def test_float_images_are_refused():
    with pytest.raises(ValueError, match=r"images must be uint8, in 0..255. Received: torch.float32"):
        Normalize()(torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 4, 4)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must have the shape \(B, 3, H, W\)"):
        Normalize()(torch.zeros(shape, dtype=torch.uint8))


def test_wrong_constants_are_named():
    with pytest.raises(ValueError, match="std must be above 0"):
        Normalize([0.5], [0.0])
    with pytest.raises(ValueError, match="mean and std must have one number a channel"):
        Normalize([0.5, 0.5], [0.5])
