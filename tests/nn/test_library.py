"""timm and torchvision networks as backbones."""

import pytest
import torch

from odc_lightning.nn.library import timm_backbone, torchvision_backbone
from odc_lightning.nn.resnet import RESNET_TAPS


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "size", "channels"),
    [
        ("resnet18", {}, 64, {"conv1": 64, "conv2": 64, "conv3": 128, "conv4": 256, "conv5": 512}),
        ("convnext_atto", {}, 64, {"conv2": 40, "conv3": 80, "conv4": 160, "conv5": 320}),
        ("mobilenetv3_small_050", {}, 64, {"conv1": 16, "conv2": 8, "conv3": 16, "conv4": 24, "conv5": 288}),
        ("swin_tiny_patch4_window7_224", {}, 224, {"conv2": 96, "conv3": 192, "conv4": 384, "conv5": 768}),
        ("vit_tiny_patch16_224", {"img_size": 64}, 64, dict.fromkeys(RESNET_TAPS, 192)),
    ],
)
def test_timm(name, options, size, channels):
    backbone = timm_backbone(name, in_channels=2, **options)
    assert backbone.training
    images = torch.rand(2, 2, size, size)
    assert backbone(images).shape == (2, backbone.feature_dim)
    taps = backbone.forward_taps(images, backbone.taps)
    assert {key: tap.shape[1] for key, tap in taps.items()} == channels
    assert all(tap.ndim == 4 and tap.shape[2] == tap.shape[3] > 1 for tap in taps.values())


def test_vit_taps_are_evenly_spaced_and_end_at_the_last_block():
    taps = timm_backbone("vit_tiny_patch16_224", img_size=32).taps
    assert list(taps.values()) == [f"blocks.{i}" for i in (1, 4, 6, 9, 11)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "feature_dim", "depths"),
    [
        ("resnet18", 512, "12345"),
        ("alexnet", 4096, "2345"),
        ("mobilenet_v3_small", 1024, "12345"),
        ("squeezenet1_1", 512, "1234"),
        ("shufflenet_v2_x0_5", 1024, "12345"),
        ("googlenet", 1024, "12345"),
        ("densenet121", 1024, "12345"),
        ("swin_t", 768, "25"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
def test_torchvision(name, feature_dim, depths):
    backbone = torchvision_backbone(name, in_channels=2)
    images = torch.rand(1, 2, 224, 224)
    assert backbone.training
    assert backbone.eval()(images).shape == (1, backbone.feature_dim) == (1, feature_dim)
    taps = backbone.forward_taps(images, backbone.taps)
    assert list(taps) == [f"conv{depth}" for depth in depths]
    for depth, tap in zip(depths, taps.values(), strict=True):
        assert tap.shape[2] == tap.shape[3] == pytest.approx(224 / 2 ** int(depth), rel=0.3)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_taps_found_by_the_dry_run_are_those_described_by_hand(name):
    assert torchvision_backbone(name).taps == RESNET_TAPS


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("selecsls42", {"conv1", "conv5"}),  # stages that return lists have no map
        ("xcit_nano_12_p16_224", set(RESNET_TAPS)),  # the class token joins after the tapped blocks
        ("pit_ti_224", set()),
    ],
)
def test_timm_taps_that_give_no_map_are_left_out(name, taps):
    backbone = timm_backbone(name)
    assert set(backbone.taps) == taps
    with torch.no_grad():
        maps = backbone.eval().forward_taps(torch.rand(1, 3, 224, 224), backbone.taps)
    assert all(value.ndim == 4 for value in maps.values())


def test_the_pool_before_a_classifier_is_no_tap():
    assert torchvision_backbone("alexnet").taps["conv5"] == "features"


def test_dry_run_leaves_no_trace():
    backbone = torchvision_backbone("resnet18")
    assert all(module.training for module in backbone.modules())
    assert backbone.net.bn1.num_batches_tracked == 0
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize("build", [timm_backbone, torchvision_backbone])
def test_unknown_name_gives_the_nearest_spelling(build):
    with pytest.raises(ValueError, match=r"backbone.name .*Received: 'reznet50'. Did you mean 'resnet50'\?"):
        build("reznet50")


def test_names_that_would_download_are_refused():
    with pytest.raises(ValueError, match=r"backbone.name \(timm\) must be one of"):
        timm_backbone("hf-hub:timm/resnet18")


def test_networks_for_other_tasks_are_refused():
    with pytest.raises(ValueError, match=r"backbone.name \(torchvision\) must be one of"):
        torchvision_backbone("fcn_resnet50")
