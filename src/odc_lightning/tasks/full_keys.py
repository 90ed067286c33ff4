"""Parts below the app know their arguments, people know keys: ``width`` of a backbone is ``backbone.width``."""

from __future__ import annotations

import re

from omegaconf import DictConfig, OmegaConf

# Where an argument's key stands if nothing else tells: what is made of it is checked against the images later.
GROUPS = ("method", "data", "backbone", "clustering", "augment")
WHOLE = re.compile(r"\$\{(\.*)([\w.]+)\}")
ARGUMENT = re.compile(r"(\w+)(?= (?:must|and \w+ must|x \w+ needs) )")


def with_full_key(message: str, cfg: DictConfig, place: str = "") -> str:
    """The message with the key that people set in place of the argument that it begins with.

    Args:
        message: such as ``width must be at least 1. Received: 0``; others are returned as they are.
        cfg: the composed config, its interpolations not yet resolved.
        place: dotted key of the part that was being set up, as Hydra tells it.
    """
    argument = ARGUMENT.match(message)
    if argument is None:
        return message
    first = "protocol" if cfg.task.name == "evaluate" else "method"
    for where in [place] if place else [first, *GROUPS]:
        if key := set_at(cfg, f"{where}.{argument[0]}"):
            return key + message[argument.end() :]
    return message


def set_at(cfg: DictConfig, key: str) -> str:
    """The key where its value is set: ``method.backbone.width`` is ``backbone.width``; empty where there is none."""
    path: list[str] = []
    for part in key.split("."):
        node = OmegaConf.select(cfg, ".".join(path)) if path else cfg
        if not isinstance(node, DictConfig) or part not in node:
            return ""
        path = _followed([*path, part], OmegaConf.to_container(node, resolve=False)[part])  # type: ignore[index,call-overload]
    found = ".".join(path)
    return found if found == key else set_at(cfg, found)


def _followed(path: list[str], value: object) -> list[str]:
    """Where an interpolation points; the same place if the value is none."""
    whole = WHOLE.fullmatch(value) if isinstance(value, str) else None
    if whole is None:
        return path
    above = path[: -len(whole[1])] if whole[1] else []  # a dot for each level
    return [*above, *whole[2].split(".")]
