"""The VOC2007 protocol solved all together, over one LinearSVC fit after another: time and test AP, in one process."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from odc_lightning.evaluation.average_precision import average_precision
from odc_lightning.evaluation.liblinear import fit_liblinear
from odc_lightning.evaluation.multilabel import COSTS, normalize, svm_protocol
from odc_lightning.evaluation.svm import SVMSolver

FOLDS = 3


def features_and_labels(
    images: int, tests: int, width: int, classes: int, seed: int
) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Rectified features with a direction for each class, and labels of which 1 to 3 are present."""
    rng = np.random.default_rng(seed)
    directions = np.abs(rng.normal(size=(classes, width)))
    features, labels = [], []
    for count in (images, tests):
        matrix = np.zeros((count, classes), dtype=np.int64)
        for row in matrix:
            row[rng.choice(classes, size=rng.integers(1, 4), replace=False)] = 1
        noise = rng.gamma(0.5, 2.0, size=(count, width))
        features.append(torch.from_numpy(noise + 0.12 * matrix @ directions).float())
        labels.append(matrix)
    return features, labels


def main() -> None:
    """Print both times, their ratio, and the worst difference in test AP over the sampled fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5011)
    parser.add_argument("--tests", type=int, default=4952)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--each", type=int, default=4, help="LinearSVC fits per cost; the rest is extrapolated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    features, labels = features_and_labels(args.images, args.tests, args.width, args.classes, args.seed)
    clock = time.process_time if args.threads == 1 else time.perf_counter

    began = clock()
    result = svm_protocol(features[0], labels[0], features[1], labels[1], folds=FOLDS)
    batched = clock() - began
    print(f"batched: {batched:.1f} s, mAP {result.map:.2f}", flush=True)

    train, test = normalize(features[0]), normalize(features[1])
    rng, reference, worst = np.random.default_rng(args.seed), 0.0, 0.0
    # A fold's fit sees two thirds of the rows; liblinear's time is about linear in them.
    fits_of_a_cost = args.classes * (FOLDS * (FOLDS - 1) / FOLDS)
    for cost in COSTS:
        began, chosen = clock(), rng.choice(args.classes, size=min(args.each, args.classes), replace=False)
        signs = np.where(labels[0][:, chosen] == 1, 1, -1)
        fits = [fit_liblinear(train.numpy(), column, cost)[0] for column in signs.T]
        seconds = (clock() - began) / len(chosen)
        reference += seconds * fits_of_a_cost + seconds * args.classes / len(COSTS)
        costs = torch.full((1, len(chosen)), cost, dtype=torch.float64)
        solved = SVMSolver(train).solve(torch.from_numpy(signs), costs)
        ours = average_precision(solved.scores(test)[0].numpy(), labels[1].T[chosen])
        theirs = average_precision(np.stack([f[:-1] for f in fits]) @ test.numpy().T, labels[1].T[chosen])
        worst = max(worst, float(np.abs(ours - theirs).max()))
        print(f"C {cost:.1e}: LinearSVC {seconds:.2f} s a fit, worst difference of test AP {worst:.1e}", flush=True)
    share = f"{len(COSTS) * min(args.each, args.classes)} fits timed of {args.classes * (len(COSTS) * FOLDS + 1):,}"
    print(f"LinearSVC: {reference:.0f} s ({share}, the rest extrapolated): {reference / batched:.1f} times as long")


if __name__ == "__main__":
    main()
