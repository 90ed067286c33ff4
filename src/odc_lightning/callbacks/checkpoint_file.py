"""How a checkpoint gets into its file: straight from where the tensors are, a large one while the training goes on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils import _pytree as pytree

LARGE = 2**28  # bytes: from here on a process of its own is worth its start
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


class CheckpointFile(TorchCheckpointIO):
    """Writes checkpoints; a large one in a forked process, on Linux.

    The fork sees all memory as it was at its start, and the system copies a page only when the training writes to it.
    So the training stops for the fork only, and no second bank is needed. On a GPU what lies there is copied to the
    host first. Lightning's own way makes the whole file in memory before it writes it.

    Args:
        large: bytes of a checkpoint that is written in the background.

    Attributes:
        then: of the next file only: called when it is complete, in the process that wrote it. None: it is one that
            Lightning passes on between processes, and is written at once.
    """

    def __init__(self, large: int = LARGE) -> None:
        super().__init__()
        self.large = large
        self.then: Callable[[], None] | None = None
        self._running: tuple[int, int] | None = None  # process, and the pipe that tells why it failed

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file, or begin to; waits for the one before.

        Raises:
            OSError: this file, or in the background the one before, cannot be written; part of it may be there.
        """
        self.wait()
        then, self.then = self.then, None
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if then and sys.platform == "linux" and _bytes(checkpoint) >= self.large:
            self._fork(_on_host(checkpoint), path, then)
            return
        torch.save(checkpoint, path)
        if then:
            then()

    def wait(self, *, block: bool = True) -> None:
        """Wait until nothing is being written; without ``block`` only look.

        Raises:
            OSError: the file could not be written.
        """
        if self._running is None:
            return
        process, pipe = self._running
        ended, status = os.waitpid(process, 0 if block else os.WNOHANG)
        if not ended:
            return
        self._running = None
        with open(pipe, errors="replace") as told:
            reason = told.read()
        if status:
            raise OSError(reason or f"the process that wrote it ended with code {os.waitstatus_to_exitcode(status)}")

    def teardown(self) -> None:
        """Let what is being written come to its end."""
        self.wait()

    def _fork(self, checkpoint: dict[str, Any], path: Any, then: Callable[[], None]) -> None:
        told, tell = os.pipe()
        parent = os.getpid()
        process = os.fork()
        if process:
            os.close(tell)
            self._running = (process, told)
            return
        failed = 1
        try:
            for stop in (signal.SIGINT, signal.SIGTERM):  # these reach the group; the training waits for this file
                signal.signal(stop, signal.SIG_IGN)
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
            if os.getppid() == parent:
                torch.save(checkpoint, path)
                then()
                failed = 0
        except BaseException as error:
            os.write(tell, f"{error}"[:4000].encode(errors="replace"))
        finally:
            os._exit(failed)


def _on_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Without tensors on a device: the fork must not touch it."""
    if all(leaf.device.type == "cpu" for leaf in pytree.tree_leaves(checkpoint) if isinstance(leaf, Tensor)):
        return checkpoint
    return pytree.tree_map_only(Tensor, Tensor.cpu, checkpoint)  # type: ignore[no-any-return]


def _bytes(checkpoint: dict[str, Any]) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(checkpoint) if isinstance(leaf, Tensor))
