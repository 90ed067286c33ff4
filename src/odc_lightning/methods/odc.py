"""Online Deep Clustering (Zhan et al., CVPR 2020). Read `training_step` and `finish_iteration`: they are Fig. 2.

Shapes: N samples, B batch of this rank, C clusters, D feature width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odc_lightning.clustering.assignment import in_blocks
from odc_lightning.clustering.kmeans import KMeans, forecast_seconds, resolve_backend
from odc_lightning.console import clock, iteration_bar, say, size
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Batch
from odc_lightning.evaluation.features import extract
from odc_lightning.memory import Memory, Ranks, check_rules
from odc_lightning.methods.base import Method, Optimizer, Schedule
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.head import NonLinearNeck, linear_classifier
from odc_lightning.objective import loss_weights, weighted_cross_entropy


class ForwardOf(NamedTuple):
    """What an iteration's forward leaves for the memory."""

    index_B: Tensor
    feature_BD: Tensor
    ok_B: Tensor | None


class ODC(Method):
    """ODC as the paper's Sec. 3 describes it; keys of ``fidelity=openselfsup`` give the authors' release instead.

    Args:
        backbone, optimizer, schedule, seed, channels_last, compile, log_every_n_steps: see :class:`Method`.
        kmeans: the global clustering that fills the memory before the first iteration.
        num_clusters: C (paper: 10,000 for ImageNet, ten times its classes).
        feature_dim: D, width of the head's output.
        hidden_dim, dropout, neck_bn_momentum, neck_bn_affine: of the head {fc-bn-relu-dropout-fc-relu}.
        momentum: m of Eq. 2.
        min_cluster_size: threshold of a small cluster.
        centroid_update_interval: k, iterations between two centroid refreshes.
        small_cluster_interval: iterations between two looks for small clusters.
        loss_weight_power: p of the weights w_c ~ 1 / N_c^p (paper: 0.5; 0 switches re-weighting off).
        head_momentum: SGD momentum of the classifier; None: as all others (release: 0).
        metric, renormalize, refresh, small_means, split_side, guarantee_size, row_dtype: see
            :class:`odc_lightning.memory.Memory`.
        optimizer, schedule, seed, channels_last, compile, log_every_n_steps: see :class:`Method`.

    Raises:
        ValueError: for a value outside its range; sizes are held against the data before training starts.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        optimizer: Optimizer,
        schedule: Schedule | None = None,
        kmeans: KMeans,
        num_clusters: int,
        feature_dim: int = 256,
        hidden_dim: int = 512,
        dropout: float = 0.5,
        neck_bn_momentum: float = 0.1,
        neck_bn_affine: bool = True,
        momentum: float = 0.5,
        min_cluster_size: int = 20,
        centroid_update_interval: int = 10,
        small_cluster_interval: int = 1,
        loss_weight_power: float = 0.5,
        head_momentum: float | None = None,
        metric: str = "l2",
        renormalize: bool = False,
        refresh: str = "involved",
        small_means: str = "at_most",
        split_side: str = "random",
        guarantee_size: bool = True,
        row_dtype: str = "float32",
        seed: int = 0,
        channels_last: bool = False,
        compile: bool = False,
        log_every_n_steps: int = 50,
    ) -> None:
        super().__init__(
            backbone,
            optimizer=optimizer,
            schedule=schedule,
            seed=seed,
            channels_last=channels_last,
            compile=compile,
            log_every_n_steps=log_every_n_steps,
        )
        for name, value, least in (
            ("centroid_update_interval", centroid_update_interval, 1),
            ("small_cluster_interval", small_cluster_interval, 1),
            ("loss_weight_power", loss_weight_power, 0),
        ):
            if value < least:
                raise ValueError(f"method.{name} must be at least {least}. Received: {value}")
        if not 0 < neck_bn_momentum <= 1:
            raise ValueError(f"method.neck_bn_momentum must be in (0, 1]. Received: {neck_bn_momentum}")
        self.neck = NonLinearNeck(
            backbone.feature_dim,
            hidden_dim,
            feature_dim,
            dropout=dropout,
            bn_momentum=neck_bn_momentum,
            bn_affine=neck_bn_affine,
        )
        self.classifier = linear_classifier(feature_dim, num_clusters)
        self.kmeans = kmeans
        self.num_clusters, self.feature_dim, self.head_momentum = num_clusters, feature_dim, head_momentum
        self.centroid_update_interval, self.small_cluster_interval = centroid_update_interval, small_cluster_interval
        self.loss_weight_power = loss_weight_power
        self.memory_rules: dict[str, Any] = {
            "num_clusters": num_clusters,
            "feature_dim": feature_dim,
            "seed": seed,
            "momentum": momentum,
            "min_cluster_size": min_cluster_size,
            "metric": metric,
            "renormalize": renormalize,
            "refresh": refresh,
            "small_means": small_means,
            "split_side": split_side,
            "guarantee_size": guarantee_size,
            "row_dtype": row_dtype,
        }
        self.memory: Memory
        self.weights_C: Tensor
        self._forward_of: ForwardOf

    # -- an ODC iteration (Fig. 2) -------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Steps 1 and 2 of an iteration; Lightning then runs backward and the optimizer."""
        # 1. Forward: images to compact features F = f(x).
        feature_BD = self(batch.image)
        # 2. Pseudo-labels from the samples memory, weighted cross-entropy (Eq. 1, w_c ~ 1/sqrt(N_c)).
        labels_B = self.memory.labels(batch.index)
        ok_B = self.readable(batch)
        loss = weighted_cross_entropy(self.classifier(feature_BD), labels_B, self.weights_C, ok_B)
        self._forward_of = ForwardOf(batch.index, feature_BD.detach(), ok_B)
        return self.watch(loss, feature_BD)

    def finish_iteration(self) -> dict[str, Tensor | float]:
        """Steps 3 and 4, in ``on_train_batch_end``."""
        index_B, feature_BD, ok_B = self._forward_of
        self.memory.journal.begin(self.trainer.current_epoch)
        # 3. Samples memory: features by Eq. 2, new labels by Eq. 3.
        switch_ratio = self.memory.update(index_B, feature_BD, ok_B=ok_B, unique=not self.datamodule.replacement)
        # 4. Centroids memory: every k-th iteration, average the involved clusters.
        if self._every(self.centroid_update_interval):
            self.memory.refresh_centroids()
        # Small clusters: dissolve, split the largest (Sec. 3.2).
        small = self.memory.handle_small_clusters() if self._every(self.small_cluster_interval) else []
        # Loss weights for the next iteration.
        self.weights_C = loss_weights(self.memory.sizes_C, self.loss_weight_power)
        return {
            "train/loss": self._loss,
            "train/label_switch_ratio": switch_ratio,
            "memory/small_clusters": float(len(small)),
        }

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) to the head's features (B, D), non-negative."""
        return self.neck(self.represent(image_BCHW))

    def _every(self, interval: int) -> bool:
        """Is this the interval-th optimizer step? Iterations count from 1."""
        return (self.iteration + 1) % (interval * self.trainer.accumulate_grad_batches) == 0

    # -- start-up, device, checkpoints ---------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.memory = Memory(num_samples=self.datamodule.num_samples, **self.memory_rules)

    def pseudo_labels(self) -> Tensor:
        return self.memory.labels_N

    def cluster_sizes(self) -> Tensor:
        return self.memory.sizes_C

    def journal(self) -> dict[str, Any]:
        return self.memory.journal.state_dict()

    @torch.no_grad()
    def centroid_distances(self) -> Tensor:
        memory = self.memory
        owned_labels = memory.labels_N[memory.ranks.rank :: memory.ranks.world_size]
        owned_distances = torch.empty(len(owned_labels), device=owned_labels.device)
        blocks = map(in_blocks, (memory.samples.rows, owned_labels, owned_distances))
        for rows, labels, distances in zip(*blocks, strict=True):
            distances.copy_((rows.float() - memory.centroids.centroids_CD[labels.long()]).norm(dim=1))
        return memory.ranks.collect_rows(owned_distances, memory.num_samples)

    def require_possible(self, datamodule: DataModule) -> None:
        super().require_possible(datamodule)
        check_rules(num_samples=datamodule.num_samples, **self.memory_rules)
        resolve_backend(self.kmeans.backend, Ranks.current().world_size)  # a broken faiss shows now, not after an hour

    def forecast(self) -> dict[str, str]:
        memory, clusters = self.memory, self.num_clusters
        ranks = memory.ranks.world_size
        shape = f"{memory.num_samples:,} x {self.feature_dim}"
        lines = {"memory": f"{size(memory.bytes())}: {shape} features, {clusters:,} clusters, on {ranks} device(s)"}
        if not memory.filled:
            seconds = forecast_seconds(
                memory.num_samples, clusters, self.feature_dim, self.kmeans.iterations, ranks, self.device
            )
            lines["start-up k-means"] = f"on all {memory.num_samples:,} features, about {clock(seconds)}"
        return lines

    def state_bytes(self) -> int:
        return self.memory.bytes()

    def network(self) -> list[nn.Module]:
        return [self.backbone, self.neck]

    def parameter_groups(self) -> Any:
        if self.head_momentum is None:
            return self.parameters()
        body = [p for module in (self.backbone, self.neck) for p in module.parameters()]
        return [{"params": body}, {"params": list(self.classifier.parameters()), "momentum": self.head_momentum}]

    def on_train_start(self) -> None:
        """Fill the memory by a global clustering of all images, unless a checkpoint has filled it."""
        self.memory.to(self.device)
        if not self.memory.filled:
            ranks = Ranks.current()
            owned = range(ranks.rank, self.memory.num_samples, ranks.world_size)
            loader = self.datamodule.eval_dataloader(self.datamodule.train_source, owned)
            samples = self.memory.samples
            extract(
                lambda images: samples.as_rows(self(images)),
                self,
                loader,
                "features for the start-up clustering",
                out=samples.rows,
            )
            with iteration_bar("start-up k-means") as bar:
                result = self.kmeans.fit(samples.rows, self.memory.num_samples, self.num_clusters, ranks, bar)
            small = self.memory.start(result.labels_N)
            say(
                f"k-means on {self.memory.num_samples:,} features, {self.num_clusters:,} clusters: "
                f"{clock(result.seconds)} ({result.backend}); {len(small)} small clusters refilled"
            )
        self.weights_C = loss_weights(self.memory.sizes_C, self.loss_weight_power)

    def gauges(self) -> dict[str, float]:
        return {**super().gauges(), "memory/splits": float(self.memory.refilled)}

    def state(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
