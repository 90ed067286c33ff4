"""ResNets: torchvision's names, the release's initialisation, the table of probe shapes."""

import math

import pytest
import torch
import torchvision
from torch import nn

from odc_lightning.nn import resnet
from odc_lightning.nn.resnet import resnet18, resnet50, small_resnet


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_state_dict_has_the_names_and_shapes_of_torchvision_without_fc(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
        ours = getattr(resnet, name)().net.state_dict()
    expected = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == expected


def test_torchvision_weights_give_torchvision_features():
    theirs, ours = torchvision.models.resnet18().eval(), resnet18().eval()
    missing = ours.net.load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == []
    assert missing.unexpected_keys == ["fc.weight", "fc.bias"]
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs.fc(ours(images)), theirs(images))


@torch.no_grad()
def test_resnet50_probe_shapes_at_224():
    backbone = resnet50().eval()
    taps = backbone.forward_taps(torch.rand(1, 3, 224, 224), backbone.taps)
    shapes = {name: tuple(value.shape[1:]) for name, value in taps.items()}
    assert shapes == {
        "conv1": (64, 112, 112),
        "conv2": (256, 56, 56),
        "conv3": (512, 28, 28),
        "conv4": (1024, 14, 14),
        "conv5": (2048, 7, 7),
    }
    assert backbone.feature_dim == 2048
    assert backbone.description == "resnet50: 23.5M parameters, 2048-d"


@torch.no_grad()
def test_taps_are_what_the_network_computes():
    backbone = resnet18(in_channels=2).eval()
    images, net = torch.rand(2, 2, 64, 64), backbone.net
    conv1 = net.relu(net.bn1(net.conv1(images)))
    conv2 = net.layer1(net.maxpool(conv1))
    conv5 = net.layer4(net.layer3(net.layer2(conv2)))
    taps = backbone.forward_taps(images, ["conv5", "conv1", "conv2"])
    assert list(taps) == ["conv5", "conv1", "conv2"]
    for name, expected in (("conv1", conv1), ("conv2", conv2), ("conv5", conv5)):
        assert torch.equal(taps[name], expected)
    torch.testing.assert_close(backbone(images), conv5.mean(dim=(2, 3)))


@pytest.mark.parametrize("init_mode", ["fan_in", "fan_out"])
def test_convolutions_start_at_kaiming_normal(init_mode):
    net = resnet18(init_mode=init_mode).net
    for name, conv in net.named_modules():
        if isinstance(conv, nn.Conv2d):
            channels = conv.in_channels if init_mode == "fan_in" else conv.out_channels
            expected = math.sqrt(2 / (channels * conv.kernel_size[0] ** 2))
            slack = 5 / math.sqrt(2 * conv.weight.numel())  # five standard errors of a standard deviation
            assert conv.weight.std().item() == pytest.approx(expected, rel=slack), name


@pytest.mark.parametrize("build", [resnet18, resnet50, small_resnet])
def test_zero_init_residual_zeroes_the_last_norm_of_each_block_and_no_other(build):
    norms = {n: m for n, m in build(zero_init_residual=True).net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    last = "bn3" if build is resnet50 else "bn2"
    for name, norm in norms.items():
        assert torch.all(norm.weight == (0.0 if name.endswith(last) else 1.0)), name


@pytest.mark.parametrize(("width", "blocks"), [(4, (1, 1, 1, 1)), (6, (2, 1, 3, 1))])
def test_small_resnet_shapes(width, blocks):
    backbone = small_resnet(width=width, in_channels=1, blocks=blocks)
    images = torch.rand(2, 1, 28, 28)
    taps = backbone.forward_taps(images, backbone.taps)
    expected = [(width, 28), (width, 28), (2 * width, 14), (4 * width, 7), (8 * width, 4)]
    assert [tuple(tap.shape[1:3]) for tap in taps.values()] == expected
    assert backbone(images).shape == (2, backbone.feature_dim) == (2, 8 * width)
    assert [len(getattr(backbone.net, f"layer{i}")) for i in (1, 2, 3, 4)] == list(blocks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be at least 1. Received: 0"),
        ({"in_channels": 0}, "in_channels must be at least 1. Received: 0"),
        ({"blocks": (1, 1, 1)}, "blocks must be four numbers of at least 1"),
        ({"blocks": (1, 0, 1, 1)}, "blocks must be four numbers of at least 1"),
        ({"init_mode": "fan"}, "init_mode must be fan_in or fan_out. Received: 'fan'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_resnet(**arguments)


def test_resnet_needs_a_channel():
    with pytest.raises(ValueError, match=r"in_channels must be at least 1. Received: 0"):
        resnet18(in_channels=0)
