import csv

from hypothesis import given, settings
from hypothesis import strategies as st

from odc_lightning.callbacks.metrics_csv import MetricsCSV, final_values, read_metrics


def test_one_row_per_step_and_new_columns_as_they_come(tmp_path):
    metrics = MetricsCSV(tmp_path / "run" / "metrics.csv")
    metrics.log_metrics({"epoch": 0, "train/loss": 2.5}, step=10)
    metrics.log_metrics({"epoch": 0, "train/loss": 2.0}, step=20)
    metrics.log_metrics({"epoch": 0, "knn/top1": 70.0}, step=20)
    metrics.log_metrics({"epoch": 1, "train/loss": 1.5}, step=30)
    rows = list(csv.reader((tmp_path / "run" / "metrics.csv").open()))
    assert rows == [
        ["epoch", "step", "train/loss", "knn/top1"],
        ["0", "10", "2.5", ""],
        ["0", "20", "2.0", "70.0"],
        ["1", "30", "1.5", ""],
    ]
    metrics.log_metrics({"epoch": 1, "train/loss": 1.0}, step=40)
    assert final_values(read_metrics(tmp_path / "run" / "metrics.csv")) == {"train/loss": 1.25, "knn/top1": 70.0}


def test_no_file_no_rows(tmp_path):
    assert read_metrics(tmp_path / "none.csv") == []


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from("abcd"), st.floats(-1e6, 1e6)), min_size=1, max_size=25
    ),
    cut=st.integers(0, 25),
)
def test_rewound_and_logged_again_the_file_is_that_of_a_straight_run(tmp_path_factory, steps, cut):
    def log(metrics, part):
        for step, name, value in part:
            metrics.log_metrics({"epoch": 0, name: value}, step=step)

    folder = tmp_path_factory.mktemp("csv")
    at, line = 0, []
    for gap, name, value in steps:
        at += gap
        line.append((at, name, value))
    log(MetricsCSV(folder / "straight.csv"), line)
    broken = MetricsCSV(folder / "broken.csv")
    log(broken, line)
    resumed = MetricsCSV(folder / "broken.csv")
    cut = min(cut, len(line) - 1)
    step = line[cut][0]
    resumed.rewind(step)
    log(resumed, [entry for entry in line if entry[0] >= step])
    assert read_metrics(folder / "broken.csv") == read_metrics(folder / "straight.csv")
