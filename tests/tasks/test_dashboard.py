"""task=dashboard: the page without an account, the workspace with one, and what is said of what is missing."""

import json
import sys
from unittest import mock

import pytest

from app_runner import run
from odc_lightning.report.panels import SECTIONS
from odc_lightning.tasks import dashboard
from run_folders import write_run


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))


def test_without_an_account_there_is_the_page(tmp_path):
    folder = write_run(tmp_path / "demo")
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    outcome = run("task=dashboard", f"run.root={tmp_path}")
    assert outcome.code == 0, outcome.text
    assert (folder / "index.html").exists()
    assert "No workspace on W&B was saved, for that needs a W&B key" in outcome.text
    assert f"wandb leet {folder / 'wandb' / 'latest-run'}" in outcome.text


def test_several_runs_are_compared(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    outcome = run("task=dashboard", f"dashboard.runs={tmp_path}", "dashboard.workspace=false")
    assert outcome.code == 0, outcome.text
    assert (tmp_path / "index.html").exists()
    assert "W&B" not in outcome.text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dashboard.workspace=true"], "dashboard.workspace=true needs a W&B key"),
        (["dashboard.workspace=yes"], "dashboard.workspace must be auto, true or false. Received: yes"),
        (["dashboard.runs=nowhere"], "dashboard.runs must be the folder of a run"),
        (["dashboard.workspace=true", "logger.wandb.mode=offline"], "logger.wandb.mode=offline to be online"),
    ],
)
def test_what_cannot_work_is_said(tmp_path, args, message):
    write_run(tmp_path / "demo")
    outcome = run("task=dashboard", f"run.root={tmp_path}", *args)
    assert outcome.code == 1
    assert message in outcome.text
    assert "Traceback" not in outcome.text


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'odc-lightning[dashboard]'" in dashboard.missing_for_workspace("auto")


def test_a_workspace_has_the_panels_of_the_page():
    pytest.importorskip("wandb_workspaces")
    made = dashboard.workspace("ours", "someone", "project")
    spec = json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    text = json.dumps(spec)
    for name, panels in SECTIONS.items():
        assert f'"name": "{name}"' in text
        for panel in panels:
            assert all(f'"{metric}"' in text for metric in panel.metrics)
    assert "clusters/gallery" in text
    assert "memory/cluster_sizes" in text


def test_with_a_key_the_workspace_is_saved(tmp_path, monkeypatch):
    ws = pytest.importorskip("wandb_workspaces.workspaces")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    write_run(tmp_path / "demo")
    saved = []

    def save(self):
        saved.append(self)
        self._internal_name = "nw-x-v"
        return self

    address = property(lambda self: f"https://wandb.ai/{self.entity}/{self.project}?nw=x")
    with mock.patch.object(ws.Workspace, "save", save), mock.patch.object(ws.Workspace, "url", address):
        outcome = run("task=dashboard", f"run.root={tmp_path}", "dashboard.entity=someone", "dashboard.name=mine")
    assert outcome.code == 0, outcome.text
    assert [(one.entity, one.project, one.name) for one in saved] == [("someone", "odc-lightning", "mine")]
    assert "Workspace saved: https://wandb.ai/someone/odc-lightning?nw=x" in outcome.text


def test_what_wandb_answers_is_told(tmp_path, monkeypatch):
    ws = pytest.importorskip("wandb_workspaces.workspaces")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    write_run(tmp_path / "demo")
    with mock.patch.object(ws.Workspace, "save", side_effect=RuntimeError("permission denied")):
        outcome = run("task=dashboard", f"run.root={tmp_path}", "dashboard.entity=someone")
    assert outcome.code == 1
    assert "W&B did not save the workspace in someone/odc-lightning: permission denied" in outcome.text


def test_a_key_without_a_default_entity_is_asked_for_one(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "Api", lambda: mock.Mock(default_entity=None))
    with pytest.raises(ValueError, match="dashboard.entity must name a user or team"):
        dashboard.entity_of(None)
    assert dashboard.entity_of("given") == "given"
    assert "wandb" in sys.modules
