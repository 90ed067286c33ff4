"""Average precision against a slow loop over thresholds, and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from odc_lightning.evaluation.average_precision import average_precision


def slow(scores, labels, interpolated):
    """Every threshold in turn: recall and precision of the rows at or above it."""
    points = []
    for threshold in sorted(set(scores[labels != -1]), reverse=True):
        shown = (scores >= threshold) & (labels != -1)
        hits = int((labels[shown] == 1).sum())
        points.append((hits / int((labels == 1).sum()), hits / int(shown.sum())))
    area, earlier = 0.0, 0.0
    for place, (recall, precision) in enumerate(points):
        height = max(p for _, p in points[place:]) if interpolated else precision
        area += (recall - earlier) * height
        earlier = recall
    return area


rankings = st.integers(1, 25).flatmap(
    lambda rows: st.tuples(
        arrays(np.float64, rows, elements=st.integers(-3, 3).map(float)),
        arrays(np.int64, rows, elements=st.sampled_from([1, 0, -1])),
    )
)


@settings(max_examples=300, deadline=None)
@given(rankings, st.booleans(), st.integers(0, 2**32 - 1))
def test_equals_the_loop_whatever_the_order_of_the_rows(ranking, interpolated, seed):
    scores, labels = ranking
    found = average_precision(scores, labels, interpolated=interpolated)
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    again = average_precision(scores[shuffled], labels[shuffled], interpolated=interpolated)
    np.testing.assert_allclose(found, again, atol=1e-14)
    if (labels == 1).any():
        assert found == pytest.approx(slow(scores, labels, interpolated), abs=1e-12)
    else:
        assert np.isnan(found)


@pytest.mark.parametrize("levels", [3, 10_000])
def test_without_interpolation_it_is_scikit_learns(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(levels, size=(6, 500)).astype(np.float32)
    labels = rng.choice([1, 0, -1], size=(6, 500), p=[0.1, 0.8, 0.1])
    for row, (s, l) in enumerate(zip(scores, labels, strict=True)):
        expected = average_precision_score(l[l != -1] == 1, s[l != -1])
        assert average_precision(scores, labels, interpolated=False)[row] == pytest.approx(expected, abs=1e-12)


def test_many_problems_share_labels_and_interpolation_never_lowers():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(2, 7, 300)), rng.integers(-1, 2, size=(7, 300))
    together = average_precision(scores, labels)
    assert together.shape == (2, 7)
    one = average_precision(scores[1, 3], labels[3])
    assert together[1, 3] == one
    assert (together >= average_precision(scores, labels, interpolated=False)).all()


def test_by_hand():
    # ranked: present, absent, present: precision 1 up to recall 1/2, then 2/3
    assert average_precision([3.0, 2.0, 1.0], [1, 0, 1]) == pytest.approx(0.5 + 0.5 * 2 / 3)
    # absent first: the precision 2/3 of the end holds for all lower recalls
    assert average_precision([3.0, 2.0, 1.0], [0, 1, 1]) == pytest.approx(2 / 3)
    assert average_precision([3.0, 2.0, 1.0], [0, 1, 1], interpolated=False) == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3)
    assert average_precision([3.0, 2.0, 1.0], [-1, 1, 1]) == 1
    assert average_precision([-np.inf, 0.0, 1.0], [1, -1, 0]) == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([np.nan, 1.0], [1, 0], "1 of 2 scores are NaN"),
        ([0.5, 1.0], [2, 0], r"must be 1 \(present\), 0 \(absent\) or -1 \(difficult\).*Received: 2"),
        ([0.5, 1.0], [1, 0, 0], r"as many of both. Received: \(2,\) and \(3,\)"),
        ([], [], "at least one row"),
    ],
)
def test_bad_input(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        average_precision(scores, labels)
