"""Stores that are filled frame by frame: what survives an interruption, and that the whole is like any other store."""

from __future__ import annotations

import numpy as np
import pytest

from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.build import filling
from csd_plugin.data.stores.verify import verify_store
from csd_plugin.errors import CSDError

KEYS = ["a_Rain/00001.png", "a_Rain/00002.png", "a_GT/00001.png"]


def frame(seed):
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)


def test_an_interrupted_filling_is_continued(tmp_path):
    out = tmp_path / "cache.lmdb"
    with pytest.raises(KeyboardInterrupt), filling(out, KEYS) as store:
        assert not store.there
        store.write(KEYS[0], frame(0))
        raise KeyboardInterrupt
    with pytest.raises(CSDError, match="incomplete"):
        open_store(out)

    with filling(out, KEYS) as store:
        assert store.there == {KEYS[0]}
        for seed in (1, 2):
            store.write(KEYS[seed], frame(seed))
    found = open_store(out)
    assert found.keys() == sorted(KEYS)
    for seed, key in enumerate(KEYS):
        np.testing.assert_array_equal(found.read(key), frame(seed))
    assert verify_store(out) == []


def test_frames_that_are_no_longer_wanted_are_removed(tmp_path):
    out = tmp_path / "cache.lmdb"
    with pytest.raises(KeyboardInterrupt), filling(out, KEYS) as store:
        store.write(KEYS[0], frame(0))
        raise KeyboardInterrupt
    with filling(out, KEYS[1:2]) as store:
        assert not store.there
        store.write(KEYS[1], frame(1))
    assert open_store(out).keys() == [KEYS[1]]


def test_a_store_with_gaps_gets_no_name(tmp_path):
    with pytest.raises(ValueError, match="never put in"), filling(tmp_path / "cache.lmdb", KEYS) as store:
        store.write(KEYS[0], frame(0))
    assert not (tmp_path / "cache.lmdb").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        with pytest.raises(CSDError, match="cannot be written"), filling(tmp_path / folder / "cache.lmdb", KEYS):
            pass
