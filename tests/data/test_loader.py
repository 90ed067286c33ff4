import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from odc_lightning.data.loader import GlobalBatches, TrainLoader, local_batch_size


class Keys(Dataset):
    """Hands the key back: what would be loaded."""

    def __getitem__(self, key):
        return torch.tensor(key)


def epoch_of(batches, epoch=0):
    batches.epoch, batches.position = epoch, 0
    return [[index for _, index in batch] for batch in batches]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 99), st.integers(0, 5))
def test_an_epoch_never_repeats_or_pads(samples, batch, seed, epoch):
    if batch > samples:
        with pytest.raises(ValueError, match=f"between 1 and the number of images, {samples}. Received: {batch}"):
            GlobalBatches(samples, batch, seed=seed)
        return
    drawn = epoch_of(GlobalBatches(samples, batch, seed=seed), epoch)
    flat = [index for part in drawn for index in part]
    assert len(drawn) == samples // batch
    assert all(len(part) == batch for part in drawn)
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(samples))


@given(st.integers(1, 4), st.integers(0, 3))
def test_ranks_share_the_same_global_batches_in_order(world, epoch):
    whole = epoch_of(GlobalBatches(100, 12, seed=5), epoch)
    parts = [epoch_of(GlobalBatches(100, 12, seed=5, rank=r, world_size=world), epoch) for r in range(world)]
    assert [sum(share, []) for share in zip(*parts, strict=True)] == whole


def test_epochs_and_seeds_differ():
    batches = GlobalBatches(50, 10, seed=1)
    assert epoch_of(batches, 0) != epoch_of(batches, 1)
    assert epoch_of(batches, 0) != epoch_of(GlobalBatches(50, 10, seed=2), 0)
    assert epoch_of(batches, 0) == epoch_of(GlobalBatches(50, 10, seed=1), 0)


def test_replacement_sees_about_63_percent():
    order = GlobalBatches(20_000, 10, replacement=True).order(3)
    assert len(np.unique(order)) / 20_000 == pytest.approx(1 - np.exp(-1), abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 14), st.sampled_from([0, 0, 0, 2]), st.sampled_from([None, 3]))
def test_a_loader_begun_behind_n_batches_goes_on_as_the_straight_one(done, workers, limit):
    def run(done):
        loader = TrainLoader(Keys(), GlobalBatches(23, 4, seed=7), limit=limit, done=done, num_workers=workers)
        for _ in range(3):
            yield from (batch.tolist() for batch in loader)

    straight = list(run(0))
    assert len(straight) == 3 * (limit or 5)
    done = min(done, len(straight) - 1)
    assert list(run(done))[: len(straight) - done] == straight[done:]


def test_epochs_advance_when_the_last_batch_is_taken_but_the_iterator_is_not_exhausted():
    loader = TrainLoader(Keys(), GlobalBatches(8, 4), num_workers=0)
    for epoch in range(3):
        iterator = iter(loader)
        assert {int(next(iterator)[0, 0]) for _ in range(len(loader))} == {epoch}


def test_remainders_name_the_nearest_sizes():
    assert local_batch_size(512, 8) == 64
    with pytest.raises(ValueError, match="devices x accumulation = 3. Received: 512; nearest: 510 or 513"):
        local_batch_size(512, 3)
    with pytest.raises(ValueError, match="nearest: 8"):
        local_batch_size(5, 8)


def test_a_given_order_is_followed_and_asked_for_when_the_epoch_begins():
    orders = {0: np.array([3, 3, 1, 0]), 1: None}
    batches = GlobalBatches(4, 2, seed=5, order=orders.get)
    assert list(batches) == [[(0, 3), (0, 3)], [(0, 1), (0, 0)]]
    batches.epoch = 1
    assert [index for batch in batches for _, index in batch] == GlobalBatches(4, 2, seed=5).order(1).tolist()
