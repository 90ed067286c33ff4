"""A prepared store: the images of a data set made small once, to be read by index many times.

A folder for each split, of files that standard tools read:

- ``00000.zip, 00001.zip, ...``: uncompressed ZIP archives of JPEG files, equally many in each, in the data's order;
- ``index.npy``: where each image lies, an array of (start, size, crc) for NumPy. It is written last;
- ``store.json``: which images these are, and how they were made.

Why ZIP: it is a standard since decades, Python reads and writes it without a further package, ``unzip`` takes it apart,
and each entry carries a checksum, which every reading verifies. An image is one ``pread`` at a known place: safe in any
number of processes, forked or spawned, on any file system. HDF5 and LMDB handles must not cross a fork, tar has no
checksums, and the formats of loader libraries are read by these alone.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odc_lightning.data.decode import BadImageError, decode_image
from odc_lightning.data.sources import ImageSource

ROW = np.dtype([("start", "<i8"), ("size", "<i4"), ("crc", "<u4")])
_MOST_SHARDS, _LEAST_IMAGES = 256, 512  # few enough to hold all open, many enough to share the work


@dataclass(frozen=True)
class About:
    """What ``store.json`` says.

    Attributes:
        data, split, fingerprint, images: name, split, fingerprint and number of the source's images.
        images_per_shard: of each archive but the last.
        short_side: in pixels, of the stored images; smaller ones are kept as they are.
        quality: of the JPEG files, 1 to 100.
        version: of this layout.
    """

    data: str
    split: str
    fingerprint: str
    images: int
    images_per_shard: int
    short_side: int
    quality: int
    version: int = 1

    @classmethod
    def of(cls, source: ImageSource, short_side: int, quality: int) -> About:
        """Of a store that is to be made of these images."""
        each = max(_LEAST_IMAGES, -(-len(source) // _MOST_SHARDS))
        return cls(source.name, source.split, source.fingerprint(), len(source), each, short_side, quality)

    @classmethod
    def read(cls, folder: Path) -> About | None:
        """Of the store in a folder; None where there is none, ValueError for a file that is no store's."""
        file = folder / "store.json"
        if not file.is_file():
            return None
        try:
            about = cls(**json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} is not of a store that this version can read ({error})") from error
        if about.version != cls.version:
            raise ValueError(f"{file} is of version {about.version}, this program reads {cls.version}")
        return about

    def text(self) -> str:
        """What stands in the file."""
        return json.dumps(asdict(self), indent=2) + "\n"


class StoredImages(ImageSource):
    """A source whose pixels come from a store; numbering, labels and paths stay those of the original images.

    Whether they are the same images is seen by their names and order, not by what the files hold.

    Args:
        source: the original images.
        store: folder of the store; that of the source's split lies below it.

    Raises:
        ValueError: there is no store, it is not finished, or of other images.
    """

    def __init__(self, source: ImageSource, store: str | os.PathLike[str]) -> None:
        self.source, self.folder = source, Path(store).expanduser().absolute() / source.split
        self.about = _about(self.folder, source)
        self.name, self.split, self.channels = source.name, source.split, source.channels
        self.targets, self.classes, self.label_matrix = source.targets, source.classes, source.label_matrix
        self._index, self._files = self._open_index(), dict[int, int]()

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> NDArray[np.uint8]:
        start, size, crc = self._index[index].item()
        if not size:
            raise self._bad(index, "was unreadable when the store was made. Repair it and run task=prepare again")
        shard = index // self.about.images_per_shard
        try:
            data = os.pread(self._file(shard), size, start)
        except OSError as error:
            raise self._bad(index, f"cannot be read from {shard_file(self.folder, shard)} ({error})") from error
        if len(data) != size or zlib.crc32(data) != crc:
            damaged = f"is damaged in {shard_file(self.folder, shard)} (checksum)"
            raise self._bad(index, f"{damaged}. Mend it by task=prepare prepare.verify=true")
        return decode_image(data)

    def path(self, index: int) -> str:
        return self.source.path(index)

    def relative_path(self, index: int) -> str:
        return self.source.relative_path(index)

    def fingerprint(self) -> str:
        # Of the pixels too: features from the store are not exactly those of the original files.
        return f"{zlib.crc32(self.about.text().encode()):08x}{self.source.fingerprint()[:8]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None, "_files": {}}  # a spawned process opens its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index = self._open_index()

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def _open_index(self) -> NDArray[np.void]:
        return np.load(self.folder / "index.npy", mmap_mode="r")  # one copy for all processes

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            self._files[shard] = os.open(shard_file(self.folder, shard), os.O_RDONLY)
        return self._files[shard]

    def _bad(self, index: int, reason: str) -> BadImageError:
        advice = "or leave such images out with data.on_bad_image=skip"
        return BadImageError(f"the image {self.path(index)} {reason}, {advice}")


def shard_file(folder: Path, number: int) -> Path:
    """Archive of this number, from 0."""
    return folder / f"{number:05d}.zip"


def _about(folder: Path, source: ImageSource) -> About:
    about = About.read(folder) if folder.is_dir() else None
    if about is None:
        raise ValueError(
            f"data.store must be a folder that task=prepare has made of these images. Received: {folder.parent} "
            f"(no {folder.name}/store.json there)"
        )
    if (about.fingerprint, about.images) != (source.fingerprint(), len(source)):
        raise ValueError(
            f"data.store must hold the very images of data.root, in their order. Received: {folder.parent}, made of "
            f"{about.images:,} {about.split} images of {about.data}; here are {len(source):,} of {source.name}"
            f"{', with other names' if about.images == len(source) else ''}. Make another with task=prepare"
        )
    if not (folder / "index.npy").is_file():
        raise ValueError(f"data.store={folder.parent} is not finished: task=prepare with the same keys goes on with it")
    return about
