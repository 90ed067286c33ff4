"""task=clusters: the page, assignments.csv and folders of links of any run that has clusters."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from app_runner import TINY_FOLDER, run, write_images
from helpers import squares
from odc_lightning.tasks.clusters import clusters_of, means, nearest_rows, require_files


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    images = write_images(root / "images")
    places = [f"run.root={root}", f"data.root={images}", f"data.cache_dir={root}"]
    outcome = run(*TINY_FOLDER, *places, "run.name=demo")
    assert outcome.code == 0, outcome.text
    return root / "demo"


def clusters(folder, *more):
    return run("task=clusters", f"init.path={folder}", f"run.root={folder.parent}", *more)


def page_of(folder):
    part = {}
    for name in ("table", "chunk-00000"):
        text = (folder / "clusters" / "page" / f"{name}.js").read_text()
        part[name] = json.loads(text.partition("(")[2].rstrip()[:-1])
    return part["table"], part["chunk-00000"]["rows"]


def test_the_page_of_a_run_and_its_links(trained):
    before = (trained / "clusters" / "assignments.csv").read_text()
    (trained / "clusters" / "assignments.csv").unlink()
    outcome = clusters(trained, "clusters.links=true", "clusters.neighbours=2")
    assert outcome.code == 0, outcome.text
    assert "clusters/index.html: 3 clusters of 12 images" in outcome.text
    assert (trained / "clusters" / "assignments.csv").read_text() == before
    table, rows = page_of(trained)
    assert sum(table["size"]) == 12
    assert table["name"] == "demo"
    assert table["epochs"] == [0, 1]
    assert {"purity", "entropy", "tightness", "age", "switch"} <= table.keys()
    assert all(len(line) == 2 for row in rows for line in row["nearest"])
    lines = [line.rsplit(",", 2) for line in before.splitlines()[1:]]
    for cluster in map(int, table["id"]):
        mine = sorted((float(far), path) for path, own, far in lines if int(own) == cluster)
        links = sorted((trained / "clusters" / "links" / f"{cluster:05d}").iterdir())
        assert [os.readlink(link) for link in links] == [path for _, path in mine]
        assert all(link.exists() for link in links)


def test_without_history_and_neighbours(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "bare")
    (folder / "clusters" / "history.npz").unlink()
    outcome = clusters(folder, "clusters.neighbours=0", "clusters.images_per_cluster=3", "clusters.thumbnail=8")
    assert outcome.code == 0, outcome.text
    table, rows = page_of(folder)
    assert table["epochs"] == []
    assert not {"age", "switch"} & table.keys()
    assert "nearest" not in rows[0]
    assert (table["slots"], table["cell"]) == (3, 8)


def test_a_run_of_deepcluster(trained):
    images = trained.parent / "images"
    places = [f"run.root={trained.parent}", f"data.root={images}", f"data.cache_dir={trained.parent}", "run.name=dc"]
    keys = [key for key in TINY_FOLDER if not key.startswith(("method.feature", "method.hidden", "method.min"))]
    outcome = run(*keys, "method=deepcluster", *places)
    assert outcome.code == 0, outcome.text
    outcome = clusters(trained.parent / "dc")
    assert outcome.code == 0, outcome.text
    table, rows = page_of(trained.parent / "dc")
    assert sum(table["size"]) == 12
    assert len(rows[0]["nearest"][0]) == 6
    assert "age" not in table


def test_the_history_can_be_left_out(trained):
    root = trained.parent
    places = [f"run.root={root}", f"data.root={root / 'images'}", f"data.cache_dir={root}", "run.name=without"]
    outcome = run(*TINY_FOLDER, *places, "callbacks.history=null", "callbacks.measure=null")
    assert outcome.code == 0, outcome.text
    assert [file.name for file in (root / "without" / "clusters").iterdir()] == ["assignments.csv"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["init.path=null"], "task=clusters needs a run: init.path=runs/<name>. Received: None"),
        (["clusters.thumbnail=0"], "clusters.thumbnail must be a whole number from 1. Received: 0"),
        (["clusters.neighbours=-1"], "clusters.neighbours must be a whole number from 0. Received: -1"),
    ],
)
def test_what_cannot_work_is_said(trained, args, message):
    outcome = clusters(trained, *args)
    assert outcome.code == 1
    assert message in outcome.text
    assert "Traceback" not in outcome.text


def test_what_a_checkpoint_holds():
    torch.manual_seed(0)
    rows, labels, source = torch.rand(8, 3), torch.arange(8, dtype=torch.int32) % 2, squares(8)
    centroids = torch.rand(2, 3)
    odc = clusters_of({"method": {"memory": {"rows": rows, "labels": labels, "centroids": centroids}}}, "x", source)
    assert odc.distances_N.tolist() == pytest.approx([float((rows[i] - centroids[i % 2]).norm()) for i in range(8)])
    state = {"labels": torch.stack([1 - labels, labels]), "bank": {"rows": rows}}
    local_aggregation = clusters_of({"method": state}, "x", source)
    assert local_aggregation.labels_N.tolist() == labels.tolist()
    assert local_aggregation.distances_N[2] == pytest.approx(float((rows[2] - rows[::2].mean(0)).norm()))
    for state in ({}, {"labels": None}, {"labels": labels, "distances": rows[:, 0], "clustered_at": -1}):
        with pytest.raises(ValueError, match="needs a run with clusters.*Received: runs/x/last.ckpt"):
            clusters_of({"method": state}, "runs/x/last.ckpt", source)
    with pytest.raises(ValueError, match="trained on 9 images, squares has 8"):
        clusters_of({"method": {"data": {"samples": 9}}}, "x", source)
    with pytest.raises(ValueError, match=r"links=true needs images that are files.*such as squares/train/0"):
        require_files([source.path(0)])


def test_nearest_rows_and_means_against_loops():
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(20, 4), dim=1)
    slow = [sorted((j for j in range(20) if j != i), key=lambda j: -float(rows[i] @ rows[j]))[:3] for i in range(20)]
    assert nearest_rows(rows, 3).tolist() == slow
    assert nearest_rows(rows[:2], 6).tolist() == [[1], [0]]
    labels = torch.arange(20) % 3
    assert np.allclose(means(rows, labels), [rows[labels == c].mean(0) for c in range(3)], atol=1e-6)
