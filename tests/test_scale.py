"""The page on scale: its tables are those that the script prints, its formulas are what processes count."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "bench" / "scale.py"


def load():
    spec = importlib.util.spec_from_file_location("bench_scale", SCRIPT)
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_the_script_prints():
    printed = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True).stdout
    shown = re.search(r"<!-- tables -->\n(.*)<!-- end -->", (ROOT / "docs" / "scale.md").read_text(), re.DOTALL)[1]
    assert shown.strip() == printed.strip()


@pytest.mark.parametrize(
    "world", [1, 2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_formulas_are_what_processes_count(world):
    scale, rng = load(), np.random.default_rng()
    run = scale.Run(int(rng.integers(500, 900)), world, int(rng.integers(10, 30)), int(rng.integers(4, 20)), 8, 5)
    script = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import scale; "]
    script[-1] += f"print(scale.measured(scale.Run(*{[run.samples, world, run.clusters, run.dim, 8, 5]}), steps=10))"
    # A process of its own: children of this one would be counted under pytest's name.
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    found = eval(done.stdout, {"__builtins__": {}})
    for part in ("rows", "labels", "tables", "gathered", "reduced"):
        assert found[part] == getattr(run, part), (part, run)


def test_the_busiest_rank_is_about_the_largest_of_many():
    scale, rng = load(), np.random.default_rng()
    run = scale.Run(10**6, 64)
    drawn = [np.bincount(rng.integers(0, 64, run.batch), minlength=64).max() for _ in range(200)]
    assert run.busiest() == pytest.approx(np.mean(drawn), rel=0.1)


def test_one_rank_sends_nothing_and_more_ranks_keep_fewer_rows():
    scale = load()
    one, many = scale.Run(1001, 1), scale.Run(1001, 8)
    assert (one.wire, one.gathered, one.reduced) == (0, 0, 0)
    assert many.rows == 126 * 256 * 4
    assert many.labels == one.labels
