"""What people read: messages, seconds and bytes."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.progress import Progress, TextColumn

log = logging.getLogger("odc_lightning")


def is_rank_zero() -> bool:
    """Is this the process that writes? Known from the environment before Lightning starts the others."""
    return getattr(rank_zero_only, "rank", 0) == 0


def quiet() -> None:
    """Only warnings of Lightning: what it says of devices and loggers, our own start-up table says."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # log lines are ours
    warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated.*")  # its heir is not in older torch


@rank_zero_only
def say(message: str) -> None:
    """One line to the terminal and to run.log, from rank 0."""
    log.info(message)


@rank_zero_only
def warn(message: str) -> None:
    """As :func:`say`, for what should not be overlooked."""
    log.warning(message)


@contextmanager
def iteration_bar(title: str) -> Iterator[Callable[[int, int, float, float], None]]:
    """A bar for an iterative clustering: give it (done, of, inertia, share of labels that changed).

    In a terminal a live bar with the time left; elsewhere a line every half a minute, so that a log shows life.
    """
    if not is_rank_zero():
        yield lambda *_: None
        return
    with Progress(*Progress.get_default_columns(), transient=True, disable=not sys.stdout.isatty()) as bar:
        task, said = bar.add_task(title), time.monotonic()

        def advance(done: int, of: int, inertia: float, changed: float) -> None:
            nonlocal said
            bar.update(task, completed=done, total=of)
            if bar.disable and time.monotonic() - said > 30:
                said = time.monotonic()
                say(f"{title}: {done} of {of} iterations, {changed:.1%} of the labels changed")

        yield advance


@contextmanager
def steps_bar(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar with the rate and the time left: give it the number of ``unit`` done since.

    In a terminal a live bar; elsewhere a line every half a minute, so that a log shows life.
    """
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
        task, began, said, done = bar.add_task(title, total=total, rate=""), time.monotonic(), time.monotonic(), 0

        def advance(steps: int) -> None:
            nonlocal said, done
            done, now = done + steps, time.monotonic()
            per_second = done / max(now - began, 1e-9)
            bar.update(task, advance=steps, rate=f"{per_second:,.0f} {unit}/s")
            if bar.disable and done and now - said > 30:
                said, left = now, clock((total - done) / per_second)
                say(f"{title}: {done:,} of {total:,}, {per_second:,.0f} {unit}/s, {left} left")

        yield advance


def clock(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def size(bytes_: float) -> str:
    """512 B, 3.2 MiB, 1.2 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if bytes_ < 1024:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1024
    return f"{bytes_:.3g} GiB"
