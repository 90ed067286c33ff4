"""The clusters of a run as a page to browse: ``index.html`` and a folder ``page/`` beside it; no server is needed.

Browsers do not let a page from the disk fetch files, but it may load scripts and images. So the table of clusters is a
script; the images of eight clusters share one script and one JPEG, loaded when a cluster of theirs comes into view.
Clusters lie in these chunks by size, the order in which the page opens.

Shapes: N images, C clusters that have members, S images shown of each at most, K classes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array

from odc_lightning.report.cluster_figures import (
    Clustering,
    Past,
    Shown,
    label_counts,
    purity_and_entropy,
    top_labels,
)

PER_CHUNK, NAMES_PER_PART = 8, 50_000
_LABELS = 24  # most bars of a cluster's histogram
_TEMPLATE = Path(__file__).with_suffix(".html")
Load = Callable[[int], NDArray[np.uint8] | None]


def write_page(
    folder: str | Path,
    data: Clustering,
    load: Load,
    *,
    images_per_cluster: int = 12,
    thumbnail: int = 64,
    nearest_Mk: NDArray[np.int64] | None = None,
    done: Callable[[int], object] = lambda chunks: None,
) -> Path:
    """Write ``index.html`` and ``page/`` into a folder; returns the page's path.

    Args:
        load: image by index, uint8 (H, W, 1 or 3); None for one that cannot be read. Called from several threads.
        images_per_cluster: S; half of them nearest to the centroid, half at the border.
        thumbnail: side in pixels; smaller images keep theirs.
        nearest_Mk: for each of the M shown images, in the order of :attr:`Shown.images_CS`, the positions in that
            order of its k nearest; None leaves them out.
        done: told of each chunk of ``PER_CHUNK`` clusters that is written.

    Raises:
        ValueError: for sizes that cannot work, or no image at all.
    """
    for name, value in (("images_per_cluster", images_per_cluster), ("thumbnail", thumbnail)):
        if value < 1:
            raise ValueError(f"clusters.{name} must be at least 1. Received: {value}")
    if not len(data.labels_N) == len(data.distances_N) == len(data.paths) > 0:
        raise ValueError("there must be one cluster, distance and path for each of at least one image")
    folder = Path(folder)
    writing = folder / "page.writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    shown = Shown.of(data, images_per_cluster)
    _write_parts(writing, data, shown, load, _cell(load, shown, thumbnail), _neighbours(shown, nearest_Mk), done)
    shutil.rmtree(folder / "page", ignore_errors=True)
    os.replace(writing, folder / "page")
    shutil.copyfile(_TEMPLATE, folder / "index.html")
    return folder / "index.html"


def _write_parts(
    folder: Path,
    data: Clustering,
    shown: Shown,
    load: Load,
    cell: int,
    neighbours_CSk: NDArray[np.int64] | None,
    done: Callable[[int], object],
) -> None:
    counts, past = label_counts(data, shown), Past.of(data.history, shown)
    prefix, names = split_prefix(data.paths)
    _script(folder / "table.js", "table", _table(data, shown, counts, past) | {"prefix": prefix, "cell": cell})
    _write_names(folder, names, shown.row_of[data.labels_N])

    def write_chunk(chunk: int) -> int:
        rows = range(chunk * PER_CHUNK, min((chunk + 1) * PER_CHUNK, len(shown.clusters_C)))
        entries = [_entry(row, data, shown, names, counts, past, neighbours_CSk) for row in rows]
        _script(folder / f"chunk-{chunk:05d}.js", "chunk", {"chunk": chunk, "rows": entries})
        sprite(shown.images_CS[rows.start : rows.stop], load, cell).save(folder / f"chunk-{chunk:05d}.jpg", quality=82)
        return 1

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # decoding leaves Python to the other threads
        for one in pool.map(write_chunk, range(num_chunks(len(shown.clusters_C)))):
            done(one)


def _write_names(folder: Path, names: Sequence[str], row_N: NDArray[np.int64]) -> None:
    """The names of all images, a line each, and the rows of their clusters, in parts for the search."""
    for start in range(0, len(names), NAMES_PER_PART):
        part = slice(start, start + NAMES_PER_PART)
        text = "\n".join(name.replace("\n", " ") for name in names[part])
        file = folder / f"names-{start // NAMES_PER_PART:04d}.js"
        _script(file, "names", {"rows": row_N[part].tolist(), "text": text})


def num_chunks(clusters: int) -> int:
    """Chunks that so many clusters lie in."""
    return -(-clusters // PER_CHUNK)


def _table(data: Clustering, shown: Shown, counts: csr_array, past: Past) -> dict[str, Any]:
    """What the page knows of all clusters when it opens."""
    purity_C, entropy_C = purity_and_entropy(counts)
    distances = data.distances_N[shown.order_N]
    tightness_C = [
        float(distances[at : at + size].mean()) for at, size in zip(shown.start_C, shown.sizes_C, strict=True)
    ]
    switches = past.switches_RC[-1] if len(past.switches_RC) else np.full(len(shown.clusters_C), np.nan)
    columns = {
        "size": shown.sizes_C,
        "purity": purity_C,
        "entropy": entropy_C,
        "tightness": np.array(tightness_C),
        "switch": switches,
        "age": np.full(len(shown.clusters_C), np.nan) if past.ages_C is None else past.ages_C,
    }
    return {
        "name": data.name,
        "images": len(data.labels_N),
        "id": shown.clusters_C.tolist(),
        # A column that says nothing of any cluster is left out, and so is the way to sort by it.
        **{name: rounded(column) for name, column in columns.items() if not np.isnan(column.astype(float)).all()},
        "top": [top_labels(counts, row, 3) for row in range(len(shown.clusters_C))] if data.labelled else [],
        "classes": data.class_names(),
        "epochs": past.epochs,
        "causes": {cause: rounded(ratios) for cause, ratios in past.causes.items()},
        "perChunk": PER_CHUNK,
        "slots": shown.images_CS.shape[1],
        "parts": -(-len(data.labels_N) // NAMES_PER_PART),
    }


def _entry(
    row: int,
    data: Clustering,
    shown: Shown,
    names: Sequence[str],
    counts: csr_array,
    past: Past,
    neighbours_CSk: NDArray[np.int64] | None,
) -> dict[str, Any]:
    """What the page loads of one cluster when it comes into view. Images are known by row x S + slot."""
    images = shown.images_CS[row][shown.images_CS[row] >= 0]
    entry: dict[str, Any] = {
        "names": [names[image] for image in images],
        "far": rounded(data.distances_N[images]),
        "near": int(shown.near_C[row]),
        "sizes": past.sizes_RC[:, row].tolist(),
        "switches": rounded(past.switches_RC[:, row]),
        "events": past.events_C[row].tolist(),
        "partners": past.partners(int(shown.clusters_C[row])),
    }
    if data.labelled and data.targets_N is not None:
        entry |= {"labels": data.targets_N[images].tolist(), "counts": top_labels(counts, row, _LABELS)}
    if neighbours_CSk is not None:
        entry["nearest"] = neighbours_CSk[row, : len(images)].tolist()
    return entry


def _neighbours(shown: Shown, nearest_Mk: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """The nearest of each shown image as row x S + slot, (C, S, k); 0 in empty slots."""
    if nearest_Mk is None:
        return None
    places = np.flatnonzero(shown.images_CS >= 0)  # in the flat table a place is row x S + slot
    table = np.zeros((shown.images_CS.size, nearest_Mk.shape[1]), dtype=np.int64)
    table[places] = places[nearest_Mk]
    return table.reshape(*shown.images_CS.shape, -1)


# -- images and files --------------------------------------------------------------------------------------------------


def sprite(images_CS: NDArray[np.int64], load: Load, cell: int) -> Image.Image:
    """A row a cluster, a square of ``cell`` pixels an image."""
    sheet = Image.new("RGB", (images_CS.shape[1] * cell, PER_CHUNK * cell))
    for row, images_S in enumerate(images_CS):
        sheet.paste(strip(images_S, load, cell), (0, row * cell))
    return sheet


def strip(images_S: NDArray[np.int64], load: Load, cell: int) -> Image.Image:
    """Squares of ``cell`` pixels side by side, black for no image (-1); what cannot be read is grey."""
    row = Image.new("RGB", (len(images_S) * cell, cell))
    for slot, index in enumerate(images_S.tolist()):
        if index >= 0:
            pixels = load(index)
            square = Image.new("RGB", (cell, cell), "grey") if pixels is None else thumbnail_of(pixels, cell)
            row.paste(square, (slot * cell, 0))
    return row


def thumbnail_of(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    """The middle square of an image, (H, W, 1 or 3), as RGB of ``side`` pixels."""
    height, width, channels = pixels.shape
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = pixels[top : top + short, left : left + short]
    image = Image.fromarray(square[..., 0] if channels == 1 else square).convert("RGB")
    return image if short == side else image.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _cell(load: Load, shown: Shown, thumbnail: int) -> int:
    """Side of a thumbnail: that of the image where it is smaller, for the page can enlarge it as well."""
    first = load(int(shown.images_CS[0, 0]))
    return thumbnail if first is None else min(thumbnail, *first.shape[:2])


def split_prefix(paths: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that all paths lie in, with its slash, and what follows it."""
    folders = {path.rpartition("/")[0] for path in paths}
    common = os.path.commonpath(folders) if all(folders) else ""
    prefix = f"{common.rstrip('/')}/" if common else ""
    return prefix, [path[len(prefix) :] for path in paths]


def rounded(values: NDArray[Any]) -> list[float | int | None]:
    """Numbers for JSON, four digits of those that are not whole; None for NaN."""
    if values.dtype.kind in "iu":
        return values.tolist()
    return [None if value != value else float(f"{value:.4g}") for value in values.tolist()]


def _script(path: Path, function: str, value: Any) -> None:
    """A script that hands a value to the page: ``odc.<function>(value)``."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    path.write_text(f"odc.{function}({text})\n", encoding="utf-8")
