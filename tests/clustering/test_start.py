"""The spread start against a slow loop in whole numbers, its probabilities, and that it really spreads."""

import math

import pytest
import torch
from test_kmeans import on_grid, random_rows, repeated_rows, squared

from odc_lightning.clustering.start import _STEP, _approach, spread_start
from odc_lightning.memory import Ranks


def spread(rows, clusters, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return spread_start(rows, len(rows), clusters, Ranks(), generator).tolist()


def slow_spread(rows, clusters, seed):
    """Python's integers have no rounding to depend on an order."""
    generator = torch.Generator().manual_seed(seed)
    subset = torch.randperm(len(rows), generator=generator)[: 8 * clusters].tolist()
    points = [[round(value * 2**20) for value in rows[i].tolist()] for i in subset]
    per_round = math.ceil(clusters / 16)
    drawn, nearest = list(range(per_round)), [math.inf] * len(subset)
    while len(drawn) < clusters:
        race = torch.empty(len(subset), dtype=torch.float64).exponential_(generator=generator).tolist()
        for s, point in enumerate(points):
            nearest[s] = min(nearest[s], *(squared(point, points[d]) for d in drawn))
        left = [s for s in range(len(subset)) if s not in drawn]
        left.sort(key=lambda s: race[s] / nearest[s] if nearest[s] else math.inf)
        drawn += left[: min(per_round, clusters - len(drawn))]
    return [subset[s] for s in drawn]


def long_rows(count, width):
    """On the grid and within [-1, 1], but of length √(width / 3): on 2^-24 their products would be rounded."""
    return torch.rand(count, width, generator=torch.Generator().manual_seed(5)).mul_(2).sub_(1)


@pytest.mark.parametrize(
    ("rows", "clusters"),
    [
        (on_grid(random_rows(90, 6, centres=9)), 1),
        (on_grid(random_rows(90, 6, centres=9)), 2),
        (on_grid(random_rows(400, 6, centres=9)), 15),
        (on_grid(random_rows(400, 6, centres=9)), 16),
        (on_grid(random_rows(400, 6, centres=9)), 17),
        (on_grid(random_rows(400, 6, centres=9)), 45),
        (on_grid(random_rows(300, 6, centres=9)).half(), 33),
        (long_rows(200, 300), 20),
        (on_grid(random_rows(40, 4)), 40),
        (repeated_rows(different=12, copies=9), 12),
        (repeated_rows(different=5, copies=6), 20),
        (torch.zeros(60, 3), 34),
        (torch.zeros(1, 3), 1),
    ],
)
def test_equals_slow_loop(rows, clusters):
    for seed in range(2):
        drawn = spread(rows, clusters, seed)
        assert drawn == slow_spread(rows, clusters, seed)
        assert len(set(drawn)) == clusters


def test_distances_are_exact():
    rows = long_rows(30, 300).div(_STEP).round()
    whole = rows.long()
    distance = torch.full((30,), torch.inf, dtype=torch.float64)
    _approach(distance, rows, rows[:7])
    assert distance.tolist() == (whole[:, None] - whole[None, :7]).square().sum(2).amin(1).tolist()


def test_threads_do_not_change_the_rows():
    rows, drawn, threads = long_rows(3000, 100), [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            drawn.append(spread(rows, 300))
    finally:
        torch.set_num_threads(threads)
    assert drawn[0] == drawn[1]


def test_equal_rows_are_drawn_only_where_no_others_are_left():
    rows = repeated_rows(different=12, copies=9)  # 12 clusters: the subset holds 96 of the 108 rows, hence all twelve
    for seed in range(5):
        assert sorted(i % 12 for i in spread(rows, 12, seed)) == list(range(12))
        assert {i % 12 for i in spread(rows, 15, seed)} == set(range(12))


def test_probability_is_the_squared_distance():
    rows = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 1.0]])  # squared distances 1/4, 1, and 5/4 of the last two
    drawn = [spread(rows, 2, seed) for seed in range(3000)]
    for first, other, probability in ((0, 1, 1 / 5), (1, 0, 1 / 6), (2, 0, 4 / 9)):
        second = [pair[1] for pair in drawn if pair[0] == first]
        assert len(second) > 900
        assert second.count(other) / len(second) == pytest.approx(probability, abs=0.05)  # 3 standard deviations


@pytest.mark.parametrize(("clusters", "share"), [(10, 0.95), (100, 0.85)])
def test_reaches_more_clusters_than_random_rows(clusters, share):
    """As many clusters as rows: random rows reach about 1 - 1/e of them, and rounds of several rows not quite all."""
    reached, at_random = 0.0, 0.0
    for seed in range(8):
        centre_N = torch.randint(clusters, (20 * clusters,), generator=torch.Generator().manual_seed(seed))
        offsets = 0.1 * random_rows(len(centre_N), 32, seed + 50)
        drawn = spread(on_grid(random_rows(clusters, 32, seed)[centre_N] + offsets), clusters, seed)
        reached += len(centre_N[drawn].unique()) / clusters / 8
        at_random += len(centre_N[:clusters].unique()) / clusters / 8
    assert reached > share
    assert at_random < share - 0.2
