"""The measured network: frozen, in eval mode, from uint8 images to pooled features of several layers in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from odc_lightning.checks import check_choice
from odc_lightning.evaluation.taps import GAP, Pools, Shape, adaptive_pool, pools_for
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.names import unknown_name
from odc_lightning.nn.network_input import network_input

PIXELS = "pixels"
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class FrozenNetwork(nn.Module):
    """A backbone behind its input: normalised images, Sobel edges or lightness, as its channels say.

    It never leaves eval mode: batch-norm statistics and dropout stay as they are.

    Args:
        backbone: what is measured.
        mean, std: of the images it was trained on, a number per channel.
        precision: ``32-true``, or ``bf16-mixed`` or ``16-mixed`` for a faster pass; features are float32 in any case.

    Raises:
        ValueError: for another precision, or a backbone that takes another number of channels.
    """

    here: Tensor

    def __init__(
        self, backbone: Backbone, mean: Sequence[float], std: Sequence[float], *, precision: str = "32-true"
    ) -> None:
        super().__init__()
        check_choice("evaluate.precision", precision, tuple(PRECISIONS))
        self.image_channels = len(mean)
        self.prepare = network_input(backbone.in_channels, mean, std)
        self.backbone = backbone.requires_grad_(False)
        self.precision = precision
        self.register_buffer("here", torch.zeros(0), persistent=False)  # raw pixels have no weights to ask
        self.eval()

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.here.device

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers that can be measured."""
        return (*self.backbone.taps, GAP)

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor, pools: Pools) -> dict[str, Tensor]:
        """uint8 images (B, C, H, W) to float32 features by layer, pooled maps (B, C, s, s); (B, D) for ``gap``."""
        found: dict[str, Tensor] = {}
        handle = self.backbone.net.register_forward_hook(lambda *call: found.update({GAP: call[-1]}))
        dtype = PRECISIONS[self.precision]
        try:
            with torch.autocast(image_BCHW.device.type, dtype=dtype, enabled=dtype != torch.float32):
                found |= self.backbone.forward_taps(
                    self.prepare(image_BCHW), [layer for layer in pools if layer != GAP]
                )
        finally:
            handle.remove()
        return {layer: pool(found[layer].float()) for layer, pool in pools.items()}

    def pools(self, layers: Sequence[str], size: int, named: str = "auto") -> Pools:
        """Pools of the named layers for images of ``size`` pixels; see :func:`pools_for`.

        Raises:
            ValueError: for a layer that the backbone does not have.
        """
        for layer in layers:
            if layer not in self.layers:
                raise unknown_name(f"protocol.layers of {self.backbone.name}", layer, self.layers)
        if not set(layers) - {GAP}:
            return {layer: nn.Identity() for layer in layers}
        every = pools_for(self._maps(size), named)  # decided by all layers, whichever are measured
        return {layer: every[layer] if layer != GAP else nn.Identity() for layer in layers}

    def shapes(self, pools: Pools, size: int) -> dict[str, Shape]:
        """Shape of one image's feature in each layer."""
        blank = torch.zeros(1, self.image_channels, size, size, dtype=torch.uint8, device=self.device)
        return {layer: tuple(feature.shape[1:]) for layer, feature in self(blank, pools).items()}

    @cached_property
    def weights(self) -> str:
        """Hash of the backbone's weights, which do not change."""
        return weights_hash(self.backbone)

    def about(self) -> dict[str, Any]:
        """What decides a feature apart from the image and the layer: plain values, for the cache's key."""
        parts = [str(module) for module in self.prepare]
        numbers = [buffer.flatten().tolist() for buffer in self.prepare.buffers()]
        return {
            "network": self.backbone.name,
            "weights": self.weights,
            "prepare": [parts, numbers],
            "precision": self.precision,
            "channels": self.image_channels,
        }

    def _maps(self, size: int) -> Mapping[str, Shape]:
        return self.shapes({layer: nn.Identity() for layer in self.backbone.taps}, size)


def weights_hash(module: nn.Module) -> str:
    """Sixteen hexadecimal digits over all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def pixel_backbone(channels: int, size: int) -> Backbone:
    """The images themselves as a feature: whole up to 9,600 numbers, larger ones averaged down to that."""
    net = nn.Sequential(adaptive_pool((channels, size, size)), nn.Flatten())
    width = net(torch.zeros(1, channels, size, size)).shape[1]
    return Backbone(net, name=PIXELS, feature_dim=width, in_channels=channels)
