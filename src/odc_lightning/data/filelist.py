"""The images below a folder: scanned once, remembered in a cache file, held as a few arrays.

A Python list of a million paths is copied into every loading process as soon as its reference counts are touched;
arrays are shared.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odc_lightning.whole_file import whole_file

logger = logging.getLogger(__name__)

DEFAULT_CACHE = Path("~/.cache/odc_lightning/filelists")
_VERSION = 1
_RACY_NS = 2_000_000_000
_SEPARATOR = b"\0"
_ARRAYS = ("modified", "folder_of_file", "names", "ends")
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class FileList:
    """Relative paths of N files in sorted order.

    Attributes:
        folders: relative path of each folder below the root ("" is the root itself), sorted.
        modified: int64 (folders,), modification times in ns, taken before the folder was read.
        folder_of_file: int32 (N,), place of each file's folder in `folders`.
        names: the file names, joined, as bytes.
        ends: int64 (N,), where each name ends in `names`.
    """

    folders: list[str]
    modified: NDArray[np.int64]
    folder_of_file: NDArray[np.int32]
    names: NDArray[np.uint8]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        """Return the relative path of file `index`."""
        start = self.ends[index - 1] if index else 0
        name = os.fsdecode(self.names[start : self.ends[index]].tobytes())
        return os.path.join(self.folders[self.folder_of_file[index]], name)

    def fingerprint(self) -> str:
        """Return a sha256 (hexadecimal) over all relative paths: 0.1 s for a million."""
        digest = hashlib.sha256(_join(self.folders))
        for array in (self.folder_of_file, self.ends, self.names):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def list_files(root: Path, extensions: Sequence[str], cache_dir: Path | None = None, rescan: bool = False) -> FileList:
    """List the files below `root` that end in one of `extensions` (lower case, with the dot).

    The list comes from the cache when no folder's modification time has changed since; an unreadable or unwritable
    cache only costs a scan. Links are followed, hidden names (leading dot) are left out.

    Args:
        root: an existing folder, absolute.
        extensions: such as (".jpg", ".png"); case does not matter in file names.
        cache_dir: where lists are kept; None: ~/.cache/odc_lightning/filelists.
        rescan: read the folders even if the cache looks right.
    """
    file = _cache_file(root, extensions, cache_dir)
    cached = None if rescan else _read_cache(file, root)
    if cached is not None:
        return cached
    started = time.time_ns()
    files = scan_files(root, extensions)
    _write_cache(file, files, started)
    return files


def scan_files(root: Path, extensions: Sequence[str]) -> FileList:
    """As `list_files`, without the cache."""
    suffixes = tuple(extensions)
    found: list[tuple[str, str, str]] = []  # sort key, folder, name
    modified: dict[str, int] = {}
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        status = os.stat(root / folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:  # a link back to a folder that this one lies in
            continue
        modified[folder] = status.st_mtime_ns
        names, subfolders = _read_folder(root / folder, suffixes)
        found += [(os.path.join(folder, name), folder, name) for name in names]
        pending += [(os.path.join(folder, name), above | {identity}) for name in subfolders]
    return _pack(sorted(found), modified)


def _read_folder(path: Path, suffixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Names of the images and of the folders directly in `path`."""
    images, folders = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # A link with an image's ending is taken for an image: asking costs a stat for each of a million links.
            is_image = entry.name.lower().endswith(suffixes)
            if entry.is_dir(follow_symlinks=not is_image):
                folders.append(entry.name)
            elif is_image:
                images.append(entry.name)
    return images, folders


def _pack(found: list[tuple[str, str, str]], modified: dict[str, int]) -> FileList:
    folders = sorted(modified)
    place = {folder: number for number, folder in enumerate(folders)}
    names = [os.fsencode(name) for _, _, name in found]
    return FileList(
        folders=folders,
        modified=np.array([modified[folder] for folder in folders], dtype=np.int64),
        folder_of_file=np.array([place[folder] for _, folder, _ in found], dtype=np.int32),
        names=np.frombuffer(b"".join(names), dtype=np.uint8),
        ends=np.cumsum([len(name) for name in names], dtype=np.int64),
    )


def _cache_file(root: Path, extensions: Sequence[str], cache_dir: Path | None) -> Path:
    text = f"{_VERSION}\n{root}\n{' '.join(sorted(extensions))}"
    name = hashlib.sha256(os.fsencode(text)).hexdigest()[:24]
    return (cache_dir or DEFAULT_CACHE).expanduser() / f"{name}.npz"


def _read_cache(file: Path, root: Path) -> FileList | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            folders = [os.fsdecode(part) for part in stored["folders"].tobytes().split(_SEPARATOR)]
            arrays = {key: stored[key] for key in _ARRAYS}
            started = int(stored["started"])
    except _UNREADABLE:
        return None
    files = FileList(folders=folders, **arrays)
    return files if _is_current(files, root, started) else None


def _is_current(files: FileList, root: Path, started: int) -> bool:
    """Whether no folder has changed since the scan that began at `started` (ns)."""
    # File systems count time coarsely: a folder changed just before the scan may have changed again, unseen.
    if int(files.modified.max()) > started - _RACY_NS:
        return False
    try:
        now = [os.stat(root / folder).st_mtime_ns for folder in files.folders]
    except OSError:
        return False
    return bool(np.array_equal(np.array(now, dtype=np.int64), files.modified))


def _write_cache(file: Path, files: FileList, started: int) -> None:
    arrays = {key: getattr(files, key) for key in _ARRAYS}
    folders = np.frombuffer(_join(files.folders), dtype=np.uint8)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file, shared=True) as writing:  # other ranks read and write the same file
            np.savez(writing, folders=folders, started=np.int64(started), **arrays)
    except OSError as error:
        logger.info("the list of %d files is not kept for the next start: %s", len(files), error)


def _join(texts: list[str]) -> bytes:
    return _SEPARATOR.join(os.fsencode(text) for text in texts)
