"""Runs the command line: in this process where that is enough, in one of its own where it must die or be killed."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from unittest import mock

import numpy as np
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from odc_lightning import app

# A tiny run of the demo: everything as in the real one, but little of it.
TINY_METHOD = [
    "method.num_clusters=10",
    "method.feature_dim=8",
    "method.hidden_dim=16",
    "method.log_every_n_steps=2",
    "clustering.backend=torch",
    "clustering.iterations=3",
    "data.num_workers=0",
    "logger.wandb.mode=disabled",
]
TINY = [
    *TINY_METHOD,
    "backbone.width=4",
    "data.batch_size=256",
    "callbacks.measure.max_images=200",
    "callbacks.measure.every_n_epochs=1",
]
# A tiny run on a folder of a dozen images.
TINY_FOLDER = [
    "experiment=folder",
    "backbone=small_resnet",
    "backbone.width=4",
    *TINY_METHOD,
    "method.num_clusters=3",
    "method.min_cluster_size=2",
    "data.image_size=16",
    "data.batch_size=4",
    "trainer.max_epochs=1",
]


@dataclass
class Outcome:
    """How a command ended and what it said."""

    code: int
    text: str


def run(*args):
    """Run in this process; SystemExit becomes the exit code, its message is added to the text."""
    text = io.StringIO()
    with _as_in_a_process_of_its_own(args), contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            app.main()
        except SystemExit as stop:
            text.write("" if isinstance(stop.code, int) or stop.code is None else f"{stop.code}\n")
            return Outcome(stop.code if isinstance(stop.code, int) else int(bool(stop.code)), text.getvalue())
    return Outcome(0, text.getvalue())


@contextlib.contextmanager
def _as_in_a_process_of_its_own(args):
    """Nothing of a run stays: its arguments, environment, Hydra's state, its log handlers.

    It starts no other processes: Lightning kills the one that started them, here pytest, when one of them fails.
    """
    GlobalHydra.instance().clear()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    alone = mock.patch.object(_SubprocessScriptLauncher, "_call_children_scripts", side_effect=AssertionError("alone"))
    with mock.patch.object(sys, "argv", ["odc", *map(str, args)]), mock.patch.dict(os.environ), alone:
        try:
            yield
        finally:
            GlobalHydra.instance().clear()
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:], root.level = handlers, level


def command(*args):
    """The command line of a process of its own."""
    return [sys.executable, "-m", "odc_lightning", *map(str, args)]


def run_alone(*args, cwd=None, program=None, timeout=240, **environment):
    """Run in a process of its own."""
    done = subprocess.run(
        [*program, *map(str, args)] if program else command(*args),
        cwd=cwd,
        env={**{name: os.environ[name] for name in os.environ if name != "ODC_TRACEBACK"}, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout + done.stderr)


def write_images(folder, count=12, classes=("a", "b"), side=24, ending="jpg"):
    """A tree of photographs' like: noise on a colour of its class; returns the folder."""
    rng = np.random.default_rng(len(classes))
    for number in range(count):
        kind = number % len(classes)
        path = folder / classes[kind] / f"{number:03d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (side, side + 4, 3))
        pixels[..., kind % 3] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(path, format="JPEG" if ending.lower() != "png" else None)
    return folder


def kill_when(process, file, number=signal.SIGKILL):
    """Signal a process at a random moment after a file has appeared; returns what it said."""
    deadline = time.monotonic() + 120
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng().uniform(0, 0.3)))
    assert process.poll() is None, "the run was to be stopped before it ended"
    process.send_signal(number)
    return process.communicate(timeout=60)[0]
