"""task=prepare: a store from the command line, killed and taken up again; training from it; refusals."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app_runner import TINY_FOLDER, command, run, run_alone, write_images


def prepare(root, images, store, *more):
    args = [f"run.root={root}", "data=folder", f"data.root={images}", f"data.cache_dir={root}/lists"]
    return ["task=prepare", *args, f"data.store={store}", "prepare.num_workers=0", *more]


def contents(store):
    """All files but the log."""
    return {str(f.relative_to(store)): f.read_bytes() for f in store.rglob("*") if f.is_file() and f.name != "run.log"}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """1,700 images of a millisecond or two each, in four archives."""
    root = tmp_path_factory.mktemp("many") / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(1700):
        file = root / f"{number:04d}.jpg"
        if number < 4:
            Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8)).resize((400, 300)).save(file)
        else:
            os.link(root / f"{number % 4:04d}.jpg", file)
    return root


def stop_when(there, process, number):
    deadline = time.monotonic() + 120
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(float(np.random.default_rng().uniform(0, 0.2)))
    assert process.poll() is None, "it was to be stopped before it ended"
    process.send_signal(number)
    process.communicate(timeout=60)


def test_killed_twice_it_goes_on_to_the_same_bytes(many, tmp_path):
    store = tmp_path / "store"
    args = prepare(tmp_path, many, store, "prepare.num_workers=2")
    for file, number in (("00000.writing", signal.SIGKILL), ("00000.zip", signal.SIGTERM)):
        process = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stop_when(lambda file=file: (store / "train" / file).exists(), process, number)
    assert not (store / "train" / "index.npy").exists()
    first = (store / "train" / "00000.zip").stat().st_mtime_ns
    outcome = run_alone(*args)
    assert outcome.code == 0, outcome.text
    assert "1,700 images in 4 archives" in outcome.text
    assert (store / "train" / "00000.zip").stat().st_mtime_ns == first
    outcome = run(*prepare(tmp_path, many, tmp_path / "straight"))
    assert "1,700 images to store: about " in outcome.text
    assert f"{tmp_path / 'straight'} is complete, " in outcome.text
    assert contents(store) == contents(tmp_path / "straight")


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


def test_a_run_from_the_store_names_the_originals(images, tmp_path):
    store = tmp_path / "store"
    assert run(*prepare(tmp_path, images, store, "prepare.short_side=16")).code == 0
    train = [*TINY_FOLDER, f"run.root={tmp_path}", f"data.root={images}", f"data.cache_dir={tmp_path}/lists"]
    for name, more in (("plain", []), ("stored", [f"data.store={store}"])):
        outcome = run(*train, f"run.name={name}", *more)
        assert outcome.code == 0, outcome.text
    plain, stored = ((tmp_path / name / "clusters" / "assignments.csv").read_text() for name in ("plain", "stored"))
    assert [line.split(",")[0] for line in plain.splitlines()] == [line.split(",")[0] for line in stored.splitlines()]
    assert str(images) in stored
    moved = store.rename(tmp_path / "moved")
    again = run(*train, "run.name=stored", f"data.store={moved}")
    assert "is finished; nothing to do" in again.text
    other = run(*train, "run.name=stored")
    assert other.code == 1
    assert "data.store: used there, (not set) now" in other.text


def test_subsets_draw_from_the_whole_store(images, tmp_path):
    store = tmp_path / "store"
    subset = ["subset=classes", "data.subset.num_images=10", f"data.subset.file={tmp_path}/draw.csv"]
    outcome = run(*prepare(tmp_path, images, store, *subset))
    assert outcome.code == 0, outcome.text
    assert "train: 12 images in 1 archive (0 were there)" in outcome.text
    args = [*TINY_FOLDER, f"run.root={tmp_path}", f"data.root={images}", f"data.cache_dir={tmp_path}/lists"]
    outcome = run(*args, "run.name=part", f"data.store={store}", *subset)
    assert outcome.code == 0, outcome.text
    assert len((tmp_path / "part" / "subset.csv").read_text().splitlines()) == 12


def test_bad_images_are_counted_and_left_out(images, tmp_path):
    store = tmp_path / "store"
    (images / "a" / "zz.jpg").write_bytes(b"no image")
    outcome = run(*prepare(tmp_path, images, store))
    assert outcome.code == 1
    assert "zz.jpg" in outcome.text
    outcome = run(*prepare(tmp_path, images, store, "data.on_bad_image=skip"))
    assert outcome.code == 0, outcome.text
    assert "1 images could not be read, see " in outcome.text
    args = [*TINY_FOLDER, f"run.root={tmp_path}", f"data.root={images}", f"data.cache_dir={tmp_path}/lists"]
    args += [f"data.store={store}", "run.name=bad", "data.batch_size=13"]
    outcome = run(*args)
    assert outcome.code == 1
    assert "zz.jpg was unreadable when the store was made" in outcome.text
    outcome = run(*args, "data.on_bad_image=skip", "resume=never")
    assert outcome.code == 0, outcome.text


def test_verify_mends(images, tmp_path):
    store = tmp_path / "store"
    assert run(*prepare(tmp_path, images, store)).code == 0
    sound, file = contents(store), store / "train" / "00000.zip"
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(bytes(data))
    assert "damaged" not in run(*prepare(tmp_path, images, store)).text
    outcome = run(*prepare(tmp_path, images, store, "prepare.verify=true"))
    assert f"{file} was damaged and has been made anew" in outcome.text
    assert contents(store) == sound


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["data.store=null"], "data.store must name the folder to make: data.store=/path/to/store. Received: None"),
        (["prepare.short_side=8"], "prepare.short_side must be a number from 16 to 4096. Received: 8"),
        (["prepare.short_side=256.5"], "prepare.short_side must be a whole number from 16 to 4096. Received: 256.5"),
        (["prepare.quality=101"], "prepare.quality must be a number from 1 to 100. Received: 101"),
        (["prepare.verify=maybe"], "prepare.verify must be true or false. Received: 'maybe'"),
        (["prepare.num_workers=-1"], "prepare.num_workers must be auto or a whole number from 0. Received: -1"),
        (["prepare.nun_workers=1"], "there is no key 'prepare.nun_workers'"),
    ],
)
def test_what_cannot_work_is_said(images, tmp_path, args, message):
    outcome = run(*prepare(tmp_path, images, tmp_path / "store", *args))
    assert outcome.code == 1
    assert message in outcome.text
    assert "Traceback" not in outcome.text
    assert not (tmp_path / "store").exists()


def test_images_in_memory_need_no_store(tmp_path):
    outcome = run("task=prepare", f"run.root={tmp_path}")
    assert outcome.code == 1
    assert "task=prepare is for images in files, such as data=imagenet or data=folder" in outcome.text


def test_no_folder_of_the_disk_is_too_small_for_a_dozen(images, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    outcome = run(*prepare(tmp_path, images, Path(tmp_path / "store")))
    assert outcome.code == 1
    assert "data.store must have room for about " in outcome.text
