"""Colours on the device: each image as the worker would have made it, and as torchvision on PIL images."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import functional as F

from helpers import datamodule, odc, trainer
from odc_lightning.data import colour as module
from odc_lightning.data.augment import CropTransform, EvalTransform, TrainTransform, recolour, sample_rng
from odc_lightning.data.colour import jitter, jitter_on_device, luma, turn_hue
from odc_lightning.data.datamodule import DataModule

PHOTOS = [np.asarray(Image.fromarray(photo).resize((96, 96))) for photo in load_sample_images().images]


def batch(images):
    return torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images])


def drawn(count, **keys):
    """Views and their colours, as the workers draw them."""
    transform = TrainTransform(64, **keys)
    pairs = [transform.uncoloured(PHOTOS[index % 2], sample_rng(3, 1, index)) for index in range(count)]
    return [view for view, _ in pairs], [colour for _, colour in pairs]


def as_tensor(colours):
    return torch.from_numpy(np.stack(colours)).float()


def test_a_batch_is_what_the_workers_make_of_it():
    views, colours = drawn(48)
    got = jitter(batch(views), as_tensor(colours)).float()
    wanted = batch([recolour(view, colour) for view, colour in zip(views, colours, strict=True)]).float()
    assert (got - wanted).abs().mean() < 1  # of 255
    assert (got - wanted).abs().mean((1, 2, 3)).max() < 3
    assert len({tuple(colour[5:]) for colour in colours}) > 12  # orders
    assert 2 < sum(colour[4] for colour in colours) < 20  # grey


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_every_order_is_torchvisions(order):
    factors = [0.7, 1.3, 1.6, -0.2]
    pictures = [Image.fromarray(photo) for photo in PHOTOS]
    adjusts = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for number in order:
        pictures = [adjusts[number](picture, factors[number]) for picture in pictures]
    colour = torch.tensor([[*factors, 0, *order]] * 2, dtype=torch.float32)
    wanted = batch([np.array(picture) for picture in pictures])
    assert (jitter(batch(PHOTOS), colour).float() - wanted).abs().mean() < 1.5  # of 255; PIL's hue has 255 steps


@given(st.integers(0, 2**32 - 1), st.floats(-0.5, 0.5))
@settings(max_examples=40, deadline=None)
def test_hue_is_torchvisions_of_any_pixels(seed, shift):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, 12, 12)) // rng.choice([1, 100])  # few values: equal channels, greys, black
    pixels = torch.from_numpy(image).float()[None] / 255
    got = turn_hue(pixels, torch.full((1, 1, 1, 1), shift))
    assert torch.allclose(got, F.adjust_hue(pixels, shift), atol=1e-5)
    assert torch.allclose(got.amax(1), pixels.amax(1), atol=1e-6)
    assert torch.allclose(got.amin(1), pixels.amin(1), atol=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_images_do_not_mix(seed):
    """Each image of a batch as if it were alone."""
    views, colours = drawn(6)
    order = np.random.default_rng(seed).permutation(6)[:3]
    some = jitter(batch([views[i] for i in order]), as_tensor([colours[i] for i in order]))
    assert torch.equal(some, jitter(batch(views), as_tensor(colours))[order])


def test_neutral_colours_change_nothing_and_grey_is_grey():
    images = batch(PHOTOS)
    neutral = torch.tensor([[1, 1, 1, 0, 0, 2, 0, 3, 1.0]] * 2)
    assert torch.equal(jitter(images, neutral), images)
    grey = neutral.clone()
    grey[0, 4] = 1
    got = jitter(images, grey)
    assert torch.equal(got[1], images[1])
    assert torch.equal(got[0, 0], got[0, 2])
    assert (got[0, :1].float() - luma(images[:1].float())[0]).abs().max() <= 0.51


def test_images_of_one_channel_have_brightness_and_contrast():
    image = PHOTOS[0][:, :, :1]
    colour = np.array([1.3, 0.6, 2.0, 0.4, 1, 3, 2, 1, 0], dtype=float)
    got = jitter(batch([image]), as_tensor([colour]))
    assert got.shape == (1, 1, 96, 96)
    assert (got.int() - batch([recolour(image, colour)]).int()).abs().float().mean() < 1.2


def test_memory_format_and_type_stay():
    images = batch(PHOTOS).contiguous(memory_format=torch.channels_last)
    got = jitter(images, as_tensor(drawn(2)[1]))
    assert got.dtype == torch.uint8
    assert got.shape == images.shape


def test_the_loader_gives_the_same_images_either_way():
    workers, device = (datamodule(augment_on=where) for where in ("workers", "device"))
    for one, other in zip(workers.train_dataloader(), device.train_dataloader(), strict=True):
        assert one.colour is None
        assert other.colour.shape == (16, 9)
        done = device.on_after_batch_transfer(other, 0)
        assert done.colour is None
        assert torch.equal(one.index, done.index)
        assert (one.image.float() - done.image.float()).abs().mean() < 2.5  # noise: see the test of hue
        assert workers.on_after_batch_transfer(one, 0) is one


@pytest.mark.parametrize("num_workers", [0, 1])
def test_it_trains(tmp_path, num_workers):
    data = datamodule(augment_on="device", num_workers=num_workers)
    trainer(tmp_path, max_epochs=1).fit(odc(), datamodule=data)


def test_auto_is_the_device_on_gpus_only(monkeypatch):
    data = datamodule()
    assert not data.colours_on_device()
    gpu = type("Trainer", (), {"strategy": type("Strategy", (), {"root_device": torch.device("cuda", 0)})})
    monkeypatch.setattr(data, "trainer", gpu)
    assert data.colours_on_device()
    data.transform = CropTransform(12)
    assert not data.colours_on_device()


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match="data.augment_on must be one of auto, workers, device. Received: 'gpu'"):
        datamodule(augment_on="gpu")
    with pytest.raises(ValueError, match=r"without colour jitter \(CropTransform\). Received: 'device'"):
        DataModule(None, CropTransform(8), EvalTransform(8, 8), batch_size=2, augment_on="device")


class Broken(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True


def test_without_a_compiler_it_goes_on_uncompiled(monkeypatch):
    def broken(images, colours):
        raise RuntimeError("no C compiler\nand much more")

    said = []
    monkeypatch.setattr(module, "_compiled", module._Compiled())
    monkeypatch.setattr(module, "warn", said.append)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: broken)
    images, colours = batch(PHOTOS), as_tensor(drawn(2)[1])
    for _ in range(2):
        got = jitter_on_device(images.as_subclass(Broken), colours)
        assert torch.equal(got.as_subclass(torch.Tensor), jitter(images, colours))
    assert said == ["colours are jittered without compiling, more slowly (no C compiler)"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_it_is_the_same():
    views, colours = drawn(8)
    images, parameters = batch(views), as_tensor(colours)
    compiled = torch.compile(jitter, dynamic=False)(images, parameters)
    assert (compiled.int() - jitter(images, parameters).int()).abs().max() <= 1
