"""Making a prepared store: an archive at a time, in several processes; what is finished is never made again."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from odc_lightning.data import image_ops as ops
from odc_lightning.data.decode import BadImageError, decode_image, naming
from odc_lightning.data.sources import ImageSource
from odc_lightning.data.store import ROW, About, shard_file
from odc_lightning.whole_file import whole_file, write_whole

_LOCAL_HEADER = 30  # bytes of ZIP before an entry's name
_SAMPLED = 32  # images that the forecast looks at
_POLL = 0.5  # seconds between two looks at the counter


@dataclass(frozen=True)
class Shard:
    """One archive to make.

    Attributes:
        file: of the archive.
        first: index of its first image.
        paths: of its images.
        names: the same below the data's own folder, kept as the entries' comments.
        about: how images are stored.
        skip_bad: store nothing for an image that cannot be read, instead of raising.
        verify: read an archive that is there, and make it anew if a checksum is wrong.
    """

    file: Path
    first: int
    paths: Sequence[str]
    names: Sequence[str]
    about: About
    skip_bad: bool
    verify: bool


@dataclass(frozen=True)
class Made:
    """What came of an archive: its rows of the index, and reasons by the index of images that cannot be read."""

    rows: NDArray[np.void]
    unreadable: dict[int, str]
    again: bool = False  # was it there, but damaged?


@dataclass(frozen=True)
class Forecast:
    """Expected bytes and processor seconds of the images that are still to be stored, and how many these are."""

    images: int
    bytes_: float
    seconds: float


def begin(folder: Path, about: About) -> About:
    """Make the folder of a split a store's, or go on with the one there, whose description is returned.

    Raises:
        ValueError: it is one of other images or settings, or a folder of other things.
    """
    there = About.read(folder) if folder.is_dir() else None
    if there is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"data.store must be a new or empty folder, or a store. Received: {folder.parent}")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "store.json", about.text())
        return about
    if (there.fingerprint, there.images) != (about.fingerprint, about.images):
        raise ValueError(
            f"data.store={folder.parent} holds a store of other images: {there.images:,} {there.split} images of "
            f"{there.data}; here are {about.images:,} of {about.data}. Name another folder"
        )
    for key in ("short_side", "quality"):
        if (old := getattr(there, key)) != (new := getattr(about, key)):
            raise ValueError(
                f"data.store={folder.parent} is a store with prepare.{key}={old}. Received: {new}. Name another folder"
            )
    return there


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process; ValueError if another process has it."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"data.store={folder}: another task=prepare is at work there") from None
        except OSError:
            pass  # a file system without locks
        yield


def shards(folder: Path, source: ImageSource, about: About, skip_bad: bool, verify: bool) -> list[Shard]:
    """All archives of a store."""
    parts, step = [], about.images_per_shard
    for number, first in enumerate(range(0, len(source), step)):
        indices = range(first, min(first + step, len(source)))
        paths, names = [source.path(i) for i in indices], [source.relative_path(i) for i in indices]
        parts.append(Shard(shard_file(folder, number), first, paths, names, about, skip_bad, verify))
    return parts


def forecast(parts: Sequence[Shard]) -> Forecast:
    """What the archives that are not there yet will take, from some of their images."""
    missing = [(path, part.about) for part in parts if not part.file.exists() for path in part.paths]
    chosen = missing[:: -(-len(missing) // _SAMPLED) or 1]
    sizes, began = [], time.process_time()
    for path, about in chosen:
        try:
            sizes.append(len(encoded(path, about.short_side, about.quality)[0]))
        except BadImageError:
            continue  # its turn comes
    seconds = (time.process_time() - began) / max(1, len(chosen))
    return Forecast(len(missing), len(missing) * float(np.mean(sizes or [0])), len(missing) * seconds)


def require_room(folder: Path, expected: Forecast) -> None:
    """ValueError if the disk has less room than the images are expected to take."""
    free = shutil.disk_usage(folder).free
    if expected.bytes_ > free:
        need, have = (f"{bytes_ / 2**30:.3g} GiB" for bytes_ in (expected.bytes_, free))
        raise ValueError(f"data.store must have room for about {need}. Received: {folder}, with {have} free")


def make(parts: Sequence[Shard], workers: int, advance: Callable[[int], None]) -> list[Made]:
    """Make the archives that are missing, and read the index of all.

    Args:
        parts: the archives.
        workers: processes; 0: this one alone.
        advance: called with the number of images that are finished since.

    Raises:
        BadImageError: an image cannot be read, and ``skip_bad`` is false; finished archives stay.
    """
    if not workers:
        return [make_shard(part, advance) for part in parts]
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of this process
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(min(workers, len(parts)), context, _begin_worker, (counter,))
    try:
        waiting: dict[Future[Made], int] = {pool.submit(_make_and_count, part): n for n, part in enumerate(parts)}
        return _collect(waiting, counter, advance)
    except BrokenProcessPool:
        reason = "a process of task=prepare was killed, perhaps for want of memory. The same command goes on"
        raise OSError(reason) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(waiting: dict[Future[Made], int], counter: Any, advance: Callable[[int], None]) -> list[Made]:
    """Results in the order of the archives."""
    made: dict[int, Made] = {}
    seen, total = 0, len(waiting)
    while len(made) < total:
        done, _ = wait(waiting, timeout=_POLL, return_when=FIRST_COMPLETED)
        made |= {waiting.pop(future): future.result() for future in done}
        now = counter.value
        advance(now - seen)
        seen = now
    return [made[number] for number in range(total)]


_counter: Any = None  # of a worker process: images done by all


def _begin_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    cv2.setNumThreads(0)  # processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at once, without a traceback from each process
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A killed parent could not stop its workers."""
    parent.join()
    os._exit(1)


def _make_and_count(shard: Shard) -> Made:
    def advance(images: int) -> None:
        with _counter.get_lock():
            _counter.value += images

    return make_shard(shard, advance)


def make_shard(shard: Shard, advance: Callable[[int], None] = lambda images: None) -> Made:
    """Make an archive, unless it is there and sound; images that could not be read before are tried again."""
    rows = read_rows(shard.file, len(shard.paths), shard.verify)
    if rows is not None and rows["size"].all():
        advance(len(rows))
        return Made(rows, {})
    existed = shard.file.exists()
    writing = shard.file.with_suffix(".writing")
    try:
        unreadable = _write(writing, shard, advance)
        os.replace(writing, shard.file)
    except BaseException:
        writing.unlink(missing_ok=True)
        raise
    rows_now = read_rows(shard.file, len(shard.paths), verify=False)
    assert rows_now is not None
    return Made(rows_now, unreadable, again=existed and rows is None)


def _write(file: Path, shard: Shard, advance: Callable[[int], None]) -> dict[int, str]:
    """Write an archive, safe on the disk when this returns; the images that could not be read, with the reasons."""
    unreadable = {}
    with open(file, "wb") as out, zipfile.ZipFile(out, "w") as archive:
        for index, (path, name) in enumerate(zip(shard.paths, shard.names, strict=True), start=shard.first):
            data, ending = b"", ".bad"
            try:
                data, ending = encoded(path, shard.about.short_side, shard.about.quality)
            except BadImageError as error:
                if not shard.skip_bad:
                    raise
                unreadable[index] = str(error)
            archive.writestr(_entry(f"{index:09d}{ending}", name), data)
            advance(1)
        archive.close()
        out.flush()
        os.fsync(out.fileno())
    return unreadable


def _entry(name: str, original: str) -> zipfile.ZipInfo:
    """An entry that does not tell when and where it was made: the same images give the same bytes."""
    entry = zipfile.ZipInfo(name)  # uncompressed, of 1980
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    entry.comment = os.fsencode(original)[-0xFFFF:]
    return entry


def encoded(path: str, short_side: int, quality: int) -> tuple[bytes, str]:
    """What is stored for an image file, and the ending of its name.

    An image whose short side is larger becomes a JPEG file of ``short_side``, colours at half resolution as in most
    photographs; any other file is kept byte for byte. Both are decoded as training decodes.

    Raises:
        BadImageError: the file cannot be read.
    """
    with naming(path):
        with open(path, "rb") as file:
            data = file.read()
        image = decode_image(data)
        height, width = image.shape[:2]
        if (short := min(height, width)) <= short_side:
            return data, os.path.splitext(path)[1].lower()
        new_height, new_width = height * short_side // short, width * short_side // short  # as EvalTransform
        small = ops.crop_resize(image, (0, 0, height, width), new_height, new_width)
        return simplejpeg.encode_jpeg(small, quality, "RGB", "420"), ".jpg"


def read_rows(file: Path, count: int, verify: bool) -> NDArray[np.void] | None:
    """Rows of the index from an archive's own directory; None if there is no sound archive of so many images.

    Args:
        file: of the archive.
        count: images that it must have.
        verify: read all of it and compare the checksums, instead of the directory alone.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) != count or (verify and archive.testzip() is not None):
                return None
    except (OSError, zipfile.BadZipFile):
        return None
    rows = [(e.header_offset + _LOCAL_HEADER + len(e.filename) + len(e.extra), e.file_size, e.CRC) for e in entries]
    return np.array(rows, dtype=ROW)


def finish(folder: Path, made: Sequence[Made], names: Callable[[int], str]) -> dict[int, str]:
    """Write the index, and ``unreadable.txt`` where an image could not be read; returns these with the reasons."""
    unreadable = {index: reason for part in made for index, reason in part.unreadable.items()}
    listed = folder / "unreadable.txt"
    listed.unlink(missing_ok=True)
    if unreadable:
        lines = [f"{names(index)}\t{reason}\n" for index, reason in unreadable.items()]
        with whole_file(listed) as writing:
            writing.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    with whole_file(folder / "index.npy") as writing:
        np.save(writing, np.concatenate([part.rows for part in made]))
    return unreadable
