"""What was extracted once is found again, and only where everything that decides a feature is the same."""

import numpy as np
import pytest
import torch

from helpers import datamodule
from odc_lightning.data.augment import EvalTransform
from odc_lightning.data.sources import BadImageError
from odc_lightning.evaluation import bench as bench_module
from odc_lightning.evaluation.bench import Bench
from odc_lightning.evaluation.cache import CachedFeatures, cache_key, require_space
from odc_lightning.evaluation.features import padded_share
from odc_lightning.evaluation.network import FrozenNetwork
from odc_lightning.memory import Ranks
from odc_lightning.nn.resnet import small_resnet


def make_bench(folder, *, seed=0, count=20, mean=0.5, precision="32-true", **keys):
    torch.manual_seed(seed)
    network = FrozenNetwork(small_resnet(4), [mean] * 3, [0.25] * 3, precision=precision)
    return Bench(network, datamodule(count=count, batch_size=8, **keys), folder=folder, cache_dir=folder / "cache")


@pytest.fixture
def passes(monkeypatch):
    """Layers of each pass through the network that was really made."""
    made, real = [], bench_module.extract_layers

    def counted(network, data, source, view, layers):
        made.append(sorted(layers))
        real(network, data, source, view, layers)

    monkeypatch.setattr(bench_module, "extract_layers", counted)
    return made


def extracted(bench, layers=("conv2", "gap"), split="train", view="crop"):
    return bench.features(split, bench.pools(layers), view)


def test_features_are_those_of_the_network_in_the_order_of_the_images(tmp_path):
    bench = make_bench(tmp_path, count=300)
    features = extracted(bench)
    source = bench.source("train")
    images = torch.stack([torch.from_numpy(source.load(index)).permute(2, 0, 1) for index in range(300)])
    expected = bench.network(images, bench.pools(["conv2", "gap"]))
    for layer, rows in features.items():
        assert rows.shape[0] == 300
        torch.testing.assert_close(rows, expected[layer])


def test_the_same_again_is_found_and_a_new_layer_alone_is_made(tmp_path, passes):
    first = extracted(make_bench(tmp_path))
    again = extracted(make_bench(tmp_path))
    assert all(torch.equal(first[layer], again[layer]) for layer in first)
    extracted(make_bench(tmp_path), layers=("conv1", "conv2", "gap"))
    extracted(make_bench(tmp_path), split="val")
    assert passes == [["conv2", "gap"], ["conv1"], ["conv2", "gap"]]


@pytest.mark.parametrize("change", [{"seed": 1}, {"count": 24}, {"mean": 0.4}, {"precision": "bf16-mixed"}])
def test_other_weights_images_or_normalisation_are_other_features(tmp_path, passes, change):
    extracted(make_bench(tmp_path))
    extracted(make_bench(tmp_path, **change))
    assert len(passes) == 2


def test_another_view_or_pool_is_another_feature(tmp_path, passes):
    bench = make_bench(tmp_path)
    extracted(bench)
    extracted(bench, view="stretch")
    bench.data.eval_transform = EvalTransform(14, 12)
    extracted(bench)
    bench.features("train", {"conv2": torch.nn.AdaptiveAvgPool2d(2)})
    assert len(passes) == 4


def test_what_was_killed_while_writing_is_made_again(tmp_path, passes):
    extracted(make_bench(tmp_path))
    for about in (tmp_path / "cache").rglob("about.json"):
        about.unlink()
    extracted(make_bench(tmp_path))
    assert len(passes) == 2


def test_nan_features_name_the_layer_and_the_image(tmp_path):
    bench = make_bench(tmp_path)
    with torch.no_grad():
        bench.network.backbone.net.layer1[0].conv1.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="features of conv2 are NaN or infinite for 20 of 20 .*squares/train/0"):
        extracted(bench)
    assert not list((tmp_path / "cache").rglob("about.json"))


def test_unreadable_images_are_left_out(tmp_path, monkeypatch):
    bench = make_bench(tmp_path, on_bad_image="skip")
    source = bench.source("train")
    load = source.load

    def broken(index):
        if index == 3:
            raise BadImageError("broken")
        return load(index)

    monkeypatch.setattr(source, "load", broken)
    extracted(bench)
    assert bench.known("train", bench.pools(["gap"])).tolist() == [n for n in range(20) if n != 3]


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 3), (2, 4), (12, 4)])
def test_shares_are_equally_long_and_land_each_image_once(count, world):
    shares = [padded_share(count, Ranks(rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    rows = np.array(shares).T.flatten()
    assert rows[:count].tolist() == list(range(count))
    assert set(rows[count:].tolist()) <= {count - 1}


def test_rows_beyond_the_last_are_padding(tmp_path):
    place = CachedFeatures(tmp_path, {"layer": "gap"}, 3, (2,))
    place.begin()
    place.write(0, torch.ones(2, 2), torch.tensor([True, False]))
    place.write(2, torch.full((2, 2), 2.0), torch.tensor([True, True]))
    place.finish()
    assert place.features().tolist() == [[1, 1], [1, 1], [2, 2]]
    assert place.readable().tolist() == [True, False, True]


def test_keys_are_stable_and_too_much_is_refused(tmp_path):
    assert cache_key({"a": 1, "b": [2]}) == cache_key({"b": [2], "a": 1}) != cache_key({"a": 1, "b": [3]})
    with pytest.raises(OSError, match=r"the features need 9.3\d*e\+08 GiB, .* left. Take fewer layers"):
        require_space(tmp_path / "not" / "there", 10**18)
