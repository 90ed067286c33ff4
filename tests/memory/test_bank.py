"""The replicated bank: its update against a loop, random unit rows at the start, the same rows on every rank."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_lightning.memory import Bank

SEEDS = st.integers(0, 2**32 - 1)


def updated_by_a_loop(rows, index, features, ok, momentum):
    """v_i <- normalise((1 - m) v_i + m f / |f|); of a repeated index the last one counts."""
    rows = [row.tolist() for row in rows]
    old = [list(row) for row in rows]
    for i, feature, good in zip(index.tolist(), features.tolist(), ok.tolist(), strict=True):
        if good:
            length = math.sqrt(sum(x * x for x in feature))
            moved = [(1 - momentum) * v + momentum * x / length for v, x in zip(old[i], feature, strict=True)]
            length = math.sqrt(sum(x * x for x in moved))
            rows[i] = [x / length for x in moved]
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, momentum=st.floats(0.05, 1.0))
def test_update_is_the_moving_average_of_unit_vectors(seed, momentum):
    rng = torch.Generator().manual_seed(seed)
    bank = Bank(9, 4, momentum=momentum, seed=seed)
    index = torch.randint(9, (7,), generator=rng)  # with repeats
    features, ok = torch.randn(7, 4, generator=rng), torch.rand(7, generator=rng) > 0.2
    expected = updated_by_a_loop(bank.rows_ND, index, features, ok, momentum)
    bank.update(index, features, ok_B=ok)
    torch.testing.assert_close(bank.rows_ND.double(), expected, atol=2.0**-22, rtol=0)


def test_rows_start_as_random_directions():
    rows = Bank(2000, 8, seed=1).rows_ND
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2000))
    assert rows.mean(0).abs().max() < 0.05  # in no direction more than in another
    assert (rows.T @ rows / 2000 - torch.eye(8) / 8).abs().max() < 0.02
    assert torch.equal(rows, Bank(2000, 8, seed=1).rows_ND)
    assert not torch.equal(rows, Bank(2000, 8, seed=2).rows_ND)


def test_similarities_are_inner_products_in_float32_under_autocast():
    bank, features = Bank(30, 16), torch.nn.functional.normalize(torch.randn(5, 16), dim=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        similarities = bank.similarities(features)
    expected = features.double() @ bank.rows_ND.double().T
    torch.testing.assert_close(similarities.double(), expected, atol=1e-6, rtol=0)
    weights = torch.randn(5, 30)
    (similarities * weights).sum().backward()
    torch.testing.assert_close(features.grad, weights @ bank.rows_ND, atol=1e-5, rtol=1e-5)


def feed(rank, world, folder, seed):
    """Feed a bank this rank's share of global batches that depend on the seed only; save what the rank then holds."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/init{world}", rank=rank, world_size=world)
    bank, rng = Bank(50, 6, seed=seed), np.random.default_rng(seed)
    for _ in range(20):
        index = torch.from_numpy(rng.integers(50, size=12))  # with repeats
        features, ok = torch.from_numpy(rng.normal(size=(12, 6))).float(), torch.from_numpy(rng.random(12) > 0.1)
        share = slice(rank * 12 // world, (rank + 1) * 12 // world)
        bank.update(index[share], features[share], ok_B=ok[share])
    torch.save({**bank.state_dict(), "owned": bank.owned_rows()}, f"{folder}/{world}_{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_every_rank_holds_the_rows_of_a_single_process(tmp_path):
    seed = int(np.random.default_rng().integers(2**31))
    feed(0, 1, tmp_path, seed)
    mp.spawn(feed, args=(2, tmp_path, seed), nprocs=2)
    one = torch.load(tmp_path / "1_0.pt", weights_only=True)["rows"]
    for rank in range(2):
        of_rank = torch.load(tmp_path / f"2_{rank}.pt", weights_only=True)
        assert torch.equal(of_rank["rows"], one), f"seed {seed}"
        assert torch.equal(of_rank["owned"], one[rank::2])


def test_a_saved_bank_comes_back_and_another_size_is_refused():
    bank, other = Bank(10, 4, seed=1), Bank(10, 4, seed=2)
    other.load_state_dict(copy.deepcopy(bank.state_dict()))
    assert torch.equal(other.rows_ND, bank.rows_ND)
    other.update(torch.arange(3), torch.randn(3, 4))
    assert not torch.equal(other.rows_ND, bank.rows_ND)
    with pytest.raises(ValueError, match="the checkpoint's bank has num_samples = 10, this run has 11"):
        Bank(11, 4).load_state_dict(bank.state_dict())
    with pytest.raises(ValueError, match="the checkpoint's bank has feature_dim = 4, this run has 5"):
        Bank(10, 5).load_state_dict(bank.state_dict())


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.1, math.nan])
def test_momentum_outside_its_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\]. Received: "):
        Bank(10, 4, momentum=momentum)
