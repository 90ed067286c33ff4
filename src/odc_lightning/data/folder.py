"""Images in folders: any tree of images, and ImageNet's layout."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odc_lightning.data.decode import read_image
from odc_lightning.data.filelist import FileList, list_files
from odc_lightning.data.sources import ImageSource, MissingSplitError, check_split

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
VAL_NAMES = ("val", "valid", "validation", "test")
_BESIDE_TRAIN = {"train", *VAL_NAMES, "unlabeled"}
_SHOWN = 5


class ImageFolder(ImageSource):
    """Any tree of images, in the order of their sorted relative paths. No annotation file is needed.

    If `root/train` exists, `train` is that folder and `val` is `root/val` (or valid, validation, test); otherwise
    `train` is all of root and there is no `val`. Labels are read from the folders when each image lies below one of
    at least two class folders; otherwise `targets` is None. `val` counts its classes as `train` does.

    Args:
        root: folder of the images.
        split: train, val, or None for all of root whatever its layout.
        extensions: endings of image files; case does not matter.
        cache_dir: where the file list is kept; None: ~/.cache/odc_lightning/filelists.
        rescan: read the folders again even though none of them has changed.

    Raises:
        ValueError: no root, an unknown split, no image in the folder.
        FileNotFoundError: the folder does not exist; MissingSplitError if only the split does not.
    """

    name = "folder"

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str | None = "train",
        extensions: Sequence[str] = EXTENSIONS,
        cache_dir: str | os.PathLike[str] | None = None,
        rescan: bool = False,
    ) -> None:
        self.root = _existing_folder(root)
        self.split = "all" if split is None else check_split(split)
        self.extensions = _checked_extensions(extensions)
        self._list = functools.partial(
            list_files, cache_dir=None if cache_dir is None else Path(cache_dir), rescan=rescan
        )
        self.folder = self._folder_of(self.split)
        self.files = self._list(self.folder, self.extensions)
        if not len(self.files):
            raise ValueError(_no_images(self.folder, self.extensions))
        self.targets, self.classes = self._labels()

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> NDArray[np.uint8]:
        return read_image(self.path(index))

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.files[index])

    def relative_path(self, index: int) -> str:
        return self.files[index]

    def fingerprint(self) -> str:
        text = f"{self.name} {self.split} {len(self)} {self.files.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _folder_of(self, split: str) -> Path:
        train = self.root / "train"
        if split == "all" or not train.is_dir():
            if split == "val":
                raise MissingSplitError(_no_split(self.root, "the folder has no train and val below it"))
            return self.root
        if split == "train":
            _warn_of_unused(self.root)
            return train
        return _val_folder(self.root)

    def _labels(self) -> tuple[NDArray[np.int64] | None, list[str] | None]:
        classes = class_names(self.files)
        if classes is None:
            return None, None
        if self.split == "val":
            of_train = class_names(self._list(self._folder_of("train"), self.extensions)) or []
            classes = of_train + sorted(set(classes) - set(of_train))
        return class_indices(self.files, classes), classes


class ImageNet(ImageFolder):
    """ImageNet, or a subset, as `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`. Arguments as for ImageFolder.

    Raises:
        FileNotFoundError: the layout is another one; the message says what was looked for and what is there.
        ValueError: the class folders of train and val differ.
    """

    name = "imagenet"

    def _folder_of(self, split: str) -> Path:
        if not (self.root / "train").is_dir():
            raise FileNotFoundError(_wrong_layout(self.root, "train", self.root))
        return super()._folder_of(split)

    def _labels(self) -> tuple[NDArray[np.int64], list[str]]:
        folders = _image_folders(self.files)
        if "" in folders:
            raise FileNotFoundError(_wrong_layout(self.root, self.split, self.folder))
        if self.split == "val":
            _check_same_classes(_image_folders(self._list(self._folder_of("train"), self.extensions)), folders)
        classes = sorted(folders)
        return class_indices(self.files, classes), classes


def class_names(files: FileList) -> list[str] | None:
    """Return the sorted names of the first-level folders, or None if the tree is no tree of classes."""
    folders = _image_folders(files)
    return None if "" in folders or len(folders) < 2 else sorted(folders)


def class_indices(files: FileList, classes: list[str]) -> NDArray[np.int64]:
    """Return int64 (N,): the place in `classes` of each file's first-level folder."""
    number = {name: index for index, name in enumerate(classes)}
    of_folder = np.array([number.get(_first(folder), -1) for folder in files.folders], dtype=np.int64)
    return of_folder[files.folder_of_file]


def _image_folders(files: FileList) -> set[str]:
    """First-level folders that hold images; "" stands for images directly in the root."""
    return {_first(files.folders[number]) for number in np.unique(files.folder_of_file)}


def _first(folder: str) -> str:
    return folder.split(os.sep, 1)[0]


def _existing_folder(root: str | os.PathLike[str] | None) -> Path:
    if root is None:
        raise ValueError("data.root must name a folder of images, such as data.root=/data/photos. Received: None")
    folder = Path(root).expanduser().absolute()
    if not folder.exists():
        raise FileNotFoundError(f"data.root must be an existing folder. Received: {folder} (no such folder)")
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root must be a folder of images. Received: {folder} (a file)")
    return folder


def _checked_extensions(extensions: Sequence[str]) -> tuple[str, ...]:
    listed = () if isinstance(extensions, str) else tuple(str(ending).lower() for ending in extensions)
    if not listed or any(len(ending) < 2 or ending[0] != "." for ending in listed):
        raise ValueError(f"extensions must be a list of endings such as ['.jpg', '.png']. Received: {extensions!r}")
    return listed


def _val_folder(root: Path) -> Path:
    for name in VAL_NAMES:
        if (root / name).is_dir():
            return root / name
    raise MissingSplitError(_no_split(root, f"looked for {', '.join(VAL_NAMES)} beside train"))


def _warn_of_unused(root: Path) -> None:
    """A data set with a class called train looks like one with a train split; do not train on one class in silence."""
    others = [name for name in _subfolders(root) if name not in _BESIDE_TRAIN]
    if others:
        warnings.warn(
            f"data.root={root} has a folder train, so only that is trained on; not used: {_some(others)}. "
            "If these are classes, move all class folders below one folder train",
            stacklevel=2,
        )


def _check_same_classes(train: set[str], val: set[str]) -> None:
    if train == val:
        return
    raise ValueError(
        f"data.root must have the same class folders in train ({len(train)}) and val ({len(val)}). "
        f"Only in train: {_some(sorted(train - val))}; only in val: {_some(sorted(val - train))}"
    )


def _no_images(folder: Path, extensions: tuple[str, ...]) -> str:
    with os.scandir(folder) as entries:
        state = "it holds other files" if any(True for _ in entries) else "the folder is empty"
    return f"data.root holds no images: looked in {folder} for files ending in {', '.join(extensions)}; {state}"


def _no_split(root: Path, reason: str) -> str:
    return f"data.root={root} has no validation images ({reason})"


def _wrong_layout(root: Path, split: str, looked_in: Path) -> str:
    files = [entry.name for entry in os.scandir(looked_in) if not entry.is_dir()]
    advice = " Images must be sorted into one folder a class." if files else ""
    return (
        f"data.root={root} is not laid out as ImageNet: looked for {split}/<class>/*.JPEG. Found in {looked_in}: "
        f"folders {_some(_subfolders(looked_in))}; files {_some(sorted(files))}.{advice}"
    )


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
