"""conf/data and conf/augment build what they name."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from hydra import compose as compose_config
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig

import odc_lightning.app  # noqa: F401  (registers what config.yaml resolves)
from odc_lightning.data.augment import CropTransform, EvalTransform, TrainTransform, sample_rng
from odc_lightning.data.datamodule import DataModule

CONF = Path(__file__).parents[2] / "conf"
DATA = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
AUGMENT = sorted(path.stem for path in (CONF / "augment").glob("*.yaml"))


def compose(data: str, augment: str, *overrides: str) -> DictConfig:
    """As the command line does."""
    GlobalHydra.instance().clear()
    chosen = ["~experiment", "run.name=x", "seed=3", f"data={data}", f"augment={augment}", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose_config("config", overrides=chosen)


@pytest.mark.parametrize("data", DATA)
def test_data_keys_are_arguments(data: str) -> None:
    config = compose(data, "paper")
    assert config.data._target_ == "odc_lightning.data.datamodule.DataModule"
    source = instantiate(config.data.source)
    parameters = inspect.signature(source.func).parameters
    assert {"split", *source.keywords} <= set(parameters)
    needed = [p for p in inspect.signature(DataModule).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert {p.name for p in needed if p.default is p.empty} <= set(config.data)
    assert len(config.data.mean) == len(config.data.std) == config.data.channels


@pytest.mark.parametrize("augment", AUGMENT)
@pytest.mark.parametrize("size", [32, 224])
def test_augment_builds_both_transforms(augment: str, size: int) -> None:
    config = compose("folder", augment, f"data.image_size={size}")
    train, evaluate = instantiate(config.data.transform), instantiate(config.data.eval_transform)
    assert isinstance(train, TrainTransform | CropTransform)
    assert isinstance(evaluate, EvalTransform)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for result in (train(image, sample_rng(0, 0, 0)), evaluate(image)):
        assert result.shape == (size, size, 3)


def test_paper_is_the_default_of_the_code() -> None:
    train = instantiate(compose("imagenet", "paper").data.transform)
    wanted = vars(TrainTransform(224))
    assert {key: pytest.approx(value) for key, value in vars(train).items()} == wanted
    assert vars(instantiate(compose("imagenet", "paper").data.eval_transform)) == {"size": 224, "resize": 256}


def test_none_is_the_central_square() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    train = instantiate(compose("cifar10", "none").data.transform)
    assert np.array_equal(train(image, sample_rng(0, 0, 0)), image[:, 4:36])


def test_root_from_the_command_line_reaches_the_source(tmp_path: Path) -> None:
    write_png(tmp_path / "root" / "a.png")
    config = compose("folder", "small", f"data.root={tmp_path / 'root'}", f"data.cache_dir={tmp_path / 'cache'}")
    source = instantiate(config.data.source)(split="train")
    assert source.path(0) == str(tmp_path / "root" / "a.png")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_download_and_root_reach_torchvision(tmp_path: Path) -> None:
    config = compose("stl10", "small", f"data.root={tmp_path}", "data.download=true")
    assert instantiate(config.data.source).keywords == {
        "name": "stl10",
        "root": str(tmp_path),
        "download": True,
    }


def test_the_data_module_works_without_val(tmp_path: Path) -> None:
    write_png(tmp_path / "root" / "a.png")
    overrides = [
        f"data.root={tmp_path / 'root'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.image_size=32",
    ]
    module = instantiate(compose("folder", "small", *overrides).data)
    assert (module.num_samples, module.val_source, module.seed) == (1, None, 3)


def write_png(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True)
    Image.new("RGB", (40, 30), (1, 2, 3)).save(path)
