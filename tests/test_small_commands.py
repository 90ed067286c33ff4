"""What a dossier says of running it in small is run, shortened, and the report finds every cell that it should fill."""

import csv
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from app_runner import run, run_alone, write_images
from dossier_commands import small_commands
from odc_lightning.data import subset

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
# The cells that a dossier's commands in small fill: rows, and what their columns begin with.
FILLED = {
    "fig1_loss": (["ODC", "DeepCluster"], ""),
    "fig3_low_shot": (["ODC", "Random"], ""),
    "fig4_min_cluster_size": (["kNN"], ""),
    "fig4_update_interval": (["kNN"], ""),
    "fig5_label_switch": (["small ResNet"], ""),
    "fig6_long_tail": (["kNN"], ""),
    "fig7_clusters": (["ODC"], ""),
    "table1_imagenet_linear": (["ODC"], "ImageNet"),
    "table2_places_linear": (["ODC", "DeepCluster", "Random"], "ImageNet"),
    "table3_voc07_svm": (["ODC", "Random"], "SVM"),
}
# Dossiers whose commands are scripts: the systems that the test runs, and what table 4 starts from.
SCRIPTS = {
    "systems": (["ODC", "Rotation", "Random"], ""),
    "table4": (["original", "+ DC", "+ ODC"], "Rot."),
}
PLACE = "/path/to/images"
OWN_PYTHON = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
WITHOUT = ("hydra/launcher=", "hydra.launcher.")  # one job after another, here
SHORT = {"data.subset.num_images=2500": "data.subset.num_images=100"}
SEEDS = "seed=0,1,2"
OF_ALL = ["clustering.backend=torch", "clustering.iterations=2", "data.num_workers=0", "logger.wandb.mode=disabled"]
OF_A_TRAINING = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "method.log_every_n_steps=1"]
OF_A_PROTOCOL = {
    "knn": ["protocol.ks=[5]", "protocol.k=5"],
    "linear": ["protocol.epochs=1", "protocol.milestones=[]"],
    "voc07_svm": ["protocol.costs=[0.1]"],
    "voc07_low_shot": ["protocol.costs=[0.1]", "protocol.samples=1", "protocol.jobs=1"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """As CIFAR-10's in kind: 32 x 32, class folders; 1,100 images, enough for the clusters of the scripts."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 1100), ("val", 20)):
        write_images(root / split, count, ("a", "b", "c", "d"), side=32)
    return root


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """Runs, lists of files and draws of subsets lie below tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(subset, "DEFAULT_CACHE", tmp_path / "draws")


def of_the_dossier(name):
    return small_commands((EXPERIMENTS / name / "README.md").read_text())


def shortened(command, images):
    """Arguments of a command: on these images, and as little work as runs at all."""
    args = [SHORT.get(arg, arg.replace(PLACE, str(images))) for arg in shlex.split(command)[3:]]
    args = [arg for arg in args if not arg.startswith(WITHOUT)]
    seeds = "seed=0" if any(arg.startswith("sweep=") for arg in args) else "seed=0,1"  # what varies names the jobs
    args = [seeds if arg == SEEDS else arg for arg in args]
    if "task=clusters" in args:
        return args
    args += OF_ALL
    for protocol, short in OF_A_PROTOCOL.items():
        args += short if f"protocol={protocol}" in args else []
    if "task=evaluate" not in args:
        args += OF_A_TRAINING
        args += ["method.num_clusters=2"] if f"data.root={images}" in args else []
        args += [] if "callbacks.measure=null" in args else ["callbacks.measure.max_images=50"]
    return args


def require_filled(name, rows, columns, runs="runs"):
    """The report of these runs has the dossier's cells in these rows and columns, marked as in small."""
    shutil.copytree(EXPERIMENTS / name, Path("only") / name, dirs_exist_ok=True)  # to draw one figure, not twelve
    outcome = run("task=report", f"report.runs={runs}", "report.experiments=only")
    assert outcome.code == 0, outcome.text
    with Path("report", name, "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = {(line["row"], line["column"]) for line in lines if line["mark"] == "in small"}
    wanted = {(row, line["column"]) for row in rows for line in lines if line["column"].startswith(columns)}
    assert wanted
    assert wanted - found == set()


def test_every_dossier_is_run_here():
    assert {*FILLED, *SCRIPTS} == {path.parent.name for path in EXPERIMENTS.glob("*/dossier.yaml")}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILLED)
def test_commands_in_small_fill_the_dossier(name, images, own_home):
    found = of_the_dossier(name)
    assert found
    for command in found:
        outcome = run(*shortened(command, images))
        assert outcome.code == 0, f"{command}\n{outcome.text}"
        if own := re.search(r"odc_lightning -m .*run\.name=(\w+)", command):  # such a sweep fills the dossier alone
            require_filled(name, *FILLED[name], runs=f"runs/{own[1]}")
    require_filled(name, *FILLED[name])


@pytest.mark.slow
def test_scripts_fill_their_dossiers(images, own_home, tmp_path):
    """One epoch of some systems, and of table 4 from one of these."""
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments")  # the scripts run where they lie
    (systems, table4) = of_the_dossier("table4")
    assert of_the_dossier("systems") == [systems]
    for command, some in ((systems, "rotation odc random"), (table4, "rot")):
        shell, script, place, _, seeds = shlex.split(command)
        assert (place, seeds) == (PLACE, "0 1 2")
        outcome = run_alone(script, images, 1, 0, 2, some, program=[shell], timeout=500, PATH=OWN_PYTHON)
        logs = "\n".join(log.read_text() for log in Path("runs").glob("*/log/*"))
        assert outcome.code == 0, outcome.text + logs
        assert "Error" not in logs
    for name, cells in SCRIPTS.items():
        require_filled(name, *cells)
