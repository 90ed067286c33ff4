"""A row for each job of a sweep: what it varies, and a figure of its run folder. Usage: sweep_table.py SWEEP METRIC."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path


def value(job: Path, metric: str) -> float | None:
    """The figure, from the training or from any measuring below it; None where it is not there yet."""
    for file in [*job.glob("evaluations/*/results.json"), job / "results.json"]:
        if file.is_file() and metric in (metrics := json.loads(file.read_text())["metrics"]):
            return metrics[metric]
    return None


def natural(name: str) -> list[tuple[int, float | str]]:
    """Sorts 5 before 10."""
    return [(0, float(part)) if re.fullmatch(r"\d+", part) else (1, part) for part in re.split(r"(\d+)", name)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="its folder, such as runs/update_interval")
    parser.add_argument("metric", help="such as svm/map or knn/top1")
    args = parser.parse_args()
    jobs = sorted({file.parent for file in args.sweep.glob("*/config.yaml")}, key=lambda job: natural(job.name))
    if not jobs:
        parser.error(f"{args.sweep} holds no job")
    print(f"| job | {args.metric} |\n|---|---:|")
    for job in jobs:
        found = value(job, args.metric)
        print(f"| {job.name} | {'not finished' if found is None else f'{found:.1f}'} |")


if __name__ == "__main__":
    main()
