"""Rotation against a slow turn of each pixel, and the contract of every method."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from contract import check_resumes_bit_for_bit, check_two_processes, fit
from helpers import datamodule
from odc_lightning.callbacks.metrics_csv import read_metrics
from odc_lightning.data.dataset import Batch
from odc_lightning.methods.rotation import Rotation, four_rotations
from odc_lightning.nn.alexnet import alexnet
from odc_lightning.nn.resnet import small_resnet

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)


def build(backbone=None, **keys):
    torch.manual_seed(0)
    return Rotation(backbone or small_resnet(width=4), optimizer=SGD, log_every_n_steps=2, **keys)


def quarter_turn(image):
    """Counter-clockwise, pixel by pixel: the right edge becomes the top one."""
    channels, side, _ = image.shape
    turned = np.empty_like(image)
    for channel in range(channels):
        for row in range(side):
            for column in range(side):
                turned[channel, side - 1 - column, row] = image[channel, row, column]
    return turned


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_four_rotations(count, channels, side, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)
    expected = []
    for image in images:
        for _ in range(4):
            expected.append(image)
            image = quarter_turn(image)
    assert np.array_equal(four_rotations(torch.from_numpy(images)).numpy(), np.stack(expected))


def test_loss_and_accuracy_are_those_of_the_number_of_turns(tmp_path):
    method = fit(tmp_path, build, max_epochs=1).eval()
    images = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    loss = method.training_step(Batch(images, torch.arange(5), torch.ones(5, dtype=torch.bool)), 0)
    logits = [method.classifier(method.represent(i.rot90(k, (1, 2))[None]))[0] for i in images for k in range(4)]
    turns = torch.tensor([0, 1, 2, 3] * 5)
    assert loss.item() == pytest.approx(F.cross_entropy(torch.stack(logits), turns).item(), rel=1e-5)
    right = (torch.stack(logits).argmax(1) == turns).float().mean()
    assert method.finish_iteration()["train/accuracy"].item() == pytest.approx(right.item())


def test_unreadable_images_do_not_count(tmp_path):
    method = fit(tmp_path, build, {"on_bad_image": "skip"}, max_epochs=1).eval()
    images, ok = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8), torch.tensor([True, False, True, True])
    expected = method.training_step(Batch(images[ok], torch.arange(3), ok[ok]), 0), method._accuracy
    got = method.training_step(Batch(images, torch.arange(4), ok), 0), method._accuracy
    assert [value.item() for value in got] == pytest.approx([value.item() for value in expected])
    nothing = method.training_step(Batch(images, torch.arange(4), torch.zeros(4, dtype=torch.bool)), 0)
    assert (nothing.item(), method._accuracy.item()) == (0, 0)


def test_accuracy_is_logged(tmp_path):
    fit(tmp_path, build, max_epochs=1)
    assert all(0 <= row["train/accuracy"] <= 1 for row in read_metrics(tmp_path / "metrics.csv"))


def test_learns(tmp_path):
    method = fit(tmp_path, build, max_epochs=30)
    assert method.latest["train/accuracy"] > 0.6  # horizontal stripes: two turns apart they look much the same


def test_head_has_its_own_weight_decay():
    backbone, head = build(head_weight_decay=5e-4).configure_optimizers().param_groups
    assert (backbone["weight_decay"], head["weight_decay"]) == (1e-4, 5e-4)
    (everything,) = build().configure_optimizers().param_groups
    assert len(everything["params"]) == len(backbone["params"]) + len(head["params"])


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"images \(data.image_size\) of 12x12 pixels do not suit alexnet: .* 63x63"):
        build(alexnet()).require_possible(datamodule())
    with pytest.raises(ValueError, match="method.head_weight_decay must be null or at least 0. Received: -1"):
        build(head_weight_decay=-1)
    with pytest.raises(ValueError, match="backbone.in_channels must be"):
        build(small_resnet(4, in_channels=5)).require_possible(datamodule())
    method = build()
    method.require_possible(datamodule())
    assert all(module.training for module in method.modules())


@pytest.mark.slow
def test_resumes_bit_for_bit(tmp_path):
    check_resumes_bit_for_bit(tmp_path, build)


@pytest.mark.slow
def test_two_processes(tmp_path):
    check_two_processes(tmp_path, build)
