import logging

import pytest

from odc_lightning import console


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (3725, "1 h 02 min")]
)
def test_clock(seconds, text):
    assert console.clock(seconds) == text


@pytest.mark.parametrize(
    ("bytes_", "text"), [(512, "512 B"), (2048, "2 KiB"), (3.5 * 2**20, "3.5 MiB"), (1.31e12, "1.22e+03 GiB")]
)
def test_size(bytes_, text):
    assert console.size(bytes_) == text


def test_a_long_clustering_says_how_far_it_is_where_there_is_no_terminal(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), console.iteration_bar("k-means") as bar:
        for done in range(4):
            bar(done, 20, 1.0, 0.25)
            now[0] += 20
    assert [record.message for record in caplog.records] == ["k-means: 2 of 20 iterations, 25.0% of the labels changed"]
