"""Instance discrimination (Wu et al., CVPR 2018): every image is a class of its own, its weight a row of a bank.

Shapes: N samples, B batch of this rank, K negatives of an image, D feature width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odc_lightning.checks import check_choice
from odc_lightning.console import size
from odc_lightning.data.dataset import Batch
from odc_lightning.memory import Bank, Ranks
from odc_lightning.methods.base import Method
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.head import linear_projection

LOSSES = ("nce", "softmax")


class NPID(Method):
    """Non-parametric instance discrimination, by the paper's loss (``nce``) or the ODC release's (``softmax``).

    Every rank holds the whole bank, 4 N D bytes (0.65 GB for ImageNet), and scores a batch against all of it: 4 B N
    bytes more, and as much again for the gradient. The paper's proximal term (Sec. 3.3) is left to the bank's momentum,
    as in the authors' code and in the release.

    Args:
        feature_dim: D, width of the features on the unit sphere.
        loss: ``nce`` tells the image from noise (Eq. 7), ``softmax`` picks it out among its negatives.
        num_negatives: K, drawn anew for each image, uniformly from all N and with replacement, so that it may exceed
            N (paper: m = 4096; release: 65,536).
        z_batches: first batches over which Z of ``nce`` is averaged, then it stays (authors: 1). Rows are random then,
            so Z comes out small. Where a bank fills within a few steps, noise soon outweighs the image's own row and
            features collapse: few images want the batches of about two epochs, or ``softmax``.
        temperature: tau of Eq. 2, which the similarities are divided by.
        momentum: share of the new feature in a bank row.
        backbone and the rest: see :class:`Method`.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        feature_dim: int = 128,
        loss: str = "nce",
        num_negatives: int = 4096,
        z_batches: int = 1,
        temperature: float = 0.07,
        momentum: float = 0.5,
        **keys: Any,
    ) -> None:
        super().__init__(backbone, **keys)
        check_choice("method.loss", loss, LOSSES)
        for name, value in (("num_negatives", num_negatives), ("z_batches", z_batches)):
            if value < 1:
                raise ValueError(f"method.{name} must be at least 1. Received: {value}")
        if not temperature > 0:
            raise ValueError(f"method.temperature must be above 0. Received: {temperature}")
        if not 0 < momentum <= 1:
            raise ValueError(f"method.momentum must be in (0, 1]. Received: {momentum}")
        self.projection = linear_projection(backbone.feature_dim, feature_dim)
        self.feature_dim, self.loss, self.momentum = feature_dim, loss, momentum
        self.num_negatives, self.z_batches, self.temperature = num_negatives, z_batches, temperature
        self.log_z = -math.inf  # of Eq. 4's constant Z
        self.bank: Bank  # no module and no buffer: DDP would send it at every step
        self._forward_of: tuple[Tensor, Tensor, Tensor | None]

    # -- an iteration --------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Steps 1 to 3 of an iteration; Lightning then runs backward and the optimizer."""
        # 1. Forward: images to unit features v.
        feature_BD = self(batch.image)
        # 2. Similarity to every bank row: the logits v_j·v / tau of Eq. 2.
        logits_BN = self.bank.similarities(feature_BD / self.temperature)
        # 3. Find each image's own row.
        loss_B, ok_B = self.losses(logits_BN, batch.index), self.readable(batch)
        self._forward_of = batch.index, feature_BD.detach(), ok_B
        return self.watch(mean_of_readable(loss_B, ok_B), feature_BD)

    def losses(self, logits_BN: Tensor, index_B: Tensor) -> Tensor:
        """Loss of each image, (B,), from its logits against all bank rows and its index."""
        positive_B = logits_BN.gather(1, index_B[:, None]).squeeze(1)
        negative_BK = logits_BN.gather(1, self._drawn(logits_BN))
        if self.loss == "softmax":
            return info_nce(positive_B, negative_BK)
        if self.iteration < self.z_batches:
            self._refine_z(estimate_log_z(negative_BK, logits_BN.shape[1], self.bank.ranks))
        return noise_contrastive(positive_B, negative_BK, self.log_z, logits_BN.shape[1])

    def finish_iteration(self) -> dict[str, Tensor | float]:
        """Step 4: move the batch's bank rows towards its features."""
        index_B, feature_BD, ok_B = self._forward_of
        self.bank.update(index_B, feature_BD, ok_B=ok_B, unique=not self.datamodule.replacement)
        return {"train/loss": self._loss}

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) to features of length 1, (B, D) float32."""
        return F.normalize(self.projection(self.represent(image_BCHW)).float(), dim=1)

    def _drawn(self, logits_BN: Tensor) -> Tensor:
        """Indices of the negatives, (B, K); the generator was seeded for this step and rank."""
        images, samples = logits_BN.shape
        return torch.randint(samples, (images, self.num_negatives), device=logits_BN.device)

    def _refine_z(self, log_z: float) -> None:
        """Take this batch's estimate into the mean of those before."""
        done = self.iteration
        of_those_before = self.log_z + math.log(done) if done else -math.inf
        self.log_z = float(np.logaddexp(of_those_before, log_z)) - math.log(done + 1)

    # -- start-up, device, checkpoints ---------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.bank = Bank(self.datamodule.num_samples, self.feature_dim, momentum=self.momentum, seed=self.seed)

    def on_train_start(self) -> None:
        """The bank to the device."""
        self.bank.to(self.device)

    def network(self) -> list[nn.Module]:
        return [self.backbone, self.projection]

    def forecast(self) -> dict[str, str]:
        samples, images = self.bank.num_samples, self.datamodule.micro_batch_size // self.bank.ranks.world_size
        rows = f"{size(self.bank.bytes())} on each device: {samples:,} x {self.feature_dim} features"
        return {"memory": f"{rows}; {size(2 * 4 * images * samples)} more for a batch's similarities"}

    def state_bytes(self) -> int:
        return self.bank.bytes()

    def state(self) -> dict[str, Any]:
        return {"bank": self.bank.state_dict(), "log_z": self.log_z}

    def load_state(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state["bank"])
        self.log_z = state["log_z"]


def noise_contrastive(positive_B: Tensor, negative_BK: Tensor, log_z: float, num_samples: int) -> Tensor:
    """Noise-contrastive estimation (Wu et al., Eq. 4 to 7): is this row the image's own, or one of K from the noise?

    With P(i|v) = exp(logit) / Z and noise of probability 1 / N, the posterior of Eq. 6, h = P / (P + K / N), is a
    sigmoid of logit - log Z - log(K / N).

    Args:
        positive_B: logits against the images' own rows, (B,).
        negative_BK: logits against K rows drawn uniformly from all N.
        log_z: logarithm of Z.
        num_samples: N.

    Returns: -log h(positive) - sum of log(1 - h(negative)), (B,).
    """
    threshold = log_z + math.log(negative_BK.shape[1] / num_samples)
    return F.softplus(threshold - positive_B) + F.softplus(negative_BK - threshold).sum(1)


def info_nce(positive_B: Tensor, negative_BK: Tensor) -> Tensor:
    """Cross-entropy of picking the positive out of itself and the negatives, (B,): the release's loss."""
    logits_BK = torch.cat([positive_B[:, None], negative_BK], 1)
    return logits_BK.logsumexp(1) - positive_B


@torch.no_grad()
def estimate_log_z(negative_BK: Tensor, num_samples: int, ranks: Ranks) -> float:
    """log of Z = N x mean of exp(logit) over drawn rows (Wu et al., Eq. 8), over the batch of all ranks. Collective.

    The paper finds that the first batches are enough: their value serves the whole run.
    """
    mean = ranks.sum(negative_BK.double().exp().mean()) / ranks.world_size
    return math.log(num_samples) + math.log(float(mean))


def mean_of_readable(loss_B: Tensor, ok_B: Tensor | None = None) -> Tensor:
    """Mean over the images that could be read, a scalar; 0 if there is none."""
    if ok_B is None:
        return loss_B.mean()
    return loss_B.where(ok_B, 0).sum() / ok_B.sum().clamp(min=1)
