"""index.html of a run and of a sweep: what is in it, and that a browser shows it."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from browser import chromium
from odc_lightning.callbacks.history import append, changes
from odc_lightning.report.dashboard import as_page, thinned, write_dashboard
from odc_lightning.report.history import HISTORY
from odc_lightning.report.jobs import FAILED_JOBS, LISTED, Job
from odc_lightning.report.panels import SECTIONS
from run_folders import write_evaluation, write_run


def data_of(page):
    """The figures that a page holds."""
    text = page if isinstance(page, str) else page.read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def titles(data):
    return {panel["title"] for section in data["sections"] for panel in section["panels"]}


def write_history(folder):
    """Two epochs of 6 images in 3 clusters: 2 labels change, one because its feature moved."""
    before_N = None
    for epoch, labels in enumerate([[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 2, 1]]):
        labels_N = np.array(labels, dtype=np.int32)
        about = [epoch, 10 * epoch, -1 if epoch == 0 else 1, -1 if epoch == 0 else 0, -1 if epoch == 0 else 6]
        record = {
            **changes(labels_N, before_N),
            "about": np.array(about, dtype=np.int64),
            "events": np.array([[15, 1, 1, 2, 1]] if epoch == 2 else np.empty((0, 5)), dtype=np.int32),
            "switched": float("nan") if before_N is None else float((labels_N != before_N).mean()),
            "renumbered": False,
        }
        append(folder / HISTORY, f"{epoch:05d}", record)
        before_N = labels_N


@pytest.fixture
def sweep(tmp_path):
    """Two values, two seeds, one failed and one waiting."""
    for interval, figure in ((1, 40.0), (100, 44.0)):
        for seed in (0, 1):
            name = f"method.centroid_update_interval={interval},seed={seed}"
            home = write_run(
                tmp_path / name,
                {"train/loss": 2.0},
                seed=seed,
                curve={"train/loss": [3.0, 2.5, 2.0], "memory/splits": [0, 1, 2]},
            )
            write_evaluation(home, {"knn/top1": figure + seed, "knn/20/top1": 1.0})
    extra = [f"method.centroid_update_interval=10,seed={seed}" for seed in (0, 1)]
    (tmp_path / LISTED).write_text("\n".join([job.name for job in tmp_path.iterdir() if job.is_dir()] + extra))
    (tmp_path / FAILED_JOBS).write_text(f"{extra[0]}: loss is not finite </script><b>\n")
    return tmp_path


def test_a_run_shows_what_it_logged_and_nothing_else(tmp_path):
    curve = {"train/loss": [3.0, 2.0], "knn/top1": [30.0, 40.0], "knn/top1_pixels": [20.0, 20.0], "own/figure": [1, 2]}
    data = data_of(write_dashboard(write_run(tmp_path / "one", {"knn/top1": 40.0}, curve=curve)))
    assert data["single"] is True
    assert titles(data) == {"Loss", "kNN top-1, %", "own/figure"}
    (job,) = data["jobs"]
    assert job["curves"]["train/loss"] == [[50.0, 100.0], [3.0, 2.0]]
    assert ["method", "ODC"] in job["facts"]
    assert ["seed", "0"] in job["facts"]
    assert ["metrics.csv", "every logged value"] in job["links"]
    assert data["sizes"] is None


def test_baselines_alone_are_no_curve(tmp_path):
    data = data_of(write_dashboard(write_run(tmp_path / "one", curve={"knn/top1_pixels": [20.0, 20.0]})))
    assert titles(data) == set()


def test_the_history_gives_sizes_and_causes(tmp_path):
    folder = write_run(tmp_path / "one")
    write_history(folder)
    data = data_of(write_dashboard(folder))
    assert sum(data["sizes"]["counts"]) == 3
    curves = data["jobs"][0]["curves"]
    assert curves["switches/features"] == [[10.0, 20.0], [pytest.approx(1 / 6, abs=1e-6)] * 2]
    assert curves["switches/small_clusters"] == [[10.0, 20.0], [0.0, pytest.approx(1 / 6, abs=1e-6)]]
    assert any("Why labels changed" in title for title in titles(data))


def test_a_sweep_has_a_panel_for_each_metric_and_a_line_for_each_job(sweep):
    data = data_of(write_dashboard(sweep))
    assert data["single"] is False
    assert data["keys"] == ["method.centroid_update_interval", "seed"]
    assert data["figures"][0] == "knn/top1"
    assert not any("/20/" in name for name in data["figures"])
    assert titles(data) == {"Loss", "memory/splits"}
    assert [job["state"] for job in data["jobs"]].count("finished") == 4
    states = {job["name"]: job["state"] for job in data["jobs"]}
    assert states["method.centroid_update_interval=10,seed=0"] == "failed"
    assert states["method.centroid_update_interval=10,seed=1"] == "waiting"
    assert data["open"] is True


def test_values_that_are_not_finite_are_gaps(tmp_path):
    folder = write_run(tmp_path / "one", curve={"train/loss": [3.0, "nan", "inf"]})
    assert data_of(write_dashboard(folder))["jobs"][0]["curves"]["train/loss"][1] == [3.0, None, None]


def test_many_jobs_stay_small():
    steps = [float(step) for step in range(1000)]
    curves = {metric: (steps, steps) for panels in SECTIONS.values() for panel in panels for metric in panel.metrics}
    jobs = [Job(f"seed={n}", _Nowhere(), "waiting", columns=curves) for n in range(60)]
    assert len(as_page("sweep", jobs, single=False)) < 2.5e6


class _Nowhere:
    """A folder with nothing in it."""

    def __truediv__(self, _):
        return self

    def exists(self):
        return False


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.integers(1, 50))
def test_thinning_keeps_the_mean_and_the_end(values, most):
    steps = [float(step) for step in range(len(values))]
    thin_steps, thin = thinned((steps, values), most)
    assert len(thin_steps) == len(thin) == min(most, len(values))
    assert thin_steps[-1] == steps[-1]
    parts = np.split(np.array(values), [int(step) + 1 for step in thin_steps[:-1]])
    assert thin == pytest.approx([part.mean() for part in parts], rel=1e-4, abs=1e-4)


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def opened(browser, page):
    browser.get(page.resolve().as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    return lambda selector: browser.find_elements("css selector", selector)


def test_the_page_of_a_run_draws_its_curves(browser, tmp_path):
    curve = {
        "train/loss": [3.0, 2.0, 1.0],
        "memory/cluster_size_min": [1, 2, 3],
        "memory/cluster_size_max": [9, 90, 900],
    }
    folder = write_run(tmp_path / "one & <only>", curve=curve)
    write_history(folder)
    all_ = opened(browser, write_dashboard(folder))
    assert all_("h1")[0].text == "one & <only>"
    assert len(all_("path.curve")) == 6  # loss, two sizes, three causes
    assert len(all_("rect")) >= 1
    all_(".legend button")[0].click()
    assert len(all_("path.curve")) == 5
    browser.refresh()
    assert len(all_("path.curve")) == 5, "what was hidden stays so"
    picture = all_(".card svg")[0]
    browser.execute_script(
        "const r = arguments[0].getBoundingClientRect(); arguments[0].dispatchEvent("
        "new PointerEvent('pointermove', {clientX: r.right - 8, clientY: r.top + 20}))",
        picture,
    )
    assert "step 100" in all_(".tip")[0].text
    assert all_(".tip")[0].text.endswith("loss 1")


def test_the_page_of_a_sweep_sorts_and_plots(browser, sweep):
    all_ = opened(browser, write_dashboard(sweep))
    rows = [row.text for row in all_("tbody tr")]
    assert len(rows) == 6
    assert any("loss is not finite </script><b>" in row for row in rows)
    assert len(all_("circle")) == 4, "a dot for each job that was measured"
    for figures in (["45", "44", "41", "40"], ["40", "41", "44", "45"]):
        next(head for head in all_("th button") if head.text.startswith("knn/top1")).click()
        cells = [row.find_elements("css selector", "td") for row in all_("tbody tr")]
        assert [cells[row][3].text for row in range(4)] == figures
    before = len(all_("path.curve"))
    all_(".legend button")[0].click()
    assert len(all_("path.curve")) == before - 4, "two metrics of the two seeds of a value"
