"""The Backbone wrapper: taps, names, errors."""

import pytest
import torch
from torch import nn

from odc_lightning.nn import Backbone
from odc_lightning.nn.resnet import small_resnet


class Tokens(nn.Module):
    """Stands for a ViT: one class token, then a 2x3 or 2x2 grid of tokens, in row order."""

    def __init__(self, count):
        super().__init__()
        self.count, self.block = count, nn.Identity()

    def forward(self, images):
        tokens = torch.arange(self.count).float().view(1, -1, 1).expand(images.shape[0], -1, 3)
        return self.block(tokens).mean(dim=1)


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Identity()

    def forward(self, images):
        return self.block(images.permute(0, 2, 3, 1)).mean(dim=(1, 2))


def wrap(net, **options):
    return Backbone(net, name="toy", feature_dim=3, taps={"conv5": "block"}, **options)


def test_unknown_tap_gives_the_nearest_spelling():
    with pytest.raises(ValueError, match=r"conv1, conv2.*Received: 'conv_5'. Did you mean 'conv5'\?"):
        small_resnet(width=2).forward_taps(torch.rand(1, 3, 8, 8), ["conv1", "conv_5"])


def test_tap_of_a_missing_submodule_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"Received: 'blok'. Did you mean 'block'\?"):
        Backbone(Tokens(4), name="toy", feature_dim=3, taps={"conv5": "blok"})


def test_hooks_are_gone_afterwards_also_after_an_error():
    backbone = small_resnet(width=2)
    backbone.forward_taps(torch.rand(2, 3, 8, 8), backbone.taps)
    with pytest.raises(RuntimeError):
        backbone.forward_taps(torch.rand(1, 5, 8, 8), backbone.taps)
    assert not any(module._forward_hooks for module in backbone.modules())


def test_taps_keep_the_gradient():
    backbone = small_resnet(width=2)
    backbone.forward_taps(torch.rand(2, 3, 8, 8), ["conv3"])["conv3"].sum().backward()
    assert backbone.net.conv1.weight.grad is not None


def test_checkpoint_names_are_those_of_the_network_behind_net():
    backbone = small_resnet(width=2)
    assert set(backbone.state_dict()) == {f"net.{key}" for key in backbone.net.state_dict()}


def test_tokens_become_a_map_without_the_prefix():
    tap = wrap(Tokens(5), prefix_tokens=1).forward_taps(torch.rand(2, 3, 4, 4), ["conv5"])["conv5"]
    assert tap.shape == (2, 3, 2, 2)
    assert tap[0, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_tokens_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match=r"conv5 of toy must give .* Received: \(1, 6, 3\)"):
        wrap(Tokens(6)).forward_taps(torch.rand(1, 3, 4, 4), ["conv5"])


def test_channels_last_maps_are_turned():
    images = torch.rand(2, 3, 4, 6)
    tap = wrap(ChannelsLast(), channels_last=True).forward_taps(images, ["conv5"])["conv5"]
    assert torch.equal(tap, images)


def test_description_of_a_network_below_a_million():
    assert small_resnet(width=4).description == "small_resnet: 0.020M parameters, 32-d"
