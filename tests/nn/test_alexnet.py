"""AlexNet-BN: the shapes of DeepCluster's, its initialisation, images of other sizes."""

import math

import pytest
import torch
from torch import nn

from odc_lightning.nn.alexnet import alexnet


@pytest.fixture(scope="module")
def backbone():
    return alexnet(in_channels=2).eval()


@torch.no_grad()
def test_probe_shapes_at_224(backbone):
    taps = backbone.forward_taps(torch.rand(1, 2, 224, 224), backbone.taps)
    shapes = [(tap.shape[1], tap.shape[2], tap.shape[3]) for tap in taps.values()]
    assert list(taps) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert shapes == [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
    assert all(tap.min() >= 0 for tap in taps.values())


@torch.no_grad()
@pytest.mark.parametrize("size", [63, 96, 224, 227])
def test_any_size_from_63_gives_4096(backbone, size):
    features = backbone(torch.rand(1, 2, size, size))
    assert features.shape == (1, backbone.feature_dim) == (1, 4096)
    assert features.min() >= 0


def test_too_small_an_image_is_a_clear_error(backbone):
    with pytest.raises(ValueError, match=r"alexnet needs images of at least 63x63 pixels. Received: \(224, 62\)"):
        backbone(torch.rand(1, 2, 224, 62))


def test_modules_are_numbered_as_in_deepcluster(backbone):
    convolutions = [i for i, m in enumerate(backbone.net.features) if isinstance(m, nn.Conv2d)]
    linears = [i for i, m in enumerate(backbone.net.classifier) if isinstance(m, nn.Linear)]
    assert (convolutions, linears) == ([0, 4, 8, 11, 14], [1, 4])


def test_initialisation(backbone):
    for module in backbone.net.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.03)
        elif isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert not module.bias.any()


@pytest.mark.parametrize("arguments", [{"in_channels": 0}, {"dropout": 1.0}])
def test_wrong_arguments_are_named(arguments):
    (key, value) = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{key} must be .* Received: {value}"):
        alexnet(**arguments)
