"""The command line: finds conf/, lets Hydra compose it, hands the config to its task, speaks plainly of mistakes."""

from __future__ import annotations

import copy
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from odc_lightning.tasks import sweep
from odc_lightning.tasks.choices import drop_keys_of_other_choices, require_fidelity, require_kinds, take_own_values
from odc_lightning.tasks.full_keys import with_full_key
from odc_lightning.tasks.numbers import require_images, require_numbers
from odc_lightning.tasks.run_folder import STOPPED

# Whether a person asked for tracebacks; our own children inherit the answer, not the switch that main sets.
_DEBUGGING = os.environ.setdefault("ODC_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
log = logging.getLogger("odc_lightning")
# What a person can mend: told in one message; the traceback goes to the run's log file.
MENDABLE = (ValueError, OSError, FloatingPointError, NotImplementedError)
# Of Hydra's message about a part that could not be set up: its dotted key.
PLACE = r"Error in call to target[\s\S]*full_key: (\S+)"

OmegaConf.register_new_resolver("sweep_job", sweep.sweep_job, replace=True)


def conf_dir() -> Path:
    """The packaged conf/ of an installed wheel, else the repository's."""
    here = Path(__file__).resolve().parent
    packaged = here / "conf"
    return packaged if packaged.is_dir() else here.parents[1] / "conf"


def run_task(cfg: DictConfig) -> Any:
    """Hand the composed config to the task it names."""
    composed = copy.deepcopy(cfg)  # Hydra resolves interpolations in place when it sets up what they point to
    try:
        for choice, keys in settle(cfg, HydraConfig.get()).items():
            if _rank() == "0":
                log.info(f"{choice}: not used from the experiment: {', '.join(keys)}")
        if cfg.task.name in sweep.TRAININGS:
            require_numbers(cfg)
            if _rank() == "0":
                require_images(cfg)
        # Loads torch, which takes seconds: after all that can be answered without.
        task: Callable[[DictConfig], Any] = hydra.utils.get_method(cfg.task.run)
        return task(cfg)
    except Exception as error:
        message = plain_message(error, composed)
        log.debug("traceback of the error", exc_info=True)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            sweep.report_failure(HydraConfig.get().overrides.task, message or f"{type(error).__name__}: {error}")
            log.error(message or "a bug in odc-lightning:", exc_info=not message)
            raise  # Hydra goes on with the other jobs
        if _DEBUGGING or not message:
            raise
        sys.exit(message)


def settle(cfg: DictConfig, own: Any) -> dict[str, list[str]]:
    """Hold the command line, as ``own`` of Hydra has it, against conf/: see :mod:`odc_lightning.tasks.choices`.

    Returns: what an experiment has set and does not count, by the choice that it does not fit.
    """
    given, choices = list(own.overrides.task), dict(own.runtime.choices)
    require_fidelity(conf_dir(), choices)
    dropped = drop_keys_of_other_choices(cfg, conf_dir(), given)
    for choice, values in take_own_values(cfg, conf_dir(), given, own.job.config_name).items():
        dropped[choice] = [*dropped.get(choice, []), *values]
    require_kinds(cfg, conf_dir(), choices, given)
    return dropped


class SweepCallback(Callback):
    """Hydra calls it: nothing runs where a job of a sweep is impossible, and each that ends goes on the page."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit, naming each job that cannot run."""
        sweep.begin(config)
        wrong = sweep.impossible(config, kwargs["config_name"], settle, plain_message)
        if len(set(wrong.values())) == 1 < len(wrong) == len(sweep.jobs(config)):
            sys.exit(f"Error: no job of the sweep can run: {next(iter(wrong.values()))}")
        if wrong:
            lines = [f"{job}: {message}" for job, message in wrong.items()]
            sys.exit("\n  ".join([f"Error: nothing was started, for {_jobs(lines)} cannot run:", *lines]))
        sweep.list_jobs(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Show the job on the sweep's page."""
        if config.hydra.mode == RunMode.MULTIRUN:
            sweep.write_page(config)


def main() -> None:
    """Entry point of ``python -m odc_lightning`` and of ``odc``."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors come here instead of Hydra printing them
    os.environ.pop(sweep.FAILED, None)
    os.environ[sweep.ARGUMENTS] = "\n".join(sys.argv[1:])
    app = hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(run_task)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    except Exception as error:
        failed = sweep.failures()
        message = "\n  ".join([f"{_jobs(failed)} failed:", *failed]) if failed else plain_message(error)
        if _DEBUGGING or not message:
            raise
        sys.exit(message)


def _jobs(messages: list[str]) -> str:
    return f"{len(messages)} job{'s' * (len(messages) > 1)} of the sweep"


def plain_message(error: BaseException, cfg: DictConfig | None = None) -> str:
    """One clear message for what a person can mend, empty for what is a bug.

    Args:
        error: with its causes.
        cfg: the composed config, as far as there is one: the message then names its keys.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, MENDABLE) and not isinstance(cause, HydraException | OmegaConfBaseException):
            text = str(cause).strip()
            if "Original Traceback" in text:  # a loading process sends all of it; the last line is the message
                text = re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
            return f"{_error()}: {with_full_key(text, cfg, _place(causes)) if cfg is not None else text}"
    text = "\n".join(str(cause) for cause in causes)
    if re.search("closed by peer|reset by peer|remote process exited", text):
        return f"{_error()}: another process of this run has ended; its message tells why"
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"Error: {missing[1]} must be given: {missing[1]}=..."
    if option := re.search(r"Could not find '(.+)/([^/']+)'", text):
        return f"Error: {option[1]}={option[2]} is not a choice.{_suggest(option[2], _choices(option[1]))}"
    if key := re.search(r"Could not (?:override|append|delete)[^']*'([^'@=]+)", text):
        return f"Error: there is no key {key[1]!r}.{_suggest(key[1], _keys())}"
    if place := re.search(PLACE, text):
        if wrong := re.search(r"unexpected keyword argument '(\w+)'", text):
            key_there = f"{place[1]}.{wrong[1]}"
            return f"Error: there is no key {key_there!r}.{_suggest(key_there, _keys())}"
        reason = next((cause for cause in causes if not isinstance(cause, HydraException)), error)
        return f"Error: {place[1]} cannot be set up: {reason}"
    if "unexpected keyword argument" in text or isinstance(causes[0], HydraException | OmegaConfBaseException):
        return f"Error: {str(error).strip()}"
    return ""


def _place(causes: list[BaseException]) -> str:
    """Dotted key of the part that could not be set up; empty where it was something else."""
    return place[1] if (place := re.search(PLACE, "\n".join(map(str, causes)))) else ""


def _rank() -> str:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))


def _error() -> str:
    return "Error" if _rank() == "0" else f"Error on process {_rank()}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _suggest(wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.5)
    near += [name for name in known if name.split(".")[-1] == wrong.split(".")[-1] and name not in near][:3]
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" Known: {', '.join(known)}" if len(known) < 20 else " `python -m odc_lightning --cfg job` lists all keys."


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _keys() -> list[str]:
    """Dotted names of all keys and groups of the config, as far as the command line's groups can be composed."""
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    choices = [arg for arg in sys.argv[1:] if arg.split("=")[0] in groups]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            cfg = hydra.compose("config", overrides=choices)
        except HydraException:
            cfg = hydra.compose("config")
    return sorted({*groups, *_dotted(OmegaConf.to_container(cfg, resolve=False))})


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from _dotted(value, f"{prefix}{key}.")
