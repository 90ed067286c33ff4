"""Fine-tuning with few labels: the draw, the grid, going on after a kill."""

import json

import numpy as np
import pytest
import torch

from helpers import datamodule, squares
from odc_lightning.evaluation.bench import Bench
from odc_lightning.evaluation.fine_tune import SemiSupervised, draw_balanced, listed_images
from odc_lightning.evaluation.network import FrozenNetwork, weights_hash
from odc_lightning.nn.resnet import small_resnet


def make_bench(folder, count=96):
    torch.manual_seed(0)
    network = FrozenNetwork(small_resnet(4), [0.5] * 3, [0.25] * 3)
    return Bench(network, datamodule(count=count), folder=folder, cache_dir=folder / "cache")


def test_the_draw_is_balanced_seeded_and_never_takes_unknown_images():
    targets = np.repeat([0, 1, 2, -1], [100, 50, 4, 30])
    chosen = draw_balanced(targets, 0.1, seed=1)
    assert np.unique(targets[chosen], return_counts=True)[1].tolist() == [5, 5, 4]
    assert np.array_equal(chosen, draw_balanced(targets, 0.1, seed=1))
    assert not np.array_equal(chosen, draw_balanced(targets, 0.1, seed=2))
    assert len(draw_balanced(targets, 0.001, seed=1)) == 3
    assert np.array_equal(draw_balanced(targets, 1.0, seed=1)[:50], np.sort(draw_balanced(targets, 1.0, 1))[:50])


def test_a_list_of_names_is_taken_instead(tmp_path):
    source = squares(8)
    (tmp_path / "names.txt").write_text("5\nsomewhere/2\n\n")
    assert listed_images(str(tmp_path / "names.txt"), source).tolist() == [2, 5]
    (tmp_path / "names.txt").write_text("5\nn01440764_1.JPEG\n")
    with pytest.raises(ValueError, match=r"1 of the 2 images of protocol.images=.*n01440764_1.JPEG"):
        listed_images(str(tmp_path / "names.txt"), source)
    with pytest.raises(FileNotFoundError, match="protocol.images must be a file of image names"):
        listed_images(str(tmp_path / "none.txt"), source)


def test_the_best_cell_is_kept_and_the_network_stays_as_it_was(tmp_path):
    bench = make_bench(tmp_path)
    before = weights_hash(bench.network.backbone)
    protocol = SemiSupervised(fraction=0.5, lrs=[1e-5, 0.1], head_multipliers=[1], epochs=12, milestones=[9])
    metrics = protocol.run(bench)
    assert set(metrics) == {"semi/50pct/top1", "semi/50pct/lr", "semi/50pct/head_multiplier"}
    assert metrics["semi/50pct/lr"] == 0.1
    assert metrics["semi/50pct/top1"] > 60
    assert weights_hash(bench.network.backbone) == before
    assert len((tmp_path / "labelled.txt").read_text().splitlines()) == 48
    assert len(json.loads((tmp_path / "grid.json").read_text())) == 2


def test_cells_that_are_done_are_not_trained_again(tmp_path, monkeypatch):
    cells = [{"lr": 0.1, "head_multiplier": 1.0, "top1": 77.0}, {"lr": 0.1, "head_multiplier": 10.0, "top1": 50.0}]
    (tmp_path / "grid.json").write_text(json.dumps(cells))
    monkeypatch.setattr(SemiSupervised, "_train", lambda *args: pytest.fail("trained again"))
    metrics = SemiSupervised(fraction=0.5, lrs=[0.1], head_multipliers=[1, 10]).run(make_bench(tmp_path))
    assert metrics == {"semi/50pct/top1": 77.0, "semi/50pct/lr": 0.1, "semi/50pct/head_multiplier": 1.0}


def test_weights_decay_by_the_share_of_labels_and_wrong_values_are_refused():
    assert SemiSupervised(fraction=0.01).sgd.weight_decay == 5e-4
    assert SemiSupervised(fraction=0.1).sgd.weight_decay == 1e-4
    assert SemiSupervised(fraction=0.1, weight_decay=0.2).sgd.weight_decay == 0.2
    assert len(SemiSupervised().grid) == 9
    with pytest.raises(ValueError, match=r"protocol.fraction must be in \(0, 1\]. Received: 0"):
        SemiSupervised(fraction=0)
    with pytest.raises(ValueError, match=r"lists of numbers above 0. Received: \[0.1, -1\] and"):
        SemiSupervised(lrs=[0.1, -1])
