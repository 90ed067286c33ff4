"""The pools give the published dimensions; one pass gives every layer."""

import pytest
import torch

from odc_lightning.evaluation.network import FrozenNetwork, pixel_backbone, weights_hash
from odc_lightning.evaluation.taps import CONVOLUTIONS, GAP, POOL_SETS, adaptive_pool, pooled_shape, pools_for
from odc_lightning.nn.alexnet import alexnet
from odc_lightning.nn.resnet import resnet18, resnet50, small_resnet

RESNET50 = {"conv1": 9216, "conv2": 9216, "conv3": 8192, "conv4": 9216, "conv5": 8192}
ALEXNET = {"conv1": 9600, "conv2": 9216, "conv3": 9600, "conv4": 9600, "conv5": 9216}


def frozen(backbone, channels=3):
    return FrozenNetwork(backbone, [0.5] * channels, [0.25] * channels)


def dims(network, size, named="auto"):
    pools = network.pools(CONVOLUTIONS, size, named)
    return {layer: torch.Size(shape).numel() for layer, shape in network.shapes(pools, size).items()}


@pytest.mark.parametrize("named", ["auto", "resnet50", "adaptive"])
def test_resnet50_has_the_published_dimensions(named):
    assert dims(frozen(resnet50()), 224, named) == RESNET50


@pytest.mark.parametrize("named", ["auto", "alexnet_deepcluster", "alexnet_vissl", "adaptive"])
def test_alexnet_has_the_published_dimensions(named):
    assert dims(frozen(alexnet()), 224, named) == ALEXNET


def test_auto_takes_the_published_windows_where_the_maps_are_the_published_ones():
    network = frozen(resnet50())
    pools = network.pools(CONVOLUTIONS, 224)
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools.values()] == [
        (10, 10, 4),
        (16, 8, 0),
        (13, 5, 0),
        (8, 3, 0),
        (6, 1, 0),
    ]
    assert all(isinstance(pool, torch.nn.AdaptiveAvgPool2d) for pool in network.pools(CONVOLUTIONS, 160).values())


def test_a_layer_alone_has_the_pool_that_it_has_among_all():
    network = frozen(resnet18())
    assert str(network.pools(["conv1"], 224)) == str({"conv1": network.pools(CONVOLUTIONS, 224)["conv1"]})


@pytest.mark.parametrize(
    ("shape", "side"), [((16, 32, 32), 24), ((128, 4, 4), 4), ((9601, 7, 7), 1), ((3, 28, 28), 28)]
)
def test_adaptive_takes_the_finest_grid_that_fits(shape, side):
    assert pooled_shape(adaptive_pool(shape), shape) == (shape[0], side, side)


def test_wrong_names_and_sets_for_other_maps():
    maps = {"conv1": (64, 112, 112), "conv2": (256, 28, 28)}
    with pytest.raises(ValueError, match="conv2 is 256 x 56 there, 256 x 28 here. Take protocol.pools=adaptive"):
        pools_for(maps, "resnet50")
    with pytest.raises(ValueError, match="protocol.pools must be one of auto, .*Did you mean 'resnet50'"):
        pools_for(maps, "resnet5")
    with pytest.raises(ValueError, match="protocol.layers of small_resnet must be one of: .*Received: 'conv6'"):
        frozen(small_resnet(4)).pools(["conv6"], 16)
    assert set(POOL_SETS) == {"resnet50", "alexnet_deepcluster", "alexnet_vissl"}


def test_one_pass_gives_what_single_passes_give_and_changes_nothing():
    torch.manual_seed(0)
    backbone = small_resnet(4)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    network, before = frozen(backbone).train(), weights_hash(backbone)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    pools = network.pools([*CONVOLUTIONS, GAP], 16)
    together = network(images, pools)
    for layer in pools:
        assert torch.equal(together[layer], network(images, {layer: pools[layer]})[layer])
    assert torch.equal(together[GAP], backbone(network.prepare(images)))
    assert weights_hash(backbone) == before
    assert not network.training


def test_a_network_of_two_channels_gets_edges_and_others_are_refused():
    network = frozen(small_resnet(4, in_channels=2))
    assert network.shapes(network.pools([GAP], 16), 16) == {GAP: (32,)}
    with pytest.raises(
        ValueError, match="backbone.in_channels must be data.channels=1, 2 for Sobel edges. Received: 3"
    ):
        frozen(small_resnet(4), channels=1)


@pytest.mark.parametrize(("channels", "size", "width"), [(1, 28, 784), (3, 32, 3072), (3, 224, 3 * 56 * 56)])
def test_pixels_are_a_feature_of_at_most_9600_numbers(channels, size, width):
    network = frozen(pixel_backbone(channels, size), channels)
    assert network.shapes(network.pools([GAP], size), size) == {GAP: (width,)}
