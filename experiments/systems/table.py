"""A row a system from its run folders: mean and spread over the seeds. Usage: table.py RUNS [--csv FILE]."""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path

COLUMNS = {  # heading: file below the run, metric, pattern
    "kNN, %": ("evaluations/knn/results.json", "knn/top1", "{:.1f}"),
    "GAP linear, %": ("evaluations/linear_gap/results.json", "linear/gap/top1", "{:.1f}"),
    "NMI of k-means": ("evaluations/kmeans/results.json", "kmeans/nmi", "{:.3f}"),
    "final loss": ("results.json", "train/loss", "{:.3f}"),
    "training, s": ("results.json", "seconds", "{:.0f}"),
}


def value(run: Path, file: str, metric: str) -> float | None:
    """A figure of a finished run; None where there is none."""
    path = run / file
    if not path.exists():
        return None
    results = json.loads(path.read_text())
    return results["metrics"].get(metric, results.get(metric))


def rows(root: Path) -> dict[str, dict[str, list[float]]]:
    """System to heading to its figures, a figure a seed."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(root.glob("*_[0-9]*")):
        system = run.name.rpartition("_")[0]
        for heading, (file, metric, _) in COLUMNS.items():
            if (figure := value(run, file, metric)) is not None:
                found[system][heading].append(figure)
    return found


def cell(figures: list[float], pattern: str) -> str:
    """``mean ± standard deviation (seeds)``."""
    if not figures:
        return ""
    spread = f" ± {pattern.format(statistics.stdev(figures))}" if len(figures) > 1 else ""
    return f"{pattern.format(statistics.mean(figures))}{spread}"


def main() -> None:
    """Print Markdown, the best kNN first; write every figure to a CSV if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    found = rows(args.runs)
    print("| system | seeds | " + " | ".join(COLUMNS) + " |")
    print("|---|---" + "|---:" * len(COLUMNS) + "|")
    for system in sorted(found, key=lambda name: -statistics.mean(found[name]["kNN, %"] or [0.0])):
        cells = [cell(found[system][heading], pattern) for heading, (_, _, pattern) in COLUMNS.items()]
        print(f"| {system} | {max(map(len, found[system].values()))} | " + " | ".join(cells) + " |")
    if args.csv:
        with args.csv.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["system", "metric", "figures"])
            table.writerows([s, heading, *figures] for s, row in found.items() for heading, figures in row.items())


if __name__ == "__main__":
    main()
