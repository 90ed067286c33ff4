"""How long the command line takes to answer help and mistakes, beside Python itself and the libraries that it needs.

Wall time with a warm file cache, which is what a person waits; and processor time, which does not see what else the
machine does.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

APP = ("-m", "odc_lightning")
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    'python -c "import hydra, omegaconf"': ("-c", "import hydra, omegaconf"),
    'python -c "import torch"': ("-c", "import torch"),
    "--help": (*APP, "--help"),
    "--hydra-help": (*APP, "--hydra-help"),
    "--cfg job": (*APP, "--cfg", "job"),
    "nosuch=1": (*APP, "nosuch=1"),
    "experiment=nosuch": (*APP, "experiment=nosuch"),
    "method.momentum=high": (*APP, "method.momentum=high"),
    "method.momentum=7": (*APP, "method.momentum=7"),
    "method.num_clusters=5000 (of 4,000)": (*APP, "method.num_clusters=5000"),
}


def run(arguments: tuple[str, ...], folder: str) -> tuple[float, float]:
    """Wall and processor seconds of one Python process that starts in an empty folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each command, after one that warms the file cache")
    runs = parser.parse_args().runs
    print(f"median of {runs} runs (least to most) of wall seconds; median of processor seconds")
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in COMMANDS.items():
            times = [run(arguments, folder) for _ in range(runs + 1)][1:]
            walls, processor = [wall for wall, _ in times], statistics.median(seconds for _, seconds in times)
            spread = f"({min(walls):.2f} to {max(walls):.2f})"
            print(f"{name:<38} {statistics.median(walls):6.2f} s {spread}   {processor:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
