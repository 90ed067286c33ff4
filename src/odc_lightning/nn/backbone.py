"""One face for every backbone: a pooled feature for training, and named feature maps for the linear probes."""

from collections.abc import Iterable, Mapping
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from odc_lightning.nn.names import unknown_name


class Backbone(nn.Module):
    """A network without its classifier.

    Attributes:
        net: the wrapped network. Its state dict has the names of its library, so that
            `backbone.net.load_state_dict(torchvision_weights, strict=False)` works; in a checkpoint of the
            backbone the same names stand behind the prefix `net.`.
        feature_dim: width of the pooled feature.
        in_channels: channels of the input image (2 behind a Sobel filter).
        taps: probe name (`conv1`, …, `conv5`) to the name of the submodule in `net` whose output it is.

    Args:
        name: what people call the network; used in messages only.
        channels_last: tapped modules give (B, H, W, C), as Swin does.
        prefix_tokens: tokens before the patch tokens where tapped modules give (B, L, C), as a ViT does.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        feature_dim: int,
        in_channels: int = 3,
        taps: Mapping[str, str] | None = None,
        channels_last: bool = False,
        prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.net = net
        self.name = name
        self.feature_dim = feature_dim
        self.in_channels = in_channels
        self.taps = dict(taps or {})
        self._channels_last = channels_last
        self._prefix_tokens = prefix_tokens
        modules = {module for module, _ in net.named_modules() if module}
        for module in self.taps.values():
            if module not in modules:
                raise unknown_name(f"the submodule of {name} behind a tap", module, modules)

    @property
    def description(self) -> str:
        """One line for people: `resnet50: 23.5M parameters, 2048-d`."""
        millions = sum(p.numel() for p in self.net.parameters()) / 1e6
        return f"{self.name}: {millions:.{1 if millions >= 1 else 3}f}M parameters, {self.feature_dim}-d"

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to pooled features (B, feature_dim)."""
        return self.net(images)

    def forward_taps(self, images: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Map images (B, in_channels, H, W) to {name: feature map (B, C, h, w)}, in one pass of the network.

        Raises ValueError for a name that is not in `taps`.
        """
        names = list(names)
        for name in names:
            if name not in self.taps:
                raise unknown_name(f"a tap of {self.name}", name, self.taps)
        outputs: dict[str, Any] = {}
        handles = [self._record(name, outputs) for name in names]
        try:
            self.net(images)
        finally:
            for handle in handles:
                handle.remove()
        return {name: self._as_map(name, outputs.get(name)) for name in names}

    def require_size(self, side: int, what: str) -> None:
        """Raise ValueError, with the network's own reason, unless it takes images of `side` x `side` pixels.

        Args:
            side: pixels.
            what: whose size this is, as people set it; for the message.
        """
        parameter = next(self.parameters())
        was_training = [module for module in self.modules() if module.training]
        self.eval()  # neither statistics nor dropout: one image of nothing leaves no trace
        try:
            with torch.no_grad():
                self(parameter.new_zeros(1, self.in_channels, side, side))
        except (ValueError, RuntimeError, AssertionError) as error:  # each library has its own
            raise ValueError(f"{what} of {side}x{side} pixels do not suit {self.name}: {error}") from error
        finally:
            for module in was_training:
                module.training = True

    def _record(self, name: str, outputs: dict[str, Any]) -> Any:
        def keep(key: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[key] = output

        return self.net.get_submodule(self.taps[name]).register_forward_hook(partial(keep, name))

    def _as_map(self, name: str, output: Any) -> Tensor:
        feature_map = as_feature_map(output, self._channels_last, self._prefix_tokens)
        if feature_map is None:
            received = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            wanted = "(B, C, H, W) or a square grid of tokens"
            raise ValueError(f"the tap {name} of {self.name} must give {wanted}. Received: {received}")
        return feature_map


def as_feature_map(output: Any, channels_last: bool = False, prefix_tokens: int = 0) -> Tensor | None:
    """View what a module gives as (B, C, h, w); None where it is neither a map nor a square grid of tokens.

    Tokens (B, L, C) lose their `prefix_tokens`, unless L is square only with them: in some networks (CaiT, XCiT) the
    class token joins after the tapped blocks.
    """
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if channels_last else output
    for tokens in (output[:, prefix_tokens:], output) if output.ndim == 3 else ():
        side = isqrt(tokens.shape[1])
        if side > 0 and side * side == tokens.shape[1]:
            return tokens.transpose(1, 2).unflatten(2, (side, side))
    return None
