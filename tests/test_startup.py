"""Help and mistakes on the command line are answered before torch is loaded, which takes seconds."""

import ast
import subprocess
import sys

import pytest

SLOW = ["torch", "torchvision", "pytorch_lightning", "wandb", "faiss", "matplotlib", "scipy", "numpy"]
CODE = f"""
import sys
from odc_lightning.app import main
try:
    main()
except SystemExit as stop:
    print(stop.code or "")
print([name for name in {SLOW} if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--help"], "== Choices (group=choice) =="),
        (["--cfg", "job"], "num_clusters:"),
        (["nosuch=1"], "there is no key 'nosuch'"),
        (["experiment=nosuch"], "experiment=nosuch is not a choice"),
        (["method.momentun=0.5"], "Did you mean method.momentum"),
        (["method.momentum=high"], "method.momentum must be a number"),
        (["method.momentum=7"], "method.momentum must be in (0, 1]. Received: 7"),
        (["schedule.milestones=3"], "schedule.milestones must be a list of epochs, such as [30,50]. Received: 3"),
        (["schedule.milestones=[a]"], "schedule.milestones must be a list of epochs"),
        (["optim.lr=-1"], "optim.lr must be at least 0. Received: -1"),
        (["method=npid", "fidelity=nosuch"], "fidelity"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_answer_does_not_wait_for_torch(tmp_path, arguments, answer):
    said, loaded = answered(tmp_path, arguments)
    assert answer in said
    assert loaded == []


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["method.num_clusters=5000"], "method.num_clusters must not exceed the number of samples, 4000"),
        (["method=deepcluster", "method.num_clusters=5000"], "number of samples, 4000"),
        (["method.min_cluster_size=80"], "method.min_cluster_size x num_clusters needs 81 x "),
        (["experiment=folder"], "data.root must name a folder of images"),
        (["experiment=odc_r50", "data.root=nosuch"], "data.root must be an existing folder. Received: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_with_the_images_does_not_wait_either(tmp_path, arguments, answer):
    said, loaded = answered(tmp_path, arguments)
    assert answer in said
    assert set(loaded) <= {"numpy", "scipy"}


def answered(folder, arguments):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )
    said, loaded = done.stdout.strip().rsplit("\n", 1)
    return said, ast.literal_eval(loaded)
