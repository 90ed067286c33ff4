"""Runs the benchmarks one after another and prints a page of their output with machine, versions and date."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = (
    "memory.py --large",
    "price.py --threads 1 --rounds 60",
    "kmeans.py --rounds 5",
    "data.py --rounds 11",
    "footprint.py",
    "startup.py",
    "svm.py --each 2",
    "scale.py --measure",
)
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy", "opencv-python-headless", "simplejpeg", "faiss-gpu")


def processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def head() -> str:
    """Machine, versions, date, and whether anything else was at work."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    load = f"load average {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return (
        f"`make bench`, {time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {packages}; {load}\n"
    )


def main() -> None:
    """Print Markdown; a benchmark that fails is said at its place and in the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="names of scripts, such as memory; default: all")
    only = parser.parse_args().only
    print(f"# Benchmarks\n\n{head()}", flush=True)
    failed = 0
    for command in COMMANDS:
        script, *arguments = command.split()
        if only and script.removesuffix(".py") not in only:
            continue
        print(f"## `python bench/{command}`\n\n```", flush=True)
        done = subprocess.run(
            [sys.executable, HERE / script, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.STDOUT,
            check=False,
        )
        failed += done.returncode != 0
        print("```\n", flush=True)
    sys.exit(f"{failed} benchmarks failed" if failed else 0)


if __name__ == "__main__":
    main()
