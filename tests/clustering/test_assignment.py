"""Which rows count as on the grid, and which are the farthest: against loops."""

import pytest
import torch
from test_kmeans import on_grid, random_rows, repeated_rows

from odc_lightning.clustering.assignment import _farthest_different_rows, rows_on_grid
from odc_lightning.memory import Ranks


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_on_the_grid_are_not_copied(dtype):
    rows = on_grid(random_rows(600, 5)).to(dtype)
    kept = rows.clone()
    assert rows_on_grid(rows, Ranks()) is rows
    assert torch.equal(rows, kept)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1.001, torch.float16), (1 + 2**-23, torch.float32), (2**-25, torch.float32), (0.5 + 2**-40, torch.float64)],
)
def test_one_number_off_the_grid_has_all_rows_snapped(value, dtype):
    rows = on_grid(random_rows(600, 5)).to(dtype)
    rows[571, 3] = value
    found = rows_on_grid(rows, Ranks())
    assert torch.equal(found, on_grid(rows))
    assert rows[571, 3] == torch.tensor(value, dtype=dtype)


@pytest.mark.parametrize("count", [1, 7, 40, 60])
@pytest.mark.parametrize("seed", range(3))
def test_farthest_different_rows_equal_a_loop(count, seed):
    rows = repeated_rows(different=50, copies=30)
    distance = torch.randint(9, (1500,), generator=torch.Generator().manual_seed(seed)).double()
    expected, seen = [], set()
    for position in sorted(range(1500), key=lambda i: (-distance[i], i)):
        if tuple(rows[position].tolist()) not in seen and len(expected) < count:
            seen.add(tuple(rows[position].tolist()))
            expected.append(position)
    found, found_distance, _ = _farthest_different_rows(rows, distance, count)
    assert found.tolist() == expected
    assert torch.equal(found_distance, distance[expected])
