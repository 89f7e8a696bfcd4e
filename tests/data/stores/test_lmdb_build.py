"""Building stores: resumed after any end, never complete before they are, and verified."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import warm
from PIL import Image
from synthetic import moving_scene, write_image

from csd_plugin.data.stores import build, open_store
from csd_plugin.data.stores.build import build_store
from csd_plugin.data.stores.lmdb import open_file
from csd_plugin.data.stores.verify import verify_store
from csd_plugin.errors import CSDError
from csd_plugin.locks import alone

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path):
    for clip in range(2):
        for i, frame in enumerate(moving_scene(6, 40, 52, clip)):
            write_image(tmp_path / "clips" / f"c{clip}" / f"{i}.png", frame)
    return tmp_path / "clips"


def content(store):
    """Everything in a store, read without our code."""
    with lmdb.open(str(store), readonly=True, lock=False, max_dbs=1) as env, env.begin() as txn:
        records = {key: bytes(value) for key, value in txn.cursor(db=env.open_db(b"csd", txn=txn, create=False))}
        return {key: bytes(value) for key, value in txn.cursor() if key != b"csd"}, records


# --- building -------------------------------------------------------------------------------------------------------


def test_jobs_do_not_matter(folder, tmp_path):
    for jobs in (1, 2):
        report = build_store(folder, tmp_path / f"{jobs}.lmdb", "png", jobs)
        assert (report.frames, report.new) == (12, 12)
    assert content(tmp_path / "1.lmdb") == content(tmp_path / "2.lmdb")
    assert (tmp_path / "1.lmdb" / "meta_info.txt").read_text() == (tmp_path / "2.lmdb" / "meta_info.txt").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes file names that are not UTF-8")
def test_folders_may_have_names_that_are_no_utf8_and_frames_may_not(folder, tmp_path):
    odd = folder.rename(tmp_path / os.fsdecode(b"clips\xff"))
    out = tmp_path / os.fsdecode(b"\xff.lmdb")
    assert build_store(odd, out).frames == 12
    assert verify_store(out, odd) == [] and len(open_store(out).keys()) == 12
    (odd / "c1" / "3.png").rename(odd / "c1" / os.fsdecode(b"\xff.png"))
    with pytest.raises(
        CSDError, match=r"'c1/\\udcff.png' cannot be a frame's key \(not printable, .*: rename the file"
    ):
        build_store(odd, tmp_path / "other.lmdb")


@pytest.mark.parametrize("encoding", ["source", "png", "raw"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_bits_that_are_dropped_are_said(folder, tmp_path, caplog, encoding, jobs):
    deep = np.arange(40 * 52 * 3, dtype=np.uint16).reshape(40, 52, 3) * 10
    cv2.imwrite(str(folder / "c1" / "3.png"), deep)
    build_store(folder, tmp_path / "a.lmdb", encoding, jobs)
    line = "1 of 12 frames have more than 8 bits per channel, rounded to 8 (c1/3 is the first)"
    assert (line in caplog.text) == (encoding != "source")
    frame = open_store(tmp_path / "a.lmdb").read("c1/3.png")
    assert np.array_equal(frame[..., ::-1], np.round(deep / 257).astype(np.uint8))


@pytest.mark.parametrize("encoding", ["source", "png", "raw"])
def test_what_pixels_cannot_hold_is_said(folder, tmp_path, caplog, encoding):
    picture = Image.open(folder / "c1" / "3.png")
    picture.putalpha(128)
    picture.save(folder / "c1" / "3.png")
    build_store(folder, tmp_path / "a.lmdb", encoding)
    assert ("1 of 12 frames have transparency, left out (c1/3 is the first)" in caplog.text) == (encoding != "source")


def test_the_map_grows(folder, tmp_path, monkeypatch):
    build_store(folder, tmp_path / "large.lmdb", "raw")
    monkeypatch.setattr(build, "_FIRST_MAP", 2**15)
    monkeypatch.setattr(build, "_BATCH", 2**14)
    build_store(folder, tmp_path / "small.lmdb", "raw")
    assert content(tmp_path / "small.lmdb") == content(tmp_path / "large.lmdb")


def interrupted(folder, out, monkeypatch, after, encoding="source"):
    """A build that ends after so many frames; each is a transaction of its own."""
    whole = build.encode_frame

    def encode(root, key, encoding, known):
        nonlocal after
        after -= 1
        if after < 0:
            raise KeyboardInterrupt
        return whole(root, key, encoding, known)

    with monkeypatch.context() as patch:
        patch.setattr(build, "_BATCH", 1)
        patch.setattr(build, "encode_frame", encode)
        with pytest.raises(KeyboardInterrupt):
            build_store(folder, out, encoding)
    assert not out.exists()
    with pytest.raises(CSDError, match="incomplete"):
        open_store(out)
    with pytest.raises(CSDError, match="incomplete"):
        open_store(out.with_name(f"{out.name}.partial"))


def test_a_build_goes_on_with_what_is_missing(folder, tmp_path, monkeypatch):
    out = tmp_path / "x.lmdb"
    interrupted(folder, out, monkeypatch, after=5)
    report = build_store(folder, out)
    assert (report.frames, report.new) == (12, 7)
    build_store(folder, tmp_path / "peace.lmdb")
    assert content(out) == content(tmp_path / "peace.lmdb")
    assert build_store(folder, out).new == 0
    assert sorted(path.name for path in out.iterdir()) == ["data.mdb", "meta_info.txt"]
    assert not out.with_name("x.lmdb.partial").exists()


def test_a_build_goes_on_with_files_that_changed_meanwhile(folder, tmp_path, monkeypatch):
    out = tmp_path / "x.lmdb"
    interrupted(folder, out, monkeypatch, after=5)
    write_image(folder / "c0" / "1.png", moving_scene(1, 40, 52, 7)[0])
    (folder / "c0" / "2.png").unlink()
    (folder / "c0" / "3.png").rename(folder / "c0" / "9.png")
    write_image(folder / "c0" / "4.bmp", moving_scene(1, 40, 52, 4)[0])
    (folder / "c0" / "4.png").unlink()
    build_store(folder, out)
    build_store(folder, tmp_path / "peace.lmdb")
    assert content(out) == content(tmp_path / "peace.lmdb")
    assert verify_store(out, folder) == []


def test_a_build_that_only_lacks_its_name(folder, tmp_path):
    build_store(folder, tmp_path / "x.lmdb")
    partial = (tmp_path / "x.lmdb").rename(tmp_path / "y.lmdb.partial")
    (partial / "lock.mdb").touch()
    assert build_store(folder, tmp_path / "y.lmdb").new == 0
    assert {path.name for path in (tmp_path / "y.lmdb").iterdir()} == {"data.mdb", "meta_info.txt"}
    assert verify_store(tmp_path / "y.lmdb", folder) == []


def odd_key(partial):
    edit(partial, lambda txn, records: txn.put(b"\xff", txn.get(b"c0/3", db=records), db=records))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda partial: os.truncate(partial / "data.mdb", 100), "data.mdb is damaged"),
        (lambda partial: os.truncate(partial / "data.mdb", 8192), "data.mdb is cut short, 8192 bytes of"),
        (lambda partial: (partial / "data.mdb").write_bytes(b"x" * 99999), "data.mdb is damaged"),
        (odd_key, "data.mdb is damaged"),
    ],
)
def test_a_damaged_beginning_is_not_continued(folder, tmp_path, damage, message):
    """As a copy that was broken off is one. Looking at what is missing would end the process with a bus error."""
    build_store(folder, tmp_path / "x.lmdb")
    partial = (tmp_path / "x.lmdb").rename(tmp_path / "y.lmdb.partial")
    damage(partial)
    code = (
        "import sys; from csd_plugin.data.stores.build import build_store\n"
        "try: build_store(*sys.argv[1:])\n"
        "except ValueError as error: print(error); sys.exit(2)"
    )
    run = warm.python("-c", code, folder, tmp_path / "y.lmdb", cwd=ROOT)
    assert run.returncode == 2, run.stderr
    assert f"y.lmdb.partial: {message}" in run.stdout and "remove the store, and build it again" in run.stdout
    shutil.rmtree(partial)
    assert build_store(folder, tmp_path / "y.lmdb").new == 12


def test_spoiled_values_of_a_beginning_are_written_again(folder, tmp_path, caplog):
    build_store(folder, tmp_path / "x.lmdb", "raw")
    wanted = content(tmp_path / "x.lmdb")
    partial = (tmp_path / "x.lmdb").rename(tmp_path / "y.lmdb.partial")
    edit(partial, lambda txn, records: (txn.delete(b"c0/3"), txn.put(b"c1/2", b"short")))
    assert build_store(folder, tmp_path / "y.lmdb", "raw").new == 2
    assert "2 frames have no value of the recorded size (c0/3 is the first), and are written again" in caplog.text
    assert content(tmp_path / "y.lmdb") == wanted


def test_files_of_others_in_a_partial_store_stay(folder, tmp_path):
    (tmp_path / "x.lmdb.partial" / "notes").mkdir(parents=True)
    assert build_store(folder, tmp_path / "x.lmdb").new == 12
    assert (tmp_path / "x.lmdb" / "notes").is_dir()


def test_a_store_that_another_command_has_made_meanwhile_is_compared(folder, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def after_the_other(out):
        with monkeypatch.context() as patch:
            patch.setattr(build, "alone", alone)
            build_store(folder, out, encoding)
        with alone(out):
            yield

    monkeypatch.setattr(build, "alone", after_the_other)
    encoding = "raw"
    assert build_store(folder, tmp_path / "x.lmdb", "raw").new == 0
    encoding = "png"
    with pytest.raises(CSDError, match=r"y\.lmdb: exists already, with encoding png"):
        build_store(folder, tmp_path / "y.lmdb", "raw")
    assert not (tmp_path / "y.lmdb.partial").exists()


def test_other_encodings_do_not_mix(folder, tmp_path, monkeypatch):
    out = tmp_path / "x.lmdb"
    interrupted(folder, out, monkeypatch, after=3)
    with pytest.raises(CSDError, match=r"x\.lmdb\.partial: an interrupted build of a source store"):
        build_store(folder, out, "raw")
    build_store(folder, out)
    with pytest.raises(CSDError, match=r"x\.lmdb: exists already, with encoding source"):
        build_store(folder, out, "raw")
    write_image(folder / "c9" / "0.png", moving_scene(1, 40, 52, 0)[0])
    with pytest.raises(CSDError, match=r"x\.lmdb: exists already, with other frames \(c9/0\.png and 0 more\)"):
        build_store(folder, out)


def test_a_store_of_files_that_changed_since_is_not_taken_for_theirs(folder, tmp_path):
    out = tmp_path / "x.lmdb"
    build_store(folder, out)
    before = (out / "data.mdb").read_bytes()
    for name in ("c0/3.png", "c1/0.png"):
        (folder / name).write_bytes(flip_byte((folder / name).read_bytes()))
    with pytest.raises(CSDError, match=r"x\.lmdb: exists already, and files have changed .*c0/3\.png and 1 more\)"):
        build_store(folder, out)
    assert (out / "data.mdb").read_bytes() == before


def test_one_builder_at_a_time(folder, tmp_path):
    with alone(tmp_path / "x.lmdb"), pytest.raises(CSDError, match=r"x\.lmdb: another command is writing there now"):
        build_store(folder, tmp_path / "x.lmdb")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("change", "out", "message"),
    [
        (lambda folder: (folder / "c0" / "1.jpg").write_bytes(b""), "x.lmdb", r"two files for the same frame, c0/1"),
        (lambda folder: (folder / "c1" / "3.png").write_bytes(b"x"), "x.lmdb", r"c1/3\.png: not a readable image"),
        (lambda folder: (folder / "c1" / "3.png").rename(folder / "c1" / "3\n.png"), "x.lmdb", "rename the file"),
        (lambda folder: (folder / "c1" / "3.png").rename(folder / "csd.png"), "x.lmdb", "store.: rename the file"),
        (shutil.rmtree, "x.lmdb", "clips does not exist"),
        (lambda folder: shutil.rmtree(folder) or folder.mkdir(), "x.lmdb", "no images found"),
        (lambda folder: None, "x", "name ends in .lmdb: give x.lmdb"),
        (lambda folder: folder.with_name("x.lmdb").touch(), "x.lmdb", "x.lmdb: exists already, and is not a store"),
        (lambda folder: folder.with_name("x.lmdb").symlink_to("none"), "x.lmdb", "exists already, and is not a store"),
        (lambda folder: folder.with_name("x.lmdb.partial").touch(), "x.lmdb", r"\.partial is there already"),
        (lambda folder: folder.with_name("file").touch(), "file/x.lmdb", r"cannot be written \(Not a directory\); "),
    ],
)
def test_what_cannot_be_built(folder, tmp_path, change, out, message):
    change(folder)
    with pytest.raises(CSDError, match=message) as error:
        build_store(folder, tmp_path / out)
    assert "\n" not in str(error.value)
    assert not (tmp_path / out).is_dir()


def test_keys_are_as_long_as_lmdb_takes_them(folder, tmp_path):
    for number, key in enumerate(("x" * 511, "ü" * 255)):
        out = tmp_path / f"{number}.lmdb"
        build_store(folder, out, frames={key: "c0/0.png"})
        assert open_store(out).keys() == [f"{key}.png"]
    for key in ("x" * 512, "ü" * 256):
        with pytest.raises(CSDError, match="more than 511 bytes"):
            build_store(folder, tmp_path / "long.lmdb", frames={key: "c0/0.png"})


def test_unknown_encoding(folder, tmp_path):
    with pytest.raises(CSDError, match="'jpg' is unknown: give one of source, png, raw"):
        build_store(folder, tmp_path / "x.lmdb", "jpg")


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
def test_a_full_disk_leaves_what_can_go_on(folder, tmp_path):
    """A limit on the size of files is what a full disk is to a writer, without the need for one."""
    out = tmp_path / "x.lmdb"
    code = (
        "import resource, signal, sys; from csd_plugin.data.stores.build import build_store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "try: build_store(*sys.argv[1:], 'raw')\n"
        "except ValueError as error: print(error); sys.exit(2)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, folder, out], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 2, run.stderr
    assert "x.lmdb: cannot be written (" in run.stdout and "run again" in run.stdout
    assert not out.exists() and len(open_store(folder).keys()) == 12
    assert build_store(folder, out, "raw").frames == 12
    assert verify_store(out, folder) == []


@pytest.fixture
def soak_store(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("soak_store")


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment(soak_store, folder, tmp_path, seed):
    assert soak_store.main([str(folder), "--kills", "1", "--seed", str(seed), "--work", str(tmp_path)]) == 0


def test_what_the_tool_that_kills_builds_finds_is_a_line(soak_store, folder, tmp_path, monkeypatch, capsys):
    arguments = ["--kills", "1", "--work", str(tmp_path)]
    assert soak_store.main([str(tmp_path / "none"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "none") in error and error.count("\n") == 1
    monkeypatch.setattr(soak_store, "run_build", lambda args, out, encoding, after: out.mkdir(exist_ok=True))
    monkeypatch.setattr(soak_store, "verify_store", lambda *given: ["the frame a/1.png is missing"])
    assert soak_store.main([str(folder), *arguments]) == 1
    error = capsys.readouterr().err
    assert error == "round 0: a killed build left a store that is not complete: the frame a/1.png is missing\n"


# --- verifying ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(folder, tmp_path):
    build_store(folder, tmp_path / "x.lmdb", "raw")
    return tmp_path / "x.lmdb"


def edit(store, change):
    with lmdb.open(str(store), max_dbs=1) as env:
        records = env.open_db(b"csd")
        with env.begin(write=True) as txn:
            change(txn, records)


def flip_byte(value, at=-5):
    data = bytearray(value)
    data[at] ^= 1
    return bytes(data)


IN_STORE = {
    "changed": lambda txn, records: txn.put(b"c0/3", flip_byte(txn.get(b"c0/3"))),
    "truncated": lambda txn, records: txn.put(b"c0/3", txn.get(b"c0/3")[:-1]),
    "missing": lambda txn, records: txn.delete(b"c0/3"),
    "extra": lambda txn, records: txn.put(b"c0/33", b"x"),
}


@pytest.mark.parametrize("kind", IN_STORE)
def test_verify_finds_what_is_wrong_in_the_store(store, kind):
    edit(store, IN_STORE[kind])
    (problem,) = verify_store(store)
    assert problem.kind == kind and str(problem).startswith(f"c0/3{'3' if kind == 'extra' else '.png'}: {kind}: ")


IN_FOLDER = {
    "changed": lambda folder: (folder / "c0/3.png").write_bytes(flip_byte((folder / "c0/3.png").read_bytes())),
    "cut": lambda folder: os.truncate(folder / "c0/3.png", 100),
    "extra": lambda folder: (folder / "c0/3.png").unlink(),
    "missing": lambda folder: write_image(folder / "c0/33.png", np.zeros((4, 4, 3), np.uint8)),
}


@pytest.mark.parametrize("kind", IN_FOLDER)
def test_verify_finds_what_is_wrong_in_the_folder(store, folder, kind):
    IN_FOLDER[kind](folder)
    (problem,) = verify_store(store, folder)
    assert problem.kind == {"cut": "changed"}.get(kind, kind)
    assert problem.key == ("c0/33.png" if kind == "missing" else "c0/3.png")


def test_a_file_of_another_format_is_one_frame_less_and_one_more(store, folder):
    (folder / "c0/3.png").rename(folder / "c0/3.bmp")
    problems = [(problem.key, problem.kind) for problem in verify_store(store, folder)]
    assert problems == [("c0/3.bmp", "missing"), ("c0/3.png", "extra")]


def test_verify_finds_nothing_wrong_in_a_whole_store(store, folder):
    assert verify_store(store, folder, jobs=2) == []


def test_verify_compares_the_list_of_frames(store):
    meta = store / "meta_info.txt"
    whole = meta.read_text()
    meta.write_text(whole.replace("c0/3.png (40,52,3)", "c0/3.png (52,40,3)"))
    assert [problem.key for problem in verify_store(store)] == ["meta_info.txt"] * 2
    meta.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert [problem.kind for problem in verify_store(store)] == ["changed"]
    for too_much in (whole.splitlines(keepends=True)[-1], "\n"):  # a frame twice, and one without a name
        meta.write_text(whole + too_much)
        assert [problem.key for problem in verify_store(store)] == ["meta_info.txt"]
    meta.unlink()
    assert [problem.kind for problem in verify_store(store)] == ["missing"]


def test_verify_survives_any_damage_of_the_file(store):
    rng = np.random.default_rng(0)
    whole = (store / "data.mdb").read_bytes()
    for _ in range(5):
        data = bytearray(whole)
        for at in rng.integers(len(data) // 4096, size=6):
            data[at * 4096 : at * 4096 + 64] = rng.bytes(64)
        (store / "data.mdb").write_bytes(data)
        try:
            found = verify_store(store)
        except CSDError as error:
            assert "\n" not in str(error)
        else:
            assert found


def test_checksums_are_of_the_file_and_of_what_is_stored(store, folder):
    record = open_file(store).record("c1/2")
    assert record.source == hashlib.sha256((folder / "c1/2.png").read_bytes()).hexdigest()
    assert record.value == hashlib.sha256(open_file(store).value("c1/2")).hexdigest()
