"""DeepCluster: what a clustering does, what holds between two, and the contract of every method."""

from collections import Counter
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from contract import check_resumes_bit_for_bit, check_two_processes, fit
from helpers import TRAINER_KEYS, datamodule, differences, odc, squares, trainer
from odc_lightning.callbacks.clusters import Clusters
from odc_lightning.callbacks.metrics_csv import read_metrics
from odc_lightning.clustering.kmeans import KMeans
from odc_lightning.clustering.whitening import fit_whitening, whitened_unit_rows
from odc_lightning.methods.deepcluster import DeepCluster, before_last_relu
from odc_lightning.nn.alexnet import alexnet
from odc_lightning.nn.resnet import small_resnet
from odc_lightning.objective import loss_weights


def build(num_clusters=6, seed=0, **keys):
    torch.manual_seed(seed)
    return DeepCluster(
        small_resnet(width=4, in_channels=2),
        kmeans=KMeans(backend="torch", iterations=5),
        num_clusters=num_clusters,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        schedule=partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2]),
        seed=seed,
        **{"pca_dim": 8, "log_every_n_steps": 2, **keys},
    )


class Record(pl.Callback):
    """Labels at the start of each epoch, the images that it then trains on, and the head it starts with."""

    def __init__(self):
        self.labels, self.images, self.weights, self.left_over = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.labels.append(module.labels_N.clone())
            self.weights.append(module.classifier.weight.detach().clone())
            self.left_over.append([p in trainer.optimizers[0].state for p in module.classifier.parameters()])
            self.images.append([])
        self.images[-1] += batch.index.tolist()


def recorded(folder, method=None, data=None, max_epochs=3, **keys):
    record, method = Record(), method or build()
    trainer(folder, [record], max_epochs, **keys).fit(method, datamodule=data or datamodule())
    return record, method


def test_labels_are_k_means_of_whitened_centre_crops_in_eval_mode(tmp_path):
    record, _ = recorded(tmp_path, max_epochs=1)
    method, data = build().eval(), datamodule()
    method.see(data)
    images = [torch.from_numpy(squares().load(i)).permute(2, 0, 1) for i in range(64)]
    with torch.no_grad():
        rows = torch.cat([method.represent(torch.stack(images[i : i + 16])) for i in range(0, 64, 16)])
    unit = whitened_unit_rows(fit_whitening(rows, 64, 8), rows)
    expected = KMeans(backend="torch", iterations=5, seed=method._seed(0, 0)).fit(unit, 64, 6)
    assert torch.equal(record.labels[0], expected.labels_N)


def test_a_clustering_leaves_batch_norm_and_modes_as_they_were(tmp_path):
    method = build()
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 0:
                assert differences(before, module.backbone.state_dict()) == []
                assert all(m.training for m in module.modules())

    trainer(tmp_path, [Look()], 1).fit(method, datamodule=datamodule())


def test_every_clustering_starts_the_classifier_and_its_optimizer_anew(tmp_path):
    record, method = recorded(tmp_path, build(reassign_every=2), max_epochs=4)
    assert record.left_over == [[False, False], [True, True], [False, False], [True, True]]
    first, _, third, _ = record.weights
    assert not torch.equal(first, third)
    for weight in (first, third):
        assert weight.std() == pytest.approx(0.01, rel=0.2)
    assert len(method.trainer.optimizers[0].param_groups) == 2


def test_balance_and_labels_hold_until_the_next_clustering(tmp_path):
    """The release balances only the first epoch after a clustering."""
    record, method = recorded(tmp_path, build(reassign_every=2), max_epochs=4)
    assert method.clustered_at == 2
    assert torch.equal(record.labels[0], record.labels[1])
    assert not torch.equal(record.labels[1], record.labels[2])
    assert torch.equal(record.labels[2], record.labels[3])
    for labels, images in zip(record.labels, record.images, strict=True):
        share = 64 // len(set(labels.tolist())) + 1
        assert max(Counter(labels.tolist()).values()) > share, "the clusters themselves are not balanced"
        assert max(Counter(labels[images].tolist()).values()) <= share
    assert record.images[0] != record.images[1]


def test_loading_processes_never_see_stale_labels(tmp_path):
    """Persistent workers give what the main process gives: labels and order are not theirs."""
    alone, one = recorded(tmp_path / "alone")
    helped, other = recorded(tmp_path / "helped", data=datamodule(num_workers=2))
    assert alone.images == helped.images
    assert all(torch.equal(a, b) for a, b in zip(alone.labels, helped.labels, strict=True))
    assert differences(one.state_dict(), other.state_dict()) == []
    for labels, images in zip(helped.labels, helped.images, strict=True):
        assert max(Counter(labels[images].tolist()).values()) <= 64 // len(set(labels.tolist())) + 1


@pytest.mark.parametrize("balance", ["reweight", "none"])
def test_other_balances_see_every_image_once(tmp_path, balance):
    record, method = recorded(tmp_path, build(balance=balance))
    assert all(sorted(images) == list(range(64)) for images in record.images)
    if balance == "none":
        assert method.weights_C is None
    else:
        assert torch.equal(method.weights_C, loss_weights(torch.bincount(record.labels[-1], minlength=6), 0.5))


def switched(new, old, clusters=6):
    """By trying every renaming."""
    new, old = new.numpy(), old.numpy()
    return min(np.mean(np.array(names)[new] != old) for names in permutations(range(clusters)))


def test_log_has_the_switch_ratio_of_every_clustering_and_the_sizes(tmp_path):
    record, method = recorded(tmp_path, max_epochs=4)
    rows = read_metrics(tmp_path / "metrics.csv")
    ratios = [(row["epoch"], row["train/label_switch_ratio"]) for row in rows if "train/label_switch_ratio" in row]
    expected = [(epoch, switched(record.labels[epoch], record.labels[epoch - 1])) for epoch in (1, 2, 3)]
    assert ratios == [(epoch, pytest.approx(ratio)) for epoch, ratio in expected]
    assert [row["epoch"] for row in rows if "time/clustering" in row] == [0, 1, 2, 3]
    sizes = torch.bincount(record.labels[-1], minlength=6)
    assert (rows[-1]["memory/cluster_size_min"], rows[-1]["memory/cluster_size_max"]) == (sizes.min(), sizes.max())
    assert {"memory/cluster_size_median", "memory/size_entropy"} <= method.gauges().keys()


def test_assignments_have_every_image_with_its_cluster_and_distance(tmp_path):
    method = build()
    trainer(tmp_path, [Clusters(every_n_epochs=1)], 2).fit(method, datamodule=datamodule())
    lines = (tmp_path / "clusters" / "assignments.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[1]) for line in lines] == method.pseudo_labels().tolist()
    assert torch.tensor([float(line.split(",")[2]) for line in lines]).allclose(method.distances_N, rtol=1e-4)
    assert 0 < method.distances_N.mean() < 1.5
    assert (tmp_path / "run.png").exists()


def test_odc_and_deepcluster_log_the_same_gauges(tmp_path):
    other = odc()
    trainer(tmp_path, max_epochs=1).fit(other, datamodule=datamodule())
    _, method = recorded(tmp_path / "dc", max_epochs=1)
    assert other.gauges().keys() - method.gauges().keys() == {"memory/splits"}


@pytest.mark.parametrize("keys", TRAINER_KEYS, ids=str)
def test_trainer_keys_need_nothing_special(tmp_path, keys):
    record, method = recorded(tmp_path, max_epochs=2, **keys)
    assert len(record.labels) == 2
    assert method.clustered_at == 1
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.csv") if "time/clustering" in row] == [0, 1]


def test_other_optimizers_start_anew_too(tmp_path):
    method = build()
    method.optimizer = partial(torch.optim.AdamW, lr=1e-3)
    record, _ = recorded(tmp_path, method)
    assert record.left_over == [[False, False]] * 3


def test_head_momentum_is_the_classifiers_only():
    for wanted, expected in ((0.0, [0.9, 0.0]), (None, [0.9, 0.9])):
        method = build(head_momentum=wanted)
        optimizer = torch.optim.SGD(method.parameter_groups(), lr=0.1, momentum=0.9)
        assert [group["momentum"] for group in optimizer.param_groups] == expected
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(method.parameters()))


def test_the_last_relu_of_an_alexnet_is_left_out_for_a_while():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))

    net, x = Net(), torch.randn(20, 3)
    after = net.classifier(x)
    with before_last_relu(net, wanted=True):
        before = net.classifier(x)
    assert (before < 0).any()
    assert torch.equal(before.relu(), after)
    assert torch.equal(net.classifier(x), after)
    with before_last_relu(net, wanted=False):
        assert torch.equal(net.classifier(x), after)
    with before_last_relu(small_resnet(width=4).net, wanted=True):
        pass
    assert isinstance(alexnet().net.classifier[-1], nn.ReLU)


def test_pseudo_labels_are_there_after_the_first_clustering(tmp_path):
    assert build().pseudo_labels() is None
    assert build().centroid_distances() is None
    _, method = recorded(tmp_path, max_epochs=1)
    assert method.pseudo_labels().dtype == torch.int32


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"balance": "unifrom"}, "method.balance must be one of uniform, reweight, none. Received: 'unifrom'. Did you"),
        ({"clustered": "relu"}, "method.clustered must be one of pooled, before_relu. Received: 'relu'"),
        ({"reassign_every": 0}, "method.reassign_every must be at least 1. Received: 0"),
        ({"pca_dim": 0}, "method.pca_dim must be at least 1. Received: 0"),
        ({"num_clusters": 0}, "method.num_clusters must be at least 1. Received: 0"),
    ],
)
def test_bad_values(keys, message):
    with pytest.raises(ValueError, match=message):
        build(**keys)


def test_clusters_are_held_against_the_data_before_any_work():
    with pytest.raises(ValueError, match="method.num_clusters must not exceed the number of samples, 64. Received: 65"):
        build(num_clusters=65).require_possible(datamodule())


def rows_but_clocks(folder):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(folder / "metrics.csv")]


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"reassign_every": 2, "balance": "reweight"}], ids=str)
def test_resumes_bit_for_bit(tmp_path, keys):
    check_resumes_bit_for_bit(tmp_path, partial(build, **keys), kill_at=(4, 5, 11))
    for step in (4, 5, 11):
        assert rows_but_clocks(tmp_path / f"killed_{step}") == rows_but_clocks(tmp_path / "straight")


@pytest.mark.slow
def test_resumes_bit_for_bit_with_loading_processes(tmp_path):
    check_resumes_bit_for_bit(tmp_path, build, {"num_workers": 2}, kill_at=(6,))


@pytest.mark.slow
def test_two_processes(tmp_path):
    state = check_two_processes(tmp_path, build)["method"]
    assert state["clustered_at"] == 2
    assert state["labels"].shape == (64,)


@pytest.mark.slow
def test_two_processes_cluster_as_one_does(tmp_path):
    """The first clustering sees equal weights, however many processes share it."""
    labels = []
    for devices in (1, 2):
        fit(tmp_path / str(devices), build, devices=devices, max_epochs=1)
        labels.append(torch.load(tmp_path / str(devices) / "checkpoints" / "last.ckpt", weights_only=True)["method"])
    assert torch.equal(labels[0]["labels"], labels[1]["labels"])
    assert torch.equal(labels[0]["distances"], labels[1]["distances"])
