"""Jigsaw puzzles (Noroozi and Favaro, ECCV 2016): in which of P orders were the nine tiles laid out?

Shapes: B images of this rank, nine tiles an image, D backbone features, E reduced ones, P permutations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.dataset import Batch
from odc_lightning.methods.jigsaw_permutations import distant_permutations
from odc_lightning.methods.pretext import Pretext
from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.head import linear_classifier
from odc_lightning.nn.patches import CELLS, PatchGrid


class Jigsaw(Pretext):
    """Nine tiles go through one trunk; their features, in a shuffled order, are classified over the permutations.

    The head is that of Goyal et al. (2019) for ResNet-50: {fc-bn-relu} for each tile, then one layer over all nine.

    Args:
        num_permutations: P; more are harder (Goyal et al., Fig. 3: 100 to 10,000; their tables: 2,000).
        patch_share: side of a tile over that of its cell; the rest is gap and jitter. See :class:`PatchGrid`.
        hidden_dim: E, width that each tile's feature is reduced to.
        normalize_tiles: bring each tile to mean 0 and deviation 1, so that no brightness crosses the gaps (Noroozi and
            Favaro, Sec. 3.3). Tasks that see whole images then see other numbers than the trunk was trained on.
        seed: also of the permutations, which the checkpoint keeps.
        backbone and the rest: see :class:`Pretext`.

    Raises:
        ValueError: for a value outside its range; tiles too small for the backbone, before training starts.
    """

    permutations_P9: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_permutations: int = 2000,
        patch_share: float = 64 / 85,
        hidden_dim: int = 1000,
        normalize_tiles: bool = False,
        seed: int = 0,
        **keys: Any,
    ) -> None:
        super().__init__(backbone, seed=seed, **keys)
        if hidden_dim < 1:
            raise ValueError(f"method.hidden_dim must be at least 1. Received: {hidden_dim}")
        self.grid, self.normalize_tiles = PatchGrid(patch_share), normalize_tiles
        self.register_buffer("permutations_P9", distant_permutations(num_permutations, seed))
        reduce = nn.Linear(backbone.feature_dim, hidden_dim)
        self.reduce = nn.Sequential(reduce, nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True))
        self.classifier = linear_classifier(CELLS * hidden_dim, num_permutations)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # 1. Nine tiles an image, each through trunk and reduction by itself.
        feature_B9E = self.tile_features(self.grid.cut(batch.image))
        # 2. An order for each image. No tile sees another, so their features can be shuffled in the tiles' place.
        answers_B = torch.randint(len(self.permutations_P9), (len(feature_B9E),), device=feature_B9E.device)
        shuffled_B9E = shuffle(feature_B9E, self.permutations_P9[answers_B])
        # 3. Which order is it?
        return self.judge(self.classifier(shuffled_B9E.flatten(1)), answers_B, self.readable(batch))

    def tile_features(self, tiles: Tensor) -> Tensor:
        """uint8 tiles (B, 9, C, p, p) to reduced features (B, 9, E)."""
        pixels = self.pixels(tiles.flatten(0, 1))
        if self.normalize_tiles:
            pixels = normalized(pixels)
        return self.reduce(self.backbone(pixels)).unflatten(0, tiles.shape[:2])

    def smallest_view(self, datamodule: DataModule) -> tuple[int, str]:
        return self.grid.named_side(datamodule.image_size)

    def head(self) -> list[nn.Module]:
        return [self.reduce, self.classifier]


def shuffle(feature_B9E: Tensor, order_B9: Tensor) -> Tensor:
    """Lay tiles out in an order: place j of the result holds tile order[j]."""
    return feature_B9E.take_along_dim(order_B9[:, :, None], dim=1)


def normalized(pixels: Tensor, least_deviation: float = 1e-3) -> Tensor:
    """Each image and channel of (B, C, H, W) less its mean, over its standard deviation; flat ones become 0."""
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    deviation = (pixels - mean).square().mean(dim=(2, 3), keepdim=True).sqrt()
    return (pixels - mean) / deviation.clamp(min=least_deviation)
