"""Small real runs for tests: coloured squares and stripes, a narrow network, everything else as in a real run."""

from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch

from odc_lightning.callbacks.checkpoints import Checkpoints
from odc_lightning.callbacks.metrics_csv import MetricsCSV
from odc_lightning.clustering.kmeans import KMeans
from odc_lightning.data.augment import EvalTransform, TrainTransform
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Batch
from odc_lightning.data.sources import ArraySource
from odc_lightning.methods.odc import ODC
from odc_lightning.nn.resnet import small_resnet

# Ordinary keys of the trainer, which a method needs nothing special for.
TRAINER_KEYS = [
    {"precision": "bf16-mixed"},
    {"accumulate_grad_batches": 2},
    {"gradient_clip_val": 1.0},
    {"limit_train_batches": 2},
]


def squares(count=64, side=12, seed=0, split="train"):
    """Images of a few kinds, labelled by kind."""
    rng = np.random.default_rng([seed, split == "val"])
    kinds = rng.integers(4, size=count)
    images = rng.integers(0, 60, size=(count, side, side, 3)).astype(np.uint8)
    for image, kind in zip(images, kinds, strict=True):
        image[:: kind + 1, :, kind % 3] += 150
    return ArraySource(images, "squares", split, kinds.astype(np.int64), ["a", "b", "c", "d"])


def source(split, count=64):
    return squares(count if split == "train" else count // 2, split=split)


def datamodule(count=64, batch_size=16, num_workers=0, **keys):
    return DataModule(
        partial(source, count=count),
        TrainTransform(12, scale=(0.5, 1.0)),
        EvalTransform(None, 12),
        batch_size=batch_size,
        num_workers=num_workers,
        image_size=12,
        **keys,
    )


def odc(num_clusters=6, seed=0, lr=0.05, width=4, **keys):
    torch.manual_seed(seed)
    return ODC(
        small_resnet(width=width),
        optimizer=partial(torch.optim.SGD, lr=lr, momentum=0.9),
        schedule=partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[2]),
        kmeans=KMeans(backend="torch", iterations=5),
        num_clusters=num_clusters,
        **{
            "feature_dim": 8,
            "hidden_dim": 16,
            "min_cluster_size": 3,
            "centroid_update_interval": 3,
            "log_every_n_steps": 2,
            "seed": seed,
            **keys,
        },
    )


def trainer(folder, callbacks=(), max_epochs=3, checkpoint_every=None, **keys):
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": max_epochs,
            "callbacks": [*callbacks, Checkpoints(folder / "checkpoints", every_n_steps=checkpoint_every)],
            "logger": MetricsCSV(folder / "metrics.csv"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            **keys,
        }
    )


def differences(one, other, path=""):
    """Where two nested structures of tensors and plain values differ, bit for bit."""
    if torch.is_tensor(one) and torch.is_tensor(other):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f"{path}/{key}" for key in one.keys() ^ other.keys()]
        return missing + [
            d for key in one.keys() & other.keys() for d in differences(one[key], other[key], f"{path}/{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    return [] if one == other else [path]


def last_checkpoint(folder):
    """Everything of last.ckpt but clocks."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["method"].pop("seconds")
    for part in checkpoint["method"]["meters"].values():
        for name in [name for name in part if name.startswith("time/")]:
            del part[name]
    return checkpoint


def ramps(count=16, side=12):
    """Images whose colours tell the place: red grows downwards, green to the right, (count, 3, side, side) uint8."""
    step = torch.arange(side) * (240 // side)
    place = torch.stack([step[:, None].expand(side, side), step.expand(side, side), torch.zeros(side, side)])
    return (place + torch.randint(0, 15, (count, 3, side, side))).to(torch.uint8)


def train_on(method, images, steps=60):
    """A loop of PyTorch's on one batch, for what the images of this file cannot teach; returns the last loss."""
    method.datamodule = datamodule()
    method.see(method.datamodule)
    batch = Batch(images, torch.arange(len(images)), torch.ones(len(images), dtype=torch.bool))
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = method.training_step(batch, step)
        loss.backward()
        optimizer.step()
    return loss.item()
