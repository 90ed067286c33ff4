"""The low-shot protocol: what is drawn, what is dropped, how the figures are put together."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from odc_lightning.evaluation.average_precision import average_precision
from odc_lightning.evaluation.low_shot import SHOTS, draw_low_shot, low_shot_protocol, read_draws
from odc_lightning.evaluation.multilabel import normalize


@pytest.fixture(scope="module")
def data():
    """Train and test features and labels of 3 classes, some labels difficult."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(500, 12))
    features = np.maximum(hidden @ rng.normal(size=(12, 24)) + rng.normal(size=(500, 24)), 0).astype(np.float32)
    labels = (hidden[:, :3] + 0.5 * rng.normal(size=(500, 3)) > 1).astype(int)
    labels[rng.random(labels.shape) < 0.05] = -1
    return features[:300], labels[:300], features[300:], labels[300:]


@pytest.mark.parametrize("shots", SHOTS)
def test_counts_of_a_draw(shots):
    rng = np.random.default_rng(1)
    labels = rng.choice([1, 0, -1], size=(4000, 3), p=[0.1, 0.85, 0.05])
    targets = draw_low_shot(labels, shots, 1)
    assert ((targets == 1).sum(0) == shots).all()
    assert ((targets == 0).sum(0) == 19 * shots).all()
    assert ((targets == -1).sum(0) == 4000 - 20 * shots).all()
    drawn = targets != -1
    assert (targets[drawn] == labels[drawn]).all()  # so difficult images are never drawn


def test_draws_repeat_and_differ_by_sample_seed_class_and_shots():
    labels = np.repeat((np.arange(1000) % 4 == 0).astype(int)[:, None], 2, axis=1)
    first = draw_low_shot(labels, 4, 1)
    assert (first == draw_low_shot(labels, 4, 1)).all()
    assert (first[:, 0] != first[:, 1]).any()
    for other in (draw_low_shot(labels, 4, 2), draw_low_shot(labels, 4, 1, seed=1)):
        assert (first != other).any()
    # a class keeps its draw when classes are added
    assert (draw_low_shot(labels[:, :1], 4, 1) == first[:, :1]).all()


def test_protocol_step_by_step(data):
    """Written out: the drawn rows only, LinearSVC, mean over samples for each cost, then the best cost on the test."""
    costs, shots, samples = (0.01, 1.0), (1, 3), 2
    found = low_shot_protocol(*data, shots=shots, samples=samples, costs=costs, jobs=1)
    train, test = (normalize(torch.from_numpy(each)).numpy() for each in (data[0], data[2]))
    for row, shot in enumerate(shots):
        table = np.zeros((samples, 2, 3))
        for sample, cost, place in np.ndindex(table.shape):
            targets = draw_low_shot(data[1], shot, sample + 1)[:, place]
            drawn = targets != -1
            svm = LinearSVC(C=costs[cost], class_weight={1: 2, -1: 1}, tol=1e-4, max_iter=2000, random_state=0)
            scores = svm.fit(train[drawn], 2 * targets[drawn] - 1).decision_function(test)
            table[sample, cost, place] = 100 * average_precision(scores, data[3][:, place])
        np.testing.assert_allclose(found.table[row], table.mean(2), atol=1e-3)
        assert found.map[shot] == pytest.approx(table.mean((0, 2)).max(), abs=1e-3)
        assert found.cost[shot] == costs[int(table.mean((0, 2)).argmax())]
    assert found.mean == pytest.approx(np.mean(list(found.map.values())))


def write_draws(folder, labels, shots, samples, change=lambda targets: targets):
    for shot in shots:
        for sample in range(1, samples + 1):
            targets = change(draw_low_shot(labels, shot, sample, seed=9))
            np.save(folder / f"train_targets_sample{sample}_k{shot}.npy", targets.astype(np.int32))


def test_fixed_draws_from_files(data, tmp_path):
    write_draws(tmp_path, data[1], (1, 2), 2)
    settings = {"shots": (1, 2), "samples": 2, "costs": (1.0,)}
    from_files = low_shot_protocol(*data, **settings, draws=tmp_path, jobs=1)
    seeded = low_shot_protocol(*data, **settings, seed=9, jobs=2)
    assert (from_files.table == seeded.table).all()
    assert (read_draws(tmp_path, 2, 1) == draw_low_shot(data[1], 2, 1, seed=9)).all()


def test_more_shots_help(data):
    found = low_shot_protocol(*data, shots=(1, 8), samples=3, costs=(0.1, 1.0), jobs=1)
    assert found.map[8] > found.map[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shots": (1, 60)}, ValueError, r"shots=60 needs 60 positive images of each class. Received: \d+ of bird"),
        ({"shots": (14,)}, ValueError, r"shots=14 needs 266 negative images of each class. Received: \d+ of bird"),
        ({"shots": (0, 1)}, ValueError, r"shots must be different integers of at least 1. Received: \[0, 1\]"),
        ({"shots": (2, 2)}, ValueError, "shots must be different"),
        ({"samples": 0}, ValueError, "samples must be at least 1. Received: 0"),
        ({"costs": ()}, ValueError, "at least one cost"),
        ({"class_weight": 0}, ValueError, "class_weight must be above 0. Received: 0"),
        ({"train_features": np.full((300, 24), np.nan)}, ValueError, "300 of 300 rows of train features hold NaN"),
    ],
)
def test_bad_input(data, change, error, message):
    names = ("train_features", "train_labels", "test_features", "test_labels")
    with pytest.raises(error, match=message):
        low_shot_protocol(
            **{**dict(zip(names, data, strict=True)), "classes": ["bird", "boat", "bus"], "jobs": 1, **change}
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda targets: targets[:50], r"sample1_k1.npy must be \(300, 3\), as the labels. Received: \(50, 3\)"),
        (lambda targets: targets[::-1], "contradicts .* of the 60 labels that it draws: .* in another order"),
        (lambda targets: targets + 1, r"sample1_k1.npy must be 1 \(present\), 0.*Received: 2"),
        (lambda targets: targets[:, 0], r"sample1_k1.npy must be \(images, classes\). Received: \(300,\)"),
        (
            lambda targets: np.where(targets == 1, -1, targets),
            "must draw a positive image of each class. Received: none",
        ),
    ],
)
def test_draws_that_do_not_fit(data, tmp_path, change, message):
    write_draws(tmp_path, data[1], (1,), 1, change)
    with pytest.raises(ValueError, match=message):
        low_shot_protocol(*data, shots=(1,), samples=1, draws=tmp_path, jobs=1)


def test_missing_draws_say_what_is_there(data, tmp_path):
    write_draws(tmp_path, data[1], (1,), 1)
    message = r"draws must hold train_targets_sample2_k1.npy. Found in .*: train_targets_sample1_k1.npy"
    with pytest.raises(FileNotFoundError, match=message):
        low_shot_protocol(*data, shots=(1,), samples=2, draws=tmp_path, jobs=1)


def test_worker_processes_do_without_torch():
    """Importing it would cost each of them two seconds and 200 MB."""
    code = "import odc_lightning.evaluation.liblinear, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
