"""The wheel, installed away from the repository, runs the demo's first steps."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from app_runner import TINY, run_alone

ROOT = Path(__file__).parents[1]


def pip(*args):
    subprocess.run([sys.executable, "-m", "pip", *map(str, args)], check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    return next(folder.glob("odc_lightning-*.whl"))


def test_the_wheel_carries_conf_dossiers_and_the_console_script(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder, pattern in (("conf", "*.yaml"), ("experiments", "*.*")):
        prefix = f"odc_lightning/{folder}/"
        packaged = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        there = (ROOT / folder).rglob(pattern)
        assert packaged == {str(path.relative_to(ROOT / folder)) for path in there if "__pycache__" not in path.parts}
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "odc = odc_lightning.app:main" in zipfile.ZipFile(wheel).read(entry_points).decode()
    assert not [name for name in names if name.split("/")[0] not in ("odc_lightning", names[-1].split("/")[0])]


@pytest.mark.slow
def test_installed_in_an_empty_folder_it_runs_the_demo(wheel, tmp_path):
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip("install", "--no-deps", "--target", target, wheel)
    where = run_alone(
        "from odc_lightning import app; print(app.__file__, app.conf_dir())",
        program=[sys.executable, "-c"],
        cwd=empty,
        PYTHONPATH=str(target),
    )
    assert where.text.split() == [str(target / "odc_lightning" / name) for name in ("app.py", "conf")]
    args = ["trainer.max_epochs=1", "trainer.limit_train_batches=3", *TINY]
    outcome = run_alone(*args, cwd=empty, PYTHONPATH=str(target))
    assert outcome.code == 0, outcome.text
    assert (empty / "runs" / "demo" / "results.json").exists()
    outcome = run_alone("task=report", cwd=empty, PYTHONPATH=str(target))
    assert outcome.code == 0, outcome.text
    assert (empty / "report" / "index.html").exists()
