"""Weight initialisation of the authors' release, which differs from torchvision's (fan_out)."""

from typing import Literal, cast

from torch import nn

FanMode = Literal["fan_in", "fan_out"]


def init_convolutions(net: nn.Module, init_mode: str = "fan_in") -> None:
    """Set convolutions to Kaiming normal (gain of ReLU) with bias 0, and BatchNorm to weight 1 and bias 0.

    Source: the authors' release takes `fan_in` for its ResNets; torchvision takes `fan_out`, and so does
    DeepCluster's AlexNet, whose N(0, sqrt(2 / (k*k*out))) is the same thing. Raises ValueError for another mode.
    """
    if init_mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init_mode must be fan_in or fan_out. Received: {init_mode!r}")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=cast(FanMode, init_mode), nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def init_linear_normal(linear: nn.Linear, std: float = 0.01) -> None:
    """Set a linear layer to N(0, std) with bias 0, as the release does for classifiers and AlexNet."""
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
