"""DeepCluster (Caron et al., ECCV 2018), the paper's baseline. Read `training_step` and `cluster`.

Shapes: N samples, B batch of this rank, C clusters, D width of the backbone's feature, P whitened directions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odc_lightning.checks import check_choice
from odc_lightning.clustering.agreement import switch_ratio
from odc_lightning.clustering.kmeans import KMeans, KMeansResult, forecast_seconds, resolve_backend
from odc_lightning.clustering.whitening import fit_whitening, whitened_unit_rows
from odc_lightning.console import clock, iteration_bar, say, size
from odc_lightning.data.balance import uniform_order
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Batch
from odc_lightning.evaluation.features import extract
from odc_lightning.memory import Ranks
from odc_lightning.methods.base import Method
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.head import linear_classifier
from odc_lightning.objective import loss_weights, weighted_cross_entropy

BALANCE = ("uniform", "reweight", "none")
CLUSTERED = ("pooled", "before_relu")
NEVER = -1
_KMEANS, _CLASSIFIER, _ORDER = range(3)  # what a seed is for


class DeepCluster(Method):
    """Clusters all features at the start of an epoch, then learns the clusters as classes.

    Everything that an epoch starts with follows from the weights, the seed and the epoch's number.

    Args:
        backbone: 2 input channels put the Sobel filter before it, as both papers do.
        kmeans: of each clustering; its seed is the base of theirs.
        num_clusters: C.
        reassign_every: epochs from one clustering to the next; labels and their balance hold in between.
        pca_dim: P, directions that are left of the feature before k-means.
        balance: ``uniform`` draws all clusters equally often, ``reweight`` weighs the loss by 1/sqrt(N_c), ``none``
            does neither. The first two perform alike (paper, Sec. 3.2).
        head_momentum: SGD momentum of the classifier; None: as all others (both releases: 0).
        clustered: ``pooled`` clusters what the classifier sees, ``before_relu`` the same before the ReLU in which
            an AlexNet ends (DeepCluster's release); other backbones end in none.
        the rest: see :class:`Method`.

    Raises:
        ValueError: for a value outside its range; the clusters are held against the data before training starts.
    """

    renumbers_clusters = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        kmeans: KMeans,
        num_clusters: int,
        reassign_every: int = 1,
        pca_dim: int = 256,
        balance: str = "uniform",
        head_momentum: float | None = None,
        clustered: str = "pooled",
        **keys: Any,
    ) -> None:
        super().__init__(backbone, **keys)
        check_choice("method.balance", balance, BALANCE)
        check_choice("method.clustered", clustered, CLUSTERED)
        for name, value in (("num_clusters", num_clusters), ("reassign_every", reassign_every), ("pca_dim", pca_dim)):
            if value < 1:
                raise ValueError(f"method.{name} must be at least 1. Received: {value}")
        self.classifier = linear_classifier(backbone.feature_dim, num_clusters)
        self.kmeans, self.num_clusters, self.reassign_every = kmeans, num_clusters, reassign_every
        self.pca_dim, self.balance, self.clustered = min(pca_dim, backbone.feature_dim), balance, clustered
        self.head_momentum = head_momentum
        self.clustered_at = NEVER  # epoch of the clustering that gave the labels
        self.labels_N: Tensor  # int32, on every rank
        self.distances_N: Tensor  # to the centroids, when they were clustered; on the host
        self.weights_C: Tensor | None = None
        self._news: dict[str, float] = {}

    # -- training ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of the pseudo-labels."""
        logits_BC = self.classifier(self.represent(batch.image))
        # Labels are read here, in the main process: a loading process would keep those of the epoch it began in.
        labels_B = self.labels_N[batch.index]
        return self.watch(weighted_cross_entropy(logits_BC, labels_B, self.weights_C, self.readable(batch)))

    def finish_iteration(self) -> dict[str, Tensor | float]:
        """The first iteration after a clustering logs it, with a step that no earlier checkpoint has."""
        if self._news and (self.iteration + 1) % self.trainer.accumulate_grad_batches == 0:
            self.write({**self._news, **self.gauges()})
            self._news = {}
        return {"train/loss": self._loss}

    def sampling_order(self, epoch: int) -> NDArray[np.int64] | None:
        """Cluster if the epoch begins with it, then balance the clusters.

        Here rather than in ``on_train_epoch_start``, which Lightning leaves out for an epoch that it resumes.
        """
        due = epoch // self.reassign_every * self.reassign_every
        if self.clustered_at != due:
            self.cluster(due)
        if self.balance != "uniform":
            return None
        return uniform_order(self.labels_N.cpu().numpy(), np.random.default_rng(self._seed(_ORDER, epoch)))

    # -- clustering ----------------------------------------------------------------------------------------------------

    def cluster(self, epoch: int) -> None:
        """Features of all images, whitened, to new pseudo-labels; the classifier starts anew. Collective."""
        began, previous_N = time.perf_counter(), self.labels_N
        result = self._fit(self._features(epoch), epoch)
        self._news = {"time/clustering": time.perf_counter() - began}
        if self.clustered_at == NEVER:
            say(f"clustered {len(previous_N):,} features in {clock(self._news['time/clustering'])} ({result.backend})")
        else:
            self._news["train/label_switch_ratio"] = switch_ratio(result.labels_N, previous_N)
        self.labels_N, self.clustered_at = result.labels_N, epoch
        self._weigh()
        self._renew_classifier(epoch)

    def _features(self, epoch: int) -> Tensor:
        """Whitened unit features of the images that this rank owns, (N / W, P)."""
        ranks, num_samples = Ranks.current(), self.datamodule.num_samples
        owned = range(ranks.rank, num_samples, ranks.world_size)
        loader = self.datamodule.eval_dataloader(self.datamodule.train_source, owned)
        title = f"features of epoch {epoch}"
        with before_last_relu(self.backbone.net, self.clustered == "before_relu"):
            rows = extract(self.represent, self, loader, title, keep_on="cpu")  # N x D may fill a GPU
        whitening = fit_whitening(rows, num_samples, self.pca_dim, ranks=ranks, device=self.device)
        return whitened_unit_rows(whitening, rows)

    def _fit(self, rows: Tensor, epoch: int) -> KMeansResult:
        """K-means of this epoch's own seed; keeps the distances to its centroids."""
        ranks, num_samples = Ranks.current(), self.datamodule.num_samples
        kmeans = self.kmeans.with_seed(self._seed(_KMEANS, epoch))
        with iteration_bar(f"k-means of epoch {epoch}") as bar:
            result = kmeans.fit(rows, num_samples, self.num_clusters, ranks, bar)
        own_labels = result.labels_N[ranks.rank :: ranks.world_size].long()
        distances = (rows - result.centroids_CD[own_labels]).norm(dim=1)
        self.distances_N = ranks.collect_rows(distances, num_samples)
        return result

    def _weigh(self) -> None:
        if self.balance == "reweight":
            self.weights_C = loss_weights(self.cluster_sizes())

    def _renew_classifier(self, epoch: int) -> None:
        """The new clusters are other classes: N(0, 0.01), bias 0, and nothing left in the optimizer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed(_CLASSIFIER, epoch))
            fresh = linear_classifier(self.backbone.feature_dim, self.num_clusters)
        self.classifier.load_state_dict(fresh.state_dict())
        for optimizer in self.trainer.optimizers:
            for parameter in self.classifier.parameters():
                optimizer.state.pop(parameter, None)

    def _seed(self, use: int, epoch: int) -> int:
        base = self.kmeans.seed if use == _KMEANS else self.seed
        return int(np.random.SeedSequence([base, use, epoch]).generate_state(1)[0])

    # -- what others ask -----------------------------------------------------------------------------------------------

    def pseudo_labels(self) -> Tensor | None:
        return None if self.clustered_at == NEVER else self.labels_N

    def cluster_sizes(self) -> Tensor:
        return torch.bincount(self.labels_N, minlength=self.num_clusters)

    def centroid_distances(self) -> Tensor | None:
        """In the whitened space, as they were when the clusters were made."""
        return None if self.clustered_at == NEVER else self.distances_N

    def require_possible(self, datamodule: DataModule) -> None:
        super().require_possible(datamodule)
        if self.num_clusters > datamodule.num_samples:
            raise ValueError(
                f"method.num_clusters must not exceed the number of samples, {datamodule.num_samples}. "
                f"Received: {self.num_clusters}"
            )
        resolve_backend(self.kmeans.backend, Ranks.current().world_size)  # a broken faiss shows now, not after an hour

    def forecast(self) -> dict[str, str]:
        ranks, count = Ranks.current().world_size, self.datamodule.num_samples
        kept = size(4 * -(-count // ranks) * self.backbone.feature_dim)
        iterations = self.kmeans.iterations
        seconds = forecast_seconds(count, self.num_clusters, self.pca_dim, iterations, ranks, self.device)
        when = "every epoch" if self.reassign_every == 1 else f"every {self.reassign_every} epochs"
        return {
            "memory": f"{size(self.state_bytes())}: pseudo-labels; while clustering {kept} of features per device",
            "k-means": f"{when}, on all {count:,} features, {self.num_clusters:,} clusters, about {clock(seconds)}",
        }

    # -- device, optimizer, checkpoints --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.clustered_at == NEVER:
            self.labels_N = torch.zeros(self.datamodule.num_samples, dtype=torch.int32)
            self.distances_N = torch.zeros(self.datamodule.num_samples)

    def parameter_groups(self) -> Any:
        """The classifier always has a group of its own: a fused step wants all or none of a group to be new."""
        head: dict[str, Any] = {"params": list(self.classifier.parameters())}
        if self.head_momentum is not None:
            head["momentum"] = self.head_momentum
        return [{"params": list(self.backbone.parameters())}, head]

    def on_train_start(self) -> None:
        """To the device, what a checkpoint has brought."""
        self.labels_N = self.labels_N.to(self.device)
        if self.clustered_at != NEVER:
            self._weigh()

    def state_bytes(self) -> int:
        return 8 * self.datamodule.num_samples

    def state(self) -> dict[str, Any]:
        return {"labels": self.labels_N, "distances": self.distances_N, "clustered_at": self.clustered_at}

    def load_state(self, state: dict[str, Any]) -> None:
        self.labels_N, self.distances_N = state["labels"], state["distances"].cpu()
        self.clustered_at = state["clustered_at"]


@contextmanager
def before_last_relu(net: nn.Module, wanted: bool) -> Iterator[None]:
    """Leave out, inside, the ReLU in which the ``classifier`` of an AlexNet ends; other networks stay as they are."""
    layers = getattr(net, "classifier", None)
    if not wanted or not isinstance(layers, nn.Sequential) or not isinstance(layers[-1], nn.ReLU):
        yield
        return
    relu, layers[-1] = layers[-1], nn.Identity()
    try:
        yield
    finally:
        layers[-1] = relu
