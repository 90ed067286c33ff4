import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_lightning.clustering import nearest
from odc_lightning.clustering.nearest import _finalists, half_squares, is_nearer, nearest_centroid


def slow_nearest(rows, centroids, metric, allowed):
    labels = []
    for row in rows.double():
        scores = [
            (float(row @ c) if metric == "inner_product" else -float((row - c).square().sum())) if ok else -torch.inf
            for c, ok in zip(centroids.double(), allowed, strict=True)
        ]
        labels.append(scores.index(max(scores)))
    return labels


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("clusters", [1, 2, 7, 64, 191, 192, 200, 330])
def test_equals_a_slow_loop(metric, clusters):
    rows, centroids = torch.rand(20, 5), torch.rand(clusters, 5)
    centroids[clusters // 2] = centroids[0]  # equals: the lowest label wins
    allowed = torch.rand(clusters) > 0.3
    allowed[0] = True
    everywhere = torch.ones(clusters, dtype=torch.bool)
    assert nearest_centroid(rows, centroids, metric=metric).tolist() == slow_nearest(
        rows, centroids, metric, everywhere
    )
    some = nearest_centroid(rows, centroids, metric=metric, allowed_C=allowed)
    assert some.tolist() == slow_nearest(rows, centroids, metric, allowed)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 400), st.integers(0, 2**31), st.integers(1, 4))
def test_finalists_are_the_two_highest_with_the_lowest_columns_first(columns, seed, levels):
    groups = max(-(-columns // 64), 2)
    scores = torch.full((6, groups, 64), -torch.inf)
    some = torch.randint(levels, (6, columns), generator=torch.Generator().manual_seed(seed)).float()
    scores.flatten(1)[:, :columns] = some
    expected = [sorted(range(columns), key=lambda c, row=row: (-row[c], c))[:2] for row in some.tolist()]
    found = _finalists(scores, scores.amax(-1), torch.arange(len(scores)))
    assert [sorted(pair) for pair in found.tolist()] == [sorted(pair) for pair in expected]


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("length", [1e-3, 1.0, 50.0])
def test_what_float32_cannot_tell_float64_decides(metric, length):
    """Pairs of centroids that differ by about the rounding of a score: every label is the exact one all the same."""
    rows, half = torch.randn(400, 96), length * torch.randn(90, 96)
    centroids = torch.cat([half, half * (1 + 1e-7 * torch.randn(90, 96))])[torch.randperm(180)]
    distance = torch.cdist(rows.double(), centroids.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    exact = distance.argmin(1) if metric == "l2" else (rows.double() @ centroids.double().T).argmax(1)
    assert torch.equal(nearest_centroid(rows, centroids, metric=metric), exact)


def test_a_clear_lead_needs_no_second_look(monkeypatch):
    """The usual case on a CPU: the product alone decides, and it decides as the float64 rule does."""
    rows, centroids = torch.randn(300, 64), torch.randn(500, 64)
    exact = nearest_centroid(rows, centroids)
    looked_at = []
    decide = nearest._decide
    monkeypatch.setattr(nearest, "_decide", lambda rows, *rest: looked_at.append(len(rows)) or decide(rows, *rest))
    assert torch.equal(nearest_centroid(rows, centroids), exact)
    assert sum(looked_at) < 10
    assert torch.equal(torch.cdist(rows.double(), centroids.double()).argmin(1), exact)


def test_a_zero_row_goes_to_the_first_class_by_inner_product():
    assert nearest_centroid(torch.zeros(2, 4), torch.rand(500, 4), metric="inner_product").tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_depend_on_the_size_of_the_batch(seed):
    """Equal bits whatever part of a batch is labelled at once, also where two centroids are all but equally near."""
    torch.manual_seed(seed)  # in one of some hundred draws a third is as near
    rows, centroids = torch.rand(300, 64), torch.rand(700, 64)
    centroids[350:] = centroids[:350] + 1e-7 * torch.randn(350, 64)
    whole = nearest_centroid(rows, centroids)
    for size in (1, 7, 100):
        assert torch.equal(torch.cat([nearest_centroid(part, centroids) for part in rows.split(size)]), whole)


def test_half_squares_that_are_kept_change_nothing():
    """Of a few centroids as of all: what is updated in part equals what is computed anew after a resume."""
    centroids, some = torch.randn(333, 100), torch.randperm(333)[:20]
    assert torch.equal(half_squares(centroids)[some], half_squares(centroids[some]))
    assert half_squares(centroids).tolist() == pytest.approx([float(c @ c) / 2 for c in centroids.double()], rel=1e-5)
    rows = torch.randn(50, 100)
    kept = nearest_centroid(rows, centroids, half_squares_C=half_squares(centroids))
    assert torch.equal(kept, nearest_centroid(rows, centroids))


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_is_nearer_equals_a_slow_comparison(metric):
    rows, one, other = torch.randn(3, 200, 6).double()
    other[0] = one[0]  # equally near
    found = is_nearer(rows, one, other, metric)
    for row, a, b, nearer in zip(rows, one, other, found.tolist(), strict=True):
        slow = (row - b).norm() < (row - a).norm() if metric == "l2" else row @ b > row @ a
        assert nearer == bool(slow)


def test_autocast_changes_nothing():
    rows, centroids = torch.rand(100, 32) * 0.01 + 1, torch.rand(300, 32) * 0.01 + 1
    plain = nearest_centroid(rows, centroids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_centroid(rows, centroids), plain)


def test_no_rows_no_labels():
    assert nearest_centroid(torch.zeros(0, 4), torch.rand(3, 4)).tolist() == []


def test_unknown_metric():
    with pytest.raises(ValueError, match="metric must be one of l2, inner_product. Received: 'cosine'"):
        nearest_centroid(torch.rand(1, 2), torch.rand(3, 2), metric="cosine")
