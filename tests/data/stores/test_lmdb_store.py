"""LMDB stores: what is in them, who can read them, and how they are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat

import lmdb
import numpy as np
import pytest
import torch
from synthetic import moving_scene, write_image, write_ntu_rain
from torch.utils.data import ConcatDataset, DataLoader

from csd_plugin.data.datasets.paired_video import PairedVideoDataset, PairedVideoTestDataset
from csd_plugin.data.datasets.rendered_rain import RenderedRainDataset
from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.build import build_store
from csd_plugin.data.stores.lmdb import ENCODINGS, open_file
from csd_plugin.errors import CSDError

TRAINING = {"num_frame": 5, "num_target": 3, "gt_size": 21, "scale_range": [0.6, 2.0], "random_reverse": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_ntu_rain(tmp_path_factory.mktemp("NTURain"), frames=7, suffix=".jpg")


@pytest.fixture(scope="module")
def stores(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores")
    for encoding in ENCODINGS:
        build_store(folder, out / f"{encoding}.lmdb", encoding)
    return {encoding: out / f"{encoding}.lmdb" for encoding in ENCODINGS}


def batches(dataset, **loader):
    torch.manual_seed(1)
    return list(DataLoader(dataset, batch_size=3, **loader))


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frames_are_those_of_the_folder(folder, stores, encoding):
    files, store = open_store(folder), open_store(stores[encoding])
    assert store.keys() == files.keys()
    for key in files.keys()[::5]:
        assert np.array_equal(store.read(key), files.read(key))
        assert store.shape(key) == files.shape(key) == (40, 52)
        assert np.array_equal(store.read_crop(key, 3, 5, 20, 30), files.read(key)[3:23, 5:35])


def test_what_is_stored(folder, stores):
    key = open_store(folder).keys()[0]
    stem, data = key.removesuffix(".jpg"), (folder / key).read_bytes()
    assert open_file(stores["source"]).value(stem) == data
    assert bytes(open_file(stores["png"]).value(stem)).startswith(b"\x89PNG")
    assert open_file(stores["raw"]).value(stem) == open_store(folder).read(key).tobytes()


def test_raw_crops_look_into_the_map(stores):
    store = open_store(stores["raw"])
    key = store.keys()[0]
    crop = store.read_crop(key, 3, 5, 20, 30)
    assert np.shares_memory(crop, store.read(key))
    with pytest.raises(ValueError, match="read-only"):
        crop[0] = 1


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PairedVideoDataset, TRAINING),
        (PairedVideoTestDataset, {"num_frame": 3}),
        (RenderedRainDataset, {**TRAINING, "quality": [60, 95]}),
    ],
)
def test_data_sets_take_either_and_give_the_same(folder, stores, encoding, kind, options):
    assert_same(
        batches(kind({"dataroot": str(folder), **options})),
        batches(kind({"dataroot": str(stores[encoding]), **options})),
    )


@pytest.mark.parametrize(("encoding", "context"), [("source", "fork"), ("raw", "fork"), ("raw", "spawn")])
def test_forked_and_spawned_workers(folder, stores, encoding, context):
    one = batches(PairedVideoDataset({"dataroot": folder, **TRAINING}), num_workers=1)
    dataset = PairedVideoDataset({"dataroot": stores[encoding], **TRAINING})
    dataset[0]  # the file is open when the workers start
    assert_same(one, batches(dataset, num_workers=2, multiprocessing_context=context))


def test_two_data_sets_over_one_store(folder, stores):
    def both(root, **loader):
        sets = [PairedVideoDataset({"dataroot": root, **TRAINING, "clips": [clip]}) for clip in ("t1", "t2")]
        return batches(ConcatDataset(sets), **loader)

    assert_same(both(folder), both(stores["raw"]))
    assert_same(both(folder, num_workers=2), both(stores["raw"], num_workers=2))
    linked = stores["raw"].with_name("link.lmdb")
    linked.symlink_to(stores["raw"])
    assert_same(both(folder), both(linked))


def test_pickled_stores_carry_no_frames(stores):
    for path in stores.values():
        store = open_store(path, cache_mb=1)
        keys = store.keys()
        frame = store.read(keys[0])
        data = pickle.dumps(store)
        assert len(data) < 1000
        assert np.array_equal(pickle.loads(data).read(keys[0]), frame)


def test_a_store_of_one_split(folder, tmp_path):
    build_store(folder / "Dataset_Testing_Synthetic", tmp_path / "test.lmdb")
    one = batches(PairedVideoTestDataset({"dataroot": folder / "Dataset_Testing_Synthetic", "num_frame": 1}))
    assert_same(one, batches(PairedVideoTestDataset({"dataroot": tmp_path / "test.lmdb", "num_frame": 1})))
    with pytest.raises(CSDError, match="split: test"):
        PairedVideoDataset({"dataroot": tmp_path / "test.lmdb", **TRAINING})


def test_read_only_media(stores, tmp_path):
    store = shutil.copytree(stores["raw"], tmp_path / "copy.lmdb")
    for path in (*store.iterdir(), store):
        path.chmod(stat.S_IREAD | stat.S_IEXEC)
    before = sorted(path.name for path in store.iterdir())
    assert open_store(store).read("Dataset_Testing_Synthetic/a1_GT/00001.jpg").shape == (40, 52, 3)
    assert sorted(path.name for path in store.iterdir()) == before == ["data.mdb", "meta_info.txt"]
    store.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("encoding", ["source", "png"])
def test_basicsrs_reader_opens_it(folder, stores, encoding, tmp_path):
    from csd_plugin import compat

    compat.prepare_imports()
    from basicsr.utils import FileClient, imfrombytes

    path = str(shutil.copytree(stores[encoding], tmp_path / "copy.lmdb"))  # not to be opened twice in one process
    client = FileClient("lmdb", db_paths=[path], client_keys=["lq"])
    lines = (tmp_path / "copy.lmdb" / "meta_info.txt").read_text().splitlines()
    files = open_store(folder)
    assert lines[0] == f"Dataset_Testing_RealRain/ra1_Rain/00001.jpg (40,52,3) {int(encoding == 'png')}"
    assert len(lines) == len(files.keys())
    for line in lines[::7]:
        image = imfrombytes(client.get(line.split(".")[0], "lq"))
        assert np.array_equal(image[..., ::-1], files.read(line.split(" ")[0]))


def test_sizes(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(20):
        write_image(tmp_path / "clip" / f"{i}.png", rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    report = build_store(tmp_path, tmp_path / "clip.lmdb")
    assert report.frames == report.new == 20
    assert report.source_bytes < report.store_bytes <= 1.05 * report.source_bytes


# --- refused --------------------------------------------------------------------------------------------------------


def damaged(stores, tmp_path, damage):
    store = shutil.copytree(stores["raw"], tmp_path / "damaged.lmdb")
    damage(store)
    return store


def cut_to(size):
    return lambda store: os.truncate(store / "data.mdb", size)


def pages_end(store):
    with lmdb.open(str(store), readonly=True, lock=False) as env:
        return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


def rewrite_header(data):
    def damage(store):
        with lmdb.open(str(store), max_dbs=1) as env, env.begin(write=True) as txn:
            txn.put(b"\0", data, db=env.open_db(b"csd", txn=txn))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: (store / "data.mdb").unlink(), "no data.mdb"),
        (cut_to(0), "cannot be read"),
        (cut_to(5000), "data.mdb"),
        (cut_to(100_000), "data.mdb is cut short, 100000 bytes of"),
        (lambda store: os.truncate(store / "data.mdb", pages_end(store) - 1), "data.mdb is cut short"),
        (lambda store: (store / "data.mdb").write_bytes(b"x" * 99999), "cannot be read"),
        (rewrite_header(b"{"), "damaged"),
        (rewrite_header(b"[]"), "damaged"),
        (rewrite_header(b'{"format": 2}'), "not a store of this version"),
        (rewrite_header(b'{"format": 1, "encoding": "raw"}'), "damaged"),
        (rewrite_header(b'{"format": 1, "encoding": "jp2", "within": "", "complete": true}'), "damaged"),
        (rewrite_header(b'{"format": 1, "encoding": "raw", "within": "", "complete": false}'), "incomplete"),
        (rewrite_header(b'{"format": 1, "encoding": "raw", "within": 3, "complete": true}'), "damaged"),
        (rewrite_header(b'{"format": 1, "encoding": "raw", "within": "a\\u0000", "complete": true}'), "damaged"),
        (rewrite_header(b'{"format": 1, "encoding": "raw", "within": "", "complete": 1e999}'), "damaged"),
    ],
)
def test_damaged_stores_are_refused(stores, tmp_path, damage, message):
    with pytest.raises(CSDError, match=message) as error:
        open_store(damaged(stores, tmp_path, damage))
    assert "\n" not in str(error.value) and "damaged.lmdb" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"height": -48, "width": -64},
        {"height": True},
        {"width": 0},
        {"size": -1},
        {"suffix": 3},
        {"suffix": ""},
        {"suffix": "/../x.png"},
        {"suffix": ".p\ng"},
        {"x": 1},
        {"size": 1.0},
    ],
)
def test_records_that_no_frame_has_are_refused(stores, tmp_path, change):
    def damage(store):
        with lmdb.open(str(store), max_dbs=1) as env, env.begin(write=True) as txn:
            records = env.open_db(b"csd", txn=txn)
            key, data = next((key, data) for key, data in txn.cursor(db=records) if key != b"\0")
            txn.put(key, json.dumps(json.loads(data) | change).encode(), db=records)

    with pytest.raises(CSDError, match=r"damaged\.lmdb: data\.mdb is damaged"):
        open_store(damaged(stores, tmp_path, damage)).keys()


@pytest.mark.parametrize("key", [b"clip/\xff", b"clip/1\n2", b"clip/\x1b[31m"])
def test_keys_that_no_frame_has_are_refused(stores, tmp_path, key):
    """The first would be another key, and the others would be in messages."""

    def damage(store):
        with lmdb.open(str(store), max_dbs=1) as env, env.begin(write=True) as txn:
            records = env.open_db(b"csd", txn=txn)
            data = next(data for other, data in txn.cursor(db=records) if other != b"\0")
            txn.put(key, data, db=records)

    with pytest.raises(CSDError, match=r"damaged\.lmdb: data\.mdb is damaged") as error:
        open_store(damaged(stores, tmp_path, damage)).keys()
    assert str(error.value).isprintable()


def test_a_pipe_is_no_store(tmp_path):
    """Opening it would never end."""
    (tmp_path / "x.lmdb").mkdir()
    os.mkfifo(tmp_path / "x.lmdb" / "data.mdb")
    with pytest.raises(CSDError, match=r"x\.lmdb: data\.mdb is not a file"):
        open_store(tmp_path / "x.lmdb")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_store_that_is_cut_short_while_it_is_in_use(stores, tmp_path, encoding):
    """Looking at what is missing would end the process with a bus error."""
    folder = tmp_path / "cut.lmdb"
    shutil.copytree(stores[encoding], folder)
    store = open_store(folder)
    keys = store.keys()
    before = store.read(keys[-1]).copy()
    moved = tmp_path / "moved.lmdb"
    folder.rename(moved)  # the open file stays
    assert np.array_equal(store.read(keys[-1]), before)
    os.truncate(moved / "data.mdb", 8192)
    for action in (store.read, store.shape):
        with pytest.raises(CSDError, match=r"cut\.lmdb.*data\.mdb is cut short, 8192 bytes of"):
            action(keys[0])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_store_that_is_replaced_while_it_is_in_use(stores, tmp_path, encoding):
    """Whoever has opened the first one goes on reading it; a spawned worker does not read another."""
    folder, first = tmp_path / "s.lmdb", tmp_path / "first.lmdb"
    shutil.copytree(stores[encoding], folder)
    store = open_store(folder)
    key = store.keys()[0]
    before = store.read(key).copy()
    folder.rename(first)
    shutil.copytree(stores[encoding], folder)
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read(key), before)  # a copy is as good
    os.utime(folder / "data.mdb", ns=(1, 1))
    assert np.array_equal(store.read(key), before)
    for action in ("read", "shape"):
        with pytest.raises(CSDError, match=r"s\.lmdb: another store has taken its place while it was in use"):
            getattr(pickle.loads(pickle.dumps(store)), action)(key)
    shutil.rmtree(folder)
    first.rename(folder)
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read(key), before)


@pytest.mark.skipif(not hasattr(os, "pread"), reason="needs os.pread, which Windows lacks")
def test_a_store_that_is_written_over_while_it_is_in_use(stores, folder, tmp_path):
    target, other = tmp_path / "s.lmdb", tmp_path / "other.lmdb"
    shutil.copytree(stores["source"], target)
    build_store(folder / "Dataset_Training_Synthetic", other, "raw")
    store = open_store(target)
    key = store.keys()[0]
    os.utime(target / "data.mdb", ns=(1, 1))
    store.read(key)  # nothing has changed
    data = (other / "data.mdb").read_bytes()
    with (target / "data.mdb").open("r+b") as file:  # without making it shorter first
        file.write(data + bytes(max(0, (target / "data.mdb").stat().st_size - len(data))))
    for action in (store.read, store.shape):
        with pytest.raises(CSDError, match=r"s\.lmdb: another store has taken its place while it was in use"):
            action(key)


def test_lmdbs_of_others_are_refused(tmp_path):
    with lmdb.open(str(tmp_path / "x.lmdb")) as env, env.begin(write=True) as txn:
        txn.put(b"a", b"b")
    with pytest.raises(CSDError, match=r"x\.lmdb: neither a store of `csd prepare` nor one of BasicSR"):
        open_store(tmp_path / "x.lmdb")


def test_missing_and_half_built(tmp_path):
    with pytest.raises(CSDError, match=r"x\.lmdb: no data\.mdb .*give a store"):
        open_store(tmp_path / "x.lmdb")
    (tmp_path / "x.lmdb.partial").mkdir()
    with pytest.raises(CSDError, match=r"x\.lmdb: .*incomplete: run `csd prepare` again"):
        open_store(tmp_path / "x.lmdb")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_frame_that_is_not_there(stores, encoding):
    store = open_store(stores[encoding])
    key = store.keys()[0]
    for wrong in ("clip/9.jpg", key.replace(".jpg", ".png")):
        with pytest.raises(CSDError, match=f"{wrong}: no such frame"):
            store.shape(wrong)
        with pytest.raises(CSDError, match=f"{wrong}: no such frame"):
            store.read(wrong)


@pytest.mark.parametrize("size", [6239, 6241])
def test_raw_frames_of_a_wrong_length(stores, tmp_path, size):
    key = "Dataset_Testing_Synthetic/a1_GT/00001"

    def resize(store):
        with lmdb.open(str(store), max_dbs=1) as env, env.begin(write=True) as txn:
            txn.put(key.encode(), (txn.get(key.encode()) + b"x")[:size])

    with pytest.raises(CSDError, match=f"{key}.jpg: {size} bytes are not 52x40 pixels"):
        open_store(damaged(stores, tmp_path, resize)).read(f"{key}.jpg")


@pytest.mark.parametrize("encoding", ["source", "png"])
def test_damaged_frames_are_for_the_store_to_mend(stores, tmp_path, encoding):
    key = open_store(stores[encoding]).keys()[0]
    store = shutil.copytree(stores[encoding], tmp_path / "damaged.lmdb")
    with lmdb.open(str(store)) as env, env.begin(write=True) as transaction:
        stem = key.rpartition(".")[0].encode()
        transaction.put(stem, transaction.get(stem)[:60])
    with pytest.raises(CSDError, match=rf"damaged\.lmdb: {key}: .*: remove the store, and build it again$"):
        open_store(store).read(key)


def test_folders_leave_stores_inside_alone(tmp_path, caplog):
    write_image(tmp_path / "clip" / "0.png", moving_scene(1, 24, 36, 0)[0])
    build_store(tmp_path, tmp_path / "clip.lmdb")
    assert open_store(tmp_path).keys() == ["clip/0.png"]
    assert not caplog.records
