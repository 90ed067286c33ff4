"""Any network of timm or torchvision as a backbone, with random weights."""

from math import log2
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from odc_lightning.nn.backbone import Backbone
from odc_lightning.nn.names import unknown_name

_SMALL = 64  # side of the dry run's image, for networks that take any size
_DEPTHS = 5  # conv1 … conv5
# These two return a tuple in training unless their auxiliary classifiers are off.
_TORCHVISION_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def timm_backbone(name: str, in_channels: int = 3, **options: Any) -> Backbone:
    """Build timm's network `name` without its classifier; `options` go to `timm.create_model`.

    Taps come from timm's `feature_info`: conv1 … conv5 at strides 2 … 32, or, for networks that keep one stride (ViT,
    Mixer), five evenly spaced blocks. Raises ValueError for a name that timm does not know.
    """
    # Also refuses hf-hub: names, which would download.
    if not timm.is_model(name):
        raise unknown_name("backbone.name (timm)", name, timm.list_models())
    net = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **options)
    return Backbone(
        net,
        name=name,
        feature_dim=_feature_dim(name, net, in_channels, _timm_size(net, options)),
        in_channels=in_channels,
        taps=_timm_taps(net),
        channels_last_taps=getattr(net, "output_fmt", "NCHW") == "NHWC",
        prefix_tokens=getattr(net, "num_prefix_tokens", 0),
    )


def torchvision_backbone(name: str, in_channels: int = 3, **options: Any) -> Backbone:
    """Build torchvision's classification network `name` without its last layer; `options` go to its builder.

    Taps are found by a dry run: the last module at each size of feature map, so that conv5 is the deepest and conv1
    the fifth from the end, where there are as many. Weights start as torchvision starts them. Raises ValueError for
    a name that torchvision does not know.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("backbone.name (torchvision)", name, known)
    net = torchvision.models.get_model(name, weights=None, **_TORCHVISION_OPTIONS.get(name, {}), **options)
    _drop_classifier(net)
    _set_in_channels(net, in_channels)
    size = _torchvision_size(name, net)
    return Backbone(
        net,
        name=name,
        feature_dim=_feature_dim(name, net, in_channels, size),
        in_channels=in_channels,
        taps=_find_taps(net, in_channels, size),
    )


def _feature_dim(name: str, net: nn.Module, in_channels: int, size: int) -> int:
    pooled = _dry_run(net, in_channels, size)
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        shape = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
        raise ValueError(f"backbone.name must be a network with a pooled feature (B, D). {name} gives: {shape}")
    return pooled.shape[1]


@torch.no_grad()
def _dry_run(net: nn.Module, in_channels: int, size: int) -> Any:
    training = net.training
    # In evaluation mode, so that the running statistics of the untrained network stay as they are.
    pooled = net.eval()(torch.zeros(1, in_channels, size, size))
    net.train(training)
    return pooled


def _timm_size(net: nn.Module, options: dict[str, Any]) -> int:
    if "img_size" in options:
        side = options["img_size"]
        return int(side if isinstance(side, int) else side[0])
    config: Any = net.default_cfg
    return int(config["input_size"][-1]) if config.get("fixed_input_size") else _SMALL


def _timm_taps(net: nn.Module) -> dict[str, str]:
    info: Any = getattr(net, "feature_info", None)
    modules = dict(net.named_modules())
    stages = [entry for entry in info if entry["module"] in modules] if isinstance(info, list) else []
    by_stride = {log2(entry["reduction"]): entry["module"] for entry in stages}
    if len(by_stride) > 1:
        return {f"conv{d}": by_stride[d] for d in range(1, _DEPTHS + 1) if d in by_stride}
    if len(stages) < _DEPTHS:
        return {}
    picked = [round(d * len(stages) / _DEPTHS) - 1 for d in range(1, _DEPTHS + 1)]
    return {f"conv{d}": stages[i]["module"] for d, i in enumerate(picked, start=1)}


def _torchvision_size(name: str, net: nn.Module) -> int:
    fixed = getattr(net, "image_size", None)
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta
    return int(fixed or max(_SMALL, *meta["min_size"]))


def _find_taps(net: nn.Module, in_channels: int, size: int) -> dict[str, str]:
    last_at: dict[int, str] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # A square map, so that (B, H, W, C) of Swin does not pass for (B, C, H, W).
            if isinstance(output, Tensor) and output.ndim == 4 and 1 < output.shape[2] == output.shape[3] < size:
                last_at[output.shape[2]] = name

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in net.named_modules() if name]
    _dry_run(net, in_channels, size)
    for handle in handles:
        handle.remove()
    deepest = sorted(last_at)[:_DEPTHS]
    return {f"conv{_DEPTHS - i}": last_at[side] for i, side in enumerate(deepest)}


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
