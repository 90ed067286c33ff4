"""The supervised baseline, and the contract of every method."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from contract import check_resumes_bit_for_bit, check_two_processes, fit
from helpers import datamodule, squares
from odc_lightning.data.dataset import Batch
from odc_lightning.methods.supervised import Supervised
from odc_lightning.nn.resnet import small_resnet


def build(num_classes=4):
    torch.manual_seed(0)
    return Supervised(
        small_resnet(width=4),
        num_classes=num_classes,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        log_every_n_steps=2,
    )


def test_loss_is_the_cross_entropy_of_the_true_classes(tmp_path):
    method = fit(tmp_path, build, max_epochs=1)
    images = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8)
    index = torch.randperm(64)[:6]
    method.eval()
    loss = method.training_step(Batch(images, index, torch.ones(6, dtype=torch.bool)), 0)
    targets = torch.from_numpy(squares().targets)[index]
    assert loss.item() == pytest.approx(F.cross_entropy(method.classifier(method.represent(images)), targets).item())


def test_unlabelled_images_do_not_count(tmp_path):
    method = fit(tmp_path, build, max_epochs=1)
    images = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    index, ok = torch.arange(4), torch.ones(4, dtype=torch.bool)
    method.eval()
    method.targets_N[1] = -1
    kept = torch.tensor([0, 2, 3])
    expected = method.training_step(Batch(images[kept], kept, ok[kept]), 0)
    assert method.training_step(Batch(images, index, ok), 0).item() == pytest.approx(expected.item())


def test_learns(tmp_path):
    method = fit(tmp_path, build, max_epochs=20)
    images, targets = squares(split="val").load, squares(split="val").targets
    batch = torch.from_numpy(np.stack([images(i) for i in range(64)])).permute(0, 3, 1, 2)
    method.eval()
    right = (method.classifier(method.represent(batch)).argmax(1).numpy() == targets).mean()
    assert right > 0.6  # of four kinds


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match="num_classes must be the number of classes of squares, 4. Received: 5"):
        build(5).require_possible(datamodule())
    data = datamodule()
    data.train_source.targets = None
    with pytest.raises(ValueError, match="method=supervised needs labels, and squares has none"):
        build().require_possible(data)


@pytest.mark.slow
def test_resumes_bit_for_bit(tmp_path):
    check_resumes_bit_for_bit(tmp_path, build)


@pytest.mark.slow
def test_two_processes(tmp_path):
    check_two_processes(tmp_path, build)
