"""Holds the command line against conf/: an experiment's keys fit its own choices only, and a number is a number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

# Groups in which an experiment sets keys that other choices do not have, such as schedule.milestones.
SWAPPED = ("method", "backbone", "optim", "schedule")


def drop_keys_of_other_choices(
    cfg: DictConfig, conf: Path, choices: dict[str, str], overrides: list[str]
) -> dict[str, list[str]]:
    """Make ``schedule=cosine`` mean just that, though the experiment has set milestones for ``schedule=step``.

    Args:
        cfg: the composed config; changed in place.
        conf: folder of the config groups.
        choices: the choice made in each group, by the command line or an experiment.
        overrides: of the command line; what they set stays.

    Returns: the dropped keys by ``group=choice``.
    Raises: ValueError when the command line sets such a key itself; ``+group.key=...`` adds one.
    """
    given, dropped = dict(_split(overrides)), {}
    for group in SWAPPED:
        choice = f"{group}={choices.get(group)}"
        own = _yaml(conf / group / f"{choices.get(group)}.yaml")
        foreign = sorted(set(cfg[group]) - set(own) - _added(group, overrides)) if own else []
        for key in foreign:
            if f"{group}.{key}" in given:
                raise ValueError(f"there is no key '{group}.{key}' in {choice}. It has {', '.join(list(own)[1:])}")
            with open_dict(cfg):
                del cfg[group][key]
        if foreign:
            dropped[choice] = foreign
    return dropped


def require_kinds(cfg: DictConfig, conf: Path, choices: dict[str, str], overrides: list[str]) -> None:
    """Raise ValueError where conf/ has a number, or true or false, and the command line gave something else.

    Args:
        cfg: the composed config.
        conf: folder of the config groups.
        choices: the choice made in each group.
        overrides: of the command line.
    """
    for key, text in dict(_split(overrides)).items():
        group, _, rest = key.partition(".")
        if group == "trainer" or not rest:
            continue  # Lightning takes many kinds here, and checks them
        own = _yaml(conf / group / f"{choices.get(group)}.yaml")
        default = OmegaConf.select(own, rest, throw_on_resolution_failure=False)
        value = OmegaConf.select(cfg, key)
        if (due := _kind(default)) and not _is_a(value, due) and not (value is None and group == "callbacks"):
            raise ValueError(f"{key} must be {due}. Received: {text}")


def _added(group: str, overrides: list[str]) -> set[str]:
    return {key.split(".")[1] for key, _ in _split([o for o in overrides if o.startswith(f"+{group}.")])}


def _split(overrides: list[str]) -> Iterator[tuple[str, str]]:
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        yield key, value


def _yaml(path: Path) -> Any:
    return OmegaConf.load(path) if path.exists() else OmegaConf.create({})


def _kind(default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int):
        return "a whole number"
    return "a number" if isinstance(default, float) else ""


def _is_a(value: Any, kind: str) -> bool:
    if kind == "true or false" or isinstance(value, bool):
        return kind == "true or false" and isinstance(value, bool)
    return isinstance(value, int if kind == "a whole number" else int | float)
