"""A part of labelled images: some classes, some images of each, equally many or long-tailed; drawn once, then kept.

The draw looks at true labels, as that of the paper's Fig. 4 and Fig. 6 does; training on it does not.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from odc_lightning.data.sources import UNKNOWN, ImageSource
from odc_lightning.whole_file import whole_file

DEFAULT_CACHE = Path("~/.cache/odc_lightning/subsets")
_HEADER = "# odc-lightning "
_SHOWN = 5


class ClassDraw:
    """Which part of a data set to take; called with its training and validation images, it gives that part of both.

    The classes and the images of each are drawn uniformly, with this seed alone: runs with different seeds share the
    images, and draws that differ in ``ratio`` share the classes, their order, and as many images of each as they can.
    The draw is written to a file; where that file is there, it is read instead.

    Args:
        num_classes: classes to take; None: all.
        num_images: training images to take, all classes together; None: all of these classes, with ``ratio=1``.
        ratio: images of the largest class over those of the smallest, see :func:`class_sizes`.
        seed: of the draw.
        file: the draw; None: one in ~/.cache/odc_lightning/subsets, named by the data and these settings. Any CSV file
            with a column ``path`` will do: paths below the folder of the training images.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        num_images: int | None = None,
        ratio: int = 1,
        seed: int = 0,
        file: str | os.PathLike[str] | None = None,
    ) -> None:
        for key, value, least in (
            ("num_classes", num_classes, 1),
            ("num_images", num_images, 1),
            ("ratio", ratio, 1),
            ("seed", seed, 0),
        ):
            optional = key.startswith("num_")
            if not (optional and value is None) and (type(value) is not int or value < least):
                null = " or null" if optional else ""
                raise ValueError(
                    f"data.subset.{key} must be a whole number of at least {least}{null}. Received: {value!r}"
                )
        if ratio > 1 and num_images is None:
            raise ValueError(f"data.subset.num_images must be given with data.subset.ratio={ratio}. Received: None")
        self.num_classes, self.num_images, self.ratio, self.seed = num_classes, num_images, ratio, seed
        self.file = None if file is None else Path(file).expanduser()

    def __call__(self, train: ImageSource, val: ImageSource | None) -> tuple[ClassSubset, ClassSubset | None]:
        """The part of both.

        Raises:
            ValueError: the data have no labels, fewer classes or images than asked for, or the file is of another draw.
        """
        targets = _targets(train)
        settings = self.settings(train)
        file = self.file or _cache_file(train, settings)
        if file.exists():
            indices = read_draw(file, train, settings)
        else:
            names = train.classes or [str(number) for number in range(int(targets.max()) + 1)]
            indices = draw(targets, self.num_classes, self.num_images, self.ratio, self.seed, names)
        chosen = np.unique(targets[indices])
        part = ClassSubset(train, indices, chosen, settings)
        if not file.exists():
            part.save(file)
        return part, None if val is None else _validation(val, chosen, settings)

    def settings(self, source: ImageSource) -> dict[str, Any]:
        """What the draw follows from, for the head of its file."""
        keys = ("num_classes", "num_images", "ratio", "seed")
        return {"data": source.name, **{key: getattr(self, key) for key in keys}}


class ClassSubset(ImageSource):
    """Some images of a source, with their classes numbered anew from 0.

    Args:
        source: all images.
        indices: int64 (M,), those that are taken, ascending.
        chosen: int64 (K,), the source's numbers of the classes, ascending.
        settings: of the draw, for the file.
    """

    def __init__(
        self, source: ImageSource, indices: NDArray[np.int64], chosen: NDArray[np.int64], settings: Mapping[str, Any]
    ) -> None:
        self.source, self.indices, self.settings = source, indices, dict(settings)
        self.name, self.split, self.channels = source.name, source.split, source.channels
        self.targets = np.searchsorted(chosen, _targets(source)[indices])
        self.classes = [source.classes[number] if source.classes else str(number) for number in chosen.tolist()]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> NDArray[np.uint8]:
        return self.source.load(int(self.indices[index]))

    def path(self, index: int) -> str:
        return self.source.path(int(self.indices[index]))

    def relative_path(self, index: int) -> str:
        return self.source.relative_path(int(self.indices[index]))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"subset {self.source.fingerprint()} {' '.join(self.classes or ())}".encode())
        digest.update(np.ascontiguousarray(self.indices).tobytes())
        return digest.hexdigest()[:16]

    def save(self, file: Path) -> None:
        """Write the draw as CSV, path and class of each image, so that anybody can take the same images."""
        assert self.targets is not None
        assert self.classes is not None
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file, shared=True) as writing, _opened(writing, "w") as lines:
            lines.write(f"{_HEADER}{json.dumps(self.settings)}\n")
            rows = csv.writer(lines, lineterminator="\n")
            rows.writerow(["path", "class"])
            rows.writerows([self.relative_path(i), self.classes[t]] for i, t in enumerate(self.targets.tolist()))


def draw(
    targets: NDArray[np.int64],
    num_classes: int | None,
    num_images: int | None,
    ratio: int,
    seed: int,
    names: list[str],
) -> NDArray[np.int64]:
    """Draw classes, then images of each; returns their indices, int64 (M,), ascending.

    Args:
        targets: int64 (N,), -1 where unknown: such images are never drawn.
        num_classes, num_images, ratio, seed: see :class:`ClassDraw`.
        names: of the classes, for messages.

    Raises:
        ValueError: there are fewer classes or images; names the class and both numbers.
    """
    counts = np.bincount(targets[targets != UNKNOWN], minlength=1)
    present = np.flatnonzero(counts)
    if num_classes is not None and num_classes > len(present):
        raise ValueError(
            f"data.subset.num_classes must be at most {len(present)}, the classes that the training images have. "
            f"Received: {num_classes}"
        )
    order = np.random.default_rng(seed).permutation(present)[:num_classes]
    if num_images is None:
        sizes_of = dict(zip(order.tolist(), counts[order].tolist(), strict=True))
    else:
        if num_images > (there := int(counts[order].sum())):
            raise ValueError(
                f"data.subset.num_images must be at most {there}, the images of the {len(order)} classes that were "
                f"drawn. Received: {num_images}"
            )
        sizes = class_sizes(len(order), num_images, ratio, int(counts[order].max()))
        sizes_of = _assign(sizes.tolist(), order.tolist(), counts, names)
    parts = [
        # A generator for each class: its images do not depend on how many are taken of the others.
        np.random.default_rng([seed, number]).permutation(np.flatnonzero(targets == number))[:count]
        for number, count in sizes_of.items()
    ]
    return np.sort(np.concatenate(parts))


def class_sizes(num_classes: int, num_images: int, ratio: int, largest: int | None = None) -> NDArray[np.int64]:
    """Sizes of K classes from the largest to the smallest, int64 (K,), with exactly this sum and this ratio.

    n_i = n_K · ratio^(u_i^p) with u_i = (K - i) / (K - 1), i = 1 ... K: from n_1 = ratio · n_K down to n_K. With p = 1
    this is the exponential profile that long-tailed benchmarks use (Cui et al. 2019, Sec. 5.1). The paper (Sec. 4.2,
    Fig. 6) gives the number of classes and images and the ratio, no formula. n_K is the whole number nearest to that of
    the exponential profile with n_1 <= ``largest``, and p the one with which the sum is ``num_images``: close to 1
    unless n_1 would have to exceed ``largest``, as it would for 300 classes, 100,000 images and ratio 64 on ImageNet
    (1,408 of at most 1,300). Sizes in between are rounded by largest remainders.

    ``ratio=1``: equal sizes, the first ones with one more where the sum is no multiple of K.

    Args:
        num_classes: K.
        num_images: the sum.
        ratio: n_1 / n_K.
        largest: images that the largest class can have at most; None: any number.

    Raises:
        ValueError: there are no such whole numbers.
    """
    if num_images < num_classes:
        raise ValueError(
            f"data.subset.num_images must be at least {num_classes}, one for each class. Received: {num_images}"
        )
    if ratio == 1:
        more = np.arange(num_classes) < num_images % num_classes
        return (num_images // num_classes + more).astype(np.int64)
    smallest = _smallest(num_classes, num_images, ratio, largest)
    inner = num_images - smallest * (1 + ratio)
    places = np.linspace(1, 0, num_classes)[1:-1]
    middle = _rounded(_bent(places, smallest, ratio, inner), inner)
    return np.concatenate([[ratio * smallest], middle, [smallest]]).astype(np.int64)


def _smallest(num_classes: int, num_images: int, ratio: int, largest: int | None) -> int:
    """n_K: with fewer, even all others at the largest size are too few; with more, all at the smallest are too many."""
    least = max(1, -(-num_images // (1 + (num_classes - 1) * ratio)))
    most = num_images // (num_classes - 1 + ratio)
    if largest is not None:
        most = min(most, largest // ratio)
    if least > most:
        room = "" if largest is None else f", the largest of at most {largest} images"
        raise ValueError(
            f"data.subset.ratio must be one that {num_images} images in {num_classes} classes can have{room}. "
            f"Received: {ratio}"
        )
    exponential = num_images / np.sum(float(ratio) ** np.linspace(1, 0, num_classes))
    return int(np.clip(round(exponential), least, most))


def _bent(places: NDArray[np.float64], smallest: int, ratio: int, total: int) -> NDArray[np.float64]:
    """Sizes at u = ``places`` with the p that makes their sum ``total``: it falls as p grows, so halve."""
    low, high = -25.0, 25.0  # of log p
    for _ in range(100):
        middle = (low + high) / 2
        sizes = smallest * float(ratio) ** (places ** np.exp(middle))
        low, high = (middle, high) if sizes.sum() > total else (low, middle)
    return sizes


def _rounded(sizes: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Whole numbers with the sum ``total``: those with the largest remainders are rounded up."""
    whole = np.floor(sizes).astype(np.int64)
    up = np.argsort(whole - sizes, kind="stable")[: total - int(whole.sum())]
    whole[up] += 1
    return whole


def _assign(sizes: list[int], order: list[int], counts: NDArray[np.int64], names: list[str]) -> dict[int, int]:
    """Size of each class: from the largest down, each goes to the first class in order that has as many images."""
    left, sizes_of = list(order), {}
    for size in sizes:
        number = next((number for number in left if counts[number] >= size), None)
        if number is None:
            best = max(left, key=lambda each: int(counts[each]))
            raise ValueError(
                f"the subset (data.subset.num_images, ratio) needs a class of {size} images, and none is left: the "
                f"largest of the {len(left)} classes that are left is {names[best]} with {counts[best]}"
            )
        left.remove(number)
        sizes_of[number] = size
    return sizes_of


def read_draw(file: Path, source: ImageSource, settings: Mapping[str, Any]) -> NDArray[np.int64]:
    """Indices of the images that a file names, int64 (M,), ascending.

    Args:
        file: CSV with a column ``path``.
        source: the training images.
        settings: asked for; a file that says of itself that it was drawn with others is refused.

    Raises:
        ValueError: the file is of another draw, names nothing, or names what is not there or has no label.
    """
    with _opened(file, "r") as lines:
        first = lines.readline()
        if first.startswith(_HEADER):
            _require_same(file, json.loads(first.removeprefix(_HEADER)), settings)
            first = lines.readline()
        header = next(csv.reader([first]), [])
        if "path" not in header:
            raise ValueError(f"{file} (data.subset.file) must have a column path. Received: {', '.join(header)}")
        wanted = {row["path"] for row in csv.DictReader(lines, fieldnames=header)}
    targets = _targets(source)
    found = {path: i for i in range(len(source)) if (path := source.relative_path(i)) in wanted}
    if missing := sorted(wanted - found.keys()):
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} images of {file} (data.subset.file) are not among the training "
            f"images: {_some(missing)}"
        )
    indices = np.array(sorted(found.values()), dtype=np.int64)
    if not len(indices) or (targets[indices] == UNKNOWN).any():
        raise ValueError(f"{file} (data.subset.file) must name labelled images, and at least one")
    return indices


def _require_same(file: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for key in here:
        if there.get(key) != here[key]:
            raise ValueError(
                f"{file} (data.subset.file) was drawn with {key}={there.get(key)}. Received: {key}={here[key]}. "
                f"Give this draw a file of its own"
            )


def _targets(source: ImageSource) -> NDArray[np.int64]:
    if source.targets is None or not (source.targets != UNKNOWN).any():
        raise ValueError(
            f"data.subset needs one label for each image, and the {source.split} images of {source.name} have none. "
            f"In a folder of images, labels are folders"
        )
    return source.targets


def _validation(val: ImageSource, chosen: NDArray[np.int64], settings: Mapping[str, Any]) -> ClassSubset | None:
    """All validation images of these classes; None if there are none."""
    indices = np.flatnonzero(np.isin(_targets(val), chosen))
    return ClassSubset(val, indices, chosen, settings) if len(indices) else None


def _cache_file(source: ImageSource, settings: Mapping[str, Any]) -> Path:
    text = f"{source.fingerprint()} {json.dumps(settings)}"
    return DEFAULT_CACHE.expanduser() / f"{source.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.csv"


def _opened(file: Path, mode: str) -> TextIO:
    # File names are bytes: what is no UTF-8 goes through unchanged.
    return open(file, mode, newline="", encoding="utf-8", errors="surrogateescape")  # type: ignore[return-value]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
