"""Places205 (Zhou et al. 2014): scenes, by the official lists of files or in folders of classes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odc_lightning.data.decode import read_image
from odc_lightning.data.folder import ImageNet
from odc_lightning.data.multilabel_csv import existing_folder, some
from odc_lightning.data.sources import ImageSource, check_split

NUM_CLASSES = 205
# Where the archives put the lists and the images, below the root.
_LIST_FOLDERS = ("", "trainvalsplit_places205")
_IMAGE_FOLDERS = ("", "images256", "data/vision/torralba/deeplearning/images256")
_LOOKED_AT = 32  # files that are looked for at the start; the others show when they are read


class Places205(ImageSource):
    """Places205 in one of its two layouts.

    The official lists, ``train_places205.csv`` and ``val_places205.csv``, have lines such as
    ``a/abbey/gsun_0003a2ec.jpg 0``; the images lie in root, ``root/images256`` or where the archive unpacks them.
    Without lists: ``root/train/<class>/*`` and ``root/val/<class>/*``, classes numbered by their sorted names.

    Args:
        root: the folder of the lists, or of train and val.
        split: train or val.
        cache_dir: where the list of files is kept (folders only); None: ~/.cache/odc_lightning/filelists.

    Raises:
        ValueError: no root, an unknown split, a wrong line in a list, or other than 205 classes.
        FileNotFoundError: another layout; says what was looked for and what is there.
    """

    name = "places205"

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str = "train",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.split = check_split(split)
        folder = existing_folder(root, "Places205")
        file = _list_file(folder, split)
        if file is None and not (folder / "train").is_dir():
            raise FileNotFoundError(
                f"data.root={folder} is not laid out as Places205: looked for the list {split}_places205.csv and for "
                f"{split}/<class>/*.jpg. Found: {some(sorted(each.name for each in folder.iterdir()))}"
            )
        source = _Folders(folder, split, cache_dir=cache_dir) if file is None else _Listed(folder, file, split)
        self.source: ImageSource = source
        self.targets, self.classes = source.targets, source.classes
        assert source.targets is not None
        found = len(np.unique(source.targets))
        if found != NUM_CLASSES:
            raise ValueError(
                f"Places205 has {NUM_CLASSES} classes. Received: {found} in {file or folder / split}. For a part of it "
                f"take data=folder"
            )

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> NDArray[np.uint8]:
        return self.source.load(index)

    def path(self, index: int) -> str:
        return self.source.path(index)

    def relative_path(self, index: int) -> str:
        return self.source.relative_path(index)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class _Folders(ImageNet):
    name = "places205"


class _Listed(ImageSource):
    """Images and classes by a list."""

    name = "places205"

    def __init__(self, root: Path, file: Path, split: str) -> None:
        self.split = split
        paths, targets = _read_list(file)
        # Bytes: two million strings would take four times as much, in each loading process.
        self.paths, self.targets = np.array([os.fsencode(path) for path in paths]), np.array(targets, dtype=np.int64)
        self.folder = _image_folder(root, file, paths)
        self.classes = _class_names(paths, targets)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> NDArray[np.uint8]:
        return read_image(self.path(index))

    def path(self, index: int) -> str:
        return str(self.folder / os.fsdecode(self.paths[index]))

    def relative_path(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def fingerprint(self) -> str:
        assert self.targets is not None
        digest = hashlib.sha256(f"{self.name} {self.split} {len(self)}".encode())
        digest.update(self.paths.tobytes())
        digest.update(self.targets.tobytes())
        return digest.hexdigest()[:16]


def _list_file(root: Path, split: str) -> Path | None:
    places = [root / folder / f"{split}_places205.csv" for folder in _LIST_FOLDERS]
    return next((place for place in places if place.is_file()), None)


def _read_list(file: Path) -> tuple[list[str], list[int]]:
    """Paths and classes of a list."""
    paths, targets = [], []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            path, _, target = line.strip().rpartition(" ")
            if not path or not target.isdecimal() or int(target) >= NUM_CLASSES:
                raise ValueError(
                    f"{file}, line {number}: must be a path and a class from 0 to {NUM_CLASSES - 1}, such as "
                    f"'a/abbey/gsun_0003a2ec.jpg 0'. Received: {line.strip()!r}"
                )
            paths.append(path.lstrip("/"))
            targets.append(int(target))
    if not paths:
        raise ValueError(f"{file} must list images. Received: an empty file")
    return paths, targets


def _image_folder(root: Path, file: Path, paths: list[str]) -> Path:
    """The folder that the paths of a list are relative to, seen by a few of them."""
    few = [paths[place] for place in np.linspace(0, len(paths) - 1, min(_LOOKED_AT, len(paths))).round().astype(int)]
    for folder in _IMAGE_FOLDERS:
        if all((root / folder / path).is_file() for path in few):
            return root / folder
    missing = [path for path in few if not (root / path).is_file()]
    raise FileNotFoundError(
        f"images of {file} are missing: looked in {root} and its {', '.join(_IMAGE_FOLDERS[1:])} for {some(missing)}"
    )


def _class_names(paths: list[str], targets: list[int]) -> list[str]:
    """Names from the folders, such as ``a/abbey``, in the order of the classes."""
    names = {target: os.path.dirname(path) for path, target in zip(paths, targets, strict=True)}
    return [names.get(target, str(target)) for target in range(max(targets) + 1)]
