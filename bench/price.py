"""The price of ODC: a training step with the memory over the same step with fixed labels, side by side.

And the price of Lightning: the step of the real module in the real Trainer, with the app's logger and callbacks, over a
bare loop of the same arithmetic. A ratio near 1 is told better by the time of the memory alone, as a share of the step.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast
from unittest import mock

import hydra
import numpy as np
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from memory import clock
from odc_lightning.app import conf_dir
from odc_lightning.callbacks.metrics_csv import MetricsCSV
from odc_lightning.callbacks.progress import EpochLines, ProgressBar
from odc_lightning.data import sources
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Batch
from odc_lightning.data.sources import ArraySource, MissingSplitError
from odc_lightning.memory import Memory
from odc_lightning.methods.odc import ODC
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.head import NonLinearNeck, linear_classifier
from odc_lightning.nn.network_input import network_input
from odc_lightning.nn.resnet import resnet18, resnet50
from odc_lightning.objective import loss_weights, weighted_cross_entropy
from odc_lightning.tasks.train import build

DIM, INTERVAL = 256, 10
# Has glibc keep what is freed: else the activations of a step go back to the system and come as page faults again, now
# more, now fewer, and the differences of a few per cent that this makes hide what is to be measured.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


class Setting(NamedTuple):
    """A network and its images."""

    name: str
    backbone: Callable[[], Backbone]
    side: int
    batch: int


SETTINGS = {"r18": Setting("ResNet-18", resnet18, 64, 64), "r50": Setting("ResNet-50", resnet50, 224, 16)}


class Step:
    """Backbone, head and classifier with SGD; one call is one training step."""

    def __init__(self, setting: Setting, num_clusters: int) -> None:
        backbone = setting.backbone()
        normalize = network_input(3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.network = nn.Sequential(normalize, backbone, NonLinearNeck(backbone.feature_dim, feature_dim=DIM))
        self.classifier = linear_classifier(DIM, num_clusters)
        parameters = [*self.network.parameters(), *self.classifier.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-5, fused=True)

    def __call__(self, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        features = self.network(images)
        loss = weighted_cross_entropy(self.classifier(features), labels, weights)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return features.detach()


class BareODC:
    """One call is one iteration of ODC, without anything around it."""

    def __init__(self, step: Step, memory: Memory) -> None:
        self.step, self.memory, self.number = step, memory, 0
        self.seconds: list[float] = []  # of the memory alone, by iteration
        self.weights = loss_weights(memory.sizes_C)

    def __call__(self, images: Tensor, index: Tensor) -> None:
        self.number += 1
        began = clock()
        labels = self.memory.labels(index)
        seconds = clock() - began
        features = self.step(images, labels, self.weights)
        began = clock()
        self.memory.update(index, features, unique=True)
        if self.number % INTERVAL == 0:
            self.memory.refresh_centroids()
        self.memory.handle_small_clusters()
        self.weights = loss_weights(self.memory.sizes_C)
        self.seconds.append(seconds + clock() - began)


def random_fill(memory: Memory) -> Memory:
    """Random unit rows in random clusters of a lognormal size."""
    shares = torch.distributions.LogNormal(0.0, 0.5).sample((memory.num_clusters,))
    labels = torch.multinomial(shares, memory.num_samples, replacement=True)
    memory.fill(torch.rand(memory.num_samples, memory.feature_dim), labels)
    return memory


def pictures(setting: Setting) -> Tensor:
    """A batch of uint8 noise."""
    return torch.randint(256, (setting.batch, 3, setting.side, setting.side), dtype=torch.uint8)


def line(what: str, names: Sequence[str], below: Sequence[float], above: Sequence[float], about: str = "") -> None:
    """Medians of both, and the median of the round-by-round ratio with its quartiles."""
    ratios = sorted(high / low for high, low in zip(above, below, strict=True))
    spread = f"{ratios[len(ratios) // 4]:.3f}-{ratios[3 * len(ratios) // 4]:.3f}"
    times = "  ".join(
        f"{name} {statistics.median(seconds) * 1e3:7.1f} ms"
        for name, seconds in zip(names, (below, above), strict=True)
    )
    print(f"{what}  {times}  ratio {statistics.median(ratios):.3f} (quartiles {spread}){about}", flush=True)


def measure(setting: Setting, num_samples: int, num_clusters: int, rounds: int) -> None:
    """ODC over fixed labels; the first round warms up."""
    torch.manual_seed(0)
    memory = random_fill(
        Memory(num_samples=num_samples, num_clusters=num_clusters, feature_dim=DIM, min_cluster_size=10)
    )
    step = Step(setting, num_clusters)
    images, odc = pictures(setting), BareODC(step, memory)
    fixed_labels, fixed_weights = torch.randint(num_clusters, (setting.batch,)), torch.ones(num_clusters)
    times: dict[str, list[float]] = {"fixed": [], "odc": []}
    for _ in range(rounds + 1):
        began = clock()
        step(images, fixed_labels, fixed_weights)
        times["fixed"].append(clock() - began)
        index = torch.randperm(num_samples)[: setting.batch]
        began = clock()
        odc(images, index)
        times["odc"].append(clock() - began)
    share = statistics.mean(odc.seconds[1:]) / statistics.median(times["fixed"][1:])
    line(
        f"N {num_samples:>9,}  C {num_clusters:>6,}",
        ("fixed", "ODC"),
        times["fixed"][1:],
        times["odc"][1:],
        f"  memory alone {statistics.mean(odc.seconds[1:]) * 1e3:.1f} ms, {share:.2%}; refilled {memory.refilled}",
    )


class InMemory:
    """Takes the loader's place: batches that are there already, so that no image is loaded."""

    def __init__(self, images: Tensor, num_samples: int, steps: int) -> None:
        self.images, self.num_samples, self.steps = images, num_samples, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.images)
        order = torch.randperm(self.num_samples)
        for start in range(0, self.steps * count, count):
            yield Batch(self.images, order[start : start + count], torch.ones(count, dtype=torch.bool))


class Beside(Callback):
    """Runs one iteration of the bare loop between two of Lightning's, and times both.

    Lightning's is all from the end of the bare one, at the start of a batch, to the start of the next batch.
    """

    def __init__(self, bare: Callable[[Tensor, Tensor], None]) -> None:
        self.bare = bare
        self.times: dict[str, list[float]] = {"bare": [], "lightning": []}
        self._resumed = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        random_fill(pl_module.memory)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        began = clock()
        if batch_idx > 1:  # the first warms up
            self.times["lightning"].append(began - self._resumed)
        self.bare(batch.image, batch.index)
        self._resumed = clock()
        if batch_idx > 0:
            self.times["bare"].append(self._resumed - began)


class Noise(ArraySource):
    """Black images of no size in memory, as many as one likes; none to validate on."""

    def __init__(self, num_samples: int, side: int, split: str) -> None:
        if split == "val":
            raise MissingSplitError
        super().__init__(np.broadcast_to(np.zeros(1, dtype=np.uint8), (num_samples, side, side, 3)), "noise")


def app_run(
    folder: str, setting: Setting, num_samples: int, num_clusters: int, overrides: Sequence[str], steps: int
) -> tuple[pl.Trainer, ODC, DataModule]:
    """Trainer, module and data as the command line builds them, but with batches of noise.

    Args:
        folder: of the run.
        setting: name, side and batch are used.
        num_samples, num_clusters: N and C.
        overrides: further ones.
        steps: of an epoch.
    """
    three = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    arguments = [
        *("experiment=folder", "data=mnist5k", "data.num_workers=0", "data.channels=3"),
        *(f"data.{name}={numbers}" for name, numbers in three.items()),
        *(f"backbone={setting.name.lower().replace('-', '')}", f"data.batch_size={setting.batch}"),
        *(f"method.num_clusters={num_clusters}", f"method.feature_dim={DIM}", "trainer.max_epochs=1"),
        *overrides,
    ]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("config", arguments, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = folder
    HydraConfig.instance().set_config(cfg)
    with mock.patch.object(sources, "Mnist5k", functools.partial(Noise, num_samples, setting.side)):
        datamodule, method, trainer = build(cfg)
    loader = InMemory(pictures(setting), num_samples, steps)
    datamodule.train_dataloader = lambda: loader  # type: ignore[method-assign,assignment,return-value]
    (Path(folder) / "config.yaml").write_text(OmegaConf.to_yaml(cfg.run))  # callbacks look for it
    trainer.loggers = [MetricsCSV(Path(folder) / "metrics.csv")]
    return trainer, cast(ODC, method), datamodule


def lightning(setting: Setting, num_samples: int, num_clusters: int, rounds: int, bar: bool, nowhere: TextIO) -> None:
    """Module, Trainer, logger and callbacks as the command line sets them up, over the bare loop.

    Args:
        bar: show the progress bar that a terminal gets; else one line an epoch.
        nowhere: takes what the run prints.
    """
    torch.manual_seed(0)
    bare_memory = Memory(num_samples=num_samples, num_clusters=num_clusters, feature_dim=DIM, min_cluster_size=10)
    beside = Beside(BareODC(Step(setting, num_clusters), random_fill(bare_memory)))
    with tempfile.TemporaryDirectory() as folder:
        trainer, method, datamodule = app_run(folder, setting, num_samples, num_clusters, [], rounds + 2)
        progress = ProgressBar(console_kwargs={"force_terminal": True, "file": nowhere}) if bar else EpochLines()
        kept = [callback for callback in trainer.callbacks if not isinstance(callback, EpochLines | ProgressBar)]
        trainer.callbacks = [beside, *kept, progress]
        with contextlib.redirect_stdout(nowhere):
            trainer.fit(method, datamodule=datamodule)
    above, below = beside.times["lightning"], beside.times["bare"][:rounds]
    more = statistics.median(high - low for high, low in zip(above, below, strict=True)) * 1e3
    line("progress bar" if bar else "one line an epoch", ("bare", "Lightning"), below, above, f"  {more:+.1f} ms")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="r18, r50 or lightning; default: all")
    parser.add_argument("--rounds", type=int, default=60, help="of R-18; R-50 takes a fourth")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, setting in SETTINGS.items():
        rounds = options.rounds if name == "r18" else max(options.rounds // 4, 3)
        about = f"{setting.name}, {setting.side} px, batch {setting.batch}, D {DIM}, {options.threads} threads"
        if not options.only or name in options.only:
            print(f"{about}, {rounds} rounds")
            if name == "r18":
                measure(setting, 10_000, 100, rounds)
            measure(setting, 1_280_000, 10_000, rounds)
        if name == "r18" and (not options.only or "lightning" in options.only):
            print(f"Lightning and logging: {about}, N 10,000, C 100, {rounds} rounds")
            with open(os.devnull, "w") as nowhere:
                for bar in (False, True):
                    lightning(setting, 10_000, 100, rounds, bar, nowhere)


if __name__ == "__main__":
    if not KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    main()
