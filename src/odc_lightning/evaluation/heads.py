"""Linear classifiers on frozen features, one for each layer, all trained at once (paper, Sec. 4.1).

A head is batch norm without scale and shift, then Linear with weights N(0, 0.01). The frozen network needs no gradient,
and the norm has nothing to learn: only the linear layers are differentiated.

Shapes: B rows · K classes.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odc_lightning.console import say
from odc_lightning.evaluation.batches import Batches, rows_of
from odc_lightning.evaluation.features import step_bar
from odc_lightning.evaluation.protocol import Sgd
from odc_lightning.evaluation.taps import Shape
from odc_lightning.memory import Ranks
from odc_lightning.whole_file import whole_file

_SAVE_EVERY = 60.0  # seconds between two saves within a training
_BLOCK = 1024  # rows classified at once


class FrozenNorm(nn.Module):
    """Batch norm without scale and shift, over the batches of all ranks; its input needs no gradient.

    Args:
        channels: C.
        momentum: of the running statistics.
        eps: added to the variance.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    @torch.no_grad()
    def forward(self, feature: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, s, s) by the batch's statistics in training, by the running ones otherwise."""
        if not self.training:
            return F.batch_norm(feature, self.mean, self.var, eps=self.eps)
        ranks, dims = Ranks.current(), [dim for dim in range(feature.ndim) if dim != 1]
        mean_C = ranks.sum(feature.mean(dims)) / ranks.world_size
        centred = feature - mean_C.view(1, -1, *[1] * (feature.ndim - 2))
        var_C = ranks.sum(centred.square().mean(dims)) / ranks.world_size
        count = feature.numel() // feature.shape[1] * ranks.world_size
        self.mean.lerp_(mean_C, self.momentum)
        self.var.lerp_(var_C * count / max(count - 1, 1), self.momentum)
        return centred * (var_C + self.eps).rsqrt().view(1, -1, *[1] * (feature.ndim - 2))


class LinearHeads(nn.ModuleDict):
    """A classifier for each layer.

    Args:
        shapes: layer to the shape of one image's feature.
        num_classes: K.
        batch_norm: normalise before the linear layer.
        seed: of the weights; a layer's do not depend on which other layers there are.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], num_classes: int, *, batch_norm: bool = True, seed: int = 0
    ) -> None:
        super().__init__({layer: _head(layer, shape, num_classes, batch_norm, seed) for layer, shape in shapes.items()})

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, K) of each layer."""
        return {layer: head(features[layer]) for layer, head in self.items()}

    def losses(self, features: Mapping[str, Tensor], target_B: Tensor) -> Tensor:
        """Cross-entropy of each layer, (layers,)."""
        return torch.stack([F.cross_entropy(logits, target_B) for logits in self(features).values()])


def _head(layer: str, shape: Shape, num_classes: int, batch_norm: bool, seed: int) -> nn.Sequential:
    linear = nn.Linear(int(np.prod(shape)), num_classes)
    own_seed = int(np.random.SeedSequence([seed, zlib.crc32(layer.encode())]).generate_state(1)[0])
    nn.init.normal_(linear.weight, std=0.01, generator=torch.Generator().manual_seed(own_seed))
    nn.init.zeros_(linear.bias)
    return nn.Sequential(FrozenNorm(shape[0]) if batch_norm else nn.Identity(), nn.Flatten(), linear)


OnEpoch = Callable[[int, dict[str, float]], None]  # epoch, mean loss by layer


def train_heads(
    heads: LinearHeads, batches: Batches, sgd: Sgd, on_epoch: OnEpoch, kept: dict[str, float], state: Path
) -> None:
    """Train all heads by the plain sum of their losses, so that each is trained as if it were alone. Collective.

    Args:
        heads: on the device of the batches.
        batches: this rank's.
        sgd: the recipe.
        on_epoch: called after each epoch.
        kept: what ``on_epoch`` keeps from epoch to epoch; saved, and filled when a killed training goes on.
        state: file for heads, optimizer and ``kept``; a killed training goes on after the last saved epoch.

    Raises:
        FloatingPointError: a loss is NaN or infinite; names its layer.
    """
    optimizer = torch.optim.SGD(
        heads.parameters(), sgd.lr, sgd.momentum, weight_decay=sgd.weight_decay, nesterov=sgd.nesterov
    )
    first, saved = _load(state, heads, optimizer, kept), time.monotonic()
    with step_bar("linear heads", (sgd.epochs - first) * batches.steps) as advance:
        for epoch in range(first, sgd.epochs):
            for group in optimizer.param_groups:
                group["lr"] = sgd.lr * sgd.factor(epoch)
            losses = _epoch(heads, batches, epoch, optimizer, advance)
            on_epoch(epoch, dict(zip(heads, losses, strict=True)))
            last = epoch + 1 == sgd.epochs
            if Ranks.current().rank == 0 and (last or time.monotonic() - saved > _SAVE_EVERY):
                _save(state, heads, optimizer, kept, epoch + 1)
                saved = time.monotonic()


def _epoch(
    heads: LinearHeads, batches: Batches, epoch: int, optimizer: torch.optim.Optimizer, advance: Callable[[int], None]
) -> list[float]:
    """One epoch; mean loss of each layer."""
    ranks, total = Ranks.current(), torch.zeros(len(heads))
    heads.train()
    for features, target_B in batches.epoch(epoch):
        losses = heads.losses(features, target_B)
        optimizer.zero_grad()
        losses.sum().backward()
        for parameter in heads.parameters() if ranks.world_size > 1 else ():
            assert parameter.grad is not None
            parameter.grad = ranks.sum(parameter.grad) / ranks.world_size
        optimizer.step()
        total = total.to(losses.device) + losses.detach()
        advance(1)
    means = (ranks.sum(total) / ranks.world_size / max(batches.steps, 1)).tolist()
    for layer, loss in zip(heads, means, strict=True):
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss of {layer} became NaN or infinite in epoch {epoch}: lower protocol.lr, "
                f"{optimizer.param_groups[0]['lr']:.3g} now"
            )
    return means


@torch.no_grad()
def top1(heads: LinearHeads, features: Mapping[str, Tensor], targets: Tensor, known: Tensor) -> dict[str, float]:
    """Percent of the known rows whose highest logit is their class, by layer.

    Args:
        features: (N, \\*shape) by layer, on any device.
        targets: (N,).
        known: rows to count, (M,).
    """
    heads.eval()
    device = next(heads.parameters()).device
    hits = dict.fromkeys(heads, 0)
    for rows in known.split(_BLOCK):
        target_B = targets[rows].to(device)
        logits = heads({layer: rows_of(values, rows, device) for layer, values in features.items()})
        for layer, logits_BK in logits.items():
            hits[layer] += int((logits_BK.argmax(1) == target_B).sum())
    return {layer: 100.0 * count / max(len(known), 1) for layer, count in hits.items()}


def _save(path: Path, heads: nn.Module, optimizer: torch.optim.Optimizer, kept: dict[str, float], epoch: int) -> None:
    state = {"epoch": epoch, "heads": heads.state_dict(), "optimizer": optimizer.state_dict(), "kept": dict(kept)}
    with whole_file(path) as writing:
        torch.save(state, writing)


def _load(path: Path, heads: nn.Module, optimizer: torch.optim.Optimizer, kept: dict[str, float]) -> int:
    """The first epoch to train."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=next(heads.parameters()).device)
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    kept.update(state["kept"])
    say(f"continuing after epoch {state['epoch']} of {path}")
    return int(state["epoch"])
