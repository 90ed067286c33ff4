"""Trees of image files: order, labels, splits, the cached file list, and every message."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odc_lightning.data import filelist
from odc_lightning.data.folder import ImageFolder, ImageNet
from odc_lightning.data.sources import MissingSplitError

YEAR = 365 * 86400


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(filelist, "DEFAULT_CACHE", folder)
    return folder


def write(root: Path, *files: str) -> Path:
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 8, 3), number * 7 % 256, dtype=np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return root


def age(root: Path) -> Path:
    """Make the tree a year old: folders changed within two seconds of a scan are not trusted."""
    then = os.stat(root).st_mtime - YEAR
    for folder, _, _ in os.walk(root):
        os.utime(folder, (then, then))
    return root


def relative(source: ImageFolder) -> list[str]:
    return [os.path.relpath(source.path(i), source.folder) for i in range(len(source))]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every folder that is read."""
    read: list[str] = []
    real = os.scandir

    def counted(path: str) -> object:
        read.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", counted)
    return read


# order and labels


def test_order_is_that_of_sorted_relative_paths(tmp_path: Path) -> None:
    files = [
        "b.jpg",
        "a/2.png",
        "a/10.png",
        "a-b/1.JPG",
        "a/deep/er/x.jpeg",
        "Z.webp",
        "a/ü.png",
        "a/not.txt",
    ]
    write(tmp_path, *files)
    source = ImageFolder(root=tmp_path)
    assert relative(source) == sorted(files[:-1])
    assert source.targets is None
    assert source.classes is None


names = st.text(alphabet="ab-.Z é1", min_size=1, max_size=4).filter(lambda name: name.strip(". ") == name)
trees = st.sets(st.lists(names, min_size=1, max_size=3).map(tuple), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(tree=trees)
def test_any_tree_is_listed_as_a_plain_walk_lists_it(tree: set[tuple[str, ...]], tmp_path_factory) -> None:
    root = tmp_path_factory.mktemp("tree")
    for parts in tree:
        path = root.joinpath(*(f"d{part}" for part in parts[:-1]), f"{parts[-1]}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    wanted = sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))
    files = filelist.scan_files(root, [".jpg"])
    assert [files[i] for i in range(len(files))] == wanted
    shutil.rmtree(root)


def test_class_folders_give_labels(tmp_path: Path) -> None:
    source = ImageFolder(root=write(tmp_path, "dog/1.png", "cat/x/1.png", "cat/2.png", "ant/1.png"))
    assert source.classes == ["ant", "cat", "dog"]
    assert source.targets.dtype == np.int64
    assert [source.classes[t] for t in source.targets] == [path.split("/")[0] for path in relative(source)]


@pytest.mark.parametrize("files", [["a/1.png", "a/2.png"], ["a/1.png", "b/1.png", "1.png"], ["1.png"]])
def test_other_trees_have_no_labels(tmp_path: Path, files: list[str]) -> None:
    assert ImageFolder(root=write(tmp_path, *files)).targets is None


def test_empty_folders_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert ImageFolder(root=write(tmp_path, "a/1.png", "b/1.png")).classes == ["a", "b"]


def test_hidden_names_are_left_out_and_endings_can_be_chosen(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "._a.png", ".git/b.png", "c.JPG", "d.xyz")
    assert relative(ImageFolder(root=tmp_path)) == ["a.png", "c.JPG"]
    assert relative(ImageFolder(root=tmp_path, extensions=[".xyz", ".PNG"])) == ["a.png", "d.xyz"]


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "a/1.png").parent / "root"
    write(tmp_path / "far", "b/2.png", "3.png")
    (root / "linked").symlink_to(tmp_path / "far")
    (root / "a" / "up").symlink_to(root)
    (root / "file.png").symlink_to(tmp_path / "far" / "3.png")
    assert relative(ImageFolder(root=root)) == ["a/1.png", "file.png", "linked/3.png", "linked/b/2.png"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff\xfe.png")).write_bytes(cv2.imencode(".png", np.zeros((2, 3, 3)))[1].tobytes())
    except OSError:
        pytest.skip("the file system takes no such names")
    source = ImageFolder(root=tmp_path)
    assert source.load(0).shape == (2, 3, 3)


def test_load_and_worker_copy(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(ImageFolder(root=write(tmp_path, "a.png", "b.png"))))
    assert np.array_equal(source.load(1), np.full((6, 8, 3), 7, np.uint8))
    assert source.path(1) == str(tmp_path / "b.png")


def test_list_takes_no_python_object_per_file(tmp_path: Path) -> None:
    files = ImageFolder(root=write(tmp_path, *(f"{i:03}.png" for i in range(50)))).files
    assert files.names.nbytes == 50 * len("000.png")
    assert len(files.folders) == 1


# splits


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_splits(tmp_path: Path, val: str) -> None:
    write(tmp_path, "train/a/1.png", "train/c/2.png", f"{val}/a/3.png", f"{val}/c/4.png", f"{val}/c/5.png")
    assert relative(ImageFolder(root=tmp_path)) == ["a/1.png", "c/2.png"]
    assert relative(ImageFolder(root=tmp_path, split="val")) == ["a/3.png", "c/4.png", "c/5.png"]
    assert len(ImageFolder(root=tmp_path, split=None)) == 5


def test_val_counts_classes_as_train_does(tmp_path: Path) -> None:
    write(tmp_path, "train/b/1.png", "train/c/2.png", "val/a/1.png", "val/c/1.png")
    val = ImageFolder(root=tmp_path, split="val")
    assert val.classes == ["b", "c", "a"]
    assert val.targets.tolist() == [2, 1]


def test_no_val(tmp_path: Path) -> None:
    write(tmp_path / "flat", "1.png")
    write(tmp_path / "split", "train/1.png")
    with pytest.raises(MissingSplitError, match=r"flat has no validation images \(the folder has no train and val"):
        ImageFolder(root=tmp_path / "flat", split="val")
    with pytest.raises(MissingSplitError, match="looked for val, valid, validation, test beside train"):
        ImageFolder(root=tmp_path / "split", split="val")


def test_a_class_called_train_is_pointed_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="only that is trained on; not used: car, plane. If these are classes"):
        ImageFolder(root=write(tmp_path, "train/1.png", "car/1.png", "plane/1.png"))


# fingerprint


def test_fingerprint_follows_the_relative_paths(tmp_path: Path) -> None:
    files = ["a/1.png", "b/2.png"]
    first = ImageFolder(root=write(tmp_path / "x", *files)).fingerprint()
    assert ImageFolder(root=write(tmp_path / "y", *files)).fingerprint() == first
    others = [
        ["a/1.png", "b/3.png"],
        ["a/1.png", "c/2.png"],
        ["a/1.png", "b/2.png", "b/3.png"],
        ["a1.png", "b/2.png"],
    ]
    prints = [ImageFolder(root=write(tmp_path / str(i), *f)).fingerprint() for i, f in enumerate(others)]
    assert len({first, *prints}) == 5
    assert len(first) == 16
    int(first, 16)


# the cached list


def test_second_start_reads_no_folder(tmp_path: Path, scans: list[str]) -> None:
    age(write(tmp_path, "a/1.png", "b/c/2.png", "b/3.png"))
    scans.clear()
    first = ImageFolder(root=tmp_path)
    assert len(scans) == 4  # root, a, b, b/c
    scans.clear()
    second = ImageFolder(root=tmp_path)
    assert scans == []
    assert relative(second) == relative(first)
    assert second.fingerprint() == first.fingerprint()
    assert second.targets.tolist() == first.targets.tolist() == [0, 1, 1]


def add_file(root: Path) -> None:
    write(root, "b/c/new.png")


def remove_file(root: Path) -> None:
    (root / "b/c/2.png").unlink()


def rename_file(root: Path) -> None:
    (root / "b/c/2.png").rename(root / "b/c/9.png")


def add_folder(root: Path) -> None:
    write(root, "d/1.png")


def remove_folder(root: Path) -> None:
    shutil.rmtree(root / "b/c")


@pytest.mark.parametrize("change", [add_file, remove_file, rename_file, add_folder, remove_folder])
def test_a_changed_tree_is_read_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    age(write(tmp_path, "a/1.png", "b/c/2.png", "b/c/3.png"))
    before = relative(ImageFolder(root=tmp_path))
    change(tmp_path)
    after = relative(ImageFolder(root=tmp_path))
    assert after == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")) != before


def test_a_tree_changed_just_before_the_scan_is_not_trusted(tmp_path: Path, scans: list[str]) -> None:
    write(tmp_path, "1.png")
    ImageFolder(root=tmp_path)
    moment = os.stat(tmp_path)
    write(tmp_path, "2.png")
    os.utime(tmp_path, ns=(moment.st_atime_ns, moment.st_mtime_ns))  # the same tick of a coarse clock
    assert len(ImageFolder(root=tmp_path)) == 2


def test_rescan_and_other_endings(tmp_path: Path, scans: list[str]) -> None:
    age(write(tmp_path, "1.png", "2.jpg"))
    ImageFolder(root=tmp_path)
    scans.clear()
    ImageFolder(root=tmp_path, rescan=True)
    assert len(scans) == 1
    assert relative(ImageFolder(root=tmp_path, extensions=[".jpg"])) == ["2.jpg"]


def test_cache_dir_is_used(tmp_path: Path, cache: Path) -> None:
    ImageFolder(root=write(tmp_path / "data", "1.png"), cache_dir=tmp_path / "lists" / "deep")
    assert len(list((tmp_path / "lists" / "deep").glob("*.npz"))) == 1
    assert list(cache.iterdir()) == []


def test_unwritable_cache_costs_only_the_scan(tmp_path: Path) -> None:
    age(write(tmp_path / "data", "1.png"))
    (tmp_path / "file").touch()
    for _ in range(2):
        assert len(ImageFolder(root=tmp_path / "data", cache_dir=tmp_path / "file" / "below")) == 1


def test_failed_write_leaves_nothing_behind(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    assert len(ImageFolder(root=age(write(tmp_path, "1.png")))) == 1
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"not a zip", b"half"])
def test_damaged_cache_is_replaced(tmp_path: Path, cache: Path, scans: list[str], damage: bytes) -> None:
    age(write(tmp_path, "1.png"))
    ImageFolder(root=tmp_path)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:300] if damage == b"half" else damage)
    assert relative(ImageFolder(root=tmp_path)) == ["1.png"]
    scans.clear()
    ImageFolder(root=tmp_path)
    assert scans == []


# ImageNet


def imagenet(root: Path) -> Path:
    folders = [f"{split}/{name}" for split in ("train", "val") for name in ("n01440764", "n01443537")]
    return write(root, *(f"{folder}/image_{i}.JPEG" for folder in folders for i in (1, 2)))


def test_imagenet(tmp_path: Path) -> None:
    root = imagenet(tmp_path)
    train, val = ImageNet(root=root), ImageNet(root=root, split="val")
    assert (train.name, len(train), len(val)) == ("imagenet", 4, 4)
    assert train.classes == val.classes == ["n01440764", "n01443537"]
    assert train.targets.tolist() == val.targets.tolist() == [0, 0, 1, 1]


def test_imagenet_with_flat_val_is_explained(tmp_path: Path) -> None:
    write(tmp_path, "train/n1/1.JPEG", "val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")
    with pytest.raises(FileNotFoundError) as caught:
        ImageNet(root=tmp_path, split="val")
    message = str(caught.value)
    assert "looked for val/<class>/*.JPEG" in message
    assert f"Found in {tmp_path / 'val'}: folders none; files ILSVRC2012_val_00000001.JPEG" in message
    assert "Images must be sorted into one folder a class" in message


def test_imagenet_without_train_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "ILSVRC/x/1.JPEG")
    with pytest.raises(
        FileNotFoundError, match=r"looked for train/<class>/\*.JPEG. Found in .*: folders ILSVRC; files"
    ):
        ImageNet(root=tmp_path)


def test_imagenet_with_other_classes_in_val(tmp_path: Path) -> None:
    write(tmp_path, "train/n1/1.JPEG", "train/n2/1.JPEG", "val/n1/1.JPEG", "val/images/1.JPEG")
    with pytest.raises(ValueError, match=r"train \(2\) and val \(2\). Only in train: n2; only in val: images"):
        ImageNet(root=tmp_path, split="val")


def test_imagenet_without_val(tmp_path: Path) -> None:
    write(tmp_path, "train/n1/1.JPEG")
    assert ImageNet(root=tmp_path).classes == ["n1"]
    with pytest.raises(MissingSplitError, match="no validation images"):
        ImageNet(root=tmp_path, split="val")


# messages


def test_no_root() -> None:
    with pytest.raises(ValueError, match=r"data.root must name a folder of images.*Received: None"):
        ImageFolder(root=None)


def test_missing_folder_and_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.root must be an existing folder. Received: .*nowhere"):
        ImageFolder(root=tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"data.root must be a folder of images. Received: .*\(a file\)"):
        ImageFolder(root=tmp_path / "file")


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"files ending in \.jpg, \.jpeg, .*; the folder is empty"):
        ImageFolder(root=tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"data.root holds no images: looked in .*; it holds other files"):
        ImageFolder(root=tmp_path)


@pytest.mark.parametrize("extensions", [[], "jpg", ["jpg"], ["."]])
def test_wrong_extensions(tmp_path: Path, extensions: object) -> None:
    with pytest.raises(ValueError, match="extensions must be a list of endings such as"):
        ImageFolder(root=write(tmp_path, "1.png"), extensions=extensions)


def test_wrong_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split must be one of train, val. Received: 'tran'. Did you mean 'train'\?"):
        ImageFolder(root=write(tmp_path, "1.png"), split="tran")
