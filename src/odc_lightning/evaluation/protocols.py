"""kNN, k-means, and agreement of clusters with classes, as protocols: features from the bench, then one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odc_lightning.checks import check_choice
from odc_lightning.clustering.agreement import agreement, cluster_accuracy
from odc_lightning.clustering.kmeans import KMeans
from odc_lightning.console import say
from odc_lightning.evaluation.bench import Bench
from odc_lightning.evaluation.knn import knn_accuracies
from odc_lightning.evaluation.protocol import Protocol
from odc_lightning.evaluation.taps import GAP, POOL_CHOICES, Pools
from odc_lightning.memory import Ranks


class KNN(Protocol):
    """Weighted k-nearest-neighbour classifier (Wu et al. 2018), see :func:`knn_accuracies`.

    Args:
        layer: whose features, ``gap`` for the pooled ones.
        k: of ``knn/top1``.
        ks: other numbers of neighbours, ``knn/{k}/top1``; those above the number of training images are left out.
        temperature: of the weights.
        num_classes: that the data must have; None: any.
        pools, name: see :class:`odc_lightning.evaluation.linear.LinearProbe`.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        name: str = "knn",
        layer: str = GAP,
        k: int = 20,
        ks: Sequence[int] = (10, 20, 100, 200),
        temperature: float = 0.07,
        num_classes: int | None = None,
        pools: str = "auto",
    ) -> None:
        if min([k, *ks]) < 1:
            raise ValueError(f"protocol.k and protocol.ks must be at least 1. Received: {k} and {list(ks)}")
        if not temperature > 0:
            raise ValueError(f"protocol.temperature must be above 0. Received: {temperature}")
        check_choice("protocol.pools", pools, POOL_CHOICES)
        self.name, self.layer, self.k, self.ks, self.temperature = name, layer, k, list(ks), temperature
        self.num_classes, self.named_pools = num_classes, pools

    def check(self, bench: Bench) -> None:
        bench.num_classes(self.num_classes)
        bench.pools(bench.layers([self.layer]), self.named_pools)

    def run(self, bench: Bench) -> dict[str, float]:
        pools = bench.pools(bench.layers([self.layer]), self.named_pools)
        (train, train_targets), (val, val_targets) = (_labelled(bench, split, pools) for split in ("train", "val"))
        if bench.ranks.rank != 0:
            return {}
        ks = sorted({k for k in (self.k, *self.ks) if k <= len(train)})
        if left_out := sorted({self.k, *self.ks} - set(ks)):
            say(f"k = {', '.join(map(str, left_out))} is more than the {len(train)} training images: left out")
        found = knn_accuracies(train, train_targets, val, val_targets, ks=ks, temperature=self.temperature)
        main = {"knn/top1": found[self.k]} if self.k in found else {}
        return main | {f"knn/{k}/top1": found[k] for k in self.ks if k in found}


class Clustering(Protocol):
    """K-means of the validation images' features against their classes, for networks trained without clusters too.

    Args:
        layer: whose features, L2-normalised; ``gap`` for the pooled ones.
        num_clusters: None: as many as there are classes.
        kmeans: how to cluster.
        pools, name: see :class:`odc_lightning.evaluation.linear.LinearProbe`.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        *,
        kmeans: KMeans,
        name: str = "kmeans",
        layer: str = GAP,
        num_clusters: int | None = None,
        pools: str = "auto",
    ) -> None:
        if num_clusters is not None and num_clusters < 1:
            raise ValueError(f"protocol.num_clusters must be at least 1. Received: {num_clusters}")
        check_choice("protocol.pools", pools, POOL_CHOICES)
        self.kmeans, self.num_clusters = kmeans, num_clusters
        self.name, self.layer, self.named_pools = name, layer, pools

    def check(self, bench: Bench) -> None:
        bench.num_classes()
        bench.pools(bench.layers([self.layer]), self.named_pools)

    def run(self, bench: Bench) -> dict[str, float]:
        rows, targets = _labelled(bench, "val", bench.pools(bench.layers([self.layer]), self.named_pools))
        if bench.ranks.rank != 0:
            return {}
        clusters = self.num_clusters or bench.num_classes()
        labels = self.kmeans.fit(rows, len(rows), clusters, Ranks()).labels_N.cpu().numpy()
        classes = targets.cpu().numpy()
        values = {**agreement(labels, classes), "accuracy": cluster_accuracy(labels, classes)}
        return {f"kmeans/{name}": value for name, value in values.items()}


class Agreement(Protocol):
    """How far a run's clusters agree with true classes: NMI, ARI, purity, accuracy of the best one-to-one matching.

    All four are in 0..1. The labels are those in the run's checkpoint; labels never reached its loss.
    """

    baselines = ()

    def __init__(self, *, name: str = "agreement") -> None:
        self.name = name

    def check(self, bench: Bench) -> None:
        bench.targets("train")
        if bench.checkpoint is None:
            raise ValueError("protocol=agreement needs a run: init.path=runs/<name>")

    def run(self, bench: Bench) -> dict[str, float]:
        assert bench.checkpoint is not None
        labels, targets = saved_labels(bench.checkpoint, bench), bench.targets("train")
        values = {**agreement(labels, targets), "accuracy": cluster_accuracy(labels, targets)}
        return {f"agreement/{name}": value for name, value in values.items()}


def saved_labels(checkpoint: Path, bench: Bench) -> NDArray[np.int64]:
    """Pseudo-labels (N,) of a run's checkpoint.

    Raises:
        ValueError: the file holds none, or they are of other images.
    """
    method = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get("method", {})
    labels = method.get("memory", method).get("labels")
    if labels is None:
        raise ValueError(f"protocol=agreement needs the pseudo-labels of a run, and {checkpoint} holds none")
    source = bench.source("train")
    if method["data"]["fingerprint"] != source.fingerprint():
        raise ValueError(
            f"{checkpoint} was trained on other images ({method['data']['samples']:,}) than the "
            f"{len(source):,} of {source.name}: its labels cannot be compared with these classes"
        )
    # Local aggregation keeps several clusterings; the last one serves.
    return labels.view(-1, labels.shape[-1])[-1].numpy().astype(np.int64)


def _labelled(bench: Bench, split: str, pools: Pools) -> tuple[Tensor, Tensor]:
    """Features (M, D) and targets (M,) of the labelled images, on the device."""
    (features,) = bench.features(split, pools).values()
    known = bench.known(split, pools)
    targets = torch.from_numpy(bench.targets(split))[known]
    return features[known].flatten(1).to(bench.device), targets.to(bench.device)
