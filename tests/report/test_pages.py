"""What people open: the page, Markdown, pictures; and dossiers that cannot be understood."""

import re

import numpy as np
import pytest
from PIL import Image

from odc_lightning.report.build import build_report
from odc_lightning.report.dossier import load_dossier, load_dossiers
from run_folders import write_evaluation, write_run

TABLE = """
title: "A <table> & more"
question: Which | is it?
full: {backbone: resnet50}
rows:
  ODC: {method: odc}
  "<b>": {method: deepcluster}
columns: {kNN: {metric: knn/top1}}
"""
LINE = """
title: A line
full: {backbone: resnet50}
plot: line
metric: knn/top1
rows: {ODC: {method: odc}}
columns: {1: {method.num_clusters: 1}, 10: {method.num_clusters: 10}}
"""
CURVE = """
title: A curve
full: {backbone: resnet50}
plot: curve
curve: {metric: train/loss, label: loss, until: 3}
rows: {ODC: {method: odc, task: train}, DeepCluster: {method: deepcluster, task: train}}
columns: {at the end: {metric: train/loss}}
"""
HEADER = "row,column,value,unit,source,where,note\n"


@pytest.fixture
def made(tmp_path):
    for name, text in (("table", TABLE), ("line", LINE), ("curve", CURVE)):
        (tmp_path / "experiments" / name).mkdir(parents=True)
        (tmp_path / "experiments" / name / "dossier.yaml").write_text(text)
    (tmp_path / "experiments" / "table" / "published.csv").write_text(
        HEADER + 'ODC,kNN,77.0,%,paper,"Table ""9""",\n,,,,axis-only,Fig. 1,"\'rises\' <i>"\n'
    )
    (tmp_path / "experiments" / "README.md").write_text("not a dossier")
    for clusters, value in ((1, 30.0), (10, 40.0)):
        run = write_run(tmp_path / "runs" / f"c{clusters}", {"train/loss": 1.5}, clusters=clusters)
        write_evaluation(run, {"knn/top1": value})
    (tmp_path / "runs" / "<half>").mkdir()
    (tmp_path / "runs" / "<half>" / "results.json").write_text("{}")
    return build_report(tmp_path / "runs", tmp_path / "experiments", tmp_path / "out")


def test_page_needs_no_other_file_and_escapes_names(made):
    page = made.page.read_text()
    assert not re.search(r"<(script|link|iframe)|@import|url\(", page)
    assert set(re.findall(r'(?:src|srcset)="([^"]{14})', page)) == {"data:image/svg"}
    assert "prefers-color-scheme: dark" in page
    assert "A &lt;table&gt; &amp; more" in page
    assert "<th>&lt;b&gt;</th>" in page
    assert "&lt;half&gt;" in page
    assert "<b>" not in page
    assert "77.0 paper" in page
    assert page.count("30.0 (1 seed)") == 2  # the table and the line


def test_markdown_says_the_same(made):
    text = made.page.with_name("report.md").read_text()
    assert "77.0 (paper)<br>**30.0 (1 seed)**, in small" in text
    assert "| <b> | *missing* |" in text
    assert "- 'rises' <i> (Fig. 1)" in text
    assert "- `<half>`: foreign: results.json without config.yaml" in text
    for target in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (made.page.parent / target).exists()


@pytest.mark.parametrize("name", ["table", "line", "curve"])
def test_pictures_show_something(made, name):
    folder = made.page.parent / name
    with Image.open(folder / "figure.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels.max(axis=2) - pixels.min(axis=2) > 50).sum() > 20, "no coloured mark"
    assert (folder / "figure.svg").read_text().lstrip().startswith("<?xml")


def test_no_run_at_all_is_a_report_of_missing_cells(tmp_path, made):
    (tmp_path / "none").mkdir()
    empty = build_report(tmp_path / "none", tmp_path / "experiments", tmp_path / "empty")
    assert [cell.marks for one in empty.filled for cell in one.cells] == [["missing"]] * 6
    assert "77.0 paper" in empty.page.read_text()
    assert "seed)" not in empty.page.read_text()


@pytest.mark.parametrize(
    ("text", "published", "message"),
    [
        ("title: x", "", "must have title, rows, columns and full"),
        ("- 1", "", "must have title, rows, columns and full"),
        (TABLE + "colour: red", "", "a key of experiments/t/dossier.yaml must be one of"),
        (TABLE + "plot: pie", "", "plot in experiments/t/dossier.yaml must be one of dots, line, curve"),
        (LINE.replace("10:", "ten:"), "", "the columns of plot: line must be numbers"),
        (LINE.replace("metric: knn/top1\n", ""), "", "names no metric for ODC, 1"),
        (CURVE.replace("metric: train/loss, ", "", 1), "", "needs curve.metric"),
        (TABLE, HEADER + "ODC,kNN,1,%,guess,,\n", "source in .* must be one of paper, release, axis-only"),
        (TABLE, HEADER + "ODC,kNN,,%,paper,,\n", "must have a number, or be axis-only"),
        (TABLE, HEADER + "ODC,kNN,3,%,axis-only,,\n", "must have a number, or be axis-only"),
        (TABLE, HEADER + "ODC,linear,3,%,paper,,\n", "has a number for ODC, linear"),
        (TABLE, "row,value\n", "must have the columns row, column"),
    ],
)
def test_dossiers_that_cannot_be_understood(tmp_path, text, published, message):
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "dossier.yaml").write_text(text)
    if published:
        (folder / "published.csv").write_text(published)
    with pytest.raises(ValueError, match=message):
        load_dossier(folder)


def test_a_folder_without_dossiers(tmp_path):
    with pytest.raises(ValueError, match="report.experiments must be a folder of dossiers"):
        load_dossiers(tmp_path)
