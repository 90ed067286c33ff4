"""FAIR's caffe2 pickles: names by an independent table, BGR to RGB, Jigsaw's towers, colorization's lightness."""

import pickle

import numpy as np
import pytest
import torch
import torchvision

from odc_lightning.nn.resnet import resnet50
from odc_lightning.weights import load_backbone_weights

NORM = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
BLOCKS = {"res2": ("layer1", 3), "res3": ("layer2", 4), "res4": ("layer3", 6), "res5": ("layer4", 3)}
BRANCHES = {
    "branch2a": ("conv1", "bn1"),
    "branch2b": ("conv2", "bn2"),
    "branch2c": ("conv3", "bn3"),
    "branch1": ("downsample.0", "downsample.1"),
}


def table(tower=""):
    """caffe2 blob to torchvision tensor, of ResNet-50."""
    pairs = {f"conv1{tower}_w": "conv1.weight"}
    pairs |= {f"res_conv1_bn{tower}_{short}": f"bn1.{long}" for short, long in NORM.items()}
    for res, (layer, depth) in BLOCKS.items():
        for block in range(depth):
            for branch, (conv, norm) in BRANCHES.items():
                if branch == "branch1" and block:
                    continue
                pairs[f"{res}_{block}_{branch}{tower}_w"] = f"{layer}.{block}.{conv}.weight"
                for short, long in NORM.items():
                    pairs[f"{res}_{block}_{branch}_bn{tower}_{short}"] = f"{layer}.{block}.{norm}.{long}"
    return pairs


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    net = torchvision.models.resnet50(weights=None)
    net.fc = torch.nn.Identity()
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) + 0.5 * name.endswith("running_var"))
    return net.eval()


def blobs(source, tower="", conv1=None):
    """As the files are: BGR, the momentum of each weight, a classifier, two scalars."""
    state = source.state_dict()
    arrays = {blob: state[name].numpy() for blob, name in table(tower).items()}
    arrays[f"conv1{tower}_w"] = arrays[f"conv1{tower}_w"][:, ::-1].copy() if conv1 is None else conv1
    arrays |= {f"{blob}_momentum": np.zeros_like(array) for blob, array in list(arrays.items()) if blob.endswith("_w")}
    return arrays | {
        "pred_w": np.zeros((5, 8), "f"),
        "pred_b": np.zeros(5, "f"),
        "lr": np.float32(0.1),
        "model_iter": 7,
    }


def dump(path, content):
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=2)
    return path


@pytest.mark.parametrize("tower", ["", "_s0"])
def test_caffe2_gives_equal_features_on_rgb(source, tower, tmp_path):
    content = blobs(source, tower)
    if tower:
        content["res2_0_branch2a_bn_s1_rm"] = np.zeros(64, "f")
    backbone = resnet50()
    report = load_backbone_weights(backbone, dump(tmp_path / "r50.pkl", {"blobs": content}))
    colours = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(colours), source(colours))
    assert not torch.equal(source.conv1.weight, source.conv1.weight.flip(1))
    assert (report.matched, report.total) == (265, 265)
    assert report.dropped == {"momentum": 53, "pred": 2} | ({"towers": 1} if tower else {})
    assert "caffe2" in report.format
    assert report.notes == ("first convolution turned from BGR to RGB",)


def test_written_by_python_2(tmp_path):
    """Names and array bytes are byte strings there, of `numpy.core`."""
    header = b"\x80\x02}U\x05blobs}U\x07conv1_w"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    weight = np.arange(64 * 3 * 49, dtype="<f4").reshape(64, 3, 7, 7)
    data = b"T" + np.uint32(weight.nbytes).tobytes() + weight.tobytes()
    state = b"(K\x01(K@K\x03K\x07K\x07t" + dtype + b"\x89" + data + b"tb"
    (tmp_path / "py2.pkl").write_bytes(header + array + state + b"ss.")
    backbone = resnet50()
    report = load_backbone_weights(backbone, tmp_path / "py2.pkl", allow_partial=True)
    assert report.matched == 1
    assert np.array_equal(backbone.net.conv1.weight.detach(), weight[:, ::-1])


def test_colorization_needs_one_channel(source, tmp_path):
    lightness = np.random.default_rng(0).normal(size=(64, 1, 7, 7)).astype("f")
    path = dump(tmp_path / "color.pkl", {"blobs": blobs(source, conv1=lightness)})
    with pytest.raises(ValueError, match=r"conv1.weight \(64, 1, 7, 7\) in the file, \(64, 3, 7, 7\) here.*lightness"):
        load_backbone_weights(resnet50(), path)
    backbone = resnet50(in_channels=1)
    report = load_backbone_weights(backbone, path)
    assert report.complete
    assert np.array_equal(backbone.net.conv1.weight.detach(), lightness)
    assert "layer4 had stride 1 where resnet50 has 2" in report.notes[0]
