"""Nine patches of an image, one from each cell of a 3 x 3 grid: what relative location and jigsaw look at.

Shapes: B images, C channels, H x H pixels; patches of p x p pixels, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 3
CELLS = GRID * GRID


@dataclass(frozen=True)
class PatchGrid:
    """A third of the image is a cell, a share of the cell is a patch, anywhere in the cell.

    The gap between patches keeps a network from following edges across them (Doersch et al. 2015, Sec. 3). Their
    proportions, and the release's, are cells of 85 pixels and patches of 64: a share of 0.753. Because a share and no
    number of pixels is given, 32-pixel images have cells of 10 pixels and patches of 8.

    Args:
        share: side of a patch over that of a cell.

    Raises:
        ValueError: the share is not above 0 and at most 1.
    """

    share: float = 64 / 85

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"method.patch_share must be above 0 and at most 1. Received: {self.share}")

    def side(self, image_side: int) -> int:
        """Pixels p of a patch of an image of H pixels; 0 where not a single one is left."""
        return round(self.share * (image_side // GRID))

    def named_side(self, image_side: int) -> tuple[int, str]:
        """The same and its name for a message. Raises ValueError where no pixel is left."""
        side = self.side(image_side)
        if side < 1:
            raise ValueError(f"data.image_size={image_side} leaves no pixel for a patch (method.patch_share)")
        return side, f"patches ({self.share:.3g} of a third of data.image_size={image_side}, see method.patch_share)"

    def cut(self, image_BCHW: Tensor) -> Tensor:
        """Square images (B, C, H, H) to patches (B, 9, C, p, p); each has its own random place in its cell.

        What H leaves over three cells stays unused, half of it on each edge. Draws from torch's generator of the
        images' device.
        """
        image_side = image_BCHW.shape[-1]
        side, cell = self.side(image_side), image_side // GRID
        start_3 = (image_side - GRID * cell) // 2 + cell * torch.arange(GRID, device=image_BCHW.device)
        row_9, column_9 = start_3.repeat_interleave(GRID), start_3.repeat(GRID)
        jitter_2B9 = torch.randint(cell - side + 1, (2, len(image_BCHW), CELLS), device=image_BCHW.device)
        return _windows(image_BCHW, row_9 + jitter_2B9[0], column_9 + jitter_2B9[1], side)


def _windows(image_BCHW: Tensor, row_BP: Tensor, column_BP: Tensor, side: int) -> Tensor:
    """The P windows of each image that begin at these rows and columns, (B, P, C, side, side)."""
    every_window = image_BCHW.unfold(2, side, 1).unfold(3, side, 1)  # a view: nothing is copied but what is taken
    image_B1 = torch.arange(len(image_BCHW), device=image_BCHW.device)[:, None]
    return every_window[image_B1, :, row_BP, column_BP]
