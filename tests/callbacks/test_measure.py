"""What is measured against true labels: by hand the same, and nothing where there are none."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from helpers import datamodule, odc, source, squares, trainer
from odc_lightning.callbacks.measure import Measure
from odc_lightning.callbacks.metrics_csv import read_metrics
from odc_lightning.clustering.agreement import agreement
from odc_lightning.data.augment import EvalTransform, TrainTransform
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.sources import MissingSplitError
from odc_lightning.evaluation.knn import knn_accuracy


class LabelsPerEpoch(pl.Callback):
    def __init__(self):
        self.labels = []

    def on_train_epoch_end(self, trainer, module):
        self.labels.append(module.memory.labels_N.clone())


def fit(folder, measure, max_epochs=2, make_source=None, checkpoint=None):
    """Train; returns the module, its labels after each epoch, and the rows of metrics.csv."""
    data = datamodule()
    if make_source:
        data = DataModule(
            make_source,
            TrainTransform(12, scale=(0.5, 1.0)),
            EvalTransform(None, 12),
            batch_size=16,
            num_workers=0,
            image_size=12,
        )
    labels, module = LabelsPerEpoch(), odc()
    t = trainer(folder, [labels, measure], max_epochs=max_epochs)
    t.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module, labels.labels, read_metrics(folder / "metrics.csv")


def column(rows, name):
    return [(row["step"], row[name]) for row in rows if name in row]


def knn(encode, images=None, k=5):
    """By hand, one image after the other as the network is fed in evaluation."""
    sides = []
    for split in ("train", "val"):
        data = source(split)
        chosen = np.linspace(0, len(data) - 1, min(images or len(data), len(data))).round().astype(int)
        batch = torch.stack([torch.from_numpy(data.load(i)).permute(2, 0, 1) for i in chosen])
        with torch.no_grad():
            sides += [encode(batch), torch.from_numpy(data.targets[chosen])]
    return knn_accuracy(*sides, k=k, temperature=0.07)


def test_values_are_those_computed_by_hand(tmp_path):
    module, labels, rows = fit(tmp_path, Measure(every_n_epochs=1, k=5))
    targets = source("train").targets
    for name in ("nmi", "ari", "purity"):
        wanted = [(4 * (epoch + 1), agreement(labels[epoch], targets)[name]) for epoch in range(2)]
        assert column(rows, f"agreement/{name}") == wanted
    assert column(rows, "agreement/nmi_previous") == [(8, agreement(labels[1], labels[0])["nmi"])]
    module.eval()
    fresh = odc().eval()
    fresh.network_input = module.network_input
    assert column(rows, "knn/top1")[-1] == (8, knn(module.represent))
    assert column(rows, "knn/top1_untrained") == [(0, knn(fresh.represent))]
    assert column(rows, "knn/top1_pixels") == [(0, knn(lambda image: module.pixels(image).flatten(1)))]


def test_measuring_changes_nothing_in_the_run(tmp_path):
    measured, _, _ = fit(tmp_path / "measured", Measure(every_n_epochs=1, k=5))
    not_measured, _, _ = fit(tmp_path / "not", Measure(every_n_epochs=100, knn=False))
    for one, other in zip(measured.state_dict().values(), not_measured.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(measured.memory.labels_N, not_measured.memory.labels_N)


def test_every_few_epochs_and_at_the_end(tmp_path):
    _, _, rows = fit(tmp_path, Measure(every_n_epochs=2, k=5), max_epochs=5)
    assert [step for step, _ in column(rows, "knn/top1")] == [8, 16, 20]
    assert [step for step, _ in column(rows, "agreement/nmi_previous")] == [16, 20]


def test_not_more_images_than_asked_for(tmp_path):
    module, _, rows = fit(tmp_path, Measure(every_n_epochs=1, k=5, max_images=20), max_epochs=1)
    assert column(rows, "knn/top1") == [(4, knn(module.eval().represent, images=20))]


def unlabelled(split):
    data = source(split)
    data.targets = None
    return data


def without_val(split):
    if split == "val":
        raise MissingSplitError("no validation images")
    return source(split)


def half_labelled(split, known=32):
    """As STL-10: unlabelled images after the labelled ones."""
    data = source(split)
    data.targets = data.targets.copy()
    data.targets[known:] = -1
    return data


@pytest.mark.parametrize(
    ("make_source", "why", "agreements"),
    [(unlabelled, "the images have no labels", 0), (without_val, "the data has no validation images", 2)],
)
def test_without_labels_or_validation_images(tmp_path, caplog, make_source, why, agreements):
    caplog.set_level("INFO")
    _, _, rows = fit(tmp_path, Measure(every_n_epochs=1), make_source=make_source)
    assert caplog.text.count(f"kNN is not measured: {why}") == 1
    assert not [name for row in rows for name in row if name.startswith("knn/")]
    assert len(column(rows, "agreement/nmi")) == agreements
    assert len(column(rows, "agreement/nmi_previous")) == 1


def test_unknown_labels_are_left_out(tmp_path):
    seen = []

    class Spy(Measure):
        def _encoded(self, method, encode, images):
            features, targets = super()._encoded(method, encode, images)
            seen.append(targets)
            return features, targets

    _, labels, rows = fit(tmp_path, Spy(every_n_epochs=1, k=5, max_images=24), make_source=half_labelled, max_epochs=1)
    wanted = agreement(labels[0][:32], squares().targets[:32])["nmi"]
    assert column(rows, "agreement/nmi") == [(4, wanted)]
    assert [len(targets) for targets in seen] == [24] * 6, "images without a label are not even encoded"
    assert all((targets >= 0).all() for targets in seen)


def test_no_known_label_at_all_is_no_label(tmp_path, caplog):
    caplog.set_level("INFO")
    _, _, rows = fit(tmp_path, Measure(every_n_epochs=1), make_source=partial(half_labelled, known=0), max_epochs=1)
    assert "kNN is not measured: the images have no labels" in caplog.text
    assert not [name for row in rows for name in row if name.startswith(("knn/", "agreement/"))]


def test_a_continued_run_measures_its_start_once(tmp_path):
    _, first, rows = fit(tmp_path, Measure(every_n_epochs=1, k=5), max_epochs=1)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Measure"]
    assert state["at_start"].keys() == {"knn/top1_untrained", "knn/top1_pixels"}
    assert torch.equal(state["previous"], first[0])
    again = Measure(every_n_epochs=1, k=5)
    _, second, rows = fit(tmp_path, again, checkpoint=tmp_path / "checkpoints" / "last.ckpt")
    assert again.at_start == state["at_start"]
    assert len(column(rows, "knn/top1_untrained")) == 1
    assert column(rows, "agreement/nmi_previous") == [(8, agreement(second[0], first[0])["nmi"])]
    other = Measure()
    other.load_state_dict(again.state_dict())
    assert other.at_start == again.at_start
    assert torch.equal(other.previous_N, again.previous_N)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"every_n_epochs": 0}, "callbacks.measure.every_n_epochs must be at least 1. Received: 0"),
        ({"k": 0}, "callbacks.measure.k must be at least 1. Received: 0"),
        ({"max_images": 0}, "callbacks.measure.max_images must be at least 1. Received: 0"),
        ({"temperature": 0.0}, "callbacks.measure.temperature must be above 0. Received: 0.0"),
    ],
)
def test_keys_are_checked_at_the_start(keys, message):
    with pytest.raises(ValueError, match=message):
        Measure(**keys)
