"""task=export on a run of this package and on a foreign checkpoint."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

import odc_lightning.app  # noqa: F401  (registers what config.yaml resolves)
from odc_lightning.nn.resnet import resnet18, small_resnet
from odc_lightning.tasks.export import build_backbone, export

CONF = Path(__file__).parents[2] / "conf"
RUN = {
    "run": {"name": "squares"},
    "backbone": {"_target_": "odc_lightning.nn.resnet.small_resnet", "width": 4, "in_channels": 2},
    "method": {"_target_": "odc_lightning.methods.odc.ODC"},
    "data": {"image_size": 20, "channels": 3, "mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 2.0]},
}


@pytest.fixture
def configured(tmp_path):
    """Compose as the command line does, with the run folder in tmp_path."""

    def compose_task(*overrides):
        run = ["task=export", f"run.root={tmp_path}", "run.name=here", "hydra.runtime.output_dir=${hydra.run.dir}"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=[*run, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])

    yield compose_task
    HydraConfig.instance().cfg = None


@pytest.fixture
def run_folder(tmp_path):
    """A finished run of a small network behind Sobel edges."""
    backbone = small_resnet(width=4, in_channels=2)
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    content = {"state_dict": state, "config": RUN, "method": {}, "epoch": 7, "global_step": 40}
    torch.save(content | {"pytorch-lightning_version": "2.6"}, checkpoints / "last.ckpt")
    return backbone, tmp_path / "run"


def test_run_says_itself_what_it_is(configured, run_folder):
    backbone, run = run_folder
    files = export(configured(f"init.path={run}", "task.onnx=false"))
    assert set(files) == {str(run / "export" / "backbone.safetensors")}
    state = load_file(run / "export" / "backbone.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in backbone.net.state_dict().items())
    about = json.loads((run / "export" / "backbone.json").read_text())
    assert about["images"] == {
        "size": [3, 20, 20],
        "scale": "0..1, then (x - mean) / std",
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 2.0],
        "network_sees": "Sobel edges",
    }
    assert about["training"] == {"run": "squares", "method": "ODC", "epoch": 7, "global_step": 40}
    assert about["source"]["file"] == "last.ckpt"
    assert "60 of 60 backbone tensors, 0 missing" in about["loaded"]


def test_without_a_path_it_is_this_run(configured, run_folder, tmp_path):
    (tmp_path / "run").rename(tmp_path / "here")
    assert set(export(configured("task.onnx=false"))) == {str(tmp_path / "here" / "export" / "backbone.safetensors")}


def test_foreign_checkpoint_takes_the_command_line_s_backbone(configured, tmp_path):
    torch.save({"state_dict": torchvision.models.resnet18().state_dict()}, tmp_path / "r18.pth")
    keys = ["experiment=folder", f"init.path={tmp_path / 'r18.pth'}", "task.onnx=false"]
    files = export(configured(*keys, f"task.folder={tmp_path / 'out'}", "task.image_size=64"))
    assert {Path(file).name for file in files} == {
        f"backbone.{n}" for n in ("safetensors", "torchvision.pth", "timm.pth")
    }
    about = json.loads((tmp_path / "out" / "backbone.json").read_text())
    assert about["training"] == {}
    assert about["images"]["mean"] == [0.485, 0.456, 0.406]


def test_nothing_trained(configured, tmp_path):
    with pytest.raises(ValueError, match="No checkpoints are in"):
        export(configured())


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "odc_lightning.nn.library.partial",
        "odc_lightning.nn.library.timm.create_model",
        "odc_lightning.nn.resnet.SmallResNet",
        "odc_lightning.nn.resnet._resnet",
    ],
)
def test_a_file_cannot_choose_what_runs(target):
    with pytest.raises(ValueError, match=f"Received: {target}"):
        build_backbone({"_target_": target})


@pytest.mark.parametrize(
    ("choice", "path", "pretrained"), [("none", None, None), ("file", "/x.pth", None), ("timm", None, "resnet18")]
)
def test_each_init_is_composed(choice, path, pretrained):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        init = OmegaConf.to_container(compose(f"init/{choice}"), resolve=False)["init"]
    cfg = OmegaConf.create({"backbone": {"name": "resnet18"}, "init": init})
    if choice == "file":
        assert OmegaConf.is_missing(cfg.init, "path")
        cfg.init.path = path
    start = instantiate(cfg.init)
    assert start.keywords == {"path": path, "pretrained": pretrained, "allow_partial": False}
    if choice == "none":
        assert start(resnet18()) is None
