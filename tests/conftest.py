"""One thread per process: with spinning OpenMP threads a busy neighbour stalls small operations a hundredfold."""

import os
import sys
from pathlib import Path

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("WANDB_SILENT", "true")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """48 images to train on, 12 to measure on, two classes: with batches of 8 six steps an epoch. Only to be read."""
    from app_runner import write_images  # here, for it loads Lightning

    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", count=48)
    write_images(root / "val", count=12)
    return root
