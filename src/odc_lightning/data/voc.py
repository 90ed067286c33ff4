"""PASCAL VOC2007 for image classification, in the layout of its archives."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from odc_lightning.data.multilabel_csv import MultiLabelSource, existing_folder, some
from odc_lightning.data.sources import check_split

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_YEAR = "VOC2007"
_SETS = {"train": "trainval", "val": "test"}
_OURS = {1: 1, -1: 0, 0: -1}  # VOC: 1 present, -1 absent, 0 difficult


class VOC2007(MultiLabelSource):
    """VOC2007: `train` is trainval (5,011 images), `val` is test (4,952), in the order of `ImageSets/Main`.

    Labels come from `ImageSets/Main/<class>_<set>.txt`, or where these files are missing from the `Annotations`: a
    class is difficult where all its objects in the image are.

    Args:
        root: the folder VOCdevkit, the one that holds it, or VOC2007 itself.
        split: train or val.

    Raises:
        ValueError: no root, an unknown split, or a file of labels that does not fit the list of images.
        FileNotFoundError: the layout is another one; says what was looked for and what is there.
    """

    def __init__(self, root: str | os.PathLike[str] | None, split: str = "train") -> None:
        image_set = _SETS[check_split(split)]
        folder = _voc_folder(existing_folder(root, "VOCdevkit"))
        ids = _ids(folder, image_set)
        paths = [f"JPEGImages/{each}.jpg" for each in ids]
        super().__init__("voc2007", split, folder, paths, _labels(folder, image_set, ids), CLASSES)


def _voc_folder(root: Path) -> Path:
    places = [root / "VOCdevkit" / _YEAR, root / _YEAR, root]
    for folder in places:
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    raise FileNotFoundError(
        f"data.root={root} is not laid out as VOCdevkit: looked for {_YEAR}/ImageSets/Main. Found: "
        f"{some(sorted(each.name for each in root.iterdir()))}"
    )


def _ids(folder: Path, image_set: str) -> list[str]:
    main = folder / "ImageSets" / "Main"
    file = main / f"{image_set}.txt"
    if not file.is_file():
        advice = " The test images are an archive of their own." if image_set == "test" else ""
        raise FileNotFoundError(
            f"VOC2007 needs the list {file}. Found there: {some(sorted(each.name for each in main.iterdir()))}.{advice}"
        )
    ids = file.read_text().split()
    if not ids:
        raise ValueError(f"{file} must list the images of {image_set}. Received: an empty file")
    return ids


def _labels(folder: Path, image_set: str, ids: list[str]) -> NDArray[np.int64]:
    files = [folder / "ImageSets" / "Main" / f"{name}_{image_set}.txt" for name in CLASSES]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return np.stack([_labels_of_class(file, ids) for file in files], axis=1)
    if not (folder / "Annotations").is_dir():
        raise FileNotFoundError(
            f"VOC2007 needs labels: looked in {folder} for ImageSets/Main/<class>_{image_set}.txt of the "
            f"{len(CLASSES)} classes and for Annotations. Missing: {some(missing)}, and Annotations"
        )
    return np.array([_labels_of_image(folder / "Annotations" / f"{each}.xml") for each in ids])


def _labels_of_class(file: Path, ids: list[str]) -> NDArray[np.int64]:
    """Labels (N,) from lines such as `000005 -1`."""
    words = file.read_text().split()
    if words[::2] != ids or not set(words[1::2]) <= set(map(str, _OURS)) or len(words) != 2 * len(ids):
        raise ValueError(
            f"{file} must give each of the {len(ids)} images of {file.stem.rsplit('_', 1)[1]}.txt, in its order, "
            f"the label 1, -1 or 0. Received: {len(words) // 2} lines, from '{' '.join(words[:2])}'"
        )
    return np.array([_OURS[int(word)] for word in words[1::2]])


def _labels_of_image(file: Path) -> list[int]:
    """Labels (20,) from the objects of an image."""
    if not file.is_file():
        raise FileNotFoundError(f"VOC2007 needs the annotation {file}: no such file")
    try:
        objects = ElementTree.parse(file).getroot().findall("object")
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} is no XML file of annotations ({error})") from error
    labels = dict.fromkeys(CLASSES, 0)
    for each in objects:
        name = each.findtext("name", "").strip()
        if name not in labels:
            raise ValueError(f"{file} must name one of the {len(CLASSES)} classes of VOC2007. Received: {name!r}")
        difficult = each.findtext("difficult", "0").strip() == "1"
        labels[name] = (labels[name] or -1) if difficult else 1
    return list(labels.values())
