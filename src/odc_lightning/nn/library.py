"""Any network of timm or torchvision as a backbone, with random weights."""

from collections import Counter
from functools import partial
from math import log2
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from odc_lightning.nn.backbone import Backbone, as_feature_map
from odc_lightning.nn.names import unknown_name

_DEPTHS = 5  # conv1 … conv5
# These two return a tuple in training unless their auxiliary classifiers are off.
_TORCHVISION_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
_Calls = list[tuple[str, Any]]


def timm_backbone(name: str, in_channels: int = 3, **options: Any) -> Backbone:
    """Build timm's network `name` without its classifier; `options` go to `timm.create_model`.

    Taps come from timm's `feature_info`: conv1 … conv5 at strides 2 … 32, or, for networks that keep one stride (ViT,
    Mixer), five evenly spaced blocks; those that give no feature map are left out. Raises ValueError for a name that
    timm does not know.
    """
    # Also refuses hf-hub: names, which would download.
    if not timm.is_model(name):
        raise unknown_name("backbone.name (timm)", name, timm.list_models())
    net = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **options)
    feature_dim, calls = _dry_run(name, net, in_channels, _timm_size(net, options))
    outputs = dict(calls)
    info: Any = getattr(net, "feature_info", None)
    stages = [stage for stage in info if stage["module"] in outputs] if isinstance(info, list) else []
    layout: dict[str, Any] = {
        "channels_last": any(_is_channels_last(outputs[stage["module"]], stage["num_chs"]) for stage in stages),
        "prefix_tokens": getattr(net, "num_prefix_tokens", 0),
    }
    return Backbone(
        net,
        name=name,
        feature_dim=feature_dim,
        in_channels=in_channels,
        taps=_name_stages([s for s in stages if _gives_map(outputs[s["module"]], s["num_chs"], layout)]),
        **layout,
    )


def torchvision_backbone(name: str, in_channels: int = 3, **options: Any) -> Backbone:
    """Build torchvision's classification network `name` without its last layer; `options` go to its builder.

    Taps are found by a dry run: conv1 … conv5 are the last stages that give a map (B, C, H, W) at strides 2 … 32,
    rounded. Token grids are not seen (of a ViT only the patch embedding is): take Swin and ViT from timm to probe
    them. Weights start as torchvision starts them. Raises ValueError for a name that torchvision does not know.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("backbone.name (torchvision)", name, known)
    net = torchvision.models.get_model(name, weights=None, **_TORCHVISION_OPTIONS.get(name, {}), **options)
    _drop_classifier(net)
    _set_in_channels(net, in_channels)
    size = _torchvision_size(name, net)
    feature_dim, calls = _dry_run(name, net, in_channels, size)
    return Backbone(net, name=name, feature_dim=feature_dim, in_channels=in_channels, taps=_find_taps(net, calls, size))


@torch.no_grad()
def _dry_run(name: str, net: nn.Module, in_channels: int, size: int) -> tuple[int, _Calls]:
    """Return the width of the pooled feature, and each call of a submodule in order, with its output.

    Outputs are on the `meta` device: their shapes without their memory.
    """
    calls: _Calls = []

    def keep(module_name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        calls.append((module_name, output.to("meta") if isinstance(output, Tensor) else None))

    training = net.training
    handles = [m.register_forward_hook(partial(keep, n)) for n, m in net.named_modules() if n]
    # In evaluation mode, so that the running statistics of the untrained network stay as they are.
    pooled = net.eval()(torch.zeros(1, in_channels, size, size))
    net.train(training)
    for handle in handles:
        handle.remove()
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        shape = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
        raise ValueError(f"backbone.name must be a network with a pooled feature (B, D). {name} gives: {shape}")
    return pooled.shape[1], calls


def _timm_size(net: nn.Module, options: dict[str, Any]) -> int:
    config: Any = net.default_cfg
    side = options.get("img_size") or config["input_size"][-1]
    return int(side if isinstance(side, int) else side[0])


def _is_channels_last(output: Any, channels: int) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] != channels == output.shape[3]


def _gives_map(output: Any, channels: int, layout: dict[str, Any]) -> bool:
    feature_map = as_feature_map(output, **layout)
    return feature_map is not None and feature_map.shape[1] == channels


def _name_stages(stages: list[Any]) -> dict[str, str]:
    by_stride = {log2(stage["reduction"]): stage["module"] for stage in stages}
    if len(by_stride) > 1:
        return {f"conv{d}": by_stride[d] for d in range(1, _DEPTHS + 1) if d in by_stride}
    if len(stages) < _DEPTHS:
        return {}
    picked = [round(d * len(stages) / _DEPTHS) - 1 for d in range(1, _DEPTHS + 1)]
    return {f"conv{d}": stages[i]["module"] for d, i in enumerate(picked, start=1)}


def _torchvision_size(name: str, net: nn.Module) -> int:
    fixed = getattr(net, "image_size", None)
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    return int(fixed or max(224, *meta["min_size"]))


def _find_taps(net: nn.Module, calls: _Calls, size: int) -> dict[str, str]:
    times = Counter(name for name, _ in calls)
    at_depth: dict[int, list[str]] = {}
    for name, output in calls:
        # Square, so that (B, H, W, C) of Swin does not pass for (B, C, H, W).
        if output is None or output.ndim != 4 or not 1 < output.shape[2] == output.shape[3]:
            continue
        # An adaptive pool brings any map to the size that AlexNet's and VGG's classifiers want: it is no stage.
        if times[name] == 1 and not isinstance(net.get_submodule(name), nn.AdaptiveAvgPool2d):
            at_depth.setdefault(round(log2(size / output.shape[2])), []).append(name)
    return {f"conv{d}": _outermost(at_depth[d]) for d in range(1, _DEPTHS + 1) if d in at_depth}


def _outermost(names: list[str]) -> str:
    """Return the last of the least nested modules: a stage, rather than a layer in the next stage's first block."""
    level = min(name.count(".") for name in names)
    return [name for name in names if name.count(".") == level][-1]


def _drop_classifier(net: nn.Module) -> None:
    """Put Identity in place of the last layer with weights, which in every classifier of torchvision is the one."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    net.set_submodule(layers[-1], nn.Identity())


def _set_in_channels(net: nn.Module, in_channels: int) -> None:
    name, conv = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if conv.in_channels == in_channels:
        return
    options = {key: getattr(conv, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    fresh = nn.Conv2d(in_channels, conv.out_channels, bias=conv.bias is not None, **options)
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    net.set_submodule(name, fresh)
