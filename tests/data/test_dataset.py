"""Samples: the same bytes for the same (seed, epoch, index) however they are loaded; bad images both ways."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from odc_lightning.data import filelist
from odc_lightning.data.augment import EvalTransform, TrainTransform, sample_rng
from odc_lightning.data.dataset import Batch, EvalDataset, IndexedDataset, Sample, collate
from odc_lightning.data.folder import ImageFolder
from odc_lightning.data.sources import ArraySource, BadImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 18, 3), dtype=np.uint8)
SOURCE = ArraySource(PIXELS, targets=np.arange(24))


def dataset(seed: int = 0, channels: int = 3) -> IndexedDataset:
    return IndexedDataset(ArraySource(PIXELS[..., :channels]), TrainTransform(16), seed=seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_is_the_transformed_image_and_its_index(channels: int) -> None:
    image, index, ok, _ = dataset(seed=5, channels=channels)[(2, 7)]
    wanted = TrainTransform(16)(PIXELS[7][..., :channels], sample_rng(5, 2, 7))
    assert torch.equal(image, torch.from_numpy(wanted).permute(2, 0, 1))
    assert image.is_contiguous()
    assert (image.dtype, index, ok) == (torch.uint8, 7, True)


def test_there_is_no_label_in_a_sample() -> None:
    assert Sample._fields == Batch._fields == ("image", "index", "ok", "colour")


def test_an_int_means_epoch_0() -> None:
    data = dataset()
    assert torch.equal(data[3].image, data[(0, 3)].image)
    assert torch.equal(data[np.int64(3)].image, data[(0, 3)].image)


def test_views_differ_by_seed_epoch_and_index() -> None:
    same = ArraySource(np.repeat(PIXELS[:1], 3, axis=0))
    views = {
        IndexedDataset(same, TrainTransform(16), seed)[(epoch, index)].image.numpy().tobytes()
        for seed in (0, 1)
        for epoch in (0, 1, 2)
        for index in range(3)
    }
    assert len(views) == 18


KEYS = [[(epoch, index) for index in part] for epoch in (0, 1) for part in ([3, 1, 2], [23, 0, 9])]


@pytest.mark.parametrize("workers", [0, 2])
def test_same_bytes_with_any_number_of_workers(workers: int) -> None:
    data = dataset()
    loader = DataLoader(data, batch_sampler=KEYS, num_workers=workers, collate_fn=collate)
    for keys, batch in zip(KEYS, loader, strict=True):
        assert isinstance(batch, Batch)
        assert torch.equal(batch.image, torch.stack([data[key].image for key in keys]))
        assert (batch.image.shape, batch.image.dtype) == ((3, 3, 16, 16), torch.uint8)
        assert batch.image.is_contiguous()
        assert torch.equal(batch.index, torch.tensor([index for _, index in keys]))
        assert torch.equal(batch.ok, torch.ones(3, dtype=torch.bool))


def test_collate_and_transfer_keep_the_names() -> None:
    batch = next(iter(DataLoader(dataset(), batch_size=4, collate_fn=collate)))
    assert batch._fields == Batch._fields
    moved = collate([dataset()[i] for i in range(4)])
    from lightning_utilities.core.apply_func import apply_to_collection

    moved = apply_to_collection(moved, torch.Tensor, lambda tensor: tensor.to("cpu", copy=True))
    assert isinstance(moved, Batch)
    assert torch.equal(moved.image, batch.image)


def test_persistent_workers_see_the_epoch() -> None:
    class Sampler:
        epoch = 0

        def __len__(self) -> int:
            return 1

        def __iter__(self):
            yield [(self.epoch, 0), (self.epoch, 1)]

    sampler = Sampler()
    loader = DataLoader(dataset(), batch_sampler=sampler, num_workers=1, persistent_workers=True, collate_fn=collate)
    for epoch in (0, 3):
        sampler.epoch = epoch
        assert torch.equal(next(iter(loader)).image[1], dataset()[(epoch, 1)].image)


def test_workers_leave_the_cores_to_each_other() -> None:
    class Threads(ArraySource):
        def load(self, index: int) -> np.ndarray:
            return np.full((1, 1, 1), cv2.getNumThreads(), np.uint8)

    data = EvalDataset(Threads(PIXELS[:2, :, :, :1]), EvalTransform(None, 1))
    batch = next(iter(DataLoader(data, batch_size=2, num_workers=1, collate_fn=collate)))
    assert batch.image.flatten().tolist() == [1, 1]


def test_eval_is_deterministic() -> None:
    data = EvalDataset(SOURCE, EvalTransform(None, 16))
    assert torch.equal(data[(0, 2)].image, data[(9, 2)].image)
    assert torch.equal(data[2].image, torch.from_numpy(PIXELS[2, 2:18, 1:17].copy()).permute(2, 0, 1))
    assert len(data) == 24


@pytest.mark.parametrize("index", [-1, 24])
def test_no_such_index(index: int) -> None:
    with pytest.raises(IndexError, match=f"index must be from 0 to 23. Received: {index}"):
        dataset()[(0, index)]
    assert len(list(EvalDataset(SOURCE, EvalTransform(None, 16)))) == 24


def test_wrong_on_bad_image() -> None:
    with pytest.raises(
        ValueError, match=r"on_bad_image must be one of error, skip. Received: 'skp'. Did you mean 'skip'"
    ):
        IndexedDataset(SOURCE, TrainTransform(16), seed=0, on_bad_image="skp")


# bad images

BAD = {"b_truncated.jpg": 1, "d_text.jpg": 3, "e_empty.jpg": 4, "f_dangling.jpg": 5}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageFolder:
    """Six files in sorted order, of which 0 and 2 are images."""
    monkeypatch.setattr(filelist, "DEFAULT_CACHE", tmp_path / "cache")
    root = tmp_path / "photos"
    root.mkdir()
    good = cv2.imencode(".jpg", cv2.GaussianBlur(PIXELS[0], (5, 5), 2))[1].tobytes()
    (root / "a.jpg").write_bytes(good)
    (root / "b_truncated.jpg").write_bytes(good[: len(good) * 2 // 3])
    (root / "c.jpg").write_bytes(good)
    (root / "d_text.jpg").write_text("this is no image")
    (root / "e_empty.jpg").touch()
    (root / "f_dangling.jpg").symlink_to(root / "gone")
    return ImageFolder(root=root)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_stops_the_run_by_name(photos: ImageFolder, name: str) -> None:
    data = IndexedDataset(photos, TrainTransform(16), seed=0)
    with pytest.raises(BadImageError, match=rf"cannot read the image .*{name} .*data.on_bad_image=skip"):
        data[(0, BAD[name])]
    assert data[(0, 2)].ok


def test_the_file_is_named_from_a_worker_too(photos: ImageFolder) -> None:
    loader = DataLoader(IndexedDataset(photos, TrainTransform(16), seed=0), batch_size=6, num_workers=1)
    with pytest.raises(BadImageError, match=r"b_truncated.jpg"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_skipped_images_keep_their_index(photos: ImageFolder, workers: int, kind: str) -> None:
    train = IndexedDataset(photos, TrainTransform(16), seed=0, on_bad_image="skip")
    data = train if kind == "train" else EvalDataset(photos, EvalTransform(None, 16), on_bad_image="skip")
    batch = next(iter(DataLoader(data, batch_size=6, num_workers=workers, collate_fn=collate)))
    assert batch.index.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.ok.tolist() == [True, False, True, False, False, False]
    assert not batch.image[~batch.ok].any()
    assert torch.equal(batch.image[2], data[2].image)
