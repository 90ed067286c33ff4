"""Colorization (Zhang, Isola and Efros, ECCV 2016): from lightness alone, what colours are here?

Shapes: B images of this rank, Q bins of colours, h x w pixels of the backbone's map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odc_lightning.checks import check_number
from odc_lightning.console import warn
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Batch
from odc_lightning.evaluation.features import eval_mode, progress
from odc_lightning.memory import Ranks
from odc_lightning.methods.base import Method
from odc_lightning.nn.ab_bins import colour_loss, colour_targets, histogram, in_gamut_bins, rebalancing, soft_code
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.lab import Lightness
from odc_lightning.nn.names import unknown_name


class Colorization(Method):
    """A 1x1 convolution on a map of the backbone predicts the distribution of the colours of each of its pixels.

    The backbone sees lightness (``backbone.in_channels=1``), here and in every measurement. The colours' prior, for the
    rebalancing, is estimated from training images before the first step; the checkpoint keeps it.

    Layers behind the map stay at the weights that they start with: fc6 and fc7 of AlexNet. Table 1 measures conv1 …
    conv5, which are trained. AlexNet's pooled feature (``gap``, the default of kNN) is fc7's, and a warning says so.

    Args:
        layer: the map that is read.
        upsample: enlarge the prediction so many times, bilinearly; the targets have its resolution.
        bin_width: of the bins, in units of a and b (paper: 10).
        sigma: of the soft codes (paper: 5).
        rebalance_mix: the paper's lambda, share of the uniform distribution in the prior; 1 switches rebalancing off.
        prior_images: training images, drawn by the seed, for the prior.
        backbone and the rest: see :class:`Method`.

    Raises:
        ValueError: for a value outside its range; grey images or a backbone that sees colours, before training starts.
    """

    bins_Q2: Tensor
    prior_Q: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        layer: str = "conv5",
        upsample: int = 1,
        bin_width: float = 10.0,
        sigma: float = 5.0,
        rebalance_mix: float = 0.5,
        prior_images: int = 2000,
        compile: bool = False,
        **keys: Any,
    ) -> None:
        super().__init__(backbone, compile=compile, **keys)
        if layer not in backbone.taps:
            raise unknown_name("method.layer", layer, backbone.taps)
        for name, value in (("upsample", upsample), ("prior_images", prior_images)):
            if value < 1:
                raise ValueError(f"method.{name} must be at least 1. Received: {value}")
        if not sigma > 0:
            raise ValueError(f"method.sigma must be above 0. Received: {sigma}")
        if compile:
            raise ValueError("method.compile must be false for colorization: it reads a map inside the network")
        self.layer, self.upsample, self.sigma, self.prior_images = layer, upsample, sigma, prior_images
        self.rebalance_mix = check_number("method.rebalance_mix", rebalance_mix, 0, 1)
        bins_Q2 = in_gamut_bins(bin_width)
        self.register_buffer("bins_Q2", bins_Q2, persistent=False)
        self.register_buffer("prior_Q", torch.zeros(len(bins_Q2), dtype=torch.float64))  # 0: not estimated yet
        self.predictor = nn.Conv2d(train_up_to(backbone, layer), len(bins_Q2), 1)
        self.weights_Q: Tensor

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # 1. From lightness, a distribution over the bins for each pixel of the map.
        logits_BQhw = self(batch.image)
        # 2. The true colours at this resolution, softly coded.
        ab = colour_targets(batch.image, tuple(logits_BQhw.shape[-2:]))
        code = soft_code(ab, self.bins_Q2, self.sigma)
        # 3. Cross-entropy, rare colours weighing more (Eq. 2 to 4).
        return self.watch(colour_loss(logits_BQhw, code, self.weights_Q, self.readable(batch)))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """uint8 colour images (B, 3, H, W) to scores of the bins (B, Q, h, w)."""
        maps = self.backbone.forward_taps(self.pixels(image_BCHW), [self.layer])[self.layer]
        logits = self.predictor(maps)
        if self.upsample == 1:
            return logits
        return F.interpolate(logits, scale_factor=self.upsample, mode="bilinear", align_corners=False)

    # -- start-up ------------------------------------------------------------------------------------------------------

    def require_possible(self, datamodule: DataModule) -> None:
        if len(datamodule.mean) != 3:
            raise ValueError(f"method=colorization needs colours, and {datamodule.train_source.name} is grey")
        if self.backbone.in_channels != Lightness.out_channels:
            raise ValueError(
                f"backbone.in_channels must be 1, for lightness: a backbone that sees colours need not guess them. "
                f"Received: {self.backbone.in_channels}"
            )
        super().require_possible(datamodule)
        self.backbone.require_size(datamodule.image_size, "images (data.image_size)")

    def on_train_start(self) -> None:
        """Say what is not trained; estimate the prior, unless a checkpoint has brought it."""
        if behind := untrained(self.backbone):
            warn(
                f"{', '.join(behind)} of {self.backbone.name} lie behind method.layer={self.layer} and are not "
                f"trained: measure {self.layer} or a layer before it, not gap (protocol.layer, protocol.layers)"
            )
        if not bool(self.prior_Q.any()):
            self.prior_Q.copy_(self._estimate_prior())
        self.weights_Q = rebalancing(self.prior_Q, self.rebalance_mix)

    @torch.no_grad()
    def _estimate_prior(self) -> Tensor:
        """How often each bin occurs in soft codes of a sample of training images, (Q,); sums to 1. Collective.

        The paper smooths its histogram by a Gaussian of the same sigma; the mean soft code is such a histogram.
        """
        ranks, count = Ranks.current(), min(self.prior_images, self.datamodule.num_samples)
        drawn = np.random.default_rng([self.seed, 1]).permutation(self.datamodule.num_samples)[:count]
        own = drawn[ranks.rank :: ranks.world_size].tolist()
        loader = self.datamodule.eval_dataloader(self.datamodule.train_source, own)
        total_Q, size = torch.zeros_like(self.prior_Q), None
        for batch in progress(loader, "colours of training images"):
            image, ok_B = batch.image.to(self.device), batch.ok.to(self.device)
            size = size or self._map_size(image)
            code = soft_code(colour_targets(image[ok_B], size), self.bins_Q2, self.sigma)
            total_Q += histogram(code, len(self.bins_Q2))
        total_Q = ranks.sum(total_Q)
        if not bool(total_Q.any()):
            raise ValueError(f"none of {count} training images could be read: method=colorization needs their colours")
        return total_Q / total_Q.sum()

    def _map_size(self, image_BCHW: Tensor) -> tuple[int, int]:
        with eval_mode(self):
            height, width = self(image_BCHW[:1]).shape[-2:]
        return height, width


def train_up_to(backbone: Backbone, layer: str) -> int:
    """Number of channels of a layer's map; what lies behind it is frozen.

    Weights without a gradient would stop several processes, which wait for one from each.
    """
    weights = list(backbone.parameters())
    with eval_mode(backbone):
        maps = _some_map(backbone, layer)
    gradients = torch.autograd.grad(maps.sum(), weights, allow_unused=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.requires_grad_(gradient is not None)
    return maps.shape[1]


def untrained(backbone: Backbone) -> list[str]:
    """Names of the modules whose weights are frozen, as its library calls them: ``classifier.1``."""
    frozen = [name for name, weight in backbone.net.named_parameters() if not weight.requires_grad]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in frozen))


def _some_map(backbone: Backbone, layer: str) -> Tensor:
    """The layer's map of an image of nothing; some networks take images of their own size only."""
    for side in (64, 224):
        try:
            return backbone.forward_taps(torch.zeros(1, backbone.in_channels, side, side), [layer])[layer]
        except (RuntimeError, AssertionError) as error:
            reason = error
    raise ValueError(f"method.layer={layer} of {backbone.name} gives no map of a 224x224 image: {reason}")
