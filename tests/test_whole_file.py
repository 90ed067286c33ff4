"""Files appear whole or not at all."""

import os

import pytest

from odc_lightning.whole_file import whole_file, write_whole


@pytest.mark.parametrize("shared", [False, True])
def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path, shared):
    path = tmp_path / "table.csv"
    write_whole(path, "old ä")
    with whole_file(path, shared=shared) as writing:
        assert writing.suffix == ".csv"
        assert (str(os.getpid()) in writing.name) == shared
        writing.write_text("new")
        assert path.read_text(encoding="utf-8") == "old ä"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_halfway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as writing:
        writing.write_text(f"{1 / 0}" if writing.write_text("ne") else "")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_fails(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt"):
        pass
