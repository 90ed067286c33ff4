"""Files that are there completely or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give the path to write to; at the end of the block the file takes the place of ``path``, at once.

    Args:
        path: in a folder that exists. What was there is kept when the block raises, and the new file is removed.
        shared: other processes may write the same file at the same time; the last one's stays.

    Raises:
        OSError: if the file cannot be put in place.
    """
    process = f".{os.getpid()}" if shared else ""
    writing = path.with_name(f"{path.stem}{process}.writing{path.suffix}")
    try:
        yield writing
        os.replace(writing, path)
    except BaseException:
        writing.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file (UTF-8) completely or not at all."""
    with whole_file(path) as writing:
        writing.write_text(text, encoding="utf-8")
