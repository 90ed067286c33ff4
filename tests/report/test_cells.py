"""Means, spreads, marks and the left-out list on run folders with known answers."""

import csv
import io
import math
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_lightning.report.build import build_report
from odc_lightning.report.cells import Bench
from odc_lightning.report.dossier import load_dossier
from odc_lightning.report.figures import curve_over_seeds
from odc_lightning.report.runs import find_runs
from odc_lightning.report.text import as_csv, ours_in_words
from run_folders import write_evaluation, write_run

DOSSIER = """
title: A table
unit: "%"
full: {backbone: resnet50, images: ">=1000"}
rows:
  ODC: {method: odc, start: null}
  DeepCluster: {method: deepcluster}
  Elsewhere: null
columns:
  kNN: {metric: knn/top1}
  loss: {metric: train/loss, task: train}
"""
PUBLISHED = """row,column,value,unit,source,where,note
ODC,kNN,38.5,%,paper,Table 9,
ODC,kNN,39.1,%,release,zoo,
Elsewhere,kNN,12.0,%,paper,Table 9,
ODC,,,%,axis-only,Fig. 9,'goes up'
"""


def write_dossier(folder, text=DOSSIER, published=PUBLISHED):
    folder.mkdir(parents=True)
    (folder / "dossier.yaml").write_text(text)
    if published:
        (folder / "published.csv").write_text(published)
    return folder


def fill(tmp_path, runs="runs"):
    folder = tmp_path / "experiments" / "t"
    dossier = load_dossier(folder if folder.exists() else write_dossier(folder))
    return Bench(find_runs(tmp_path / runs).runs).fill(dossier)


def measured(folder, top1, **more):
    run = write_run(folder, {"train/loss": 2.0}, **more)
    return write_evaluation(run, {"knn/top1": top1}, data=more.get("data", "folder"))


def test_mean_and_spread_over_seeds(tmp_path):
    for seed, value in enumerate((30.0, 31.0, 35.0)):
        measured(tmp_path / "runs" / f"odc_{seed}", value, seed=seed)
    cell = fill(tmp_path).cell("ODC", "kNN")
    (figure,) = cell.figures
    assert cell.marks == ["in small"]
    assert (figure.mean, figure.values) == (32.0, (30.0, 31.0, 35.0))
    assert figure.spread == pytest.approx(math.sqrt(7))
    assert ours_in_words(figure, 1) == "32.0 ± 2.6 (3 seeds)"
    assert [(one.value, one.source) for one in cell.published] == [(38.5, "paper"), (39.1, "release")]


def test_one_seed_has_no_spread(tmp_path):
    measured(tmp_path / "runs" / "a", 30.0)
    (figure,) = fill(tmp_path).cell("ODC", "kNN").figures
    assert figure.spread is None
    assert ours_in_words(figure, 2) == "30.00 (1 seed)"


def test_full_size_in_small_missing_and_not_built(tmp_path):
    big = {"backbone": "resnet50", "steps": 100}  # 100 steps of 64 in 4 epochs: 1,600 images
    measured(tmp_path / "runs" / "full", 40.0, **big)
    measured(tmp_path / "runs" / "small", 20.0)
    filled = fill(tmp_path)
    assert filled.cell("ODC", "kNN").marks == ["full size", "in small"]
    assert [figure.mean for figure in filled.cell("ODC", "kNN").figures] == [40.0, 20.0]
    assert filled.cell("DeepCluster", "kNN").marks == ["missing"]
    assert filled.cell("Elsewhere", "kNN").marks == ["not in this project"]
    assert [filled.count(mark) for mark in ("full size", "in small", "missing")] == [2, 2, 2]


def test_a_run_that_was_cut_short_or_saw_fewer_images_is_not_full_size(tmp_path):
    measured(tmp_path / "runs" / "subset", 40.0, backbone="resnet50", steps=40)
    assert fill(tmp_path).cell("ODC", "kNN").marks == ["in small"]


def test_other_settings_are_listed_and_never_averaged_in(tmp_path):
    for seed in (0, 1):
        measured(tmp_path / "runs" / f"long_{seed}", 30.0 + seed, seed=seed)
    measured(tmp_path / "runs" / "short", 5.0, epochs=2)
    measured(tmp_path / "runs" / "finetuned", 99.0, start="rotation.pth")
    filled = fill(tmp_path)
    assert filled.cell("ODC", "kNN").figures[0].values == (30.0, 31.0)
    left = {one.folder.relative_to(tmp_path / "runs").as_posix(): one.reason for one in filled.left_out}
    assert left.keys() == {"short", "short/evaluations/knn"}
    assert "other settings than those shown: trainer.max_epochs 2 (shown: 4)" in left["short/evaluations/knn"]
    unused = {one.folder.name: one.reason for one in Bench(find_runs(tmp_path / "runs").runs).unused([filled])}
    assert unused.keys() == {"finetuned", "knn"}
    assert "no dossier asks for it: odc, small_resnet, from rotation, 4 epochs on folder" in unused["finetuned"]


def test_in_small_all_cells_show_runs_on_the_same_images(tmp_path):
    for seed in range(3):
        measured(tmp_path / "runs" / f"digits_{seed}", 90.0, seed=seed, data="mnist5k")
    measured(tmp_path / "runs" / "odc", 30.0)
    measured(tmp_path / "runs" / "dc", 20.0, method="deepcluster")
    filled = fill(tmp_path)
    assert [filled.cell(row, "kNN").figures[0].mean for row in ("ODC", "DeepCluster")] == [30.0, 20.0]
    assert "t, ODC: on other images than those shown in small: mnist5k, 32 px" in {
        one.reason for one in filled.left_out
    }


def test_the_same_seed_counts_once(tmp_path):
    measured(tmp_path / "runs" / "a", 30.0)
    measured(tmp_path / "runs" / "b", 50.0)
    filled = fill(tmp_path)
    assert filled.cell("ODC", "kNN").figures[0].values == (30.0,)
    assert {"t, ODC: same settings and seed as a"} <= {one.reason for one in filled.left_out}


def test_protocols_with_other_settings_are_other_figures(tmp_path):
    run = write_run(tmp_path / "runs" / "a", seed=0)
    write_evaluation(run, {"knn/top1": 30.0}, settings={"k": 20})
    write_evaluation(run, {"knn/top1": 60.0}, settings={"k": 5}, name="other")
    filled = fill(tmp_path)
    assert filled.cell("ODC", "kNN").figures[0].values == (30.0,)
    assert "protocol.k 5 (shown: 20)" in filled.left_out[0].reason


def test_the_best_of_several_layers_is_chosen_run_by_run(tmp_path):
    text = DOSSIER.replace("{metric: knn/top1}", "{metric: [a, b]}")
    write_dossier(tmp_path / "experiments" / "t", text)
    for seed, (a, b) in enumerate(((1.0, 4.0), (6.0, 2.0))):
        write_evaluation(write_run(tmp_path / "runs" / f"{seed}", seed=seed), {"a": a, "b": b})
    write_evaluation(write_run(tmp_path / "runs" / "partly", seed=2), {"a": 50.0})
    (figure,) = fill(tmp_path).cell("ODC", "kNN").figures
    assert (figure.values, figure.metric) == ((4.0, 6.0), "best of a, b")


def test_curves_are_averaged_where_every_seed_has_logged(tmp_path):
    for seed, values in enumerate(([4.0, 2.0, 1.0, 1.0], [6.0, 2.0, 3.0, 1.0])):
        write_run(tmp_path / f"{seed}", seed=seed, steps=40, epochs=2, curve={"train/loss": values})
    epochs, mean, spread = curve_over_seeds(find_runs(tmp_path).runs, "train/loss")
    assert epochs.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert mean.tolist() == [5.0, 2.0, 2.0, 1.0]
    assert spread == pytest.approx(np.array([math.sqrt(2), 0, math.sqrt(2), 0]))
    assert curve_over_seeds(find_runs(tmp_path).runs, "not/logged") is None
    assert curve_over_seeds([], "train/loss") is None


RUNS = st.lists(
    st.fixed_dictionaries(
        {
            "method": st.sampled_from(["odc", "deepcluster", "rotation"]),
            "backbone": st.sampled_from(["resnet50", "small_resnet"]),
            "seed": st.integers(0, 2),
            "epochs": st.integers(1, 2),
        }
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(RUNS, st.randoms(use_true_random=False))
def test_never_a_number_that_no_run_produced(described, random):
    with tempfile.TemporaryDirectory() as scratch:
        root, told = Path(scratch), {}
        (root / "runs").mkdir()
        for number, run in enumerate(described):
            folder = write_run(root / "runs" / f"{number}", {"train/loss": random.uniform(0, 9)}, **run)
            if random.random() < 0.2:
                (folder / "results.json").unlink()
            else:
                told[f"{number}/evaluations/knn"] = value = random.uniform(0, 100)
                write_evaluation(folder, {"knn/top1": value})
        found = find_runs(root / "runs")
        bench, dossier = Bench(found.runs), load_dossier(write_dossier(root / "experiments" / "t"))
        filled = bench.fill(dossier)
        for line in csv.DictReader(io.StringIO(as_csv([filled], root / "runs"))):
            if not line["runs"]:
                assert (line["mean"], line["spread"], line["values"], line["seeds"]) == ("", "", "", "0")
                assert line["mark"] in ("missing", "not in this project")
            elif line["column"] == "kNN":
                values = [told[name] for name in line["runs"].split()]
                assert [float(value) for value in line["values"].split()] == values
                assert float(line["mean"]) == statistics.fmean(values)
                assert line["spread"] == (repr(statistics.stdev(values)) if len(values) > 1 else "")
        accounted = filled.used | {one.folder for one in [*found.left_out, *filled.left_out, *bench.unused([filled])]}
        folders = {path.parent for path in (root / "runs").rglob("config.yaml")}
        assert folders == accounted


def test_the_report_is_the_same_from_the_same_runs(tmp_path):
    write_dossier(tmp_path / "experiments" / "t")
    measured(tmp_path / "runs" / "a", 30.0)
    for out in ("one", "two"):
        build_report(tmp_path / "runs", tmp_path / "experiments", tmp_path / out)
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*")) if path.is_file()]
    assert [path.as_posix() for path in files] == [
        "index.html",
        "left_out.csv",
        "report.md",
        "t/figure.png",
        "t/figure.svg",
        "t/table.csv",
        "table.csv",
    ]
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
