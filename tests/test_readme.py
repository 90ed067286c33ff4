"""What the README says can be done."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from app_runner import TINY, run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|console|sh)\n(.*?)```", README, re.DOTALL)
LINES = [
    line
    for block in BLOCKS
    for whole in block.replace("\\\n", " ").splitlines()
    if (line := re.sub(r"\s#.*|^#.*", "", whole).strip().removeprefix("$ "))
]
COMMANDS = [line for line in LINES if re.match(r"(python -m odc_lightning|odc)(\s|$)", line)]


def test_the_first_two_commands_do_all_the_set_up():
    assert LINES[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_make_targets_exist(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run_or_compose(tmp_path, line):
    args = shlex.split(line)
    args = args[3 if args[0] == "python" else 1 :]
    if "--help" in args:
        assert "experiment" in run(*args).text
        return
    composed = run(*[re.sub(r"=([^,\[]*),.*", r"=\1", arg) for arg in args if arg != "-m"], "--cfg", "job")
    assert composed.code == 0, composed.text
    config = yaml.safe_load(composed.text)
    if config["task"]["name"] == "train" and "Mnist5k" in config["data"]["source"]["_target_"]:
        shorter = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", *TINY]
        outcome = run(*args, f"run.root={tmp_path}", *shorter)
        assert outcome.code == 0, outcome.text


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#\s]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:src|conf|bench|experiments|tests)/[\w/.]*)`", README))))
def test_named_files_exist(path):
    assert (ROOT / path).exists()


def test_named_keys_and_choices_exist():
    groups = {
        path.name: {file.stem for file in path.glob("*.yaml")} for path in (ROOT / "conf").iterdir() if path.is_dir()
    }
    known = set(keys(yaml.safe_load(run("--cfg", "job").text)))
    chain = ["task=train_evaluate", "subset=classes", "measure=voc2007"]
    for other in (["experiment=odc_cifar10"], ["experiment=dc_cifar10"], ["task=evaluate", "protocol=linear"], chain):
        known |= set(keys(yaml.safe_load(run(*other, "--cfg", "job").text)))
    for name, value in re.findall(r"`(\w+(?:\.\w+)*)=([\w./]*)", README):
        if name in groups:
            assert value in groups[name], f"{name}={value}"
        elif name.split(".")[0] in {key.split(".")[0] for key in known}:
            assert name in known, name
    sections = r"method|data|trainer|logger|callbacks|optim|schedule|clustering|backbone|run"
    for name in re.findall(rf"`((?:{sections})(?:\.\w+)+)`", README):
        assert name in known, name


def keys(node, prefix=""):
    for name, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{name}"
        yield from keys(value, f"{prefix}{name}.")


def test_files_of_a_run_are_named_as_they_are():
    block = re.search(r"```\n(config\.yaml .*?)```", README, re.DOTALL)[1]
    named = {line.split()[0] for line in block.splitlines()}
    promised = {
        "config.yaml",
        "metrics.csv",
        "results.json",
        "index.html",
        "run.png",
        "checkpoints/",
        "clusters/assignments.csv",
        "clusters/history.npz",
        "wandb/",
    }
    assert named == promised
