"""Several gloo processes: the same memory as one, and training that can change their number."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from helpers import datamodule, differences, last_checkpoint, odc, trainer
from odc_lightning.memory import Memory, Ranks

N, C, D, B, STEPS = 180, 12, 6, 12, 60


def features(rng, count, centers=6):
    directions = np.random.default_rng(5).normal(size=(6, D))[:centers]
    return np.maximum(directions[rng.integers(centers, size=count)] + 0.4 * rng.normal(size=(count, D)), 0)


def feed(rank, world, folder, seed, rules):
    """Feed a memory this rank's share of global batches that depend on the seed only."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/init{world}", rank=rank, world_size=world)
    memory = Memory(num_samples=N, num_clusters=C, feature_dim=D, min_cluster_size=5, **rules)
    rng = np.random.default_rng(seed)
    start = torch.from_numpy(features(rng, N)).float()
    memory.fill(start[rank::world], torch.from_numpy(rng.integers(C, size=N)))
    ratios, refilled = [], []
    for step in range(STEPS):
        index = torch.from_numpy(rng.integers(N, size=B))  # with repeats
        new, ok = torch.from_numpy(features(rng, B, centers=2)).float(), torch.from_numpy(rng.random(B) > 0.1)
        share = slice(rank * B // world, (rank + 1) * B // world)
        ratios.append(float(memory.update(index[share], new[share], ok_B=ok[share])))
        if step % 5 == 4:
            memory.refresh_centroids()
        refilled += memory.handle_small_clusters()
    state = memory.state_dict()
    if rank == 0:
        torch.save({**state, "ratios": ratios, "handled": refilled}, f"{folder}/{world}.pt")
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "rules",
    [{}, {"metric": "inner_product", "renormalize": True, "guarantee_size": False}],
    ids=["paper", "openselfsup"],
)
def test_one_two_and_three_processes_give_equal_bits(tmp_path, rules):
    seed = int(np.random.default_rng().integers(2**31))
    feed(0, 1, tmp_path, seed, rules)
    for world in (2, 3):
        mp.spawn(feed, args=(world, tmp_path, seed, rules), nprocs=world)
    one = torch.load(tmp_path / "1.pt", weights_only=True)
    assert one["handled"], "the case must split clusters"
    for world in (2, 3):
        assert differences(one, torch.load(tmp_path / f"{world}.pt", weights_only=True)) == [], f"seed {seed}"


def load_on(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/load{world}", rank=rank, world_size=world)
    memory = Memory(num_samples=N, num_clusters=C, feature_dim=D, min_cluster_size=5)
    memory.load_state_dict(torch.load(f"{folder}/1.pt", weights_only=True))
    assert memory.ranks == Ranks(rank, world)
    assert len(memory.samples.rows) == Ranks(rank, world).num_owned(N)
    state = memory.state_dict()
    if rank == 0:
        torch.save(state, f"{folder}/loaded.pt")
    dist.destroy_process_group()


def test_a_saved_memory_loads_on_another_number_of_processes_bit_for_bit(tmp_path):
    feed(0, 1, tmp_path, 1, {})
    mp.spawn(load_on, args=(2, tmp_path), nprocs=2)
    one = torch.load(tmp_path / "1.pt", weights_only=True)
    assert (
        differences(
            {k: one[k] for k in one if k not in ("ratios", "handled")},
            torch.load(tmp_path / "loaded.pt", weights_only=True),
        )
        == []
    )


def fit(folder, devices, max_epochs, **keys):
    strategy = "ddp_spawn" if devices > 1 else "auto"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    t = trainer(folder, devices=devices, strategy=strategy, max_epochs=max_epochs, **keys)
    t.fit(odc(), datamodule=datamodule(), ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    return last_checkpoint(folder)


def test_two_processes_train_and_the_number_may_change_on_resume(tmp_path):
    first = fit(tmp_path, devices=2, max_epochs=1)
    assert first["method"]["memory"]["updates"] == first["global_step"] == 4
    assert int(torch.bincount(first["method"]["memory"]["labels"].long()).sum()) == 64
    second = fit(tmp_path, devices=1, max_epochs=2)
    assert second["global_step"] == 8
    third = fit(tmp_path, devices=2, max_epochs=3)
    assert third["method"]["memory"]["updates"] == 12
    memory = Memory(num_samples=64, num_clusters=6, feature_dim=8, min_cluster_size=3)
    memory.load_state_dict(third["method"]["memory"])  # checks rows against sums, bit for bit
