"""VOC2007 in the layout of its archives, and any folder with a CSV file of labels."""

import pickle

import numpy as np
import pytest
from PIL import Image

from odc_lightning.data.multilabel_csv import MultiLabelCSV
from odc_lightning.data.sources import ImageSource, MissingSplitError
from odc_lightning.data.voc import CLASSES, VOC2007

IDS = {"trainval": ["000005", "000007", "000009"], "test": ["000001", "000002"]}
# image: (class, difficult) of each object
OBJECTS = {
    "000005": [("chair", False), ("chair", True), ("sofa", True)],
    "000007": [("car", False)],
    "000009": [("horse", False), ("person", False), ("person", True)],
    "000001": [("dog", False), ("person", True)],
    "000002": [("train", False)],
}


def flag(image, name):
    """As the class files have it: 1 present, 0 where all objects of the class are difficult, -1 absent."""
    difficult = [each for other, each in OBJECTS[image] if other == name]
    return -1 if not difficult else int(not all(difficult))


def annotation(image):
    objects = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{int(difficult)}</difficult>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></object>"
        for name, difficult in OBJECTS[image]
    )
    return f"<annotation><folder>VOC2007</folder><filename>{image}.jpg</filename>{objects}</annotation>"


def save_jpeg(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), colour).save(path, quality=95)


@pytest.fixture
def voc(tmp_path):
    """VOCdevkit with three training and two test images."""
    devkit = tmp_path / "VOCdevkit"
    folder = devkit / "VOC2007"
    main = folder / "ImageSets" / "Main"
    for each in (main, folder / "Annotations"):
        each.mkdir(parents=True)
    for image_set, ids in IDS.items():
        (main / f"{image_set}.txt").write_text("".join(f"{each}\n" for each in ids))
        for name in CLASSES:
            lines = [f"{each} {flag(each, name):>2}\n" for each in ids]
            (main / f"{name}_{image_set}.txt").write_text("".join(lines))
        for number, each in enumerate(ids):
            save_jpeg(folder / "JPEGImages" / f"{each}.jpg", (200, 40 * number, 10))
            (folder / "Annotations" / f"{each}.xml").write_text(annotation(each))
    return devkit


def labels_of(source, index):
    row = source.label_matrix[index]
    return {name: int(label) for name, label in zip(source.classes, row, strict=True) if label}


def test_labels_images_and_order(voc):
    train, val = VOC2007(voc), VOC2007(voc, "val")
    assert isinstance(train, ImageSource)
    assert (len(train), len(val)) == (3, 2)
    assert train.label_matrix.shape == (3, 20)
    assert train.label_matrix.dtype == np.int64
    assert train.classes == list(CLASSES)
    assert train.targets is None
    assert [labels_of(train, index) for index in range(3)] == [
        {"chair": 1, "sofa": -1},
        {"car": 1},
        {"horse": 1, "person": 1},
    ]
    assert [labels_of(val, index) for index in range(2)] == [{"dog": 1, "person": -1}, {"train": 1}]
    assert train.path(1) == str(voc / "VOC2007" / "JPEGImages" / "000007.jpg")
    image = train.load(2)
    assert (image.shape, image.dtype) == ((8, 10, 3), np.uint8)
    assert np.abs(image.mean((0, 1)) - [200, 80, 10]).max() < 4


def test_root_may_be_any_of_three_folders(voc):
    prints = {VOC2007(root).fingerprint() for root in (voc, voc.parent, voc / "VOC2007", str(voc))}
    assert len(prints) == 1


def test_annotations_give_the_same_labels(voc):
    expected = VOC2007(voc).label_matrix
    for file in (voc / "VOC2007" / "ImageSets" / "Main").glob("*_trainval.txt"):
        file.unlink()
    assert (VOC2007(voc).label_matrix == expected).all()


def test_fingerprint_follows_labels_and_split(voc):
    before, val = VOC2007(voc).fingerprint(), VOC2007(voc, "val").fingerprint()
    assert len(before) == 16
    assert before != val
    file = voc / "VOC2007" / "ImageSets" / "Main" / "cat_trainval.txt"
    file.write_text(file.read_text().replace("000007 -1", "000007  1"))
    assert VOC2007(voc).fingerprint() not in (before, val)


def test_sources_travel_to_worker_processes(voc):
    source = pickle.loads(pickle.dumps(VOC2007(voc)))
    assert (source.load(0) == VOC2007(voc).load(0)).all()


def empty_list(main):
    (main / "trainval.txt").write_text("")


def shift_rows(main):
    file = main / "bus_trainval.txt"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))


def strange_flag(main):
    file = main / "bus_trainval.txt"
    file.write_text(file.read_text().replace("-1", "2"))


def no_labels(main):
    (main / "bus_trainval.txt").unlink()
    annotations = main.parents[1] / "Annotations"
    annotations.rename(annotations.with_name("annotations"))


def unknown_class(main):
    (main / "bus_trainval.txt").unlink()
    file = main.parents[1] / "Annotations" / "000007.xml"
    file.write_text(file.read_text().replace(">car<", ">lorry<"))


def broken_xml(main):
    (main / "bus_trainval.txt").unlink()
    (main.parents[1] / "Annotations" / "000007.xml").write_text("<annotation>")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda main: (main / "trainval.txt").unlink(),
            FileNotFoundError,
            "needs the list .*trainval.txt. Found there: ",
        ),
        (lambda main: (main.parents[1] / "JPEGImages" / "000007.jpg").unlink(), FileNotFoundError, "1 of the 3 images"),
        (empty_list, ValueError, "trainval.txt must list the images"),
        (shift_rows, ValueError, "bus_trainval.txt must give each of the 3 images of trainval.txt, in its order"),
        (strange_flag, ValueError, "bus_trainval.txt must give each .* the label 1, -1 or 0"),
        (no_labels, FileNotFoundError, "Missing: bus_trainval.txt, and Annotations"),
        (unknown_class, ValueError, "000007.xml must name one of the 20 classes of VOC2007. Received: 'lorry'"),
        (broken_xml, ValueError, "000007.xml is no XML file of annotations"),
    ],
)
def test_wrong_layouts(voc, spoil, error, message):
    spoil(voc / "VOC2007" / "ImageSets" / "Main")
    with pytest.raises(error, match=message):
        VOC2007(voc)


def test_wrong_folders(voc, tmp_path):
    with pytest.raises(ValueError, match=r"data.root must name the folder of VOCdevkit. Received: None"):
        VOC2007(None)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        VOC2007(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"looked for VOC2007/ImageSets/Main. Found: 000001.jpg, 000002.jpg"):
        VOC2007(voc / "VOC2007" / "JPEGImages")
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        VOC2007(voc, "trian")
    (voc / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match="The test images are an archive of their own"):
        VOC2007(voc, "val")


def csv_folder(folder, text, images=("a.jpg", "sub/b.jpg", "c.jpg")):
    for name in images:
        save_jpeg(folder / name, (0, 200, 0))
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder


def test_csv_with_splits(tmp_path):
    text = "﻿path,split,cat,dog\na.jpg,train,1,0\nsub/b.jpg,test,-1, 1\nc.jpg,trainval,0,0\n"
    root = csv_folder(tmp_path, text)
    train, val = MultiLabelCSV(root), MultiLabelCSV(root, split="val")
    assert train.classes == ["cat", "dog"]
    assert train.label_matrix.tolist() == [[1, 0], [0, 0]]
    assert val.label_matrix.tolist() == [[-1, 1]]
    assert [train.path(index) for index in range(2)] == [str(root / "a.jpg"), str(root / "c.jpg")]
    assert val.load(0).shape == (8, 10, 3)
    assert train.fingerprint() != val.fingerprint()
    assert repr(train) == "MultiLabelCSV(name='labels', split='train', N=2)"


def test_csv_without_splits_is_all_training(tmp_path):
    root = csv_folder(tmp_path / "images", "dog,path\n1,a.jpg\n0,c.jpg\n")
    (root / "labels.csv").rename(tmp_path / "other.csv")
    assert len(MultiLabelCSV(root, csv=tmp_path / "other.csv")) == 2
    with pytest.raises(MissingSplitError, match="has no row of the split val, of 2 rows"):
        MultiLabelCSV(root, csv=tmp_path / "other.csv", split="val")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "must begin with a line of column names.*Received: nothing"),
        ("file,cat\na.jpg,1\n", ValueError, "column names: path, one for each class.*Received: file, cat"),
        ("path,split\na.jpg,train\n", ValueError, "one for each class"),
        ("path,cat,cat\na.jpg,1,0\n", ValueError, "each once"),
        ("path,cat\na.jpg,1\nc.jpg,yes\n", ValueError, "line 3: cat must be 1, 0 or -1. Received: 'yes'"),
        ("path,cat\na.jpg\n", ValueError, "line 2: must have as many cells as the first line"),
        ("path,cat\na.jpg,1,0\n", ValueError, "line 2: must have as many cells"),
        ("path,split,cat\na.jpg,dev,1\n", ValueError, "line 2: split must be one of train, .*Received: 'dev'"),
        ("path,cat\na.jpg,1\nd.jpg,0\n", FileNotFoundError, "1 of the 2 images of labels train are not in .*: d.jpg"),
    ],
)
def test_wrong_csv(tmp_path, text, error, message):
    csv_folder(tmp_path, text)
    with pytest.raises(error, match=message):
        MultiLabelCSV(tmp_path)


def test_missing_csv(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.csv must be a CSV file of labels. Received: .*labels.csv"):
        MultiLabelCSV(tmp_path)
