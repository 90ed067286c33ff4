"""A sweep's jobs: their names, a look at each before the first one starts, and what is said of those that failed."""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from odc_lightning.report.jobs import FAILED_JOBS, LISTED

if TYPE_CHECKING:
    from odc_lightning.data.datamodule import DataModule

ARGUMENTS, FAILED = "ODC_ARGUMENTS", "ODC_FAILED_JOBS"
TRAININGS = ("train", "train_evaluate")
_BASIC = "BasicSweeper"
log = logging.getLogger("odc_lightning")


def sweep_job(overrides: Sequence[str]) -> str:
    """Folder of a sweep's job, stable from start to start: the overrides in which the jobs of the sweep differ.

    Those are what the command line lists several values of, and what hydra.sweeper.params adds to it.
    """
    arguments = [part for part in os.environ.get(ARGUMENTS, "").split("\n") if re.match(r"~|[^-=][^=]*=", part)]
    swept = {o.key_or_group: o.is_sweep_override() for o in OverridesParser.create().parse_overrides(arguments)}
    parts = {part.lstrip("+~").partition("=")[0]: part for part in overrides}
    name = ",".join(sorted(part for key, part in parts.items() if swept.get(key, True))).replace("/", ".")
    return name if 0 < len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def begin(config: DictConfig) -> None:
    """Tell the jobs, also those in other processes, where to report a failure."""
    file = Path(config.hydra.sweep.dir).absolute() / FAILED_JOBS
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    os.environ[FAILED] = str(file)


def list_jobs(config: DictConfig) -> None:
    """Write what jobs there will be into the sweep's folder: its page shows those that wait too."""
    if config.task.name in TRAININGS and (listed := jobs(config)):
        names = "".join(f"{sweep_job(overrides)}\n" for overrides in listed)
        (Path(config.hydra.sweep.dir) / LISTED).write_text(names, encoding="utf-8")
        log.info(f"{write_page(config)}: the sweep's page, written anew after each job")


def write_page(config: DictConfig) -> Path | None:
    """index.html in the folder of a sweep of trainings; nothing for a sweep of something else."""
    # Here, for `--help` does not need NumPy and SciPy.
    from odc_lightning.report.dashboard import write_dashboard

    return write_dashboard(config.hydra.sweep.dir) if config.task.name in TRAININGS else None


def report_failure(overrides: Sequence[str], message: str) -> None:
    """Note that a job failed, in the sweep's folder."""
    if file := os.environ.get(FAILED):
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(f"{sweep_job(overrides)}: {_one_line(message)}\n")  # in one piece: other jobs write here too


def failures() -> list[str]:
    """What jobs of the sweep that this process began have reported, a line each."""
    file = Path(os.environ.get(FAILED, ""))
    return sorted(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else []


def _one_line(message: str) -> str:
    return " ".join(message.removeprefix("Error: ").split())


def jobs(config: DictConfig) -> list[list[str]]:
    """Overrides of every job, as Hydra's own sweeper forms them; none where another sweeper finds them by and by."""
    if not str(config.hydra.sweeper.get("_target_")).endswith(_BASIC):
        return []
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    values: dict[str, list[str]] = {}
    for one in OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task]):
        key = one.get_key_element()
        listed = list(one.sweep_string_iterator()) if one.is_sweep_override() else [one.get_value_element_as_str()]
        values[key] = [f"{key}={value}" for value in listed]
    return [list(job) for job in itertools.product(*values.values())]


def impossible(
    config: DictConfig,
    config_name: str,
    settle: Callable[[DictConfig, DictConfig], object],
    explain: Callable[..., str],
) -> dict[str, str]:
    """What is wrong with each job that cannot run, by its name.

    Args:
        config: of the sweep, with its ``hydra`` part.
        config_name: the primary config.
        settle: holds a job's config, and its ``hydra`` part, against conf/.
        explain: the message of an error that a person can mend, else nothing.
    """
    data: dict[str, DataModule] = {}
    wrong = {}
    for overrides in jobs(config):
        composed = None
        try:
            cfg = hydra.compose(config_name, overrides=overrides, return_hydra_config=True)
            composed = copy.deepcopy(cfg)
            with open_dict(cfg):
                own = cfg.pop("hydra")
            settle(cfg, own)
            check(cfg, own, data)
        except Exception as error:
            if not (message := explain(error, composed)):
                raise
            wrong[sweep_job(overrides)] = _one_line(message)
    return wrong


def check(cfg: DictConfig, own: DictConfig, data: dict[str, DataModule]) -> None:
    """Raise for a training that cannot work: data, method, sizes of clusters, and the protocol of a chain.

    Args:
        cfg, own: of the job, and its ``hydra`` part.
        data: the data modules of earlier jobs, by their settings: listing a large folder takes its time.
    """
    if cfg.task.name not in TRAININGS:
        return
    # Here, for loading torch takes seconds, and `--help` none.
    from odc_lightning.tasks.evaluate import plain_config
    from odc_lightning.tasks.train_evaluate import check_protocol, to_measure

    datamodule = _kept(data, cfg)
    method: Any = instantiate(cfg.method)
    method.require_possible(datamodule)
    if cfg.task.name == "train_evaluate":
        check_protocol(to_measure(plain_config(cfg), own.overrides.task))


def _kept(data: dict[str, DataModule], cfg: DictConfig) -> DataModule:
    settings = str(OmegaConf.to_container(cfg, resolve=True)["data"])  # type: ignore[index,call-overload]
    if settings not in data:
        data[settings] = instantiate(cfg.data)
    return data[settings]
