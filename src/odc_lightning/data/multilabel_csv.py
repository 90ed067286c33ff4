"""Images with several labels each: any folder with a CSV file of labels."""

from __future__ import annotations

import csv as csv_files
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odc_lightning.data.decode import read_image
from odc_lightning.data.sources import ImageSource, MissingSplitError, check_split

PATH, SPLIT = "path", "split"
_SPLIT_NAMES = {"train": "train", "trainval": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}
_LABELS = {"1": 1, "0": 0, "-1": -1}
_SHOWN = 5


class MultiLabelSource(ImageSource):
    """Images of which each may show several classes.

    Attributes:
        label_matrix: int64 (N, K): 1 present, 0 absent, -1 difficult or unknown: left out of tests.
        classes: the K names.
    """

    classes: list[str]
    label_matrix: NDArray[np.int64]

    def __init__(
        self, name: str, split: str, root: Path, paths: Sequence[str], label_matrix: NDArray, classes: Sequence[str]
    ) -> None:
        self.name, self.split, self.root = name, split, root
        self.paths = np.array(paths, dtype=np.str_)  # an array is shared by loading processes, a list is copied
        self.label_matrix, self.classes = label_matrix.astype(np.int64), list(classes)
        missing = [path for path in paths if not (root / path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {len(paths)} images of {name} {split} are not in data.root={root}: "
                f"{some(missing)}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> NDArray[np.uint8]:
        return read_image(self.path(index))

    def path(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.name} {self.split} {' '.join(self.classes)}".encode())
        digest.update("\0".join(self.paths.tolist()).encode())
        digest.update(self.label_matrix.tobytes())
        return digest.hexdigest()[:16]


class MultiLabelCSV(MultiLabelSource):
    """Images named in a CSV file with a header: `path`, then a column of 1, 0 or -1 for each class.

    A column `split` may hold train or trainval, and val, valid, validation or test. Without it, all rows are `train`.

    Args:
        root: folder that the paths are relative to.
        csv: the file, absolute or relative to `root`.
        split: train or val.

    Raises:
        ValueError: no root, an unknown split, or a header or cell that is wrong; names the line and what it holds.
        FileNotFoundError: the folder, the file or an image does not exist; MissingSplitError if no row is of the split.
    """

    def __init__(
        self, root: str | os.PathLike[str] | None, csv: str | os.PathLike[str] = "labels.csv", split: str = "train"
    ) -> None:
        check_split(split)
        folder = existing_folder(root, "the images")
        file = folder / Path(csv).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"data.csv must be a CSV file of labels. Received: {file} (no such file)")
        classes, rows = _read(file)
        chosen = [(path, labels) for row_split, path, labels in rows if row_split == split]
        if not chosen:
            raise MissingSplitError(f"{file} has no row of the split {split}, of {len(rows)} rows")
        paths, labels = zip(*chosen, strict=True)
        super().__init__(file.stem, split, folder, paths, np.array(labels), classes)


def existing_folder(root: str | os.PathLike[str] | None, content: str) -> Path:
    """Return `root` as an absolute path; ValueError for None, FileNotFoundError if there is no such folder."""
    if root is None:
        raise ValueError(f"data.root must name the folder of {content}. Received: None")
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        state = "a file" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"data.root must be the folder of {content}. Received: {folder} ({state})")
    return folder


def some(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + more


_Row = tuple[str, str, list[int]]


def _read(file: Path) -> tuple[list[str], list[_Row]]:
    """Class names, and the split, path and labels of each row."""
    with open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv_files.DictReader(lines)
        header = list(reader.fieldnames or ())
        classes = [name for name in header if name not in (PATH, SPLIT)]
        if PATH not in header or not classes or len(set(header)) < len(header):
            raise ValueError(
                f"{file} must begin with a line of column names: path, one for each class, and split if it has one, "
                f"each once. Received: {some(header)}"
            )
        return classes, [_row(file, reader.line_num, row, classes) for row in reader]


def _row(file: Path, line: int, row: dict[str, str], classes: list[str]) -> _Row:
    if None in row.values() or None in row:
        raise ValueError(f"{file}, line {line}: must have as many cells as the first line")
    split = row.get(SPLIT, "train").strip()
    if split not in _SPLIT_NAMES:
        raise ValueError(f"{file}, line {line}: split must be one of {', '.join(_SPLIT_NAMES)}. Received: {split!r}")
    wrong = [name for name in classes if row[name].strip() not in _LABELS]
    if wrong:
        raise ValueError(f"{file}, line {line}: {wrong[0]} must be 1, 0 or -1. Received: {row[wrong[0]]!r}")
    return _SPLIT_NAMES[split], row[PATH].strip(), [_LABELS[row[name].strip()] for name in classes]
