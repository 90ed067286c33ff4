"""Memory use of a run with a bank of ImageNet's size, part by part, and how long a checkpoint stops the training.

Each figure is the peak of the resident memory of a fresh process within a part, less what the process had right after
its imports, over the bytes of the bank's rows. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from price import DIM, Setting, app_run
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from odc_lightning.callbacks.checkpoints import LAST, Checkpoints, newest_checkpoint
from odc_lightning.data.dataset import Batch
from odc_lightning.nn.resnet import small_resnet

SETTING = Setting("small_resnet", small_resnet, 16, 64)
STEPS = 40
SMALL = ("backbone.width=4", "callbacks.data_hint=null", "optim.lr=0.001")


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS is now, VmHWM the most since :func:`new_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def new_peak() -> None:
    """Forget the peak so far."""
    Path("/proc/self/clear_refs").write_text("5")


class Parts(Callback):
    """Prints the peak of each part of a run."""

    def __init__(self, bank: int, out: Any) -> None:
        self.bank, self.out, self.base = bank, out, status("VmRSS")
        new_peak()

    def end(self, part: str, about: str = "") -> None:
        """Print the peak since the part before, and what is there now."""
        peak, now = status("VmHWM") - self.base, status("VmRSS") - self.base
        print(f"  {part:<46} peak {peak / self.bank:5.2f}   then {now / self.bank:5.2f}  {about}", file=self.out)
        self.out.flush()
        new_peak()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        refilled = pl_module.memory.refilled
        self.end(f"{len(trainer.train_dataloader)} iterations", f"small clusters refilled {refilled}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.end("end of the epoch: history, agreement, dashboard")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.end("end of the run: assignments, picture")


class Filled(Callback):
    """Fills the memory with random rows in place of the start-up clustering."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        memory = pl_module.memory
        self.parts.end("network, optimizer, trainer, memory without rows")
        for rows in memory.samples.rows.split(4096):
            rows.uniform_()
        shares = torch.distributions.LogNormal(0.0, 0.5).sample((memory.num_clusters,))
        labels = torch.multinomial(shares, memory.num_samples, replacement=True)
        memory.fill(memory.samples.rows, labels)
        self.parts.end("memory filled")


def timed_write(parts: Parts, checkpoints: Checkpoints, rows: Callable[[], Tensor]) -> None:
    """Have the checkpoint's write told as a part, with the seconds that it stops the training."""
    write = checkpoints.write

    def timed(trainer: pl.Trainer, kept: Path | None = None) -> None:
        parts.end("before the checkpoint")
        began = time.perf_counter()
        write(trainer, kept)
        stopped = time.perf_counter() - began
        while not (checkpoints.folder / LAST).exists():  # written in the background
            time.sleep(0.01)
        whole = time.perf_counter() - began
        parts.end("checkpoint written", f"training stopped {stopped:.2f} s, file complete after {whole:.2f} s")
        began = time.perf_counter()
        rows().clone()
        print(f"    a copy of the bank takes {time.perf_counter() - began:.2f} s", file=parts.out, flush=True)
        new_peak()

    checkpoints.write = timed  # type: ignore[method-assign]


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """Where results go while a run prints to nowhere."""
    out = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield out


def train(folder: str, num_samples: int, num_clusters: int, dtype: str) -> None:
    """A memory that is filled, some iterations, the epoch's checkpoint."""
    bank = num_samples * DIM * (4 if dtype == "float32" else 2)
    with quiet() as out:
        parts = Parts(bank, out)
        trainer, method, datamodule = app_run(
            folder, SETTING, num_samples, num_clusters, [*SMALL, f"method.row_dtype={dtype}"], STEPS
        )
        trainer.callbacks = [parts, Filled(parts), *trainer.callbacks]  # type: ignore[attr-defined]
        timed_write(parts, trainer.checkpoint_callback, lambda: method.memory.samples.rows)  # type: ignore[arg-type]
        trainer.fit(method, datamodule=datamodule)


def resume(folder: str, num_samples: int, num_clusters: int, dtype: str) -> None:
    """The checkpoint taken up as the command line does, and an epoch more."""
    bank = num_samples * DIM * (4 if dtype == "float32" else 2)
    with quiet() as out:
        parts = Parts(bank, out)
        overrides = [*SMALL, f"method.row_dtype={dtype}", "trainer.max_epochs=2"]
        trainer, method, datamodule = app_run(folder, SETTING, num_samples, num_clusters, overrides, STEPS)
        trainer.callbacks = [parts, Loaded(parts), *trainer.callbacks]  # type: ignore[attr-defined]
        newest = newest_checkpoint(Path(folder) / "checkpoints")
        trainer.fit(method, datamodule=datamodule, ckpt_path=newest, weights_only=True)


class Loaded(Callback):
    """Tells the peak of loading."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.parts.end("checkpoint loaded")


class Started(Loaded):
    """Tells the peak of the start-up clustering, which is over when the first batch begins."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.parts.end("network, optimizer, trainer, memory without rows")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:
            self.parts.end("features, k-means, memory filled")


class NoiseLoader:
    """In place of a DataLoader: batches of noise for a data set of N images, of which few are equal."""

    def __init__(self, num_samples: int, batch: int = 1024) -> None:
        self.dataset, self.batch = range(num_samples), batch
        self.images = torch.randint(256, (batch, 3, SETTING.side, SETTING.side), dtype=torch.uint8)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        for first in self.dataset[:: self.batch]:
            self.images += 1  # wraps around
            images = self.images.roll(first // self.batch, -1)
            yield Batch(images[: len(self.dataset) - first], torch.empty(0), torch.empty(0))


def start(folder: str, num_samples: int, num_clusters: int, dtype: str) -> None:
    """The start-up clustering as it is: features of all images, k-means, the memory filled from them."""
    bank = num_samples * DIM * (4 if dtype == "float32" else 2)
    with quiet() as out:
        parts = Parts(bank, out)
        overrides = [*SMALL, f"method.row_dtype={dtype}", "clustering.iterations=2"]
        trainer, method, datamodule = app_run(folder, SETTING, num_samples, num_clusters, overrides, 2)
        datamodule.eval_dataloader = lambda *_: NoiseLoader(num_samples)  # type: ignore[method-assign,assignment,return-value]
        trainer.callbacks = [parts, Started(parts), *trainer.callbacks]  # type: ignore[attr-defined]
        trainer.fit(method, datamodule=datamodule)


def main() -> None:
    """Print the parts of each dtype; each run in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_280_000)
    parser.add_argument("--clusters", type=int, default=10_000)
    parser.add_argument("--start-samples", type=int, default=1_280_000, help="of the start-up clustering")
    parser.add_argument("--only", nargs=3, metavar=("PART", "DTYPE", "FOLDER"), help="one part in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.only:
        part, dtype, folder = options.only
        if part == "start":
            start(folder, options.start_samples, 1_000, dtype)
        else:
            {"train": train, "resume": resume}[part](folder, options.samples, options.clusters, dtype)
        return
    sizes = [f"--samples={options.samples}", f"--clusters={options.clusters}"]
    sizes += [f"--start-samples={options.start_samples}"]
    for dtype in ("float32", "float16"):
        with tempfile.TemporaryDirectory() as folder:
            for part in ("train", "resume"):
                print(f"{part}, N {options.samples:,}, C {options.clusters:,}, {dtype}", flush=True)
                subprocess.run([sys.executable, __file__, *sizes, "--only", part, dtype, folder], check=True)
        print(f"start, N {options.start_samples:,}, C 1,000, {dtype}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, __file__, *sizes, "--only", "start", dtype, folder], check=True)


if __name__ == "__main__":
    main()
