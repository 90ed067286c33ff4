"""Colorization's start-up and step, and the contract of every method."""

from functools import partial

import numpy as np
import pytest
import torch

from contract import check_resumes_bit_for_bit, check_two_processes, fit
from helpers import datamodule, last_checkpoint, train_on
from odc_lightning.data.dataset import Batch
from odc_lightning.methods.colorization import Colorization, train_up_to, untrained
from odc_lightning.nn.ab_bins import colour_loss, colour_targets, histogram, rebalancing, soft_code
from odc_lightning.nn.alexnet import alexnet
from odc_lightning.nn.resnet import small_resnet

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def build(backbone=None, **keys):
    torch.manual_seed(0)
    backbone = backbone or small_resnet(width=4, in_channels=1)
    return Colorization(backbone, optimizer=SGD, log_every_n_steps=2, **{"upsample": 2, "prior_images": 40, **keys})


def test_prior_is_the_mean_code_of_drawn_images_and_is_saved(tmp_path):
    method = fit(tmp_path, build, max_epochs=1)
    source, size = method.datamodule.train_source, method._map_size(torch.zeros(1, 3, 12, 12, dtype=torch.uint8))
    assert size == (4, 4)  # of 12 pixels conv5 leaves 2
    drawn = np.random.default_rng([0, 1]).permutation(64)[:40]
    total = torch.zeros(len(method.bins_Q2), dtype=torch.float64)
    for index in drawn:
        image = torch.from_numpy(source.load(index)).permute(2, 0, 1)[None]
        total += histogram(soft_code(colour_targets(image, size), method.bins_Q2, 5.0), len(total))
    assert torch.allclose(method.prior_Q, total / (40 * 16), atol=1e-6)
    assert torch.equal(last_checkpoint(tmp_path)["state_dict"]["prior_Q"], method.prior_Q)
    assert torch.equal(method.weights_Q, rebalancing(method.prior_Q, 0.5))
    assert (method.prior_Q * method.weights_Q).sum().item() == pytest.approx(1, abs=1e-5)


def test_loss_is_that_of_the_true_colours(tmp_path):
    method = fit(tmp_path, build, max_epochs=1).eval()
    images = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8)
    loss = method.training_step(Batch(images, torch.arange(3), torch.ones(3, dtype=torch.bool)), 0)
    maps = method.backbone.forward_taps(method.pixels(images), ["conv5"])["conv5"]
    logits = torch.nn.Upsample(scale_factor=2, mode="bilinear")(method.predictor(maps))
    code = soft_code(colour_targets(images, (4, 4)), method.bins_Q2, 5.0)
    assert loss.item() == pytest.approx(colour_loss(logits, code, method.weights_Q).item())


def test_unreadable_images_do_not_count(tmp_path):
    method = fit(tmp_path, build, {"on_bad_image": "skip"}, max_epochs=1).eval()
    images, ok = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8), torch.tensor([True, False, True, True])
    expected = method.training_step(Batch(images[ok], torch.arange(3), ok[ok]), 0)
    assert method.training_step(Batch(images, torch.arange(4), ok), 0).item() == pytest.approx(expected.item())


def test_learns():
    """Dark red, middle green, bright blue: lightness tells the colour."""
    method = build()
    method.weights_Q = torch.ones(len(method.bins_Q2))
    colours = torch.tensor([[80, 0, 0], [0, 160, 0], [190, 190, 255]], dtype=torch.uint8)
    images = colours[torch.randint(3, (24,))][:, :, None, None].repeat(1, 1, 12, 12)
    code = soft_code(colour_targets(images, (4, 4)), method.bins_Q2)
    prior_Q = histogram(code, len(method.bins_Q2)) / (24 * 16)
    best_blind_guess = -torch.xlogy(prior_Q, prior_Q).sum()
    assert train_on(method, images) < best_blind_guess - 0.5


def test_layers_behind_the_map_are_frozen():
    backbone = small_resnet(width=4, in_channels=1)
    assert train_up_to(backbone, "conv4") == 16
    frozen = {name.split(".")[1] for name, weight in backbone.named_parameters() if not weight.requires_grad}
    assert frozen == {"layer4"}
    backbone = alexnet(in_channels=1)
    assert train_up_to(backbone, "conv5") == 256
    assert all(weight.requires_grad == ("features" in name) for name, weight in backbone.named_parameters())
    assert untrained(backbone) == ["classifier.1", "classifier.4"]


@pytest.mark.parametrize(("layer", "said"), [("conv5", False), ("conv4", True)])
def test_layers_that_are_not_trained_are_named_at_the_start(tmp_path, caplog, layer, said):
    fit(tmp_path, partial(build, layer=layer), max_epochs=1)
    message = f"lie behind method.layer={layer} and are not trained: measure {layer} or a layer before it, not gap"
    assert (message in caplog.text) == said
    assert ("layer4.0.conv1, " in caplog.text) == said


def test_what_cannot_work_is_refused():
    grey = datamodule(mean=[0.5], std=[0.5])
    with pytest.raises(ValueError, match="method=colorization needs colours, and squares is grey"):
        build().require_possible(grey)
    with pytest.raises(ValueError, match="backbone.in_channels must be 1, for lightness: .* Received: 3"):
        build(small_resnet(width=4)).require_possible(datamodule())
    with pytest.raises(ValueError, match=r"images \(data.image_size\) of 12x12 pixels do not suit alexnet"):
        build(alexnet(in_channels=1)).require_possible(datamodule())
    build().require_possible(datamodule())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layer": "conv6"}, "method.layer must be one of: conv1, .* Received: 'conv6'. Did you mean 'conv5'?"),
        ({"upsample": 0}, "method.upsample must be at least 1. Received: 0"),
        ({"prior_images": 0}, "method.prior_images must be at least 1. Received: 0"),
        ({"sigma": 0}, "method.sigma must be above 0. Received: 0"),
        ({"rebalance_mix": 1.5}, "method.rebalance_mix must be a number from 0 to 1. Received: 1.5"),
        ({"bin_width": 0}, "method.bin_width must be above 0. Received: 0"),
        ({"compile": True}, "method.compile must be false for colorization"),
    ],
)
def test_values_outside_their_range(keys, message):
    with pytest.raises(ValueError, match=message):
        build(**keys)


@pytest.mark.slow
def test_resumes_bit_for_bit(tmp_path):
    check_resumes_bit_for_bit(tmp_path, build)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv5", "conv4"])
def test_two_processes(tmp_path, layer):
    check_two_processes(tmp_path, partial(build, layer=layer))
