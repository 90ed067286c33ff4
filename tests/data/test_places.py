"""Places205 in its two layouts."""

import numpy as np
import pytest
from PIL import Image

from odc_lightning.data.places import NUM_CLASSES, Places205

CLASSES = [f"{'abc'[number % 3]}/scene{number:03d}" for number in range(NUM_CLASSES)]


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path)


def write_lists(root, images, lists):
    for split, count in (("train", 2), ("val", 1)):
        lines = []
        for target, name in enumerate(CLASSES):
            for number in range(count):
                path = f"{name}/gsun_{split}{number}.jpg"
                save(images / path, target)
                lines.append(f"{path} {target}\n")
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}_places205.csv").write_text("".join(lines))
    return root


@pytest.mark.parametrize(
    ("images", "lists"),
    [("", ""), ("images256", "trainvalsplit_places205"), ("data/vision/torralba/deeplearning/images256", "")],
)
def test_the_official_lists(tmp_path, images, lists):
    root = write_lists(tmp_path, tmp_path / images, tmp_path / lists)
    train, val = Places205(root), Places205(root, "val")
    assert (len(train), len(val)) == (410, 205)
    assert val.targets.tolist() == list(range(205))
    assert val.classes == CLASSES
    assert train.path(3).endswith(f"{CLASSES[1]}/gsun_train1.jpg")
    assert int(np.abs(train.load(200)[..., 0].astype(int) - 100).max()) < 8
    assert train.fingerprint() == Places205(root).fingerprint() != val.fingerprint()


def test_folders_of_classes(tmp_path):
    for split in ("train", "val"):
        for target in range(NUM_CLASSES):
            save(tmp_path / split / f"scene{target:03d}" / "1.jpg")
    source = Places205(tmp_path, "val", cache_dir=tmp_path / "cache")
    assert source.targets.tolist() == list(range(205))
    assert source.classes[3] == "scene003"


def test_other_layouts_counts_and_lines_are_refused(tmp_path):
    save(tmp_path / "scenes" / "1.jpg")
    with pytest.raises(FileNotFoundError, match=r"looked for the list train_places205.csv and for .* Found: scenes"):
        Places205(tmp_path)
    for split in ("train", "val"):
        save(tmp_path / split / "abbey" / "1.jpg")
    with pytest.raises(ValueError, match=r"Places205 has 205 classes. Received: 1 in .*train. For a part of it"):
        Places205(tmp_path, cache_dir=tmp_path / "cache")
    file = tmp_path / "train_places205.csv"
    for text, message in (
        ("a/abbey/1.jpg 205\n", "line 1: must be a path and a class from 0 to 204"),
        ("a/abbey/1.jpg\n", "line 1: must be a path and a class"),
        ("", "must list images. Received: an empty file"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            Places205(tmp_path)
    file.write_text("a/abbey/1.jpg 0\n")
    with pytest.raises(FileNotFoundError, match=r"images of .*train_places205.csv are missing: .*a/abbey/1.jpg"):
        Places205(tmp_path)
