"""One thread per process: with spinning OpenMP threads a busy neighbour stalls small operations a hundredfold."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
