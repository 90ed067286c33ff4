"""What every method shares: device input, optimizer and schedule, randomness per step, logging, exact checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odc_lightning.clustering.agreement import size_entropy
from odc_lightning.console import log
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Batch
from odc_lightning.memory import Ranks
from odc_lightning.methods.meters import Meters
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.network_input import network_input

Optimizer = Callable[..., torch.optim.Optimizer]
Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class Method(pl.LightningModule):
    """Base of the training methods.

    A subclass computes its loss in ``training_step`` and does what follows the optimizer step in ``finish_iteration``,
    which runs from ``on_train_batch_end``, or earlier if a checkpoint is due: Lightning writes checkpoints before the
    module's hook, and a checkpoint written after n steps must hold exactly n finished iterations.

    Args:
        backbone: network to train; its pooled features are what the downstream tasks use.
        optimizer: called with parameter groups.
        schedule: called with the optimizer, stepped every epoch; None keeps the learning rate.
        seed: of everything random on the device; a draw depends on (seed, step, rank) only.
        channels_last: memory format of the network.
        compile: ``torch.compile`` the network.
        log_every_n_steps: optimizer steps between two log lines.
    """

    renumbers_clusters = False  # does each clustering number its clusters anew?
    datamodule: DataModule
    fingerprint: str
    _loss: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
        seed: int = 0,
        channels_last: bool = False,
        compile: bool = False,
        log_every_n_steps: int = 50,
    ) -> None:
        super().__init__()
        if log_every_n_steps < 1:
            raise ValueError(f"method.log_every_n_steps must be at least 1. Received: {log_every_n_steps}")
        self.backbone = backbone
        self.optimizer, self.schedule, self.seed = optimizer, schedule, seed
        self.channels_last, self.compile_network = channels_last, compile
        self.log_every_n_steps = log_every_n_steps
        self.network_input = nn.Sequential()  # see `see`
        self.iteration = 0  # training batches finished
        self.seconds = 0.0  # of training, over all parts of the run
        self.meters = Meters()
        self.unreadable: set[int] = set()  # images of this rank that could not be read
        self.latest: dict[str, float] = {}
        self.run_config: dict[str, Any] | None = None
        self._due = False
        self._finite: Tensor | None = None
        self.epoch_times: dict[str, float] = {}  # of the running epoch: seconds of data and step, number of iterations
        self._clock = {"begin": 0.0, "end": 0.0, "epoch": -1}

    # -- for subclasses ------------------------------------------------------------------------------------------------

    def finish_iteration(self) -> dict[str, Tensor | float]:
        """What follows the optimizer step; returns values to be averaged into the next log line. Collective."""
        return {"train/loss": self._loss}

    def gauges(self) -> dict[str, float]:
        """State worth a log line, read when the line is written: here the sizes of the clusters, if there are any."""
        if (sizes_C := self.cluster_sizes()) is None:
            return {}
        sizes_C = sizes_C.cpu()
        return {
            "memory/cluster_size_min": float(sizes_C.min()),
            "memory/cluster_size_median": float(sizes_C.median()),
            "memory/cluster_size_max": float(sizes_C.max()),
            "memory/size_entropy": size_entropy(sizes_C),
        }

    def pseudo_labels(self) -> Tensor | None:
        """Current pseudo-labels of all images, (N,); None for a method without."""
        return None

    def cluster_sizes(self) -> Tensor | None:
        """Members of each cluster, (C,); None for a method without clusters."""
        return None

    def centroid_distances(self) -> Tensor | None:
        """Euclidean distance of each image's feature to its centroid, (N,) float32 on the host. Collective.

        None for a method without clusters.
        """
        return None

    def journal(self) -> dict[str, Any]:
        """What changed labels in the running epoch, as :class:`odc_lightning.memory.journal.Journal` keeps it.

        Collective; empty for a method without.
        """
        return {}

    def sampling_order(self, epoch: int) -> NDArray[np.int64] | None:
        """Images of an epoch in the order of training, (N,); None: a permutation. Asked when the epoch begins."""
        return None

    def require_possible(self, datamodule: DataModule) -> None:
        """Raise ValueError if the settings cannot work on this data; called before any work starts."""
        network_input(self.backbone.in_channels, datamodule.mean, datamodule.std)

    def forecast(self) -> dict[str, str]:
        """What start-up should say beside steps and sizes of the weights: name to text."""
        return {}

    def state_bytes(self) -> int:
        """Bytes that ``state`` adds to a checkpoint."""
        return 0

    def represent(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images to the backbone's pooled features: the representation that downstream tasks use."""
        return self.backbone(self.pixels(image_BCHW))

    def network(self) -> Iterable[nn.Module]:
        """Modules to compile."""
        return (self.backbone,)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights, optimizer and loops: plain numbers and tensors. Collective."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned."""

    # -- what Lightning calls ------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self.datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        self.fingerprint = self.datamodule.train_source.fingerprint()  # once: of a large folder it takes its time
        self.see(self.datamodule)
        if self.channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile_network:
            for module in self.network():
                module.compile()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameter_groups())
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "epoch"}}

    def parameter_groups(self) -> Any:
        """Parameter groups of the optimizer."""
        return self.parameters()

    def see(self, datamodule: DataModule) -> None:
        """Take images of this data: what stands before the backbone follows from the channels of both."""
        self.network_input = network_input(self.backbone.in_channels, datamodule.mean, datamodule.std).to(self.device)

    def pixels(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images to the backbone's float input: normalised, or Sobel edges, or lightness."""
        if self.channels_last:
            image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        return self.network_input(image_BCHW)

    def watch(self, loss: Tensor, *features: Tensor) -> Tensor:
        """The loss, kept for the log line; NaN or infinite values stop the run. See :meth:`require_finite`."""
        self.require_finite(loss, *features)
        self._loss = loss.detach()
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rank = Ranks.current().rank
        seed = int(np.random.SeedSequence([self.seed, self.iteration, rank]).generate_state(1)[0])
        if self.device.type == "cpu":  # torch.manual_seed notes a stack trace for each kind of absent GPU: 1 ms a step
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        self._due = True
        self._clock["begin"] = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._finish()

    def on_train_epoch_end(self) -> None:
        """A run whose epochs are shorter than a line's interval still ends with a line."""
        steps = int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches
        last = self.trainer.current_epoch + 1 == self.trainer.max_epochs
        if self.meters.sums and last and steps < self.log_every_n_steps:
            self._write_line()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._finish()
        self._check_finite()
        checkpoint["method"] = {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "meters": self.meters.state_dict(Ranks.current(), self.device),
            "data": {"fingerprint": self.fingerprint, "samples": self.datamodule.num_samples},
            **self.state(),
        }
        if self.run_config is not None:
            checkpoint["config"] = self.run_config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "method" not in checkpoint:
            raise ValueError("this checkpoint is no odc-lightning run: resume needs one, init= takes weights only")
        state = checkpoint["method"]
        source = self.datamodule.train_source
        if state["data"]["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"the checkpoint was trained on other data: {state['data']['samples']} images there, "
                f"{len(source)} in {source.name}. Use another run.name, or resume=never to start over"
            )
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.meters.load_state_dict(state["meters"])
        self.load_state(state)

    def readable(self, batch: Batch) -> Tensor | None:
        """Which images of the batch could be read, (B,) bool; each bad one is named once.

        None unless ``data.on_bad_image=skip``: then every image is good, and an ordinary step does no work for it.
        """
        if self.datamodule.on_bad_image != "skip":
            return None
        for index in set(batch.index[~batch.ok].tolist()) - self.unreadable:
            self.unreadable.add(index)
            log.warning(f"unreadable image left out: {self.datamodule.train_source.path(index)}")
        return batch.ok

    def require_finite(self, *tensors: Tensor) -> None:
        """Raise FloatingPointError before NaN or infinite values reach weights, memory or checkpoint.

        On a GPU the test is read with the next log line or checkpoint, so that a step does not wait for the device.
        """
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
        self._finite = finite if self._finite is None else self._finite & finite
        if not finite.is_cuda:
            self._check_finite()

    def _check_finite(self) -> None:
        if self._finite is not None and not bool(self._finite):
            raise FloatingPointError(
                f"features or loss became NaN or infinite by step {self.trainer.global_step + 1} (epoch "
                f"{self.trainer.current_epoch}). The last good checkpoint is kept. Usual causes: a learning rate that "
                f"is too high (optim.lr), or 16-bit precision (trainer.precision)"
            )
        self._finite = None

    # -- logging -------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Finish the iteration once, whoever asks first; write a log line when one is due."""
        if not self._due:
            return
        self._due = False
        began = time.perf_counter()
        values = self.finish_iteration()
        self.iteration += 1
        now = time.perf_counter()
        times = {"time/memory": now - began, "time/step": now - self._clock["begin"]}
        between = self._clock["begin"] - (self._clock["end"] or self._clock["begin"])
        self.seconds += times["time/step"] + between
        if self._clock["epoch"] != self.trainer.current_epoch:  # what lay between was measuring or clustering too
            self.epoch_times = {"data": 0.0, "step": 0.0, "iterations": 0}
        else:
            times["time/data"] = between
            self.epoch_times["data"] += between
            self.epoch_times["step"] += times["time/step"]
            self.epoch_times["iterations"] += 1
        self._clock["end"], self._clock["epoch"] = now, self.trainer.current_epoch
        self.meters.add({**values, **times})
        if self.iteration % (self.log_every_n_steps * self.trainer.accumulate_grad_batches) == 0:
            self._write_line()

    def _write_line(self) -> None:
        self._check_finite()
        means = self.meters.flush(Ranks.current(), self.device)
        seconds = means["time/step"] + means.get("time/data", 0.0)
        means["time/images_per_second"] = self.datamodule.micro_batch_size / max(seconds, 1e-9)
        optimizer = self.trainer.optimizers[0]
        if self.datamodule.on_bad_image == "skip":
            means["data/unreadable_images"] = float(len(self.unreadable))
        line = {**means, **self.gauges(), "optim/lr": float(optimizer.param_groups[0]["lr"])}
        self.write(line)

    def write(self, line: dict[str, float]) -> None:
        """One dict to every logger and the progress bar: a ``self.log`` per value would cost 0.2 ms each."""
        self.latest.update(line)
        for logger in self.trainer.loggers:
            logger.log_metrics({"epoch": self.trainer.current_epoch, **line}, step=self.trainer.global_step)
