"""The gallery of clusters on W&B: figures against a loop, pictures of the right members."""

import numpy as np
import pytest

from odc_lightning.callbacks import clusters
from odc_lightning.callbacks.clusters import GALLERY_COLUMNS, gallery
from odc_lightning.data.sources import BadImageError


class Greys:
    """Images that are one grey each: their number."""

    classes = None

    def __init__(self, targets_N):
        self.targets = targets_N

    def load(self, index):
        if index == 5:
            raise BadImageError("image 5")
        return np.full((20, 20, 1), index, dtype=np.uint8)


@pytest.fixture
def drawn():
    rng = np.random.default_rng()
    return rng.integers(0, 7, 200), rng.random(200), rng.integers(0, 4, 200)


def test_rows_are_those_of_a_loop(drawn):
    labels_N, distances_N, targets_N = drawn
    rows = [dict(zip(GALLERY_COLUMNS, row, strict=True)) for row in gallery(Greys(targets_N), labels_N, distances_N)]
    assert [row["images"] for row in rows] == sorted(np.bincount(labels_N)[np.unique(labels_N)].tolist(), reverse=True)
    for row in rows:
        members = np.flatnonzero(labels_N == row["cluster"])
        counts = np.bincount(targets_N[members], minlength=4)
        shares = counts[counts > 0] / len(members)
        assert row["images"] == len(members)
        assert row["mean distance"] == pytest.approx(distances_N[members].mean())
        assert counts[int(row["most frequent label"])] == counts.max()
        assert row["purity"] == pytest.approx(shares.max())
        assert row["entropy, bits"] == pytest.approx(-(shares * np.log2(shares)).sum())


def test_the_picture_shows_the_nearest_and_then_the_border(drawn):
    labels_N, distances_N, targets_N = drawn
    for row in gallery(Greys(targets_N), labels_N, distances_N):
        members = np.flatnonzero(labels_N == row[0])
        ordered = members[np.argsort(distances_N[members])]
        shown = [*ordered[:6], *ordered[6:][-6:]]
        pixels = np.asarray(row[-1].image)
        assert pixels.shape == (48, 12 * 48, 3)
        seen = pixels[24, 24::48, 0].tolist()
        assert seen[: len(shown)] == [128 if index == 5 else index for index in shown]


def test_without_labels_their_columns_are_empty(drawn):
    labels_N, distances_N, _ = drawn
    for targets_N in (None, np.full(200, -1)):
        assert all(row[3:6] == [None, None, None] for row in gallery(Greys(targets_N), labels_N, distances_N))


def test_only_the_largest_are_shown(drawn, monkeypatch):
    monkeypatch.setattr(clusters, "IN_GALLERY", 2)
    labels_N, distances_N, targets_N = drawn
    rows = gallery(Greys(targets_N), labels_N, distances_N)
    assert [row[1] for row in rows] == sorted(np.bincount(labels_N).tolist(), reverse=True)[:2]
