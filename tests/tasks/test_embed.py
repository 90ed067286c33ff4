"""task=embed: features, clusters and distances of a run's images and of any others."""

import numpy as np
import pandas
import pytest
import torch

from app_runner import TINY_FOLDER, run, write_images
from odc_lightning.clustering.nearest import nearest_centroid
from odc_lightning.tasks.embed import require_parquet, write_table


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    images = write_images(root / "images")
    outcome = run(*TINY_FOLDER, f"run.root={root}", f"data.root={images}", f"data.cache_dir={root}", "run.name=demo")
    assert outcome.code == 0, outcome.text
    return root / "demo"


def embed(folder, *more):
    return run("task=embed", f"init.path={folder}", f"run.root={folder.parent}", "embed.num_workers=0", *more)


def test_a_round_trip_of_the_runs_own_images(trained):
    outcome = embed(trained, "embed.feature=head")
    assert outcome.code == 0, outcome.text
    with np.load(trained / "embeddings.npz", allow_pickle=False) as table:
        path, feature, cluster, distance = (table[name] for name in ("path", "feature", "cluster", "distance"))
    assert path.tolist() == [line.split(",")[0] for line in _assignments(trained)]
    assert feature.shape == (12, 8)
    norms = np.linalg.norm(feature, axis=1)
    assert np.all(np.isclose(norms, 1, atol=1e-5) | (norms == 0))
    memory = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["method"]["memory"]
    centroids = memory["centroids"]
    assert cluster.tolist() == nearest_centroid(torch.from_numpy(feature), centroids).tolist()
    expected = np.linalg.norm(feature - centroids.numpy()[cluster], axis=1)
    assert np.allclose(distance, expected, atol=1e-6)


def _assignments(folder):
    return (folder / "clusters" / "assignments.csv").read_text().splitlines()[1:]


def test_any_other_folder_with_an_image_that_cannot_be_read(trained, tmp_path):
    folder = write_images(tmp_path / "others", count=5)
    (folder / "broken.jpg").write_bytes(b"no image")
    file = tmp_path / "out" / "table.npz"
    args = [f"embed.images={folder}", f"embed.file={file}"]
    outcome = embed(trained, *args)
    assert outcome.code == 1
    assert "broken.jpg" in outcome.text
    outcome = embed(trained, *args, "data.on_bad_image=skip")
    assert outcome.code == 0, outcome.text
    assert "1 images could not be read and are left out" in outcome.text
    with np.load(file) as table:
        assert table["feature"].shape == (5, 32)
        assert all(str(path).startswith(str(folder)) for path in table["path"])
    assert [path.name for path in file.parent.iterdir()] == ["table.npz"]


def test_parquet_holds_the_same(tmp_path):
    table = {
        "path": np.array(["a", "b"]),
        "feature": np.eye(2, dtype=np.float32),
        "cluster": np.array([1, 0]),
        "distance": np.array([0.5, 0.25], dtype=np.float32),
    }
    write_table(table, tmp_path / "t.parquet", "parquet")
    read = pandas.read_parquet(tmp_path / "t.parquet")
    assert list(read["path"]) == ["a", "b"]
    assert np.array_equal(np.stack(read["feature"]), table["feature"])


def test_parquet_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="embed.format=parquet needs pandas and pyarrow, .*odc-lightning.parquet"):
        require_parquet()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["embed.format=csv"], "embed.format must be one of npz, parquet. Received: 'csv'"),
        (
            ["embed.feature=heads"],
            "embed.feature must be one of backbone, head. Received: 'heads'. Did you mean 'head'",
        ),
        (["init.path=null"], "task=embed needs a run: init.path=runs/<name>. Received: None"),
        (["embed.images=nowhere"], "embed.images must be an existing folder. Received: nowhere"),
    ],
)
def test_what_cannot_work_is_said(trained, args, message):
    outcome = embed(trained, *args)
    assert outcome.code == 1
    assert message in outcome.text
    assert "Traceback" not in outcome.text
