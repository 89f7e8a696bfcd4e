"""Stored features: crops are those of the frames, however turned; nothing but what was written is read."""

from __future__ import annotations

import io
import json
import os
import pickle

import numpy as np
import pytest

from csd_plugin.data import augment, features
from csd_plugin.data.features import MANIFEST, open_features, write_features
from csd_plugin.errors import CSDError
from csd_plugin.types import PairedSequence

FRAMES, HEIGHT, WIDTH = 5, 24, 32  # cells of 2 pixels


def frames(clip: int = 0) -> np.ndarray:
    """Each number says where it is from: frame, row and column."""
    grid = np.indices((FRAMES, HEIGHT // 2, WIDTH // 2))
    return np.moveaxis(grid, 0, -1).astype(np.float16) + clip


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("one", "two")):
        whole = ([frame, frame[::2, ::2]] for frame in frames(100 * number))
        write_features(tmp_path / "f", name, whole, FRAMES, network="abc", layers=["tail", "deep.0"])
    return tmp_path / "f"


def sequence(name: str, length: int = FRAMES) -> PairedSequence:
    keys = tuple(f"{name}/{number}" for number in range(length))
    return PairedSequence(name, keys, keys)


def test_files_are_what_numpy_writes(folder):
    stored = frames(100)
    for number, array in enumerate((stored, stored[:, ::2, ::2])):
        with io.BytesIO() as expected:
            np.save(expected, array)
            assert (folder / f"two.{number}.npy").read_bytes() == expected.getvalue()


@pytest.mark.parametrize("count", [FRAMES - 1, FRAMES + 1])
def test_a_clip_of_another_length_is_not_stored(folder, count):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match="zip"):
        write_features(folder, "three", ([f, f] for f in frames()), count, network="abc", layers=["tail", "deep.0"])
    assert sorted(path.name for path in folder.iterdir()) == before


def test_crops_are_turned_as_frames_are(folder):
    features = open_features(folder)
    assert (features.network, features.layers) == ("abc", ("tail", "deep.0"))
    grid = features.grid([sequence("one"), sequence("two")], [(HEIGHT, WIDTH)] * 2)
    assert grid == 4  # the second layer's cell
    options = augment.AugmentOptions(crop=16, vflip=True, rot=True, reverse=True, grid=grid)
    rng, turned = np.random.default_rng(0), set()
    for _ in range(100):
        plan = augment.draw(rng, HEIGHT, WIDTH, options, "two")
        turned.add((plan.hflip, plan.vflip, plan.rot, plan.reverse))
        got = features.crops("two", slice(1, 4), (HEIGHT, WIDTH), plan)
        # the same on the frames themselves, whose pixels are bytes: row, column and frame of each cell
        for feature, stored, cell in zip(got, (frames(), frames()[:, ::2, ::2]), (2, 4), strict=True):
            pixels = np.repeat(np.repeat(stored, cell, axis=1), cell, axis=2).astype(np.uint8)[1:4]
            regions = pixels[:, plan.top : plan.top + 16, plan.left : plan.left + 16]
            expected = augment.apply(plan, list(regions))[:, ::cell, ::cell].transpose(0, 3, 1, 2) + 100.0
            assert np.array_equal(feature.numpy(), expected)
    assert len(turned) == 16


def test_crops_begin_where_cells_of_all_layers_begin(tmp_path):
    cells = ([np.zeros((24 // cell, 36 // cell, 2), np.float16) for cell in (4, 6)] for _ in range(FRAMES))
    write_features(tmp_path / "f", "one", cells, FRAMES, network="abc", layers=["tail", "deep.0"])
    assert open_features(tmp_path / "f").grid([sequence("one")], [(24, 36)]) == 12


def test_workers_that_are_spawned_open_the_files(folder):
    features = open_features(folder)
    sent = pickle.dumps(features)
    assert b"one" in sent
    assert not any(frame.tobytes() in sent for frame in frames())
    got = pickle.loads(sent)
    assert (got.folder, got.network, got.layers) == (features.folder, features.network, features.layers)
    plan = augment.draw(np.random.default_rng(0), HEIGHT, WIDTH, augment.AugmentOptions(crop=16, grid=4), "two")
    for clip in ("one", "two"):
        crops = [one.crops(clip, slice(0, 3), (HEIGHT, WIDTH), plan) for one in (got, features)]
        assert all(np.array_equal(one, other) for one, other in zip(*crops, strict=True))


def test_alignment_changes_no_other_draw():
    plain, aligned = (augment.AugmentOptions(crop=16, rot=True, grid=grid) for grid in (1, 4))
    for seed in range(20):
        one, other = (
            augment.draw(np.random.default_rng(seed), HEIGHT, WIDTH, options, "clip") for options in (plain, aligned)
        )
        assert other == augment.Augmentation(**{**vars(one), "top": one.top // 4 * 4, "left": one.left // 4 * 4})


@pytest.mark.parametrize(
    ("name", "length", "size", "said"),
    [
        ("three", FRAMES, (HEIGHT, WIDTH), "no features of the clip three"),
        ("one", FRAMES + 1, (HEIGHT, WIDTH), "one has 6 frames of 32x24"),
        ("one", FRAMES, (HEIGHT, 2 * WIDTH), "compute them again"),
    ],
)
def test_other_clips_are_refused(folder, name, length, size, said):
    with pytest.raises(CSDError, match=said):
        open_features(folder).grid([sequence(name, length)], [size])


def test_features_of_another_network_are_not_mixed_in(folder):
    with pytest.raises(CSDError, match="another network or of other layers"):
        write_features(folder, "three", [], 0, network="other", layers=["tail", "deep.0"])


def test_features_of_another_numpy_are_read(folder):
    """Versions of numpy pad a header by different numbers of spaces."""
    path = folder / "one.0.npy"
    content = path.read_bytes()
    length = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + length].rstrip() + b" " * 200 + b"\n"
    path.write_bytes(content[:8] + len(header).to_bytes(2, "little") + header + content[10 + length :])
    assert np.array_equal(open_features(folder).arrays["one"][0], frames())


@pytest.mark.parametrize("clip", ["../../outside", "/outside", "a\\b", "..", "a\0", "\ud800"])
def test_features_of_a_clip_with_a_path_for_a_name_are_not_written(folder, clip):
    before = sorted(folder.parent.parent.rglob("*"))
    with pytest.raises(CSDError, match="the name of a clip is "):
        write_features(folder, clip, ([f, f] for f in frames()), FRAMES, network="abc", layers=["tail", "deep.0"])
    assert sorted(folder.parent.parent.rglob("*")) == before


def _header(text):
    """An array whose header is this text, with which numpy's reader would do as it says."""

    def write(folder):
        data = text.encode().ljust(117) + b"\n"
        content = b"\x93NUMPY\1\0" + len(data).to_bytes(2, "little") + data + frames().tobytes()
        (folder / "one.0.npy").write_bytes(content)

    return write


def _archive(folder):
    with (folder / "one.0.npy").open("wb") as file:
        np.savez(file, a=frames())


def _lead_out(folder):
    path = folder / "one.0.npy"
    path.rename(folder.parent / "outside.npy")
    path.symlink_to(folder.parent / "outside.npy")


def _entry(**values):
    return _edited(lambda content: content["clips"]["one"][0].update(values))


def _edited(change):
    def edit(folder):
        content = json.loads((folder / MANIFEST).read_text())
        change(content)
        (folder / MANIFEST).write_text(json.dumps(content))

    return edit


def _flip_a_byte(folder):
    content = bytearray((folder / "two.0.npy").read_bytes())
    content[-7] ^= 1
    (folder / "two.0.npy").write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / MANIFEST).write_text("[1]"),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / "one.1.npy").unlink(),
        lambda folder: (folder / "one.1.npy").write_bytes(b"no array"),
        lambda folder: np.save(folder / "one.0.npy", np.array([{}], dtype=object), allow_pickle=True),
        lambda folder: np.save(folder / "one.0.npy", frames().astype(np.float32)),
        _flip_a_byte,
        _edited(lambda content: content.update(format=2)),
        _edited(lambda content: content["clips"].update({"../one": content["clips"]["one"]})),
        _edited(lambda content: content["clips"]["one"].pop()),
        _edited(lambda content: content["clips"].update({"a\0b": content["clips"]["one"]})),
        _edited(lambda content: content["clips"].update({"a" * 300: content["clips"]["one"]})),
        _edited(lambda content: content.update(layers=[1, 2])),
        _edited(lambda content: content.update(layers=[])),
        _edited(lambda content: content.update(format=True)),
        _edited(lambda content: content.update(clips=[])),
        _entry(shape=[FRAMES, 0, 0, 3]),
        _entry(shape=[-FRAMES, 12, 16, -3]),
        _entry(shape=[10**30, 1, 1, 1]),
        _entry(shape=[True, 12, 16, 3]),
        _entry(shape=[5.0, 12, 16, 3]),
        _entry(shape=[FRAMES, 12, 48]),
        _entry(shape=[FRAMES, 16, 12, 3]),
        _entry(shape=7),
        _entry(crc=True),
        _entry(crc=None),
        _archive,
        _lead_out,
        _header("(" * 9000),
        _header("-" * 9000 + "1"),
        _header(f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({10**30}, 1, 1, 1), }}"),
        _header("{'descr': '<f2', 'fortran_order': False, 'shape': (True, 12, 16, 3), }"),
        _header("{'descr': '<f2', 'fortran_order': True, 'shape': (5, 12, 16, 3), }"),
        lambda folder: (folder / "one.0.npy").write_bytes((folder / "one.0.npy").read_bytes() + b"\0"),
        lambda folder: ((folder / "one.0.npy").unlink(), (folder / "one.0.npy").mkdir()),
        lambda folder: ((folder / "one.0.npy").unlink(), os.mkfifo(folder / "one.0.npy")),
    ],
)
def test_damaged_features_are_refused(folder, damage):
    damage(folder)
    with pytest.raises(CSDError, match=r"compute the features again|set CSD_FOLLOW_LINKS|csd adapt --features"):
        open_features(folder)


def test_the_numbers_of_a_file_are_compared_once_until_it_changes(folder, monkeypatch):
    open_features(folder)
    path = folder / "two.1.npy"
    monkeypatch.setattr(features.zlib, "crc32", lambda *numbers: pytest.fail("read again"))
    open_features(folder)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    os.utime(path, (1, 1))
    with pytest.raises(CSDError, match=r"two\.1\.npy: not what was written"):
        open_features(folder)
