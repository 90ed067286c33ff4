"""Holds the command line against conf/: an experiment's keys fit its own choices only, and a number is a number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from odc_lightning.checks import check_choice

# Groups in which an experiment sets keys that other choices do not have, such as schedule.milestones.
SWAPPED = ("method", "backbone", "optim", "schedule")
# Groups in which keys of the same name mean something else in each choice: SGD's learning rate says nothing of AdamW's.
TUNED = ("optim",)


def drop_keys_of_other_choices(cfg: DictConfig, conf: Path, overrides: list[str]) -> dict[str, list[str]]:
    """Make ``schedule=cosine`` mean just that, though the experiment has set milestones for ``schedule=step``.

    Args:
        cfg: the composed config; changed in place.
        conf: folder of the config groups.
        overrides: of the command line; what they set stays.

    Returns: the dropped keys by ``group=choice``.
    Raises: ValueError when the command line sets such a key itself; ``+group.key=...`` adds one.
    """
    given, dropped = dict(_split(overrides)), {}
    for group in SWAPPED:
        choice = f"{group}={given.get(group)}"
        own = _yaml(conf / group / f"{given.get(group)}.yaml")
        foreign = sorted(set(cfg[group]) - set(own) - _added(group, overrides)) if own else []
        for key in foreign:
            if f"{group}.{key}" in given:
                raise ValueError(f"there is no key '{group}.{key}' in {choice}. It has {', '.join(list(own)[1:])}")
            with open_dict(cfg):
                del cfg[group][key]
        if foreign:
            dropped[choice] = foreign
    return dropped


def take_own_values(cfg: DictConfig, conf: Path, overrides: list[str], config_name: str) -> dict[str, list[str]]:
    """Make ``optim=adamw`` mean AdamW's own learning rate, though the experiment has set one for ``optim=sgd``.

    Args:
        cfg: the composed config; changed in place.
        conf: folder of the config groups.
        overrides: of the command line; what they set stays.
        config_name: the primary config, to find out which choice the experiment's values are for.

    Returns: what was put back, as ``lr=0.05 (now 0.001)``, by ``group=choice``.
    """
    given, back = dict(_split(overrides)), dict[str, list[str]]()
    for group in TUNED:
        choice = given.get(group)
        if choice is None or choice == _without(group, conf, overrides, config_name):
            continue
        own = _yaml(conf / group / f"{choice}.yaml")
        for key in own:
            if f"{group}.{key}" not in given and (set_there := cfg[group][key]) != own[key]:
                cfg[group][key] = own[key]
                back.setdefault(f"{group}={choice}", []).append(f"{key}={set_there} (now {own[key]})")
    return back


def _without(group: str, conf: Path, overrides: list[str], config_name: str) -> str | None:
    """The choice that the other groups of the command line, such as the experiment, make of this one."""
    others = [o for o in overrides if (key := o.lstrip("+~").partition("=")[0]) != group and (conf / key).is_dir()]
    return hydra.compose(config_name, others, return_hydra_config=True).hydra.runtime.choices.get(group)


def require_fidelity(conf: Path, choices: dict[str, str]) -> None:
    """Raise ValueError where a method has rules by ``fidelity``, but none of the chosen name.

    A method without rules of its own trains alike under each.

    Args:
        conf: folder of the config groups.
        choices: the choice made in each group.
    """
    rules = sorted(path.stem for path in (conf / "fidelity" / "method" / choices["method"]).glob("*.yaml"))
    if rules:
        check_choice(f"fidelity of method={choices['method']}", choices["fidelity"], rules)


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
