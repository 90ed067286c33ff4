"""The warm-up against its formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odc_lightning.methods.schedules import warmup_step


def optimizer(lr):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@given(st.integers(0, 7), st.floats(0.01, 1), st.sets(st.integers(1, 12), max_size=3), st.floats(0.1, 0.9))
def test_warmup_step(warmup, factor, milestones, gamma):
    chosen = optimizer(0.2)
    schedule = warmup_step(chosen, sorted(milestones), gamma, warmup, factor)
    for epoch in range(14):
        rise = factor + (1 - factor) * epoch / warmup if epoch < warmup else 1
        falls = sum(milestone <= epoch for milestone in milestones)
        assert chosen.param_groups[0]["lr"] == pytest.approx(0.2 * rise * gamma**falls)
        chosen.step()
        schedule.step()


def test_state_loads_as_plain_containers(tmp_path):
    chosen = optimizer(0.1)
    schedule = warmup_step(chosen, [3], warmup_epochs=2)
    for _ in range(2):
        chosen.step()
        schedule.step()
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    again = warmup_step(optimizer(0.1), [3], warmup_epochs=2)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state_dict() == schedule.state_dict()


def test_values_outside_their_range():
    with pytest.raises(ValueError, match="schedule.warmup_epochs must be at least 0. Received: -1"):
        warmup_step(optimizer(0.1), [3], warmup_epochs=-1)
    with pytest.raises(ValueError, match="schedule.warmup_factor must be above 0 and at most 1. Received: 0"):
        warmup_step(optimizer(0.1), [3], warmup_factor=0)
