"""A training's numbers and images, looked at before torch is loaded: a mistake is answered at once.

Parts check their own arguments as well, in the same words; here are keys that mean the same in each choice of a group.
"""

from __future__ import annotations

import copy
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from odc_lightning.checks import check_sizes

AT_LEAST_1 = (
    "method.log_every_n_steps",
    "method.centroid_update_interval",
    "method.small_cluster_interval",
    "method.min_cluster_size",
    "method.feature_dim",
    "method.hidden_dim",
    "clustering.iterations",
    "callbacks.clusters.every_n_epochs",
    "callbacks.measure.every_n_epochs",
    "callbacks.measure.k",
    "callbacks.measure.max_images",
    "callbacks.checkpoints.every_n_steps",
    "callbacks.checkpoints.keep_every_n_epochs",
)
AT_LEAST_0 = ("optim.lr", "optim.momentum", "optim.weight_decay", "method.loss_weight_power")
SHARES = ("method.momentum", "method.neck_bn_momentum")  # in (0, 1]


def require_numbers(cfg: DictConfig) -> None:
    """Raise ValueError for what Lightning, NumPy, the optimiser or the method would stumble over later."""
    for key, least, most in (
        ("seed", 0, 2**32 - 1),
        ("trainer.max_epochs", 1, None),
        ("trainer.accumulate_grad_batches", 1, None),
    ):
        value = OmegaConf.select(cfg, key)
        if type(value) is not int or value < least or (most is not None and value > most):
            to = f" to {most}" if most else ""
            raise ValueError(f"{key} must be a whole number from {least}{to}. Received: {value!r}")
    if cfg.trainer.limit_train_batches in (0, 0.0):
        raise ValueError("trainer.limit_train_batches must be above 0, or null. Received: 0")
    for keys, least in ((AT_LEAST_0, 0), (AT_LEAST_1, 1)):
        for key in keys:
            value = OmegaConf.select(cfg, key)
            if isinstance(value, int | float) and not value >= least:
                raise ValueError(f"{key} must be at least {least}. Received: {value}")
    milestones = OmegaConf.select(cfg, "schedule.milestones")
    if milestones is not None and not (
        OmegaConf.is_list(milestones) and all(type(epoch) is int for epoch in milestones)
    ):
        raise ValueError(f"schedule.milestones must be a list of epochs, such as [30,50]. Received: {milestones}")
    for key in SHARES:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and not 0 < value <= 1:
            raise ValueError(f"{key} must be in (0, 1]. Received: {value}")


def require_images(cfg: DictConfig) -> None:
    """Find the training images; raise ValueError where they are too few for the clusters, by their source's errors.

    A source lists files and reads labels, which takes no torch; torchvision's own data sets are left to the task, and a
    single cluster to the method: not each refuses it.
    """
    data: Any = copy.deepcopy(cfg)  # setting up resolves interpolations in place
    target = OmegaConf.select(data, "data.source._target_")
    if target is None or target.endswith(".TorchvisionImages"):
        return
    source = instantiate(data.data.source, split="train", _partial_=False)
    clusters = OmegaConf.select(data, "method.num_clusters")
    smallest = OmegaConf.select(data, "method.min_cluster_size", default=1)
    if type(clusters) is int and clusters > 1 and type(smallest) is int and not data.data.get("subset"):
        check_sizes(len(source), clusters, smallest, OmegaConf.select(data, "method.small_means", default="below"))
