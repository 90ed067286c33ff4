"""clusters/history.npz against a slow replay of the run, and exact after a resume."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.optimize import linear_sum_assignment

from helpers import datamodule, differences, odc, trainer
from odc_lightning.callbacks.history import WriteHistory, append, changes
from odc_lightning.clustering.kmeans import KMeans
from odc_lightning.memory import Memory, Ranks
from odc_lightning.memory.journal import DISSOLVED, SPLIT, Journal
from odc_lightning.methods.deepcluster import DeepCluster
from odc_lightning.nn.resnet import small_resnet
from odc_lightning.report.history import EVENTS, HISTORY, History

RULES = {"num_clusters": 6, "min_cluster_size": 6}  # near N / C: small clusters appear in every epoch


class Watch(pl.Callback):
    """The labels after every batch and epoch, slowly."""

    def __init__(self):
        self.epochs, self.before, self.changed = {}, None, 0

    def on_train_epoch_start(self, trainer, method):
        self.epochs.setdefault(0, method.memory.labels_N.clone())

    def on_train_epoch_end(self, trainer, method):
        self.epochs[trainer.current_epoch + 1] = method.memory.labels_N.clone()


def deepcluster(**keys):
    torch.manual_seed(0)
    return DeepCluster(
        small_resnet(width=4),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        kmeans=KMeans(backend="torch", iterations=5),
        num_clusters=6,
        pca_dim=4,
        **keys,
    )


def train(folder, *callbacks, epochs=4, stop_at=None, every=1, method=None):
    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == stop_at:
                raise RuntimeError("stopped")

    t = trainer(folder, [WriteHistory(), Stop(), *callbacks], max_epochs=epochs, checkpoint_every=every)
    last = folder / "checkpoints" / "last.ckpt"
    t.fit(method or odc(**RULES), datamodule=datamodule(), ckpt_path=last if last.exists() else None, weights_only=True)


def content(folder):
    with np.load(folder / HISTORY) as file:
        return {name: (file[name].shape, file[name].dtype.str, file[name].tobytes()) for name in file.files}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder, watch = tmp_path_factory.mktemp("straight"), Watch()
    train(folder, watch)
    return folder, watch


def test_the_bank_of_every_epoch_and_what_follows_from_it(straight):
    folder, watch = straight
    history = History(folder)
    banks = {epoch: labels.numpy() for epoch, labels in watch.epochs.items()}
    assert history.epochs == [0, 1, 2, 3, 4] == sorted(banks)
    last, rates = np.zeros(64, dtype=int), history.cluster_switches()
    for row, epoch in enumerate(history.epochs):
        assert history.labels(epoch).tolist() == banks[epoch].tolist()
        assert history.sizes()[row].tolist() == [int((banks[epoch] == c).sum()) for c in range(6)]
        assert history.about(epoch)["iteration"] == 4 * epoch
        if epoch:
            moved = banks[epoch] != banks[epoch - 1]
            last[moved] = epoch
            assert history.switches()["bank"][row] == moved.mean()
            assert np.allclose(rates[row], [moved[banks[epoch] == c].mean() for c in range(6)])
    assert history.last_change().tolist() == last.tolist()
    flow = history.flow(1, 4).toarray()
    assert flow.tolist() == [[int(((banks[1] == i) & (banks[4] == j)).sum()) for j in range(6)] for i in range(6)]
    assert flow.sum() == 64


def test_events_add_up_to_the_sizes(straight):
    history = History(straight[0])
    events, sizes = history.events(), history.sizes()
    assert (events[:, 2] == DISSOLVED).sum() > 3, "the run was to have small clusters"
    assert set(events[events[:, 2] == DISSOLVED][:, 4]) == {-1}
    for _, iteration, _, cluster, _, _ in events[events[:, 2] == DISSOLVED]:
        splits = events[(events[:, 1] == iteration) & (events[:, 2] == SPLIT) & (events[:, 3] == cluster)]
        assert splits[:, 5].sum() >= 7, "refilled above the threshold"
        assert cluster not in splits[:, 4]
    epoch_of = np.where(events[:, 1] == 0, 0, -(-events[:, 1] // 4))
    assert epoch_of.tolist() == events[:, 0].tolist()
    assert sizes.min() > 6
    born = [max(events[(events[:, 2] == SPLIT) & (events[:, 3] == c)][:, 0], default=0) for c in range(6)]
    assert history.ages().tolist() == [4 - epoch for epoch in born]
    assert EVENTS == ("iteration", "kind", "cluster", "donor", "members")


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_causes_against_a_loop_over_images(metric):
    torch.manual_seed(0)
    memory = Memory(num_samples=60, num_clusters=5, feature_dim=4, min_cluster_size=2, metric=metric)
    memory.fill(torch.rand(60, 4), torch.arange(60) % 5)
    memory.journal.begin(0)
    features = centroids = 0
    for step in range(12):
        index, old = torch.randperm(60)[:20], memory.samples.rows.clone()
        before, means = memory.labels_N.clone(), memory.centroids.centroids_CD.clone()
        memory.update(index, torch.rand(20, 4), unique=True)
        for i in index.tolist():
            a, b = int(before[i]), int(memory.labels_N[i])
            near = [(old[i] - means[c]).norm() if metric == "l2" else -(old[i] @ means[c]) for c in (a, b)]
            centroids += a != b and bool(near[1] < near[0])
            features += a != b and bool(near[1] >= near[0])
        if step % 3 == 2:
            memory.refresh_centroids()
    assert memory.journal.state_dict()["counts"].tolist() == [features, centroids, 240]
    assert features > 20
    assert centroids > 3


def test_the_parts_by_cause_explain_every_change(straight):
    folder, _ = straight
    history = History(folder)
    parts = history.switches()
    whole = parts["features"] + parts["centroids"] + parts["small_clusters"]
    assert np.isnan(whole[0])
    assert np.all(whole[1:] >= parts["bank"][1:] - 1e-12), "each image was updated once an epoch"
    assert [history.about(epoch)["images"] for epoch in history.epochs] == [0, 64, 64, 64, 64]


@pytest.mark.parametrize("stop_at", [2, 4, 7, 12])
@pytest.mark.parametrize("every", [1, None])
def test_stopped_and_started_again_it_is_the_same(tmp_path, straight, stop_at, every):
    with pytest.raises(RuntimeError, match="stopped"):
        train(tmp_path, stop_at=stop_at, every=every)
    train(tmp_path, every=every)
    assert content(tmp_path) == content(straight[0])
    assert [file.name for file in (tmp_path / "clusters").iterdir()] == ["history.npz"]


def test_records_after_the_checkpoint_are_dropped(tmp_path, straight):
    train(tmp_path, epochs=2)
    labels = History(tmp_path).labels(2)
    # An epoch that ended and whose checkpoint did not come: other labels, as of another machine.
    append(tmp_path / HISTORY, "00003", {**_record(tmp_path, 2), **changes(1 - labels % 2, labels)})
    train(tmp_path)
    assert History(tmp_path).about(3)["iteration"] == 12
    assert content(tmp_path) == content(straight[0])


def _record(folder, epoch):
    with np.load(folder / HISTORY) as file:
        record = {name.split("/")[2]: file[name] for name in file.files if name.startswith(f"v1/{epoch:05d}")}
    return {**record, "about": record["about"] + [1, 4, 0, 0, 0]}


def test_a_damaged_history_begins_anew_and_says_so(tmp_path, caplog):
    train(tmp_path, epochs=2)
    (tmp_path / HISTORY).write_bytes(b"no zip")
    train(tmp_path)
    assert "the history begins anew" in caplog.text
    history = History(tmp_path)
    assert history.epochs == [3, 4]
    assert len(history.labels(4)) == 64
    with pytest.raises(ValueError, match="no record of epoch 2. It has 3 to 4"):
        history.labels(2)


def test_a_million_images_take_less_than_two_bytes_each_an_epoch(tmp_path):
    rng = np.random.default_rng(0)
    before = rng.integers(10_000, size=1_000_000, dtype=np.int32)
    moved = rng.random(len(before)) < 0.3
    after = np.where(moved, rng.integers(10_000, size=len(before)), before).astype(np.int32)
    record = changes(after, before)
    assert sum(part.nbytes for part in record.values()) < 0.8 * len(after)
    assert record["labels"].dtype == np.uint16
    assert changes(before * 20, before)["labels"].dtype == np.int32


def test_deepcluster_has_no_start_and_its_numbers_mean_nothing_over_time(tmp_path):
    train(tmp_path, epochs=3, method=deepcluster(reassign_every=2))
    history = History(tmp_path)
    assert history.epochs == [1, 2, 3]
    assert history.renumbered
    assert history.last_change().tolist() == np.where(history.labels(2) != history.labels(3), 3, 1).tolist()
    parts, flow = history.switches(), history.flow(2, 3).toarray()
    assert parts["bank"][1] == 0, "no clustering in the second epoch"
    assert parts["bank"][2] == pytest.approx(1 - flow[linear_sum_assignment(-flow)].sum() / 64)
    assert all(np.isnan(parts[cause]).all() for cause in ("features", "centroids", "small_clusters"))
    sizes = history.sizes()[2]
    assert np.allclose(history.cluster_switches()[2], [1 - max(flow[:, c]) / sizes[c] for c in range(len(sizes))])
    assert history.ages().tolist() == [0] * len(sizes)


def two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/two", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    memory = Memory(num_samples=60, num_clusters=5, feature_dim=4, min_cluster_size=9)
    feed(memory, ranks)
    state = memory.journal.state_dict()
    again = Journal("l2", ranks)
    again.load_state_dict(state)
    assert again.state_dict()["counts"].tolist() == state["counts"].tolist()
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")
    dist.destroy_process_group()


def feed(memory, ranks):
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(60, 4, generator=generator)
    memory.fill(rows[ranks.rank :: ranks.world_size], torch.arange(60) % 5)
    memory.journal.begin(0)
    for _ in range(12):
        index, features = torch.randperm(60, generator=generator)[:20], torch.rand(20, 4, generator=generator)
        part = slice(ranks.rank * 20 // ranks.world_size, (ranks.rank + 1) * 20 // ranks.world_size)
        memory.update(index[part], features[part], unique=True)
        memory.refresh_centroids()
        memory.handle_small_clusters()


@pytest.mark.slow
def test_two_processes_count_what_one_counts(tmp_path):
    memory = Memory(num_samples=60, num_clusters=5, feature_dim=4, min_cluster_size=9)
    feed(memory, Ranks())
    mp.spawn(two, args=(tmp_path,), nprocs=2)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert differences(state, memory.journal.state_dict()) == []
    assert len(state["events"]) > 0
