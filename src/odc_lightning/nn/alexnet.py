"""AlexNet with batch norm and without local response normalisation, as DeepCluster and the paper use it."""

from torch import Tensor, nn
from torch.nn import functional as F

from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.init import init_convolutions, init_linear_normal

# (channels, kernel, stride, padding) of conv1 … conv5; max-pools follow conv1, conv2 and conv5.
_CONVOLUTIONS = ((96, 11, 4, 2), (256, 5, 1, 2), (384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1))
_POOLED = (1, 2, 5)
_GRID = 6  # side of the map that fc6 reads
_SMALLEST = 63  # the smallest image that leaves the last max-pool its 3x3 window


def alexnet(in_channels: int = 3, dropout: float = 0.5) -> Backbone:
    """AlexNet-BN; the feature is the 4096-d output of fc7 after its ReLU (DeepCluster's `features`, `classifier`).

    Args:
        in_channels: channels of the image; DeepCluster puts a Sobel filter before it and takes 2.
        dropout: before fc6 and before fc7.
    """
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1. Received: {in_channels}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1). Received: {dropout}")
    net = AlexNet(in_channels, dropout)
    relus = [str(i) for i, module in enumerate(net.features) if isinstance(module, nn.ReLU)]
    taps = {f"conv{depth}": f"features.{index}" for depth, index in enumerate(relus, start=1)}
    return Backbone(net, name="alexnet", feature_dim=4096, in_channels=in_channels, taps=taps)


class AlexNet(nn.Module):
    """The network of `alexnet`; `features.*` and `classifier.*` are numbered as in DeepCluster's files."""

    def __init__(self, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.features = _convolutions(in_channels)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * _GRID * _GRID, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
        )
        init_convolutions(self, init_mode="fan_out")
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                init_linear_normal(module)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to (B, 4096).

        224 and 227 pixels give fc6 its 6x6 map; other sizes are average-pooled (or spread) to it, so that small
        images run too. Raises ValueError below 63 pixels, where the last max-pool has nothing to look at.
        """
        if min(images.shape[-2:]) < _SMALLEST:
            size = tuple(images.shape[-2:])
            raise ValueError(f"alexnet needs images of at least {_SMALLEST}x{_SMALLEST} pixels. Received: {size}")
        maps = self.features(images)
        if maps.shape[-2:] != (_GRID, _GRID):
            maps = F.adaptive_avg_pool2d(maps, _GRID)
        return self.classifier(maps.flatten(1))


def _convolutions(in_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for depth, (channels, kernel, stride, padding) in enumerate(_CONVOLUTIONS, start=1):
        layers.append(nn.Conv2d(in_channels, channels, kernel, stride, padding))
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        if depth in _POOLED:
            layers.append(nn.MaxPool2d(3, stride=2))
        in_channels = channels
    return nn.Sequential(*layers)
