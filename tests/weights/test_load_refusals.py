"""What bad files and wrong backbones get: one message that says what to do, and no code run."""

import _codecs
import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from odc_lightning.nn.resnet import resnet18, resnet50, small_resnet
from odc_lightning.weights import find_checkpoint, init_backbone, load_backbone_weights, read_checkpoint, sha256


class Malicious:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.fixture(scope="module")
def state():
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.fixture
def save(tmp_path):
    def write(content, name="file.pth", **keys):
        torch.save(content, tmp_path / name, **keys)
        return tmp_path / name

    return write


def refusal(path, backbone=None, **keys):
    backbone = backbone or resnet18()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_backbone_weights(backbone, path, **keys)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    return str(error.value)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(("call", "name"), [(os.system, "posix.system"), (eval, "eval"), (getattr, "getattr")])
def test_torch_file_that_wants_to_run_code(state, save, tmp_path, call, name, new):
    bait = Malicious(call, f"open({str(tmp_path / 'ran')!r}, 'w')" if call is eval else f"touch {tmp_path / 'ran'}")
    path = save({"state_dict": dict(state), "x": bait}, _use_new_zipfile_serialization=new)
    assert f"refused to load {path}: it asks for {name}, " in refusal(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_wants_to_run_code(tmp_path, protocol):
    path = tmp_path / "file.pkl"
    with path.open("wb") as file:
        pickle.dump({"blobs": {"conv1_w": Malicious(os.system, f"touch {tmp_path / 'ran'}")}}, file, protocol)
    assert ("it asks for posix.system" if protocol else "is no checkpoint") in refusal(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("codec", ["rot13", "os"])
def test_pickle_cannot_choose_a_codec(tmp_path, codec):
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(Malicious(_codecs.encode, "x", codec), 2))
    assert f"it asks for _codecs.encode to {codec}" in refusal(tmp_path / "file.pkl")


def test_whole_module_is_refused_by_name(save):
    assert "it asks for torchvision.models.resnet.ResNet, " in refusal(save(torchvision.models.resnet18()))


def test_global_allow_list_is_left_as_it_was(state, save):
    before = set(torch.serialization.get_safe_globals())
    load_backbone_weights(resnet18(), save({"model": dict(state), "args": argparse.Namespace(a=1)}))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
@pytest.mark.parametrize("keep", [0, 5, 1000, -1000])
def test_cut_off_file(state, save, tmp_path, suffix, keep):
    if suffix == ".safetensors":
        save_file(dict(state), tmp_path / "whole")
    elif suffix == ".pth":
        save(dict(state), "whole")
    else:
        (tmp_path / "whole").write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros((64, 3, 7, 7), "f")}}, 2))
    path = tmp_path / f"file{suffix}"
    path.write_bytes((tmp_path / "whole").read_bytes()[:keep])
    message = refusal(path)
    assert "cut off" in message or "is no checkpoint" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "is a web page, not a file of weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n", "begins with b'\\x89PNG"),
        (b"", "It is empty"),
    ],
)
def test_no_checkpoint_at_all(tmp_path, content, message):
    (tmp_path / "file.pth").write_bytes(content)
    assert message in refusal(tmp_path / "file.pth")


def test_other_archives(tmp_path, save):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.txt", "hello")
    assert "an archive without PyTorch's data.pkl" in refusal(tmp_path / "a.zip")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "a TorchScript program" in refusal(tmp_path / "script.pt")


def test_nothing_there(tmp_path):
    assert "Nothing is at" in refusal(tmp_path / "absent.pth")
    assert "a folder without checkpoints/last.ckpt" in refusal(tmp_path)


def test_run_folder_means_its_last_checkpoint(state, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"state_dict": {f"backbone.net.{n}": t for n, t in state.items()}}, tmp_path / "checkpoints/previous.ckpt"
    )
    assert load_backbone_weights(resnet18(), tmp_path).complete
    assert find_checkpoint(tmp_path).name == "previous.ckpt"
    assert sha256(tmp_path) == sha256(tmp_path / "checkpoints" / "previous.ckpt")


def test_no_tensor_of_the_backbone(save):
    path = save(
        {"state_dict": {"encoder.block.q": torch.ones(2), "encoder.block.k": torch.ones(2), "t": torch.ones(1)}}
    )
    message = refusal(path, allow_partial=True)
    assert "has no tensor of resnet18. Looked for conv1.weight, " in message
    assert "the file has: state_dict/encoder. (2 tensors), state_dict/t (1 tensor)" in message


def test_no_tensor_at_all(save):
    assert "holds no weights" in refusal(save({"epoch": 3}))
    assert "holds no weights" in refusal(save([1, 2]))


def test_missing_tensors_are_named(state, save):
    part = {f"backbone.{name}": tensor for name, tensor in state.items() if not name.startswith("layer4.1.conv")}
    path = save({"state_dict": part})
    message = refusal(path)
    assert "has 98 of the 100 tensors of resnet18; missing: layer4.1.conv1.weight, layer4.1.conv2.weight" in message
    assert message.endswith("init.allow_partial=true loads the 98 that fit")
    backbone = resnet18()
    report = load_backbone_weights(backbone, path, allow_partial=True)
    assert "98 of 100 backbone tensors, 2 missing (layer4.1.conv1.weight, layer4.1.conv2.weight)" in str(report)
    assert torch.equal(backbone.net.layer4[1].bn1.weight, state["layer4.1.bn1.weight"])
    assert not report.complete


def test_another_network(state, save):
    message = refusal(save(dict(state)), resnet50())
    assert "of another shape: layer1.0.conv1.weight (64, 64, 3, 3) in the file, (64, 64, 1, 1) here" in message
    assert "Is backbone=resnet50 the network that was trained?" in message


def test_sobel(save):
    edges, colours = (save(resnet18(n).net.state_dict(), f"{n}.pth") for n in (2, 3))
    assert "trained on Sobel edges: set backbone.in_channels=2" in refusal(edges, resnet18(3))
    assert "conv1.weight (64, 2, 7, 7) in the file, (64, 3, 7, 7) here" in refusal(edges, resnet18(3))
    assert "set backbone.in_channels=3" in refusal(colours, resnet18(2))


def test_diverged_weights(save):
    state = small_resnet().net.state_dict()
    state["conv1.weight"][0] = float("nan")
    assert "holds NaN or infinite weights: conv1.weight" in refusal(save(dict(state)), small_resnet())


def test_cycles_do_not_hang(save):
    loop: dict = {"weight": torch.ones(1)}
    loop["self"] = loop
    assert "has no tensor" in refusal(save(loop))


def test_init_without_weights():
    assert init_backbone(small_resnet()) is None
    with pytest.raises(ValueError, match="exclude each other"):
        init_backbone(small_resnet(), path="x", pretrained="resnet18")


def test_init_by_name(monkeypatch, state):
    with pytest.raises(ValueError, match="Received: small_resnet"):
        init_backbone(small_resnet(), pretrained="small_resnet")
    build = timm.create_model

    def fetch(name, pretrained, **keys):
        assert pretrained
        net = build(name, pretrained=False, **keys)
        net.conv1.weight.data.fill_(0.5)
        return net

    monkeypatch.setattr(timm, "create_model", fetch)
    backbone = resnet18(in_channels=2)
    report = init_backbone(backbone, pretrained="resnet18.a1_in1k")
    assert report is not None
    assert (report.source, report.complete) == ("timm resnet18.a1_in1k", True)
    assert backbone.net.conv1.weight.eq(0.5).all()


def test_init_by_name_offline(monkeypatch):
    def offline(*_args, **_keys):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"could not get the weights of resnet18 \(We couldn't connect.*init=file"):
        init_backbone(resnet18(), pretrained="resnet18")


def test_content_is_read_once_and_plain(state, save):
    content = read_checkpoint(save({"state_dict": dict(state), "epoch": 3}))
    assert content["epoch"] == 3
