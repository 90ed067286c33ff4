"""The jigsaw against tiles shuffled one by one, and the contract of every method."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from contract import check_resumes_bit_for_bit, check_two_processes, fit
from helpers import datamodule, ramps, train_on
from odc_lightning.data.dataset import Batch
from odc_lightning.methods.jigsaw import Jigsaw, normalized, shuffle
from odc_lightning.nn.alexnet import alexnet
from odc_lightning.nn.resnet import small_resnet

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def build(backbone=None, **keys):
    torch.manual_seed(0)
    backbone = backbone or small_resnet(width=4)
    return Jigsaw(
        backbone, optimizer=SGD, log_every_n_steps=2, **{"hidden_dim": 8, "num_permutations": 6, "seed": 1, **keys}
    )


def test_shuffle():
    tiles, orders = torch.randn(4, 9, 5), torch.stack([torch.randperm(9) for _ in range(4)])
    for image, (shuffled, order) in enumerate(zip(shuffle(tiles, orders), orders, strict=True)):
        for place in range(9):
            assert torch.equal(shuffled[place], tiles[image, order[place]])


def test_normalized():
    pixels = torch.randn(3, 2, 5, 5) * 7 + 3
    pixels[1, 0] = 4.0
    for one, tile in zip(normalized(pixels).flatten(0, 1), pixels.flatten(0, 1), strict=True):
        flat = bool((tile == tile[0, 0]).all())
        expected = torch.zeros_like(tile) if flat else (tile - tile.mean()) / tile.std(correction=0)
        assert torch.allclose(one, expected, atol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_is_that_of_tiles_laid_out_in_a_drawn_order(tmp_path, normalize):
    method = fit(tmp_path, partial(build, normalize_tiles=normalize), max_epochs=1).eval()
    images = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    torch.manual_seed(5)
    loss = method.training_step(Batch(images, torch.arange(5), torch.ones(5, dtype=torch.bool)), 0)
    torch.manual_seed(5)
    tiles, answers = method.grid.cut(images), torch.randint(6, (5,))
    logits = []
    for nine, answer in zip(tiles, answers, strict=True):
        laid_out = [nine[tile] for tile in method.permutations_P9[answer].tolist()]
        pixels = [method.pixels(tile[None]) for tile in laid_out]
        pixels = [normalized(tile) for tile in pixels] if normalize else pixels
        logits.append(method.classifier(torch.cat([method.reduce(method.backbone(tile)) for tile in pixels], 1)))
    assert loss.item() == pytest.approx(F.cross_entropy(torch.cat(logits), answers).item(), rel=1e-5)


def test_unreadable_images_do_not_count(tmp_path):
    method = fit(tmp_path, build, {"on_bad_image": "skip"}, max_epochs=1).eval()
    images, none = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8), torch.zeros(4, dtype=torch.bool)
    losses = []
    for filling in (0, 255):
        images[1] = filling
        torch.manual_seed(2)
        ok = torch.tensor([True, False, True, True])
        losses.append(method.training_step(Batch(images, torch.arange(4), ok), 0).item())
    assert losses[0] == losses[1] > 0
    assert method.training_step(Batch(images, torch.arange(4), none), 0).item() == 0


def test_learns():
    method = build()
    train_on(method, ramps())
    assert method._accuracy > 0.8  # chance: 1 / 6


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"patches \(0.753 of a third of data.image_size=12.* of 3x3 pixels .* 63x63"):
        build(alexnet()).require_possible(datamodule())
    with pytest.raises(ValueError, match="method.hidden_dim must be at least 1. Received: 0"):
        build(hidden_dim=0)
    with pytest.raises(ValueError, match="method.num_permutations must be from 2 to 362,880"):
        build(num_permutations=0)
    build().require_possible(datamodule())


@pytest.mark.slow
def test_resumes_bit_for_bit(tmp_path):
    check_resumes_bit_for_bit(tmp_path, build)


@pytest.mark.slow
def test_two_processes(tmp_path):
    check_two_processes(tmp_path, build)
