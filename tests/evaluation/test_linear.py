"""Linear heads: trained together as if alone, the recipe's steps, and what they can tell apart."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch import nn

from odc_lightning.data.loader import GlobalBatches
from odc_lightning.evaluation.batches import CachedBatches
from odc_lightning.evaluation.heads import FrozenNorm, LinearHeads, top1, train_heads
from odc_lightning.evaluation.linear import LinearProbe
from odc_lightning.evaluation.protocol import Sgd
from odc_lightning.memory import Ranks

SHAPES = {"conv1": (4, 3, 3), "conv3": (6, 2, 2), "gap": (5,)}
N, K = 48, 3


def random_data(seed):
    generator = torch.Generator().manual_seed(seed)
    features = {layer: torch.rand(N, *shape, generator=generator) for layer, shape in SHAPES.items()}
    return features, torch.randint(0, K, (N,), generator=generator)


def train(folder, layers, features, targets, epochs=3, sgd=None, ranks=None):
    ranks = ranks or Ranks()
    batches = GlobalBatches(N, 16, seed=5, rank=ranks.rank, world_size=ranks.world_size)
    cached = CachedBatches({k: features[k] for k in layers}, targets, torch.arange(N), batches, torch.device("cpu"))
    heads = LinearHeads({layer: SHAPES[layer] for layer in layers}, K, seed=7)
    losses = []
    sgd = sgd or Sgd(epochs, 0.1, [2], nesterov=True, weight_decay=1e-4)
    train_heads(heads, cached, sgd, lambda epoch, loss: losses.append(loss), {}, Path(folder) / "heads.pt")
    return heads, losses


def test_heads_trained_together_equal_heads_trained_one_by_one(tmp_path):
    seed = int(torch.seed() % 2**31)
    features, targets = random_data(seed)
    (tmp_path / "all").mkdir()
    together, _ = train(tmp_path / "all", SHAPES, features, targets)
    for layer in SHAPES:
        (tmp_path / layer).mkdir()
        alone, _ = train(tmp_path / layer, [layer], features, targets)
        for name, value in alone[layer].state_dict().items():
            assert torch.equal(value, together[layer].state_dict()[name]), f"{layer}.{name}, seed {seed}"


def test_killed_between_epochs_it_goes_on_to_the_same_bits(tmp_path):
    features, targets = random_data(1)
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    straight, _ = train(tmp_path / "straight", SHAPES, features, targets, epochs=4)
    train(tmp_path / "broken", SHAPES, features, targets, epochs=2)
    broken, losses = train(tmp_path / "broken", SHAPES, features, targets, epochs=4)
    assert len(losses) == 2
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), broken.parameters(), strict=True))


def _train_on(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world)
    heads, _ = train(folder, SHAPES, *random_data(2), ranks=Ranks(rank, world))
    torch.save(heads.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_the_heads_of_one(tmp_path):
    (tmp_path / "one").mkdir()
    one = train(tmp_path / "one", SHAPES, *random_data(2))[0].state_dict()
    mp.spawn(_train_on, args=(2, tmp_path), nprocs=2)
    for rank in (0, 1):
        for name, value in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-6)


def test_separable_data_is_separated_and_noise_is_not(tmp_path):
    generator = torch.Generator().manual_seed(3)
    targets = torch.arange(N) % K
    centres = torch.randn(K, 4, 3, 3, generator=generator)
    features, _ = random_data(4)
    features["conv1"] = 5 + centres[targets] + 0.3 * torch.randn(N, 4, 3, 3, generator=generator)
    heads, losses = train(tmp_path, ["conv1", "gap"], features, targets, sgd=Sgd(30, 0.05))
    accuracy = top1(heads, features, targets, torch.arange(N))
    assert accuracy["conv1"] == 100
    assert accuracy["gap"] < 90
    assert losses[-1]["conv1"] < losses[0]["conv1"]


def test_the_norm_is_torchs_batch_norm_without_scale_and_shift():
    ours, theirs = FrozenNorm(6), nn.BatchNorm2d(6, affine=False)
    for _ in range(3):
        maps = torch.rand(8, 6, 3, 3) * 4 + 1
        torch.testing.assert_close(ours(maps), theirs(maps))
    torch.testing.assert_close(ours.eval()(maps), theirs.eval()(maps))


def test_weights_start_normal_and_biases_at_zero():
    linear = LinearHeads({"conv1": (64, 12, 12)}, 100)["conv1"][-1]
    assert linear.weight.shape == (100, 9216)
    assert float(linear.weight.std()) == pytest.approx(0.01, rel=0.01)
    assert not linear.bias.any()


def test_the_rate_falls_at_the_milestones():
    sgd = Sgd(100, 0.01, [30, 60, 90])
    assert [round(sgd.lr * sgd.factor(epoch), 8) for epoch in (0, 29, 30, 59, 60, 90, 99)] == [
        *(0.01, 0.01, 0.001, 0.001, 0.0001, 0.00001, 0.00001)
    ]


def test_a_loss_that_explodes_names_its_layer(tmp_path):
    features, targets = random_data(5)
    features["conv3"] = features["conv3"] * torch.inf
    with pytest.raises(
        FloatingPointError, match="the loss of conv3 became NaN or infinite in epoch 0: lower protocol.lr"
    ):
        train(tmp_path, SHAPES, features, targets)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layers": []}, "protocol.layers must name at least one layer"),
        ({"augment": "crops"}, "protocol.augment must be one of none, crop.*Did you mean 'crop'"),
        ({"report": "first"}, "protocol.report must be one of last, best. Received: 'first'"),
        ({"pools": "alexnet"}, "protocol.pools must be one of"),
        ({"epochs": 0}, "protocol.epochs must be at least 1. Received: 0"),
        ({"lr": 0}, "protocol.lr must be above 0. Received: 0"),
        ({"momentum": 1.0}, r"protocol.momentum must be in \[0, 1\). Received: 1.0"),
        ({"weight_decay": -1}, "protocol.weight_decay must be at least 0"),
        ({"milestones": [3, 2]}, r"protocol.milestones must rise. Received: \[3, 2\]"),
    ],
)
def test_what_is_out_of_range_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        LinearProbe(**keys)
