"""The nearest-neighbour classifier against one row, one neighbour at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_lightning.evaluation import knn
from odc_lightning.evaluation.knn import knn_accuracies, knn_accuracy


def sample(train=120, test=45, width=6, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)

    def draw(count):
        targets = torch.randint(classes, (count,), generator=generator)
        return centres[targets] + 1.5 * torch.randn(count, width, generator=generator), targets

    return *draw(train), *draw(test)


def slow_accuracy(train, train_targets, test, test_targets, k, temperature=0.07):
    hits, known = 0, 0
    for row, target in zip(test.tolist(), test_targets.tolist(), strict=True):
        if target == -1:
            continue
        scored = []
        for other, label in zip(train.tolist(), train_targets.tolist(), strict=True):
            if label != -1:
                dot = sum(a * b for a, b in zip(row, other, strict=True))
                scored.append((dot / math.hypot(*row) / math.hypot(*other), label))
        votes = {}
        for similarity, label in sorted(scored, reverse=True)[:k]:
            votes[label] = votes.get(label, 0) + math.exp(similarity / temperature)
        hits += max(votes, key=lambda label: votes[label]) == target
        known += 1
    return 100 * hits / known


@pytest.mark.parametrize("k", [1, 3, 20, 120])
@pytest.mark.parametrize("seed", range(3))
def test_equals_slow_loops(k, seed):
    data = sample(seed=seed)
    assert knn_accuracy(*data, k=k) == pytest.approx(slow_accuracy(*data, k=k))
    assert knn_accuracy(*data, k=k, temperature=0.5) == pytest.approx(slow_accuracy(*data, k=k, temperature=0.5))


def test_several_k_from_one_search_in_the_order_asked_for():
    data = sample(train=250)
    found = knn_accuracies(*data)
    assert found == {k: knn_accuracy(*data, k=k) for k in (10, 20, 100, 200)}
    assert list(knn_accuracies(*data, ks=(50, 1))) == [50, 1]


def test_blocks_do_not_matter(monkeypatch):
    data = sample()
    whole = knn_accuracies(*data, ks=(5, 20))
    monkeypatch.setattr(knn, "_SCORES", 7 * 120)
    assert knn_accuracies(*data, ks=(5, 20)) == whole
    monkeypatch.setattr(knn, "_SCORES", 1)
    assert knn_accuracies(*data, ks=(5, 20)) == whole


def test_autocast_length_and_type_of_the_features_do_not_matter():
    train, train_targets, test, test_targets = sample()
    expected = knn_accuracy(train, train_targets, test, test_targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert knn_accuracy(train, train_targets, test, test_targets) == expected
    assert knn_accuracy(9 * train, train_targets.int(), 0.1 * test, test_targets.short()) == expected
    assert knn_accuracy(train.double(), train_targets, test.double(), test_targets) == expected


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_order_of_the_rows_and_names_of_the_classes_do_not_matter(seed):
    train, train_targets, test, test_targets = sample(train=60, test=20, seed=seed)
    order, renamed = torch.randperm(60), torch.randperm(5)
    expected = knn_accuracy(train, train_targets, test, test_targets, k=9)
    moved = knn_accuracy(train[order], renamed[train_targets[order]], test, renamed[test_targets], k=9)
    assert moved == expected


def test_unknown_targets_are_left_out():
    train, train_targets, test, test_targets = sample()
    train_targets[::3], test_targets[::4] = -1, -1
    found = knn_accuracy(train, train_targets, test, test_targets, k=7)
    assert found == pytest.approx(slow_accuracy(train, train_targets, test, test_targets, k=7))
    known, tested = train_targets >= 0, test_targets >= 0
    assert found == knn_accuracy(train[known], train_targets[known], test[tested], test_targets[tested], k=7)


def test_a_training_row_finds_itself():
    train, train_targets, _, _ = sample()
    assert knn_accuracy(train, train_targets, train, train_targets, k=1) == 100


def test_equal_votes_go_to_the_lowest_class():
    train = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert knn_accuracy(train, torch.tensor([2, 1, 0]), train[:1], torch.tensor([1]), k=2) == 100


def test_a_class_that_no_training_row_has_is_an_error_of_the_classifier():
    train, train_targets, test, test_targets = sample()
    assert knn_accuracy(train, train_targets, test, test_targets + 5) == 0
    assert knn_accuracy(train, train_targets, test, test_targets, num_classes=50) == knn_accuracy(
        train, train_targets, test, test_targets
    )


def test_a_tiny_temperature_is_the_nearest_neighbour():
    data = sample()
    assert knn_accuracy(*data, k=50, temperature=1e-6) == knn_accuracy(*data, k=1)


NAN = torch.tensor([[0.0, 1], [math.nan, 0], [math.inf, 0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 4}, r"k must be in 1\.\.3, the known training rows. Received: 4"),
        ({"k": 0}, r"k must be in 1\.\.3, the known training rows. Received: 0"),
        ({"k": 3, "train_targets": torch.tensor([0, -1, 1])}, r"k must be in 1\.\.2"),
        ({"temperature": 0.0}, "temperature must be above 0. Received: 0.0"),
        ({"num_classes": 1}, "targets must be below num_classes, 1. Received: 1"),
        ({"train_targets": torch.tensor([0, -2, 1])}, "targets must be at least 0, or -1 for unknown. Received: -2"),
        ({"train_targets": torch.tensor([0, 1])}, r"train features must be .*Received: \(3, 2\) and \(2,\)"),
        ({"test_targets": torch.tensor([0])}, r"test features must be .*Received: \(2, 2\) and \(1,\)"),
        ({"test_features": torch.zeros(2, 5)}, "the same width. Received: 2 and 5"),
        ({"train_features": NAN}, "2 of 3 train rows hold NaN or infinity"),
        ({"test_features": NAN[:2]}, "1 of 2 test rows hold NaN or infinity"),
        ({"test_targets": torch.tensor([-1, -1])}, "no test row has a known target"),
        ({"train_targets": torch.tensor([-1, -1, -1])}, "no train row has a known target"),
    ],
)
def test_messages(changes, message):
    arguments = {
        "train_features": torch.eye(3)[:, :2],
        "train_targets": torch.tensor([0, 1, 1]),
        "test_features": torch.eye(2),
        "test_targets": torch.tensor([0, 1]),
        "k": 1,
    }
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**{**arguments, **changes})


def test_no_k_at_all():
    with pytest.raises(ValueError, match="ks must name at least one"):
        knn_accuracies(*sample(), ks=())
