"""One loader for every checkpoint: finds the backbone in it, checks that it is whole, says what it matched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from odc_lightning.nn.backbone import Backbone
from odc_lightning.weights.describe import format_name, hints, notes
from odc_lightning.weights.match import Match, best_match, counts, groups
from odc_lightning.weights.read import find_checkpoint, read_checkpoint

_NAMED = 6  # more names than this hide the message they are in


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint gave to a backbone.

    Attributes:
        source: file or name that was loaded.
        format: who writes such files.
        where: keys and prefix in the file, as `state_dict/backbone.`.
        matched: tensors of the backbone that were loaded.
        total: tensors that the backbone has, without batch norm's counters.
        missing: names of tensors that the file does not have.
        misshapen: names of tensors that have another shape there: (in the file, here).
        dropped: what else stood in the container: group to number of tensors.
        notes: what to know before using these weights.
    """

    source: str
    format: str
    where: str
    matched: int
    total: int
    missing: tuple[str, ...] = ()
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Was every tensor of the backbone in the file?"""
        return self.matched == self.total

    def __str__(self) -> str:
        missing = f" ({_listed(self.missing)})" if self.missing else ""
        parts = [f"{self.matched} of {self.total} backbone tensors, {len(self.missing)} missing{missing}"]
        if self.misshapen:
            parts.append(f"of another shape: {self.shapes()}")
        if self.dropped:
            parts.append("dropped: " + ", ".join(f"{group} ({count})" for group, count in self.dropped.items()))
        return "\n  ".join((f"{self.source} ({self.format}): " + "; ".join(parts), *self.notes))

    def shapes(self) -> str:
        """The first differing shapes, for people."""
        shown = [f"{name} {there} in the file, {here} here" for name, (there, here) in self.misshapen.items()]
        return _listed(shown, most=3)


def load_backbone_weights(backbone: Backbone, path: str | Path, *, allow_partial: bool = False) -> LoadReport:
    """Load the backbone that is somewhere in the checkpoint at `path`, whoever wrote it.

    Container, prefix and naming are found by comparing names and shapes with the backbone's. Nothing changes unless
    all goes well. Read: our checkpoints, torchvision, timm, OpenSelfSup and MMSelfSup, VISSL, DeepCluster, SwAV, DINO,
    MoCo, solo-learn, lightly, EfficientNet-PyTorch, FAIR's caffe2 pickles, and safetensors of any of these.

    Args:
        path: a file, or a run folder for its last checkpoint.
        allow_partial: take what fits; the rest keeps its values.

    Raises:
        ValueError: for a file that cannot be read safely, without any tensor of the backbone, or (unless
            `allow_partial`) without all of them; the message names what is missing and what to set.
    """
    path = find_checkpoint(path)
    return load_content(backbone, read_checkpoint(path), str(path), allow_partial=allow_partial)


def init_backbone(
    backbone: Backbone,
    *,
    path: str | Path | None = None,
    pretrained: str | None = None,
    allow_partial: bool = False,
) -> LoadReport | None:
    """Start a backbone as `init` says: from the file at `path`, from timm's `pretrained` weights, or as it is (None).

    Raises:
        ValueError: as `load_backbone_weights`; for weights that timm does not have or cannot fetch; for both sources.
    """
    if path is not None and pretrained is not None:
        raise ValueError(f"init.path and init.pretrained exclude each other. Received: {path} and {pretrained}")
    if path is not None:
        return load_backbone_weights(backbone, path, allow_partial=allow_partial)
    if pretrained is None:
        return None
    state = _timm_state(pretrained, backbone.in_channels)
    return load_content(backbone, state, f"timm {pretrained}", allow_partial=allow_partial)


def load_content(backbone: Backbone, content: Any, source: str, *, allow_partial: bool = False) -> LoadReport:
    """As `load_backbone_weights`, from what `read_checkpoint` returned; `source` is for messages."""
    match = best_match(content, backbone.net)
    if match is None:
        raise ValueError(_no_match(backbone, content, source))
    report = _report(backbone, content, source, match)
    _require_whole(report, backbone, match, allow_partial)
    weights = match.weights()
    _require_finite(weights, source)
    state = backbone.net.state_dict()  # shares its memory with the network
    with torch.no_grad():
        for name, tensor in weights.items():
            state[name].copy_(tensor)
    return report


def _report(backbone: Backbone, content: Any, source: str, match: Match) -> LoadReport:
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.net.state_dict().items() if counts(name)}
    found = {name for name in match.found if counts(name)}
    there = {target: tuple(match.tensors[name].shape) for target, name in match.misshapen.items()}
    return LoadReport(
        source=source,
        format=format_name(content, match),
        where=match.where,
        matched=len(found),
        total=len(shapes),
        missing=tuple(name for name in shapes if name not in found and name not in match.misshapen),
        misshapen={name: (shape, shapes[name]) for name, shape in there.items() if name in shapes},
        dropped=match.dropped(),
        notes=tuple(notes(backbone, match)),
    )


def _require_whole(report: LoadReport, backbone: Backbone, match: Match, allow_partial: bool) -> None:
    """Raise ValueError for a backbone that is not whole."""
    if report.matched and (report.complete or allow_partial):
        return
    parts = [f"{report.source} ({report.format}) has {report.matched} of the {report.total} tensors of {backbone.name}"]
    if report.missing:
        parts.append(f"missing: {_listed(report.missing)}" + (f" behind {match.where}" if match.where else ""))
    if report.misshapen:
        parts.append(f"of another shape: {report.shapes()}")
    advice = hints(backbone, match, report.missing, report.misshapen)
    if report.matched and not report.complete:
        advice.append(f"init.allow_partial=true loads the {report.matched} that fit")
    raise ValueError(". ".join(["; ".join(parts), *advice]))


def _no_match(backbone: Backbone, content: Any, source: str) -> str:
    wanted = _listed([name for name in backbone.net.state_dict() if counts(name)], most=3)
    held = groups(content)
    if not held:
        return f"{source} holds no weights. Looked for {wanted} behind any prefix"
    return (
        f"{source} has no tensor of {backbone.name}. Looked for {wanted} behind any prefix; the file has: "
        f"{_listed(held)}. Is backbone={backbone.name} the network that was trained?"
    )


def _require_finite(weights: Mapping[str, Tensor], source: str) -> None:
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{source} holds NaN or infinite weights: {_listed(bad)}. Its training diverged")


def _timm_state(name: str, in_channels: int) -> dict[str, Tensor]:
    """timm's pretrained weights; it adapts the first convolution to `in_channels` itself."""
    if not timm.is_model(name) or not timm.models.is_model_pretrained(name):
        raise ValueError(
            f"init.pretrained must be a network that timm has weights for, see timm.list_pretrained(). Received: {name}"
        )
    try:
        net = timm.create_model(name, pretrained=True, num_classes=0, in_chans=in_channels)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"timm could not get the weights of {name} ({reason}). Without a network, fetch the file elsewhere and "
            f"load it with init=file init.path=..."
        ) from error
    return net.state_dict()


def _listed(names: Any, most: int = _NAMED) -> str:
    names = list(names)
    more = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
