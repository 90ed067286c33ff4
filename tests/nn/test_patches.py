"""Patches against a search for them in their cells."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odc_lightning.nn.patches import PatchGrid


def places(side, share, seed, images=3, channels=2):
    """Where the patches of random images were found, in pixels from their cell's corner: (images * 9) pairs."""
    torch.manual_seed(seed)
    image = torch.randint(0, 256, (images, channels, side, side), dtype=torch.uint8)
    image[:, 0] = torch.arange(side, dtype=torch.uint8)[:, None]  # pixels know their row
    image[:, 1] = torch.arange(side, dtype=torch.uint8)  # and column
    grid = PatchGrid(share)
    patches, cell, size = grid.cut(image), side // 3, grid.side(side)
    assert patches.shape == (images, 9, channels, size, size)
    margin = (side - 3 * cell) // 2
    found = []
    for number in range(images):
        for place in range(9):
            patch = patches[number, place]
            row, column = int(patch[0, 0, 0]), int(patch[1, 0, 0])
            assert torch.equal(patch, image[number, :, row : row + size, column : column + size])
            found.append((row - margin - place // 3 * cell, column - margin - place % 3 * cell))
    return found, cell, size


@given(st.integers(6, 60), st.floats(0.3, 1), st.integers(0, 2**31))
def test_every_patch_lies_in_its_cell(side, share, seed):
    found, cell, size = places(side, share, seed)
    assert all(0 <= offset <= cell - size for pair in found for offset in pair)


def test_places_are_random_and_follow_the_generator():
    found, cell, size = places(30, 0.5, seed=3, images=40)
    assert {offset for pair in found for offset in pair} == set(range(cell - size + 1))
    assert found == places(30, 0.5, seed=3, images=40)[0] != places(30, 0.5, seed=4, images=40)[0]


@pytest.mark.parametrize(("image", "side"), [(255, 64), (32, 8), (28, 7), (12, 3)])
def test_the_release_proportions(image, side):
    assert PatchGrid().side(image) == side


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
def test_other_shares_are_refused(share):
    with pytest.raises(ValueError, match="method.patch_share must be above 0 and at most 1. Received"):
        PatchGrid(share)


def test_no_pixel_left():
    with pytest.raises(ValueError, match="data.image_size=4 leaves no pixel for a patch"):
        PatchGrid(0.4).named_side(4)
