"""Instance discrimination: the losses against loops written from the paper, the iteration, the contract of methods."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import check_resumes_bit_for_bit, check_two_processes, fit
from helpers import last_checkpoint
from odc_lightning.data.dataset import Batch
from odc_lightning.memory import Ranks
from odc_lightning.methods.npid import NPID, estimate_log_z, info_nce, mean_of_readable, noise_contrastive
from odc_lightning.nn.resnet import small_resnet

SEEDS = st.integers(0, 2**32 - 1)


def build(**keys):
    torch.manual_seed(0)
    return NPID(
        small_resnet(width=4),
        optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        log_every_n_steps=2,
        **{"feature_dim": 8, "num_negatives": 20, "temperature": 0.2, **keys},
    )


def logits(seed, images=4, negatives=6):
    rng = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, dtype=torch.float64, generator=rng)
    return draw(images) * 4, draw(images, negatives) * 4


# -- the losses --------------------------------------------------------------------------------------------------------


def nce_by_a_loop(positive, negatives, z, num_samples):
    """Wu et al., Eq. 4, 6 and 7: m noise samples of probability 1 / n against one from the data."""
    m, noise = len(negatives), 1 / num_samples
    p = math.exp(positive) / z
    loss = -math.log(p / (p + m * noise))
    for negative in negatives:
        p = math.exp(negative) / z
        loss -= math.log(1 - p / (p + m * noise))
    return loss


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, z=st.floats(1.0, 1e4), num_samples=st.integers(2, 10**6))
def test_nce_is_the_papers(seed, z, num_samples):
    positive, negative = logits(seed)
    expected = [nce_by_a_loop(p, n, z, num_samples) for p, n in zip(positive.tolist(), negative.tolist(), strict=True)]
    loss = noise_contrastive(positive, negative, math.log(z), num_samples)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_softmax_picks_the_positive(seed):
    positive, negative = logits(seed)
    expected = [
        -math.log(math.exp(p) / (math.exp(p) + sum(map(math.exp, n))))
        for p, n in zip(positive.tolist(), negative.tolist(), strict=True)
    ]
    torch.testing.assert_close(info_nce(positive, negative), torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_z_is_the_mean_over_drawn_rows_times_their_number(seed):
    _, negative = logits(seed)
    z = 1000 * sum(math.exp(x) for row in negative.tolist() for x in row) / negative.numel()
    assert estimate_log_z(negative.float(), 1000, Ranks()) == pytest.approx(math.log(z), rel=1e-5)


def test_gradients_are_those_of_finite_differences():
    positive, negative = (part.requires_grad_() for part in logits(seed=int(torch.randint(2**31, ()))))
    assert torch.autograd.gradcheck(lambda p, n: noise_contrastive(p, n, 3.0, 50), (positive, negative))
    assert torch.autograd.gradcheck(info_nce, (positive, negative))


def test_large_logits_stay_finite():
    positive, negative = torch.tensor([100.0, -100.0]), torch.tensor([[-100.0], [100.0]])
    torch.testing.assert_close(info_nce(positive, negative), torch.tensor([0.0, 200.0]))
    torch.testing.assert_close(noise_contrastive(positive, negative, 0.0, 1), torch.tensor([0.0, 200.0]))


def test_unreadable_images_do_not_count():
    loss = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    mean = mean_of_readable(loss, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert loss.grad.tolist() == [0.5, 0.0, 0.5]
    assert mean_of_readable(loss, torch.zeros(3, dtype=torch.bool)).item() == 0.0


# -- the iteration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["nce", "softmax"])
def test_an_iteration_by_hand(tmp_path, loss):
    method = fit(tmp_path, partial(build, loss=loss), max_epochs=1)
    images, index = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8), torch.randperm(64)[:6]
    method.eval()
    rows, feature = method.bank.rows_ND.clone(), method(images).detach()
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(6))
    torch.manual_seed(7)
    value = method.training_step(Batch(images, index, torch.ones(6, dtype=torch.bool)), 0).item()
    torch.manual_seed(7)
    drawn, expected = torch.randint(64, (6, 20)).tolist(), []
    for i, own in enumerate(index.tolist()):
        positive, *negatives = ((feature[i] @ rows[j]).item() / 0.2 for j in [own, *drawn[i]])
        if loss == "nce":
            expected.append(nce_by_a_loop(positive, negatives, math.exp(method.log_z), 64))
        else:
            expected.append(math.log(sum(map(math.exp, [positive, *negatives]))) - positive)
    assert value == pytest.approx(sum(expected) / 6, rel=1e-5)
    assert torch.equal(method.bank.rows_ND, rows), "the bank is read before it is written"
    method.finish_iteration()
    moved = (rows[index] + feature) / 2
    torch.testing.assert_close(method.bank.rows_ND[index], moved / moved.norm(dim=1, keepdim=True))
    others = torch.ones(64, dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(method.bank.rows_ND[others], rows[others])


def test_unreadable_images_change_neither_loss_nor_bank(tmp_path):
    method = fit(tmp_path, partial(build, loss="softmax"), data={"on_bad_image": "skip"}, max_epochs=1)
    images, index = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8), torch.arange(4)
    ok = torch.tensor([True, True, True, False])
    method.eval()
    values, rows = [], method.bank.rows_ND.clone()
    for kept in (slice(4), slice(3)):  # the negatives of the first three are drawn first
        torch.manual_seed(7)
        values.append(method.training_step(Batch(images[kept], index[kept], ok[kept]), 0).item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    method.training_step(Batch(images, index, ok), 0)
    method.finish_iteration()
    assert (method.bank.rows_ND[:4] != rows[:4]).any(1).tolist() == ok.tolist()


def test_z_is_estimated_once_and_the_checkpoint_keeps_it(tmp_path):
    first = fit(tmp_path / "one", build, max_epochs=1).log_z
    assert first == fit(tmp_path / "two", build, max_epochs=3).log_z
    saved = last_checkpoint(tmp_path / "two")
    assert saved["method"]["log_z"] == first
    assert math.log(64) < first < math.log(64) + 1 / 0.2  # random rows: exp(0) on average and somewhat more
    assert not any("bank" in name for name in saved["state_dict"])


def test_z_is_the_mean_over_the_first_batches(tmp_path, monkeypatch):
    estimates = []

    def noted(*args):
        estimates.append(estimate_log_z(*args))
        return estimates[-1]

    monkeypatch.setattr("odc_lightning.methods.npid.estimate_log_z", noted)
    method = fit(tmp_path, partial(build, z_batches=3), max_epochs=2)
    assert len(estimates) == 3
    assert method.log_z == pytest.approx(math.log(sum(map(math.exp, estimates)) / 3))


def test_images_find_their_own_row(tmp_path):
    method = fit(tmp_path, partial(build, loss="softmax"), max_epochs=20)
    method.eval()
    data = method.datamodule
    batch = next(iter(data.eval_dataloader(data.train_source, range(64), batch_size=64)))
    rank = (-method.bank.similarities(method(batch.image))).argsort(1).argsort(1).diagonal()
    assert rank.float().mean() < 20  # by chance 31.5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": 0.0}, "method.temperature must be above 0. Received: 0.0"),
        ({"temperature": math.nan}, "method.temperature must be above 0. Received: nan"),
        ({"num_negatives": 0}, "method.num_negatives must be at least 1. Received: 0"),
        ({"z_batches": 0}, "method.z_batches must be at least 1. Received: 0"),
        ({"momentum": 0.0}, r"method.momentum must be in \(0, 1\]. Received: 0.0"),
        ({"feature_dim": 0}, "feature_dim must be at least 1. Received: 0"),
        ({"loss": "softmx"}, "method.loss must be one of nce, softmax. Received: 'softmx'. Did you mean 'softmax'?"),
    ],
)
def test_values_outside_their_range_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        build(**keys)


def test_the_forecast_names_the_bank(tmp_path):
    method = fit(tmp_path, build, max_epochs=1)
    assert method.forecast()["memory"].startswith("2 KiB on each device: 64 x 8 features; 8 KiB more")
    assert method.state_bytes() == 64 * 8 * 4


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["nce", "softmax"])
def test_resumes_bit_for_bit(tmp_path, loss):
    check_resumes_bit_for_bit(tmp_path, partial(build, loss=loss, z_batches=6))


@pytest.mark.slow
def test_two_processes(tmp_path):
    check_two_processes(tmp_path, build)
