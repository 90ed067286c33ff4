"""ResNets: torchvision's without their classifier, and a small one for small images."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.init import init_convolutions

# `relu` is the stem's: conv1 is probed after BN and ReLU, before the max-pool. Blocks have their own ReLUs.
RESNET_TAPS = {"conv1": "relu", "conv2": "layer1", "conv3": "layer2", "conv4": "layer3", "conv5": "layer4"}


def resnet18(in_channels: int = 3, zero_init_residual: bool = False, init_mode: str = "fan_in") -> Backbone:
    """ResNet-18, 512-d. See `resnet50`."""
    return _resnet("resnet18", in_channels, zero_init_residual, init_mode)


def resnet34(in_channels: int = 3, zero_init_residual: bool = False, init_mode: str = "fan_in") -> Backbone:
    """ResNet-34, 512-d. See `resnet50`."""
    return _resnet("resnet34", in_channels, zero_init_residual, init_mode)


def resnet50(in_channels: int = 3, zero_init_residual: bool = False, init_mode: str = "fan_in") -> Backbone:
    """ResNet-50, 2048-d after global average pooling: the backbone of the paper's main results.

    Args:
        in_channels: channels of the image; 2 behind a Sobel filter.
        zero_init_residual: start every residual branch at zero. The release does not.
        init_mode: `fan_in` as in the release, or `fan_out` as in torchvision.
    """
    return _resnet("resnet50", in_channels, zero_init_residual, init_mode)


def resnet101(in_channels: int = 3, zero_init_residual: bool = False, init_mode: str = "fan_in") -> Backbone:
    """ResNet-101, 2048-d. See `resnet50`."""
    return _resnet("resnet101", in_channels, zero_init_residual, init_mode)


def small_resnet(
    width: int = 16,
    in_channels: int = 3,
    blocks: Sequence[int] = (1, 1, 1, 1),
    zero_init_residual: bool = False,
    init_mode: str = "fan_in",
) -> Backbone:
    """ResNet for images of 28 to 64 pixels: 3x3 stem, no max-pool; 8·width features.

    Args:
        width: channels of the stem and the first stage; each further stage doubles them and halves the map.
        blocks: number of two-layer blocks in each of the four stages.

    Raises ValueError when `width` or a number of blocks is below 1, or there are not four stages.
    """
    blocks = tuple(blocks)
    if len(blocks) != 4 or min(blocks) < 1:
        raise ValueError(f"blocks must be four numbers of at least 1. Received: {blocks}")
    if width < 1:
        raise ValueError(f"width must be at least 1. Received: {width}")
    _check_in_channels(in_channels)
    net = SmallResNet(width, in_channels, blocks)
    _init_resnet(net, zero_init_residual, init_mode)
    return Backbone(net, name="small_resnet", feature_dim=8 * width, in_channels=in_channels, taps=RESNET_TAPS)


class SmallResNet(nn.Module):
    """The network of `small_resnet`; its submodules have the names of torchvision's ResNet."""

    def __init__(self, width: int, in_channels: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, blocks[0], stride=1)
        self.layer2 = _stage(width, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, blocks[3], stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to pooled features (B, 8·width)."""
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return maps.mean(dim=(2, 3))


def _stage(in_width: int, width: int, depth: int, stride: int) -> nn.Sequential:
    shortcut: nn.Module | None = None
    if stride != 1 or in_width != width:
        shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    first = BasicBlock(in_width, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(depth - 1)))


def _resnet(name: str, in_channels: int, zero_init_residual: bool, init_mode: str) -> Backbone:
    _check_in_channels(in_channels)
    build: Callable[..., ResNet] = getattr(torchvision_resnet, name)
    net = build(weights=None)
    feature_dim = net.fc.in_features
    net.fc = nn.Identity()  # type: ignore[assignment]
    if in_channels != 3:
        net.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    _init_resnet(net, zero_init_residual, init_mode)
    return Backbone(net, name=name, feature_dim=feature_dim, in_channels=in_channels, taps=RESNET_TAPS)


def _init_resnet(net: nn.Module, zero_init_residual: bool, init_mode: str) -> None:
    init_convolutions(net, init_mode)
    for block in net.modules() if zero_init_residual else ():
        if isinstance(block, Bottleneck):
            nn.init.zeros_(block.bn3.weight)
        elif isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)


def _check_in_channels(in_channels: int) -> None:
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1. Received: {in_channels}")
