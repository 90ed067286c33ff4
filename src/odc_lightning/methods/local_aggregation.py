"""Local aggregation (Zhuang, Zhai, Yamins, ICCV 2019): draw an image towards its neighbours, not to itself alone.

Shapes: N samples, B batch of this rank, M clusterings, K background neighbours of an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from odc_lightning.checks import check_sizes
from odc_lightning.clustering.kmeans import KMeans, forecast_seconds, resolve_backend
from odc_lightning.console import clock, iteration_bar
from odc_lightning.data.datamodule import DataModule
from odc_lightning.memory import Ranks
from odc_lightning.methods.npid import NPID
from odc_lightning.nn.backbone import Backbone


class LocalAggregation(NPID):
    """Instance discrimination to begin with, then local aggregation on the same bank.

    Every ``recluster_every`` epochs the bank's rows are clustered M times. The close neighbours C_i of an image are
    the union of its M clusters, its background neighbours B_i the K rows most similar to its feature; the loss is how
    little of the background's probability lies on close neighbours.

    Args:
        kmeans: of the clusterings; each has a seed of its own.
        num_clusterings: M (authors: 10).
        num_clusters: of each clustering (authors: 30,000 for ImageNet, about 43 images to a cluster).
        num_background: K (paper: 4096); all N rows where there are no more.
        warmup_epochs: of instance discrimination, at the start (authors: 10).
        recluster_every: epochs between two clusterings.
        backbone and the rest: see :class:`NPID`; its loss and negatives are those of the warm-up.

    Raises:
        ValueError: for a value outside its range.
    """

    renumbers_clusters = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        kmeans: KMeans,
        num_clusters: int,
        num_clusterings: int = 10,
        num_background: int = 4096,
        warmup_epochs: int = 10,
        recluster_every: int = 1,
        **keys: Any,
    ) -> None:
        super().__init__(backbone, **keys)
        for name, value, least in (
            ("num_clusterings", num_clusterings, 1),
            ("num_background", num_background, 1),
            ("warmup_epochs", warmup_epochs, 0),
            ("recluster_every", recluster_every, 1),
        ):
            if value < least:
                raise ValueError(f"method.{name} must be at least {least}. Received: {value}")
        self.kmeans, self.num_clusters, self.num_clusterings = kmeans, num_clusters, num_clusterings
        self.num_background = num_background
        self.warmup_epochs, self.recluster_every = warmup_epochs, recluster_every
        self.labels_MN: Tensor | None = None  # of the latest clusterings, int32; None during the warm-up

    # -- an iteration: that of instance discrimination with another loss -----------------------------------------------

    def losses(self, logits_BN: Tensor, index_B: Tensor) -> Tensor:
        """Loss of each image, (B,), from its logits against all bank rows and its index."""
        if self.labels_MN is None:
            return super().losses(logits_BN, index_B)
        # 1. B_i: the bank rows nearest to the feature.
        neighbours_BK = background_neighbours(logits_BN, index_B, self.num_background)
        # 2. C_i within B_i: those that share a cluster with the image.
        close_BK = close_neighbours(self.labels_MN, index_B, neighbours_BK)
        # 3. -log P(C_i and B_i | v_i) / P(B_i | v_i).
        return local_aggregation(logits_BN.gather(1, neighbours_BK), close_BK)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Cluster the bank where an epoch begins that is due for it."""
        super().on_train_batch_start(batch, batch_idx)
        # By the batches that were trained on: a run taken up within an epoch must not cluster again.
        epoch, position = divmod(self.iteration, int(self.trainer.num_training_batches))
        since = epoch - self.warmup_epochs
        if position == 0 and since >= 0 and since % self.recluster_every == 0:
            self.labels_MN = self.clusterings()

    def clusterings(self) -> Tensor:
        """Labels of M clusterings of the bank as it is, (M, N) int32, the same on every rank. Collective."""
        rows, ranks = self.bank.owned_rows(), self.bank.ranks
        labels = []
        for number in range(self.num_clusterings):
            entropy = np.random.SeedSequence([self.seed, self.iteration, number])
            kmeans = self.kmeans.with_seed(int(entropy.generate_state(1)[0]))
            with iteration_bar(f"clustering {number + 1} of {self.num_clusterings}") as bar:
                labels.append(kmeans.fit(rows, self.bank.num_samples, self.num_clusters, ranks, bar).labels_N)
        return torch.stack(labels)

    # -- start-up, device, checkpoints ---------------------------------------------------------------------------------

    def pseudo_labels(self) -> Tensor | None:
        """Labels of the last of the M clusterings, (N,) int32; None during the warm-up."""
        return None if self.labels_MN is None else self.labels_MN[-1]

    def require_possible(self, datamodule: DataModule) -> None:
        super().require_possible(datamodule)
        check_sizes(datamodule.num_samples, self.num_clusters, 1, "below")
        resolve_backend(self.kmeans.backend, Ranks.current().world_size)  # a broken faiss shows now, not after hours

    def on_train_start(self) -> None:
        """Bank and labels to the device."""
        super().on_train_start()
        if self.labels_MN is not None:
            self.labels_MN = self.labels_MN.to(self.device)

    def forecast(self) -> dict[str, str]:
        samples, ranks, times = self.bank.num_samples, self.bank.ranks.world_size, self.num_clusterings
        one = forecast_seconds(samples, self.num_clusters, self.feature_dim, self.kmeans.iterations, ranks, self.device)
        every = "epoch" if self.recluster_every == 1 else f"{self.recluster_every} epochs"
        when = f"from epoch {self.warmup_epochs + 1}, every {every}"
        text = f"{times} x {self.num_clusters:,} clusters {when}, about {clock(times * one)} each time"
        return {**super().forecast(), "k-means": text}

    def state_bytes(self) -> int:
        return super().state_bytes() + 4 * self.num_clusterings * self.bank.num_samples

    def state(self) -> dict[str, Any]:
        return {**super().state(), "labels": None if self.labels_MN is None else self.labels_MN.cpu()}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.labels_MN = state["labels"]


def background_neighbours(logits_BN: Tensor, index_B: Tensor, count: int) -> Tensor:
    """Indices of the K rows with the highest logits, (B, K): B_i of Sec. 3.1.

    The image's own row is always one of them, instead of the least similar if need be: the paper takes that for
    granted, and without it an image might have no close neighbour in its background, hence an infinite loss.

    Args:
        logits_BN: similarity of each image to all rows.
        index_B: the images' own rows.
        count: K; no more than N are returned.
    """
    neighbours_BK = logits_BN.detach().topk(min(count, logits_BN.shape[1]), dim=1).indices
    missing_B = (neighbours_BK != index_B[:, None]).all(1)
    neighbours_BK[:, -1] = torch.where(missing_B, index_B, neighbours_BK[:, -1])
    return neighbours_BK


def close_neighbours(labels_MN: Tensor, index_B: Tensor, neighbours_BK: Tensor) -> Tensor:
    """Which neighbours share the image's cluster in any of the M clusterings, (B, K) bool: C_i of Sec. 3.1."""
    close_BK = torch.zeros_like(neighbours_BK, dtype=torch.bool)
    for labels_N in labels_MN:
        close_BK |= labels_N[neighbours_BK] == labels_N[index_B, None]
    return close_BK


def local_aggregation(logits_BK: Tensor, close_BK: Tensor) -> Tensor:
    """-log P(C_i and B_i | v_i) / P(B_i | v_i), (B,): the loss of Sec. 3.1; the constant of P cancels.

    Args:
        logits_BK: of the background neighbours.
        close_BK: which of them are close; at least one of each image.
    """
    return logits_BK.logsumexp(1) - logits_BK.masked_fill(~close_BK, -torch.inf).logsumexp(1)
