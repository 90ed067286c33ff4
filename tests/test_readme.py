"""What the README says can be done."""

import re
import shlex
from pathlib import Path

import pytest

from app_runner import TINY, run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
COMMANDS = [line for line in LINES if line.startswith("python -m odc_lightning")]


def test_the_first_two_commands_do_all_the_set_up():
    assert LINES[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_make_targets_exist(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run_or_compose(tmp_path, line):
    args = shlex.split(line)[3:]
    if "--help" in args:
        assert "experiment" in run(*args).text
    elif any("=/path/to" in arg for arg in args) or "experiment=odc_cifar10" in args:  # data that is not here
        args = [arg.split(",")[0] for arg in args if arg != "-m"]
        outcome = run(*args, "--cfg", "job")
        assert outcome.code == 0, outcome.text
        assert "num_clusters" in outcome.text
    else:
        outcome = run(*args, f"run.root={tmp_path}", "trainer.max_epochs=1", "trainer.limit_train_batches=2", *TINY)
        assert outcome.code == 0, outcome.text


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:src|conf|bench|experiments|tests)/[\w/.]*)`", README))))
def test_named_files_exist(path):
    assert (ROOT / path).exists()


def test_named_keys_exist():
    text = run("--cfg", "job").text
    for key in re.findall(r"`(?:method|data|trainer)\.(\w+)", README):
        assert re.search(rf"^ +{key}:", text, re.MULTILINE) or key in ("download", "root"), key


def test_files_of_a_run_are_named_as_they_are():
    block = re.search(r"```\n(config\.yaml .*?)```", README, re.DOTALL)[1]
    named = {line.split()[0] for line in block.splitlines()}
    promised = {
        "config.yaml",
        "metrics.csv",
        "results.json",
        "run.png",
        "checkpoints/",
        "clusters/assignments.csv",
        "wandb/",
    }
    assert named == promised
