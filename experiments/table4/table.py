"""Table 4 from run folders: rows original, + DC, + ODC; mean and spread over the seeds. Usage: table.py RUNS."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

STARTS = {"Col.": ("col", "colorization"), "Jig.": ("jig", "jigsaw"), "Rot.": ("rot", "rotation"), "DC": ("dc", "dc")}
ROWS = {"original": "systems/{system}_[0-9]*", "+ DC": "table4/{short}_dc_[0-9]*", "+ ODC": "table4/{short}_odc_[0-9]*"}
MEASURES = {"kNN, %": ("knn", "knn/top1"), "GAP linear, %": ("linear_gap", "linear/gap/top1")}


def figures(root: Path, pattern: str, protocol: str, metric: str) -> list[float]:
    """A figure of each seed that has one."""
    files = sorted(root.glob(f"{pattern}/evaluations/{protocol}/results.json"))
    return [json.loads(file.read_text())["metrics"][metric] for file in files]


def cell(values: list[float]) -> str:
    """``mean ± standard deviation``; empty where no run is."""
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Print one Markdown table for each measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    root = parser.parse_args().runs
    for heading, (protocol, metric) in MEASURES.items():
        print(f"| {heading} | " + " | ".join(STARTS) + " |")
        print("|---" + "|---:" * len(STARTS) + "|")
        for row, pattern in ROWS.items():
            places = [pattern.format(short=short, system=system) for short, system in STARTS.values()]
            print(f"| {row} | " + " | ".join(cell(figures(root, place, protocol, metric)) for place in places) + " |")
        print()


if __name__ == "__main__":
    main()
