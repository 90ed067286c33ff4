"""Each conf/backbone/*.yaml is executed: built, run forward and backward."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf" / "backbone"
SIZES = {"small_resnet": 28, "alexnet": 64}
EACH = pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)


def load(path: Path, channels: int = 3) -> Any:
    """The file as it stands in the whole tree, where the data says how many channels there are."""
    return OmegaConf.create({"data": {"channels": channels}, "backbone": OmegaConf.load(path)}).backbone


@EACH
def test_backbone_trains(path):
    backbone = instantiate(load(path, channels=2))
    size = SIZES.get(path.stem, 32)
    features = backbone(torch.rand(2, 2, size, size))
    features.sum().backward()
    assert features.shape == (2, backbone.feature_dim)
    assert backbone.in_channels == 2
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@EACH
def test_yaml_defaults_are_the_code_s(path):
    config = OmegaConf.to_container(load(path), resolve=True)
    parameters = inspect.signature(get_method(config.pop("_target_"))).parameters
    for key, value in config.items():
        default = parameters[key].default
        if default is not inspect.Parameter.empty:
            assert value == (list(default) if isinstance(default, tuple) else default), key


def test_the_name_can_be_set():
    config = load(CONF / "timm.yaml")
    config.name = "convnext_atto"
    assert instantiate(config).description == "convnext_atto: 3.4M parameters, 320-d"
