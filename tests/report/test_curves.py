"""run.png from what a run folder holds, however little that is."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from odc_lightning.report.curves import cluster_sizes, draw_run, read_columns

WHOLE = """epoch,step,knn/top1_untrained,knn/top1_pixels,train/loss,train/label_switch_ratio,memory/cluster_size_min,\
memory/cluster_size_median,memory/cluster_size_max,agreement/nmi,agreement/ari,agreement/purity,knn/top1,agreement/nmi_previous
0,0,41.0,84.5,,,,,,,,,,
0,20,,,3.9,0.95,10,60.5,400,,,,,
0,40,,,3.1,0.80,11,70,300,,,,,
1,62,,,,,,,,0.2,0.1,0.3,55.5,
1,80,,,2.5,0.61,12,75,250,,,,,
2,124,,,,,,,,0.4,0.2,0.5,71,0.77
"""


def folder_with(tmp_path, metrics, assignments=None):
    (tmp_path / "metrics.csv").write_text(metrics)
    if assignments is not None:
        (tmp_path / "clusters").mkdir()
        (tmp_path / "clusters" / "assignments.csv").write_text(assignments)
    return tmp_path


def picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_a_whole_run_is_drawn(tmp_path):
    members = [f"image/{i},{i % 7},{i / 10}" for i in range(100)]
    path = draw_run(folder_with(tmp_path, WHOLE, "\n".join(["path,cluster,distance", *members])))
    assert path == tmp_path / "run.png"
    pixels = picture(path)
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    third, half = pixels.shape[1] // 3, pixels.shape[0] // 2
    for row in (0, 1):
        for column in (0, 1, 2):
            part = pixels[row * half : (row + 1) * half, column * third : (column + 1) * third].astype(int)
            assert (part.max(axis=2) - part.min(axis=2) > 50).sum() > 50, f"no curve in row {row}, column {column}"


@pytest.mark.parametrize(
    "metrics",
    [
        "",
        "epoch,step\n",
        "epoch,step,train/loss\n",
        "epoch,step,train/loss\n0,0,2.5\n",
        "epoch,step,train/loss,memory/cluster_size_min\n0,0,nan,0\n0,10,inf,0\n",
        "epoch,step,knn/top1_untrained\n0,0,50\n",
        "epoch,step,knn/top1\n3,90,50\n",
        "epoch,step,memory/cluster_size_max\n0,10,5\n",
        "epoch,step,something/else\n0,10,5\n",
    ],
    ids=["empty", "no columns", "no rows", "one point", "nan", "untrained only", "trained only", "one size", "unknown"],
)
def test_little_to_draw_is_no_error(tmp_path, metrics):
    assert picture(draw_run(folder_with(tmp_path, metrics))).ndim == 3


def test_nothing_logged_is_nothing_drawn(tmp_path):
    assert draw_run(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_assignments_without_an_image(tmp_path):
    folder_with(tmp_path, WHOLE, "path,cluster,distance\n")
    assert cluster_sizes(tmp_path / "clusters" / "assignments.csv") == []
    assert draw_run(str(tmp_path)).exists()


def test_columns_and_sizes_are_read_as_they_are(tmp_path):
    folder = folder_with(tmp_path, WHOLE, "path,cluster,distance\na,3,0\nb,1,0\nc,3,0\n")
    columns = read_columns(folder / "metrics.csv")
    assert columns["train/loss"] == ([20.0, 40.0, 80.0], [3.9, 3.1, 2.5])
    assert columns["knn/top1"] == ([62.0, 124.0], [55.5, 71.0])
    assert not {"epoch", "step"} & columns.keys()
    assert sorted(cluster_sizes(folder / "clusters" / "assignments.csv")) == [1, 2]


def test_drawing_needs_no_torch_and_no_window_system(tmp_path):
    folder_with(tmp_path, WHOLE)
    code = (
        f"import sys; from odc_lightning.report.curves import draw_run; draw_run({str(tmp_path)!r}); "
        "print({'torch', 'pytorch_lightning', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={})
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr
