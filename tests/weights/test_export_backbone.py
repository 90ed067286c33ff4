"""Exports load in torchvision, timm, safetensors and ONNX, and give the features of the backbone."""

import json

import onnxruntime
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

import odc_lightning.weights.export as export_module
from odc_lightning.nn.library import timm_backbone, torchvision_backbone
from odc_lightning.nn.resnet import resnet18, resnet50, small_resnet
from odc_lightning.weights import load_backbone_weights
from odc_lightning.weights.export import export_backbone


def trained(backbone):
    """Running statistics as after training."""
    backbone.train()(torch.randn(4, backbone.in_channels, 64, 64, generator=torch.Generator().manual_seed(0)))
    return backbone.eval()


def features(net, channels=3):
    with torch.no_grad():
        return net.eval()(torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    backbone = trained(resnet50())
    folder = tmp_path_factory.mktemp("export")
    return (
        backbone,
        folder,
        export_backbone(backbone, folder, image_size=64, onnx="false", info={"images": {"mean": [0.5]}}),
    )


def test_torchvision_loads_it_strictly(exported):
    backbone, folder, _ = exported
    net = torchvision.models.resnet50(weights=None)
    net.fc = torch.nn.Identity()
    net.load_state_dict(torch.load(folder / "backbone.torchvision.pth", weights_only=True), strict=True)
    assert torch.equal(features(net), features(backbone))


def test_timm_loads_it_strictly(exported):
    backbone, folder, _ = exported
    net = timm.create_model("resnet50", num_classes=0)
    net.load_state_dict(torch.load(folder / "backbone.timm.pth", weights_only=True), strict=True)
    by_path = timm.create_model("resnet50", num_classes=0, checkpoint_path=str(folder / "backbone.timm.pth"))
    assert torch.allclose(features(net), features(backbone), atol=1e-5)
    assert torch.equal(features(by_path), features(net))


def test_safetensors_load_here_and_anywhere(exported):
    backbone, folder, _ = exported
    state = load_file(folder / "backbone.safetensors")
    assert state.keys() == backbone.net.state_dict().keys()
    again = resnet50()
    assert load_backbone_weights(again, folder / "backbone.safetensors").complete
    assert torch.equal(features(again), features(backbone))


def test_description_beside_the_files(exported):
    _, folder, result = exported
    about = json.loads((folder / "backbone.json").read_text())
    assert about["images"] == {"mean": [0.5]}
    assert (about["backbone"], about["feature_dim"], about["in_channels"]) == ("resnet50", 2048, 3)
    assert (
        about["files"].keys()
        == {path.name for path in result.files}
        == {p.name for p in folder.iterdir()} - {"backbone.json"}
    )
    assert about["not_written"] == {"onnx": "task.onnx=false"}


@pytest.mark.parametrize(
    ("build", "files", "skipped"),
    [
        (lambda: resnet18(in_channels=2), {"torchvision.pth", "timm.pth"}, {}),
        (lambda: timm_backbone("convnext_atto"), {"timm.pth"}, {"torchvision": "it has no network convnext_atto"}),
        (
            lambda: torchvision_backbone("mobilenet_v3_small"),
            {"torchvision.pth"},
            {"timm": "it has no network mobilenet_v3_small"},
        ),
        (
            lambda: small_resnet(),
            set(),
            {"timm": "it has no network small_resnet", "torchvision": "it has no network small_resnet"},
        ),
        (
            lambda: timm_backbone("efficientnet_b0"),
            {"timm.pth"},
            {"torchvision": "its efficientnet_b0 is another network"},
        ),
    ],
)
def test_files_of_the_libraries_that_have_the_network(build, files, skipped, tmp_path):
    result = export_backbone(build(), tmp_path, image_size=64, onnx="false")
    assert {path.name.removeprefix("backbone.") for path in result.files} == files | {"safetensors"}
    assert {library: reason for library, reason in result.skipped.items() if library != "onnx"} == skipped


def test_backbone_is_left_as_it_was(tmp_path):
    backbone = small_resnet().train()
    export_backbone(backbone, tmp_path, image_size=28, onnx="false")
    assert backbone.training
    assert backbone.net.bn1.training


def test_channels_last_weights(tmp_path):
    backbone = trained(small_resnet()).to(memory_format=torch.channels_last)
    export_backbone(backbone, tmp_path, image_size=28, onnx="false")
    assert torch.equal(load_file(tmp_path / "backbone.safetensors")["conv1.weight"], backbone.net.conv1.weight)


def test_onnx_choices(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="task.onnx must be one of: auto, true, false. Received: 'maybe'"):
        export_backbone(small_resnet(), tmp_path, onnx="maybe")
    monkeypatch.setattr(export_module, "_ONNX_NEEDS", ("onnx_that_is_absent",))
    with pytest.raises(ValueError, match=r"onnx_that_is_absent not installed: pip install 'odc-lightning\[export\]'"):
        export_backbone(small_resnet(), tmp_path, onnx="true")
    result = export_backbone(small_resnet(), tmp_path, image_size=28)
    assert "not installed" in result.skipped["onnx"]


def test_onnx_gives_equal_features(tmp_path):
    backbone = trained(small_resnet())
    export_backbone(backbone, tmp_path, image_size=28, onnx="true")
    session = onnxruntime.InferenceSession(str(tmp_path / "backbone.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        images = torch.randn(batch, 3, 28, 28)
        with torch.no_grad():
            wanted = backbone(images)
        (given,) = session.run(["features"], {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(given), wanted, atol=1e-5)
