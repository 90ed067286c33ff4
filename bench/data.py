"""The data path: the paper's augmentation to 224 pixels, ours from JPEG files and from a store beside torchvision's.

The photographs are the two that scikit-learn ships and the one of matplotlib, cut at random and resized to 500 x 375,
the usual size of ImageNet's, as JPEG of quality 90.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms

from odc_lightning.data.augment import TrainTransform
from odc_lightning.data.dataset import IndexedDataset
from odc_lightning.data.folder import ImageFolder
from odc_lightning.data.prepare_store import begin, finish, make, shards
from odc_lightning.data.store import About, StoredImages

WIDTH, HEIGHT, QUALITY, SIDE = 500, 375, 90, 224
STORED_SIDE, STORED_QUALITY = 256, 85  # as conf/task/prepare.yaml
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def write_photographs(folder: Path, count: int) -> None:
    """JPEG files of random pieces, each with half to all of a photograph's height."""
    rng = np.random.default_rng(0)
    hopper = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    photos = [*(Image.fromarray(photo) for photo in load_sample_images().images), hopper]
    folder.mkdir()
    for number in range(count):
        photo = photos[number % len(photos)]
        width = min(photo.width, photo.height * WIDTH / HEIGHT) * rng.uniform(0.5, 1)
        height = width * HEIGHT / WIDTH
        left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
        piece = photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        piece.save(folder / f"{number:04d}.jpg", quality=QUALITY)


def torchvisions() -> Callable[[Image.Image], torch.Tensor]:
    """The recipe of Sec. 3.4 in torchvision's words, on PIL images."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(2),
            transforms.ColorJitter(0.4, 0.4, 1.0, 0.5),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def rates(source: ImageFolder, stored: StoredImages, rounds: int) -> dict[str, list[float]]:
    """Images per second of processor time, a number for each round; they take turns."""
    recipe, transform = torchvisions(), TrainTransform(SIDE)
    ours, from_store = (IndexedDataset(images, transform, 0) for images in (source, stored))
    later, later_store = (IndexedDataset(images, transform, 0, colour_later=True) for images in (source, stored))
    ways: dict[str, Callable[[int, int], object]] = {
        "torchvision": lambda epoch, index: recipe(Image.open(source.path(index)).convert("RGB")),
        "ours": lambda epoch, index: ours[epoch, index],
        "ours from the store": lambda epoch, index: from_store[epoch, index],
        "ours, colours on a GPU": lambda epoch, index: later[epoch, index],
        "the same from the store": lambda epoch, index: later_store[epoch, index],
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):  # the first round warms up
        for name, way in ways.items():
            began = time.process_time()
            for index in range(len(source)):
                way(number + 1, index)
            if number >= 0:
                found[name].append(len(source) / (time.process_time() - began))
    return found


def report(found: dict[str, list[float]]) -> None:
    """Medians, and medians and quartiles of the round-by-round ratios."""
    for name, values in found.items():
        ratios = sorted(value / other for value, other in zip(values, found["torchvision"], strict=True))
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        rate, spread = statistics.median(values), f"{low:.2f}-{high:.2f}"
        print(f"{name:23} {rate:7.0f} images/s  ratio {middle:.2f} (quartiles {spread})")


def main() -> None:
    """Make the photographs and their store, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # one thread, and its processor time: what else the machine does is not seen
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root / "images", options.images)
        source = ImageFolder(root / "images", cache_dir=root / "lists")
        about = begin(root / "store" / source.split, About.of(source, STORED_SIDE, STORED_QUALITY))
        made = make(shards(root / "store" / source.split, source, about, False, False), 0, lambda images: None)
        finish(root / "store" / source.split, made, source.path)
        stored = StoredImages(source, root / "store")
        sizes = [sum(f.stat().st_size for f in (root / part).rglob("*.*")) for part in ("images", "store")]
        each = " and ".join(f"{size / options.images / 1024:.0f} KiB" for size in sizes)
        print(f"{options.images} photographs of {WIDTH} x {HEIGHT}, {each} in the store, to {SIDE}; one thread")
        report(rates(source, stored, options.rounds))


if __name__ == "__main__":
    main()
