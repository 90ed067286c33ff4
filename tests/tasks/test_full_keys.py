"""Keys in messages of parts that know only their arguments."""

import pytest
from omegaconf import OmegaConf

from odc_lightning.tasks.full_keys import set_at, with_full_key

CONFIG = OmegaConf.create(
    {
        "task": {"name": "train"},
        "data": {"image_size": 28, "transform": "${augment.train}", "source": {"root": "${..root}"}, "root": None},
        "augment": {"train": {"size": "${data.image_size}", "flip": 0.5}},
        "backbone": {"width": 8, "channels": "${data.image_size}"},
        "method": {"backbone": "${backbone}", "momentum": 0.5, "k": 1, "channels": "${backbone.channels}"},
        "protocol": {"k": 20},
    }
)


@pytest.mark.parametrize(
    ("key", "there"),
    [
        ("method.momentum", "method.momentum"),
        ("method.backbone.width", "backbone.width"),
        ("data.transform.size", "data.image_size"),
        ("data.transform.flip", "augment.train.flip"),
        ("data.source.root", "data.root"),
        ("method.channels", "data.image_size"),
        ("method.depth", ""),
        ("method.momentum.depth", ""),
    ],
)
def test_keys_stand_where_a_person_sets_them(key, there):
    assert set_at(CONFIG, key) == there


@pytest.mark.parametrize(
    ("message", "place", "expected"),
    [
        ("width must be at least 1. Received: 0", "method.backbone", "backbone.width must be at least 1. Received: 0"),
        ("momentum must be in (0, 1]", "", "method.momentum must be in (0, 1]"),
        ("momentum x width needs 5", "", "method.momentum x width needs 5"),
        ("flip must be 0", "data.transform", "augment.train.flip must be 0"),
        ("method.momentum must be in (0, 1]", "", "method.momentum must be in (0, 1]"),
        ("depth must be 3", "method", "depth must be 3"),
        ("width must be 3", "method", "width must be 3"),  # another part's
        ("the momentum must be 3", "method", "the momentum must be 3"),
    ],
)
def test_messages(message, place, expected):
    assert with_full_key(message, CONFIG, place) == expected


def test_an_evaluation_speaks_of_its_protocol_first():
    assert with_full_key("k must be 1", CONFIG) == "method.k must be 1"
    evaluating = OmegaConf.merge(CONFIG, {"task": {"name": "evaluate"}})
    assert with_full_key("k must be 1", evaluating) == "protocol.k must be 1"
