"""Files of weights to plain containers of tensors, without running anything that stands in the file."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

RUN_CHECKPOINTS = ("last.ckpt", "previous.ckpt")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LEGACY_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # what torch.save wrote first until version 1.6
_LFS, _HTML = b"version https://git-lfs", (b"<!doc", b"<html")
# Libraries whose objects public checkpoints carry beside their weights (arguments, configs, histories). They become
# `_Inert`; their own code is never looked up.
_INERT = (
    *("argparse", "types", "enum", "pathlib", "datetime", "typing", "numpy", "_codecs", "collections", "omegaconf"),
    *("yacs", "addict", "easydict", "ml_collections", "mmcv", "mmengine", "mmcls", "mmselfsup", "openselfsup"),
    *("vissl", "classy_vision", "fvcore", "iopath", "apex", "pytorch_lightning", "lightning", "lightning_fabric"),
    *("lightning_utilities", "lightly", "lightly_train", "solo", "timm", "torchmetrics"),
)
_CONTAINERS: dict[str, Any] = {one.__name__: one for one in (dict, list, tuple, set, frozenset, bytearray, complex)}
_SCALARS = ("int", "float", "bool", "str", "bytes", "object", "slice", "range")  # types that configs mention
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")
_MOST_LIBRARIES = 200  # classes of foreign libraries in one file


class Refused(pickle.UnpicklingError):
    """A pickle asks for something that weights have no use for; its name is the only argument."""


def find_checkpoint(path: str | Path) -> Path:
    """The file that `path` means: itself, or the last checkpoint of a run folder.

    Raises:
        ValueError: when nothing is there, naming what was looked for.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"init.path must be a checkpoint or a run folder. Nothing is at: {path}")
    tried = [folder / name for folder in (path / "checkpoints", path) for name in RUN_CHECKPOINTS]
    found = next((file for file in tried if file.is_file()), None)
    if found is None:
        raise ValueError(f"init.path is a folder without {tried[0].relative_to(path)}. Received: {path}")
    return found


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of PyTorch (zip or the older format), safetensors, or a caffe2 pickle of arrays.

    The content decides, not the file's name. PyTorch files are read with `weights_only=True` and mapped where the
    format allows. Objects of well-known libraries beside the weights become inert placeholders.

    Returns:
        What the file holds: containers, tensors (on the CPU) or numpy arrays.

    Raises:
        ValueError: for a file that is no checkpoint, is cut off, or wants to run code.
    """
    path = find_checkpoint(path)
    with path.open("rb") as file:
        head = file.read(64)
    reader = _reader(path, head)
    try:
        return reader(path)
    except Refused as error:
        raise ValueError(
            f"refused to load {path}: it asks for {error.args[0]}, and a file of weights needs tensors and plain "
            f"containers only. Loading such a file could run any code. If you trust its origin, load it where it was "
            f"made and save the state dict alone"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read: it is cut off, damaged, or no file of weights ({reason})") from error


def sha256(path: str | Path) -> str:
    """Hash of the file that `find_checkpoint` finds, in hex: what a result was measured with."""
    digest = hashlib.sha256()
    with find_checkpoint(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _reader(path: Path, head: bytes) -> Callable[[Path], Any]:
    if head.startswith(_ZIP):
        return _read_torch_zip
    if head.startswith(_LEGACY_TORCH):
        return lambda file: _read_torch(file, mmap=False)
    if head.startswith(_PICKLE):
        return _read_array_pickle
    if _is_safetensors(path, head):
        return load_file
    if head.startswith(_LFS):
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`")
    if head.lstrip().lower().startswith(_HTML):
        raise ValueError(f"{path} is a web page, not a file of weights: the download went wrong")
    what = "is empty" if not head else f"begins with {head[:8]!r}"
    known = "PyTorch, safetensors and caffe2 pickles"
    raise ValueError(f"{path} is no checkpoint that can be read ({known} can). It {what}")


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Eight bytes of length, then JSON; a cut-off file keeps its name."""
    if len(head) < 9:
        return bool(head) and path.suffix == ".safetensors"
    (length,) = struct.unpack("<Q", head[:8])
    return head[8:9] == b"{" and (length < path.stat().st_size or path.suffix == ".safetensors")


def _read_torch_zip(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise ValueError("the end of the archive is missing")
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        raise ValueError("a TorchScript program; save its state dict instead")
    if "data.pkl" not in names:
        raise ValueError("an archive without PyTorch's data.pkl")
    return _read_torch(path, mmap=True)


def _read_torch(path: Path, mmap: bool) -> Any:
    inert: list[Any] = []
    for _ in range(_MOST_LIBRARIES):
        try:
            with torch.serialization.safe_globals(inert):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            wanted = _REFUSED_GLOBAL.search(str(error))
            if wanted is None:
                raise
            inert.append(_inert(wanted[1]))
    raise ValueError(f"more than {_MOST_LIBRARIES} classes of other libraries")


def _inert(name: str) -> Any:
    """What may stand for the global `name`, or Refused."""
    name = name.removeprefix("builtins.")
    if name in _CONTAINERS:
        return _CONTAINERS[name]
    module, _, short = name.rpartition(".")
    if name in _SCALARS:
        module = "builtins"
    if name in _SCALARS or (module and name.partition(".")[0] in _INERT):
        return type(short, (_Inert,), {"__module__": module})  # torch knows allowed globals by their own names
    raise Refused(name)


class _Inert(dict):
    """Stands for an object of a library that is not loaded: keeps its items, runs nothing."""

    def __init__(self, *_args: Any, **_keys: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Drop attributes."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key


class _ArrayUnpickler(pickle.Unpickler):
    """Numpy arrays and builtin containers, nothing else: what FAIR's caffe2 files hold."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ARRAY_GLOBALS:
            raise Refused(full)
        return _ARRAY_GLOBALS[full]


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in an old pickle; any other codec could load a module."""
    if encoding != "latin1":
        raise Refused(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


_ARRAY_GLOBALS: dict[str, Any] = {
    **{
        f"numpy.{core}.multiarray.{name}": function
        for core in ("core", "_core")
        for name, function in (
            ("_reconstruct", np.zeros(0).__reduce__()[0]),  # the functions have moved between numpy's versions
            ("scalar", np.float32(0).__reduce__()[0]),
        )
    },
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
    **{f"{builtins}.{name}": one for builtins in ("__builtin__", "builtins") for name, one in _CONTAINERS.items()},
}


def _read_array_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        # Latin-1, so that the byte strings of Python 2 (names, and the arrays' bytes) keep every byte.
        return _ArrayUnpickler(file, encoding="latin1").load()
