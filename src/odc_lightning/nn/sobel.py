"""The fixed edge filter that DeepCluster puts before the backbone, against clusters of colour."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HORIZONTAL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
_VERTICAL = ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0))


class Sobel(nn.Module):
    """Mean over the channels, then the two Sobel filters (cross-correlation, zero padding 1).

    It reads *normalised* images, as in DeepCluster's code, so the backbone behind it takes 2 channels. Nothing is
    learned and nothing is saved in a checkpoint.
    """

    kernels: Tensor
    out_channels = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernels", torch.tensor((_HORIZONTAL, _VERTICAL)).unsqueeze(1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, C, H, W) to edges (B, 2, H, W): along x, then along y."""
        grey = images.mean(dim=1, keepdim=True)
        return F.conv2d(grey, self.kernels.to(grey.dtype), padding=1)
