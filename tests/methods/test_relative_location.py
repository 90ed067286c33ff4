"""Relative location against pairs made one by one, and the contract of every method."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from contract import check_resumes_bit_for_bit, check_two_processes, fit
from helpers import datamodule, ramps, train_on
from odc_lightning.data.dataset import Batch
from odc_lightning.methods.relative_location import RelativeLocation, centre_and_neighbour
from odc_lightning.nn.alexnet import alexnet
from odc_lightning.nn.resnet import small_resnet

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def build(backbone=None, **keys):
    torch.manual_seed(0)
    backbone = backbone or small_resnet(width=4)
    return RelativeLocation(backbone, optimizer=SGD, log_every_n_steps=2, **{"hidden_dim": 16, **keys})


def test_pairs():
    features = torch.randn(3, 9, 5)
    pairs = centre_and_neighbour(features)
    for image in range(3):
        around = [place for place in range(9) if place != 4]
        for question, place in enumerate(around):
            assert torch.equal(pairs[image, question], torch.cat([features[image, 4], features[image, place]]))


def test_loss_is_that_of_each_pair(tmp_path):
    method = fit(tmp_path, build, max_epochs=1).eval()
    images = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8)
    torch.manual_seed(5)
    loss = method.training_step(Batch(images, torch.arange(3), torch.ones(3, dtype=torch.bool)), 0)
    torch.manual_seed(5)
    patches, losses, right = method.grid.cut(images), [], []
    for nine in patches:
        for answer, place in enumerate((0, 1, 2, 3, 5, 6, 7, 8)):
            centre, neighbour = method.represent(nine[4:5]), method.represent(nine[place : place + 1])
            logits = method.classifier(torch.cat([centre, neighbour], dim=1))
            losses.append(F.cross_entropy(logits, torch.tensor([answer])))
            right.append(float(logits.argmax() == answer))
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert method.finish_iteration()["train/accuracy"].item() == pytest.approx(sum(right) / len(right))


def test_unreadable_images_do_not_count(tmp_path):
    method = fit(tmp_path, build, {"on_bad_image": "skip"}, max_epochs=1).eval()
    images, ok = torch.zeros(4, 3, 12, 12, dtype=torch.uint8), torch.tensor([True, False, True, True])
    images[1] = 255  # would change the loss; the others are the same wherever patches are cut
    expected = method.training_step(Batch(images[ok], torch.arange(3), ok[ok]), 0)
    assert method.training_step(Batch(images, torch.arange(4), ok), 0).item() == pytest.approx(expected.item())


def test_learns():
    method = build()
    train_on(method, ramps())
    assert method._accuracy > 0.6  # chance: 0.125; half of the head is dropped out


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"patches \(0.753 of a third of data.image_size=12.* of 3x3 pixels .* 63x63"):
        build(alexnet()).require_possible(datamodule())
    for keys, message in (
        ({"hidden_dim": 0}, "method.hidden_dim must be at least 1. Received: 0"),
        ({"dropout": 1.0}, r"method.dropout must be in \[0, 1\). Received: 1.0"),
        ({"patch_share": 2.0}, "method.patch_share must be above 0 and at most 1. Received: 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**keys)
    build().require_possible(datamodule())


@pytest.mark.slow
def test_resumes_bit_for_bit(tmp_path):
    check_resumes_bit_for_bit(tmp_path, build)


@pytest.mark.slow
def test_two_processes(tmp_path):
    check_two_processes(tmp_path, build)
