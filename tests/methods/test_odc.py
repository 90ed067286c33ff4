import pytest
import pytorch_lightning as pl
import torch

from helpers import TRAINER_KEYS, datamodule, odc, trainer
from odc_lightning.memory import Memory


class Record(pl.Callback):
    """Copies of what an iteration could touch, around each of them."""

    def __init__(self):
        self.batches, self.updates = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = module.memory.labels_N.clone(), module.memory.samples.rows.clone()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        untouched = torch.equal(module.memory.samples.rows, self.before[1])
        self.batches.append((batch.index.clone(), untouched))


def fit(tmp_path, module=None, data=None, callbacks=(), **keys):
    module = module or odc()
    t = trainer(tmp_path, callbacks, **keys)
    t.fit(module, datamodule=data or datamodule())
    return module, t


def test_trains_and_every_image_is_updated_once_per_epoch(tmp_path):
    record = Record()
    module, t = fit(tmp_path, callbacks=[record], max_epochs=2)
    assert t.global_step == 8
    assert module.memory.updates == 8
    for epoch in range(2):
        seen = torch.cat([index for index, _ in record.batches[4 * epoch : 4 * epoch + 4]])
        assert sorted(seen.tolist()) == list(range(64))
    # callbacks see the memory before the module's own hook has updated it
    assert all(untouched for _, untouched in record.batches)
    module.memory.check()


def test_memory_follows_a_replay_of_the_recorded_features(tmp_path):
    """The module feeds its memory what a plain loop over (index, feature) would."""
    calls, initial = [], {}

    class Replay(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if not initial:
                initial.update(
                    {k: v.clone() if torch.is_tensor(v) else v for k, v in module.memory.state_dict().items()}
                )

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            calls.append((module._forward_of.index_B.clone(), module._forward_of.feature_BD.clone()))

    module, _ = fit(tmp_path, callbacks=[Replay()])
    memory = Memory(num_samples=64, num_clusters=6, feature_dim=8, min_cluster_size=3)
    memory.load_state_dict(initial)
    for step, (index, feature) in enumerate(calls, start=1):
        memory.update(index, feature)
        if step % 3 == 0:
            memory.refresh_centroids()
        memory.handle_small_clusters()
    assert torch.equal(memory.samples.rows, module.memory.samples.rows)
    assert torch.equal(memory.labels_N, module.memory.labels_N)
    assert torch.equal(memory.centroids.centroids_CD, module.memory.centroids.centroids_CD)


def test_a_checkpoint_after_n_steps_holds_n_updates_and_loads_with_weights_only(tmp_path):
    held = {}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step and trainer.global_step % 4 != 0:
                path = tmp_path / "checkpoints" / "last.ckpt"
                held[trainer.global_step] = torch.load(path, weights_only=True)["method"]["memory"]["updates"]

    _, t = fit(tmp_path, callbacks=[Look()], checkpoint_every=1)
    assert held == {n: n for n in range(1, 12) if n % 4}
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["method"]["memory"]["updates"] == last["global_step"] == 12
    assert t.global_step == 12


@pytest.mark.parametrize("keys", TRAINER_KEYS, ids=str)
def test_trainer_keys_need_nothing_special(tmp_path, keys):
    module, t = fit(tmp_path, max_epochs=2, **keys)
    expected = {"accumulate_grad_batches": (8, 16), "limit_train_batches": (4, 4)}.get(next(iter(keys)), (8, 8))
    assert (t.global_step, module.memory.updates) == expected
    assert module.memory.samples.rows.dtype == torch.float32
    module.memory.check()


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_accumulation_keeps_the_recipe_where_the_data_leave_a_remainder(tmp_path, accumulate):
    """72 images in batches of 16: four steps an epoch and the same images, however a step is cut."""
    record = Record()
    module, t = fit(tmp_path, data=datamodule(count=72), callbacks=[record], accumulate_grad_batches=accumulate)
    assert t.global_step == 12
    assert module.memory.updates == 12 * accumulate
    seen = [index for part, _ in record.batches for index in part.tolist()]
    whole = datamodule(count=72).train_dataloader()
    assert seen == [index for _ in range(3) for batch in whole for index in batch.index.tolist()]


def test_channels_last_gives_the_same_loss(tmp_path):
    """Not at width 4: on processors without AVX-512 PyTorch 2.14's channels-last backward then writes out of bounds."""
    losses = []
    for channels_last in (False, True):
        module, _ = fit(tmp_path / str(channels_last), odc(channels_last=channels_last, width=8), max_epochs=1)
        losses.append(module.latest["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_compiled_network_trains_and_keeps_its_weight_names(tmp_path):
    module, _ = fit(tmp_path, odc(compile=True, width=8), max_epochs=1)  # which makes it channels-last: see above
    assert set(module.state_dict()) == set(odc().state_dict())


def test_equal_sizes_train_exactly_as_without_weights(tmp_path):
    """60 images, 6 clusters of 10: the first loss is the unweighted one."""
    first = {}

    class First(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            first.setdefault("weights", module.weights_C.clone())

    module = odc(min_cluster_size=9)
    fit(tmp_path, module, datamodule(count=60, batch_size=20), callbacks=[First()], max_epochs=1)
    assert module.memory.sizes_C.tolist() == [10] * 6
    assert torch.equal(first["weights"], torch.ones(6))


def test_head_momentum_is_the_classifiers_only():
    module = odc(head_momentum=0.0)
    optimizer = torch.optim.SGD(module.parameter_groups(), lr=0.1, momentum=0.9)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.parameters()))
    assert optimizer.param_groups[1]["params"][0] is module.classifier.weight


def test_nan_stops_training_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 6:
                module.backbone.requires_grad_(True)
                next(module.neck.parameters()).data.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match=r"by step 7 \(epoch 1\)"):
        fit(tmp_path, callbacks=[Poison()])
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(torch.isfinite(v).all() for v in checkpoint["state_dict"].values() if v.is_floating_point())


@pytest.mark.parametrize("name", ["centroid_update_interval", "small_cluster_interval"])
def test_intervals_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"method.{name} must be at least 1. Received: 0"):
        odc(**{name: 0})


def test_sizes_are_held_against_the_data_before_any_work():
    with pytest.raises(ValueError, match="num_clusters must not exceed the number of samples, 64. Received: 65"):
        odc(num_clusters=65).require_possible(datamodule())
    with pytest.raises(ValueError, match="min_cluster_size can be at most 9"):
        odc(min_cluster_size=11).require_possible(datamodule())
