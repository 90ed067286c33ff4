"""Dossiers and docs: commands compose, published numbers are marked, what is named exists."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import yaml

from app_runner import run
from dossier_commands import commands
from odc_lightning.report.dossier import COLUMNS, SOURCES, load_dossiers

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
PAGES = sorted([*EXPERIMENTS.rglob("README.md"), *(ROOT / "docs").glob("*.md")])
DOSSIERS = {dossier.name: dossier for dossier in load_dossiers(EXPERIMENTS)}
OF_THE_PAPER = {
    "fig1_loss",
    "fig3_low_shot",
    "fig4_min_cluster_size",
    "fig4_update_interval",
    "fig6_long_tail",
    "fig5_label_switch",
    "fig7_clusters",
    "table1_imagenet_linear",
    "table2_places_linear",
    "table3_voc07_svm",
    "table4",
}
SECTIONS = ("**Question.**", "**Full size**", "**In small**", "**How to read it.**", "xpected:")


COMMANDS = sorted({command for page in PAGES for command in commands(page.read_text())})


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m ")])
def test_commands_compose(command):
    args = shlex.split(command)
    assert args[:3] == ["python", "-m", "odc_lightning"]
    # Of a sweep, its first job.
    first = [re.sub(r"=([^,\[]*),.*", r"=\1", arg) for arg in args[3:] if arg != "-m"]
    composed = run(*first, "--cfg", "job")
    assert composed.code == 0, composed.text
    config = yaml.safe_load(composed.text)
    assert config["task"]["name"] in ("train", "evaluate", "train_evaluate", "embed", "report", "clusters")


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("python -m ")])
def test_scripts_exist(command):
    program, script, *_ = shlex.split(command)
    assert {"bash": ".sh", "python": ".py"}[program] == Path(script).suffix
    assert (ROOT / script).exists()


def test_every_table_and_figure_has_its_dossier():
    assert set(DOSSIERS) >= OF_THE_PAPER


@pytest.mark.parametrize("name", sorted(DOSSIERS))
def test_readme_says_what_is_asked_how_to_run_it_and_how_to_read_it(name):
    text = (EXPERIMENTS / name / "README.md").read_text()
    assert [part for part in SECTIONS if part not in text] == []
    assert f"`{name}`" in (EXPERIMENTS / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(OF_THE_PAPER))
def test_published_numbers_are_marked_and_say_where_they_stand(name):
    with (EXPERIMENTS / name / "published.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert {line["source"] for line in lines} <= set(SOURCES)
    assert all(line["where"] for line in lines)
    assert all(line["note"] for line in lines if line["source"] == "axis-only")
    numbers = [(line["row"], line["column"], line["source"]) for line in lines if line["value"]]
    assert len(numbers) == len(set(numbers)), "a number twice"


@pytest.mark.parametrize(
    ("name", "row", "column", "source", "value"),
    [
        ("table1_imagenet_linear", "ODC", "ImageNet conv4", "paper", 41.4),
        ("table1_imagenet_linear", "Places labels", "Places205 conv5", "paper", 44.6),
        ("table1_imagenet_linear", "Relative location", "ImageNet conv1", "paper", 16.2),
        ("table2_places_linear", "ODC", "ImageNet conv5", "paper", 57.6),
        ("table2_places_linear", "ODC", "Places205 conv5", "release", 49.18),
        ("table2_places_linear", "Rotation", "ImageNet best layer", "paper", 41.7),
        ("table3_voc07_svm", "ODC", "SVM", "paper", 78.2),
        ("table3_voc07_svm", "DeepCluster", "SVM", "release", 74.26),
        ("table3_voc07_svm", "ODC", "low-shot", "paper", 57.1),
        ("fig3_low_shot", "ODC", "96", "release", 75.13),
        ("fig1_loss", "DeepCluster", "loss at the end", "paper", 2.9),
        ("table4", "+ ODC", "Col.", "paper", 72.3),
    ],
)
def test_numbers_of_the_paper(name, row, column, source, value):
    (found,) = [p for p in DOSSIERS[name].published if (p.row, p.column, p.source) == (row, column, source)]
    assert found.value == value


def test_gains_that_the_paper_names_follow_from_its_table():
    """Sec. 4.2: 16.7 for Col., 9.9 for Jig., 7.1 for Rot., 7.9 for DC."""
    value = {(p.row, p.column): p.value for p in DOSSIERS["table4"].published}
    gains = [value["+ ODC", start] - value["original", start] for start in DOSSIERS["table4"].columns]
    assert gains == pytest.approx([16.7, 9.9, 7.1, 7.9])


def test_low_shot_means_are_those_of_the_curve():
    curve, table = DOSSIERS["fig3_low_shot"].published, DOSSIERS["table3_voc07_svm"].published
    means = {p.row: p.value for p in table if p.column == "low-shot" and p.source == "release"}
    assert set(means) == {"ODC", "DeepCluster", "Rotation", "ImageNet labels"}
    for row, mean in means.items():
        values = [p.value for p in curve if p.row == row and p.value is not None]
        assert len(values) == 8
        assert sum(values) / 8 == pytest.approx(mean, abs=0.051)


def test_what_a_run_is_called_in_the_filters_exists():
    groups = {group: {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} for group in ("method", "backbone")}
    for dossier in DOSSIERS.values():
        for row in filter(None, dossier.rows.values()):
            for key in ("method", "backbone"):
                wanted = row.get(key, [])
                for name in wanted if isinstance(wanted, list) else [wanted]:
                    assert name in groups[key] | {"random"}, f"{dossier.name}: {key}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for name in re.findall(r"`((?:src|conf|bench|experiments|docs|tests)/[\w/.]*)`", text):
        assert (ROOT / name).exists(), name
