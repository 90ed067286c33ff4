"""The store holds the source's images under their numbers; damage, other images and other settings are told."""

import importlib
import io
import multiprocessing
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from odc_lightning.data import prepare_store
from odc_lightning.data.augment import EvalTransform, TrainTransform
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.decode import BadImageError, decode_image, read_image
from odc_lightning.data.folder import ImageFolder
from odc_lightning.data.multilabel_csv import MultiLabelCSV
from odc_lightning.data.prepare_store import Forecast, begin, encoded, finish, forecast, make, require_room, shards
from odc_lightning.data.sources import ImageSource
from odc_lightning.data.store import About, StoredImages

PHOTOS = load_sample_images().images
SIDE = 32


def prepared(
    source: ImageSource, store: Path, *, short_side: int = SIDE, workers: int = 0, **keys: bool
) -> StoredImages:
    about = begin(store / source.split, About.of(source, short_side, 90))
    parts = shards(store / source.split, source, about, keys.get("skip_bad", False), keys.get("verify", False))
    finish(store / source.split, make(parts, workers, lambda images: None), source.path)
    return StoredImages(source, store)


def folder(root: Path, sides: list[tuple[int, int]], mode: str = "RGB", ending: str = "jpg") -> ImageFolder:
    """Pieces of photographs of these heights and widths."""
    for number, (height, width) in enumerate(sides):
        path = root / "images" / "ab"[number % 2] / f"{number:04d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PHOTOS[number % 2]).resize((width, height)).convert(mode).save(path)
    return ImageFolder(root / "images", cache_dir=root / "lists")


@pytest.fixture
def few_to_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odc_lightning.data.store._LEAST_IMAGES", 3)


@pytest.fixture
def images(tmp_path: Path, few_to_a_shard: None) -> ImageFolder:
    return folder(tmp_path, [(64, 80), (40, 33), (20, 30), (90, 64), (32, 50), (100, 41), (31, 31), (64, 64)])


def test_numbers_labels_and_paths_are_those_of_the_source(images: ImageFolder, tmp_path: Path) -> None:
    stored = prepared(images, tmp_path / "store")
    assert len(stored) == len(images) == 8
    assert [stored.path(i) for i in range(8)] == [images.path(i) for i in range(8)]
    assert [stored.relative_path(i) for i in range(8)] == [images.relative_path(i) for i in range(8)]
    assert np.array_equal(stored.targets, images.targets)
    assert (stored.classes, stored.name, stored.split) == (["a", "b"], "folder", "train")
    assert len(stored.fingerprint()) == 16
    assert stored.fingerprint() != images.fingerprint()


def test_large_images_are_small_and_small_ones_the_same(images: ImageFolder, tmp_path: Path) -> None:
    stored = prepared(images, tmp_path / "store")
    for index in range(len(images)):
        original, image = images.load(index), stored.load(index)
        if min(original.shape[:2]) <= SIDE:
            assert np.array_equal(image, original)
        else:
            view = EvalTransform(SIDE, SIDE)
            assert min(image.shape[:2]) == SIDE
            assert np.abs(view(image).astype(int) - view(original)).mean() < 6  # JPEG at this size
    # A photograph of the usual size is nearly what it was.
    photo = decode_image(encoded(_saved(tmp_path / "photo.png", PHOTOS[0]), 256, 90)[0])
    view = EvalTransform(256, 224)
    assert photo.shape == (256, 383, 3)
    assert np.abs(view(photo).astype(int) - view(PHOTOS[0])).mean() < 4


def _saved(path: Path, image: np.ndarray) -> str:
    Image.fromarray(image).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("mode", "ending"), [("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("RGB", "bmp"), ("RGB", "webp")]
)
def test_every_kind_of_file_is_read_as_training_reads_it(
    tmp_path: Path, few_to_a_shard: None, mode: str, ending: str
) -> None:
    source = folder(tmp_path, [(50, 40), (20, 24)], mode, ending)
    stored = prepared(source, tmp_path / "store")
    assert np.array_equal(stored.load(1), read_image(source.path(1)))
    view = EvalTransform(SIDE, SIDE)
    assert np.abs(view(stored.load(0)).astype(int) - view(source.load(0))).mean() < 8


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=9), st.integers(16, 48))
def test_any_images_are_what_they_would_be_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, sides: list[tuple[int, int]], short_side: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("odc_lightning.data.store._LEAST_IMAGES", 2)
        root = tmp_path_factory.mktemp("any")
        source = folder(root, sides)
        stored = prepared(source, root / "store", short_side=short_side)
        for index in np.random.default_rng().permutation(len(source)).tolist():
            wanted = decode_image(encoded(source.path(index), short_side, 90)[0])
            assert np.array_equal(stored.load(index), wanted)


def test_standard_tools_read_it(images: ImageFolder, tmp_path: Path) -> None:
    prepared(images, tmp_path / "store")
    names = []
    for file in sorted((tmp_path / "store" / "train").glob("*.zip")):
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            for entry in archive.infolist():
                assert Image.open(io.BytesIO(archive.read(entry))).format == "JPEG"
                names.append(entry.comment.decode())
    assert names == [images.relative_path(index) for index in range(len(images))]


def test_processes_make_the_same_bytes(images: ImageFolder, tmp_path: Path) -> None:
    prepared(images, tmp_path / "one")
    prepared(images, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def contents(store: Path) -> dict[str, bytes]:
    return {str(f.relative_to(store)): f.read_bytes() for f in store.rglob("*") if f.is_file()}


def test_what_is_finished_is_not_made_again(
    images: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = prepare_store.encoded

    def broken_off(path: str, *args: int) -> tuple[bytes, str]:
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(path, *args)

    monkeypatch.setattr(prepare_store, "encoded", broken_off)
    with pytest.raises(KeyboardInterrupt):
        prepared(images, tmp_path / "store")
    with pytest.raises(ValueError, match="is not finished: task=prepare with the same keys goes on with it"):
        StoredImages(images, tmp_path / "store")
    calls.clear()
    calls += ["a"] * 10
    prepared(images, tmp_path / "store")
    assert calls[10:] == [images.path(index) for index in range(3, 8)]  # the second archive and the third
    prepared(images, tmp_path / "straight")
    assert contents(tmp_path / "store") == contents(tmp_path / "straight")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_it(images: ImageFolder, tmp_path: Path, method: str) -> None:
    stored = prepared(images, tmp_path / "store")
    here = [stored.load(index) for index in range(len(stored))]  # archives are open when it forks
    with multiprocessing.get_context(method).Pool(2) as pool:
        there = pool.map(stored.load, range(len(stored)), chunksize=1)
    assert all(np.array_equal(*pair) for pair in zip(here, there, strict=True))
    assert len(pickle.dumps(stored)) < len(pickle.dumps(images)) + 2000  # the index is opened, not sent


# -- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["image", "end", "index"])
def test_damage_is_noticed_and_mended(images: ImageFolder, tmp_path: Path, where: str) -> None:
    prepared(images, tmp_path / "store")
    store = tmp_path / "store" / "train"
    sound = contents(tmp_path / "store")
    start, size, _ = np.load(store / "index.npy")[4].item()
    file = store / ("index.npy" if where == "index" else "00001.zip")
    data = bytearray(file.read_bytes())
    if where == "end":
        del data[start + size // 2 :]
    else:
        data[4 * 16 - 8 * 16 if where == "index" else start + size // 2] ^= 0x10
    file.write_bytes(bytes(data))
    damaged = StoredImages(images, tmp_path / "store")
    with pytest.raises(BadImageError, match=r"0001.jpg is damaged .*00001.zip \(checksum\). Mend it by task=prepare"):
        damaged.load(4)
    prepared(images, tmp_path / "store", verify=True)
    assert contents(tmp_path / "store") == sound
    assert StoredImages(images, tmp_path / "store").load(4).shape == (38, 32, 3)


def test_bad_images_stop_or_are_left_out(images: ImageFolder, tmp_path: Path) -> None:
    bad, good = Path(images.path(2)), Path(images.path(2)).read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    with pytest.raises(BadImageError, match=f"cannot read the image {bad}"):
        prepared(images, tmp_path / "store")
    stored = prepared(images, tmp_path / "store", skip_bad=True)
    assert str(bad) in (tmp_path / "store" / "train" / "unreadable.txt").read_text()
    with pytest.raises(BadImageError, match=f"{bad} was unreadable when the store was made. .*data.on_bad_image=skip"):
        stored.load(2)
    assert stored.load(1).size
    bad.write_bytes(good)  # repaired: tried again
    assert prepared(images, tmp_path / "store").load(2).size
    assert not (tmp_path / "store" / "train" / "unreadable.txt").exists()


def test_a_killed_process_is_told(images: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killed.py").write_text("import os\n\n\ndef die(shard):\n    os._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(prepare_store, "_make_and_count", importlib.import_module("killed").die)
    about = About.of(images, SIDE, 90)
    begin(tmp_path / "store" / "train", about)
    parts = shards(tmp_path / "store" / "train", images, about, False, False)
    with pytest.raises(OSError, match="a process of task=prepare was killed, .* The same command goes on"):
        make(parts, 1, lambda images: None)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_a_store_of_other_images_or_settings_is_refused(images: ImageFolder, tmp_path: Path) -> None:
    prepared(images, tmp_path / "store")
    about = About.of(images, SIDE, 90)
    with pytest.raises(ValueError, match="is a store with prepare.short_side=32. Received: 64. Name another folder"):
        begin(tmp_path / "store" / "train", About.of(images, 64, 90))
    with pytest.raises(ValueError, match="is a store with prepare.quality=90. Received: 80. Name another folder"):
        begin(tmp_path / "store" / "train", About.of(images, SIDE, 80))
    Path(images.path(0)).rename(Path(images.path(0)).with_name("zzz.jpg"))  # as many, in another order
    others = ImageFolder(images.root, cache_dir=tmp_path, rescan=True)
    with pytest.raises(ValueError, match="8 train images of folder; here are 8 of folder, with other names. Make anot"):
        StoredImages(others, tmp_path / "store")
    with pytest.raises(ValueError, match="holds a store of other images: 8 train images of folder; here are 8 of fold"):
        begin(tmp_path / "store" / "train", About.of(others, SIDE, 90))
    assert About.read(tmp_path / "store" / "train") == about


def test_what_is_no_store_is_refused(images: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data.store must be a folder that task=prepare .* \(no train/store.json there"
    ):
        StoredImages(images, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="data.store must be a new or empty folder, or a store. Received: "):
        begin(images.root, About.of(images, SIDE, 90))
    (tmp_path / "odd").mkdir()
    for text, message in (
        ("{}", "is not of a store that"),
        ("?", "is not of a store that"),
        (About.of(images, SIDE, 90).text().replace('"version": 1', '"version": 2'), "version 2"),
    ):
        (tmp_path / "odd" / "store.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            About.read(tmp_path / "odd")


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with prepare_store.alone(tmp_path), pytest.raises(ValueError, match="another task=prepare is at work there"):
        prepare_store.alone(tmp_path).__enter__()
    with prepare_store.alone(tmp_path):
        pass


def test_room_is_forecast(images: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = About.of(images, SIDE, 90)
    begin(tmp_path / "store" / "train", about)
    parts = shards(tmp_path / "store" / "train", images, about, False, False)
    expected = forecast(parts)
    sizes = [len(encoded(images.path(index), SIDE, 90)[0]) for index in range(8)]
    assert (expected.images, expected.bytes_) == (8, sum(sizes))
    make(parts[:1], 0, lambda images: None)
    assert (forecast(parts).images, forecast(parts).bytes_) == (5, sum(sizes[3:]))
    require_room(tmp_path, expected)
    with pytest.raises(ValueError, match="data.store must have room for about 9.09e.* GiB. Received: .* GiB free"):
        require_room(tmp_path, Forecast(1, 1e24 * 0.976, 1.0))
    make(parts, 0, lambda images: None)
    assert forecast(parts) == Forecast(0, 0.0, 0.0)


# -- in the data module --------------------------------------------------------------------------------------------


def test_the_data_module_reads_both_splits_from_it(tmp_path: Path, few_to_a_shard: None) -> None:
    for split in ("train", "val"):
        for number in range(5):
            path = tmp_path / "root" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PHOTOS[0]).resize((50, 40 + number)).save(path)

    def source(split: str) -> ImageFolder:
        return ImageFolder(tmp_path / "root", split, cache_dir=tmp_path / "lists")

    def module(store: Path | None) -> DataModule:
        views = TrainTransform(SIDE), EvalTransform(SIDE, SIDE)
        return DataModule(source, *views, batch_size=2, num_workers=0, image_size=SIDE, store=store)

    prepared(source("train"), tmp_path / "store")
    with pytest.raises(ValueError, match="no val/store.json there"):
        module(tmp_path / "store")
    prepared(source("val"), tmp_path / "store")
    plain, stored = module(None), module(tmp_path / "store")
    assert isinstance(stored.train_source, StoredImages)
    assert isinstance(stored.val_source, StoredImages)
    for one, other in zip(plain.train_dataloader(), stored.train_dataloader(), strict=True):
        assert one.index.tolist() == other.index.tolist()
        assert (one.image.int() - other.image.int()).abs().float().mean() < 12


def test_several_labels_stay(tmp_path: Path, few_to_a_shard: None) -> None:
    source = folder(tmp_path, [(40, 40), (50, 60)])
    (tmp_path / "images" / "labels.csv").write_text("path,x,y\na/0000.jpg,1,0\nb/0001.jpg,-1,1\n")
    labelled = MultiLabelCSV(source.root)
    stored = prepared(labelled, tmp_path / "store")
    assert stored.label_matrix is labelled.label_matrix
    assert stored.classes == ["x", "y"]
