"""The permutations against a slow greedy choice, and how far apart they are."""

from itertools import permutations

import numpy as np
import pytest
import torch

from odc_lightning.methods.jigsaw_permutations import distant_permutations


def distance(one, other):
    return sum(a != b for a, b in zip(one, other, strict=True))


def test_greedy_choice_is_the_slow_one():
    count = 3
    every = list(permutations(range(9)))
    every = [every[number] for number in np.random.default_rng(7).permutation(len(every))]
    chosen = [every[0]]
    while len(chosen) < count:
        chosen.append(max(every, key=lambda candidate: min(distance(candidate, other) for other in chosen)))
    assert distant_permutations(count, seed=7).tolist() == [list(one) for one in chosen]


@pytest.mark.parametrize(("count", "apart"), [(9, 9), (100, 6), (1000, 5)])
def test_distinct_and_far_apart(count, apart):
    chosen = distant_permutations(count, seed=1)
    assert chosen.shape == (count, 9)
    assert torch.equal(chosen.sort(1).values, torch.arange(9).expand(count, 9))
    apart_PP = (chosen[:, None] != chosen).sum(2) + 9 * torch.eye(count, dtype=torch.long)
    assert apart_PP.min() == apart
    least = [int(apart_PP[number, :number].min()) for number in range(1, count)]
    assert least == sorted(least, reverse=True)  # greedy: never farther than the one before


def test_follows_the_seed():
    assert torch.equal(distant_permutations(20, seed=3), distant_permutations(20, seed=3))
    assert not torch.equal(distant_permutations(20, seed=3), distant_permutations(20, seed=4))


@pytest.mark.parametrize("count", [1, 362_881])
def test_other_numbers_are_refused(count):
    with pytest.raises(ValueError, match=f"num_permutations must be from 2 to 362,880, .* Received: {count}"):
        distant_permutations(count, seed=0)
