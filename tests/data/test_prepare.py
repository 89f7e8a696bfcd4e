from __future__ import annotations

import errno
import os
import shutil
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from rar_files import RarEntry, need_rar_reader, rar4, rar5
from synthetic import REAL, TEST, TRAIN, moving_scene, write_image, write_ntu_rain

from csd_plugin.cli import main as csd
from csd_plugin.data import prepare as module
from csd_plugin.data import workers
from csd_plugin.data.layout import find_sequences
from csd_plugin.data.naming import PUBLISHED, by_name, by_pattern, file_name, missing_clips
from csd_plugin.data.prepare import prepare
from csd_plugin.data.stores.folder import FolderStore
from csd_plugin.errors import CSDError

CLIPS = {f"{TRAIN}/t1": ("GT", "Rain_01", "Rain_02"), f"{TEST}/a1": ("GT", "Rain"), f"{REAL}/ra1": ("Rain",)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A data set as it should come out: six clips of four frames."""
    return write_ntu_rain(tmp_path_factory.mktemp("whole"), frames=4, height=24, width=32, suffix=".jpg", clips=CLIPS)


def tree(root: Path) -> dict[str, bytes]:
    """All files, hidden ones too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def clip_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("Dataset_*/*"))


def zip_clip(folder: Path, target: Path, prefix: str = "", stray: str = "Thumbs.db") -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
        archive.writestr(prefix + stray, b"not a picture")


def rar_clip(folder: Path, target: Path, make=rar4) -> None:
    entries = [RarEntry(f"{folder.name}/{file.name}", file.read_bytes()) for file in sorted(folder.iterdir())]
    target.write_bytes(make([*entries, RarEntry(f"{folder.name}/Thumbs.db", b"not a picture")]))


def archives(whole: Path, to: Path) -> Path:
    """Every clip as an archive: ZIPs with and without a folder in them, a TAR, and an extracted folder."""
    to.mkdir()
    for i, folder in enumerate(clip_folders(whole)):
        if i == 0:
            shutil.copytree(folder, to / "extracted" / folder.name)
        elif i == 1:
            shutil.make_archive(str(to / folder.name), "gztar", folder.parent, folder.name)
        else:
            zip_clip(folder, to / f"{folder.name}.zip", f"{folder.name}/" if i % 2 else "")
    return to


def test_any_mix_becomes_one_layout(whole, tmp_path):
    source = archives(whole, tmp_path / "in")
    before = tree(source)
    result = prepare([source], tmp_path / "out", by_name())
    assert tree(tmp_path / "out") == tree(whole)
    assert tree(source) == before
    assert result.new == len(result.clips) == 6 and not result.failed
    assert "Thumbs.db (4x)" in result.notes[0]
    there = {"t1_GT", "t1_Rain_01", "t1_Rain_02"}
    assert set(result.missing["train"]) == set(PUBLISHED["train"]) - there
    assert len(result.missing["real"]) == 6 and "a1_GT" not in result.missing["test"]


def test_several_processes_give_the_same(whole, tmp_path):
    prepare([archives(whole, tmp_path / "in")], tmp_path / "out", by_name(), jobs=2)
    assert tree(tmp_path / "out") == tree(whole)


@pytest.mark.parametrize("make", [rar4, rar5])
def test_rar(whole, tmp_path, make):
    need_rar_reader()
    rar_clip(whole / REAL / "ra1_Rain", tmp_path / "ra1_Rain.rar", make)
    prepare([tmp_path / "ra1_Rain.rar"], tmp_path / "out", by_name())
    assert tree(tmp_path / "out" / REAL) == tree(whole / REAL)


def test_real_archive_gives_identical_frames(shared, tmp_path):
    need_rar_reader()
    result = prepare([shared / "data/NTURain/archives"], tmp_path, by_name())
    assert not result.failed
    assert tree(tmp_path / REAL / "ra1_Rain") == tree(shared / "data/NTURain/Dataset_Testing_RealRain/ra1_Rain")


def test_one_archive_of_everything(whole, tmp_path):
    shutil.make_archive(str(tmp_path / "NTURain"), "zip", whole)
    prepare([tmp_path / "NTURain.zip"], tmp_path / "out", by_name())
    assert tree(tmp_path / "out") == tree(whole)


def test_an_interrupted_run_is_completed(whole, tmp_path, monkeypatch):
    """Stopped at every single frame that is written, and run again: never a partial clip, and all in the end."""
    shutil.make_archive(str(tmp_path / "NTURain"), "zip", whole)
    source, out = tmp_path / "NTURain.zip", tmp_path / "out"
    written = 0
    real = module._check_header

    def stop_after(frames: int):
        def check(file, where):
            nonlocal written
            if written == frames:
                raise KeyboardInterrupt
            written += 1
            real(file, where)

        return check

    for frames in (0, 1, 5, 6, 9):
        written = 0
        monkeypatch.setattr(module, "_check_header", stop_after(frames))
        with pytest.raises(KeyboardInterrupt):
            prepare([source], out, by_name())
        for folder in clip_folders(out):
            assert tree(folder) == tree(whole / folder.relative_to(out))
    assert clip_folders(out)  # some were whole by then
    monkeypatch.setattr(module, "_check_header", real)
    (out / TRAIN / ".t1_Rain_02.part").mkdir(exist_ok=True)  # what a process that was killed leaves
    (out / TRAIN / ".t1_Rain_02.part" / "00001.jpg").write_bytes(b"half")
    assert prepare([source], out, by_name()).new < 6
    assert tree(out) == tree(whole)


def test_what_is_there_is_left_alone(whole, tmp_path):
    source, out = archives(whole, tmp_path / "in"), tmp_path / "out"
    prepare([source], out, by_name())
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare([source], out, by_name()).new == 0
    assert prepare([out], out, by_name()).new == 0
    assert prepare([source, out], out, by_name()).failed == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times

    (out / TEST / "a1_GT" / "00002.jpg").unlink()
    failed = prepare([source], out, by_name()).failed
    assert len(failed) == 1 and "a1_GT" in str(failed[0]) and "its frames are not those of" in str(failed[0])


def test_folders_are_linked_or_copied(whole, tmp_path, monkeypatch):
    prepare([whole], tmp_path / "linked", by_name())
    frame = f"{TEST}/a1_GT/00001.jpg"
    assert (tmp_path / "linked" / frame).samefile(whole / frame)

    def no_links(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    prepare([whole], tmp_path / "copied", by_name())
    assert not (tmp_path / "copied" / frame).samefile(whole / frame)
    assert tree(tmp_path / "copied") == tree(whole)


def test_one_bad_archive_does_not_stop_the_others(whole, tmp_path):
    source = archives(whole, tmp_path / "in")
    (source / "t2_GT.zip").write_bytes((source / "a1_Rain.zip").read_bytes()[:-30])
    with zipfile.ZipFile(source / "t3_GT.zip", "w") as archive:
        archive.writestr("t3_GT/../../../00001.jpg", b"x")
    with zipfile.ZipFile(source / "t4_GT.zip", "w") as archive:
        archive.writestr("t4_GT/00001.jpg", b"no picture")
    with zipfile.ZipFile(source / "all.zip", "w") as archive:
        archive.writestr("t5_GT.rar", b"Rar!")
    result = prepare([source], tmp_path / "deep" / "er" / "out", by_name())
    assert result.new == 6
    assert tree(tmp_path / "deep") == {f"er/out/{name}": data for name, data in tree(whole).items()}
    assert {path.name for path in tmp_path.iterdir()} == {"in", "deep"}
    messages = sorted(str(error).removeprefix(f"{source}/") for error in result.failed)
    for message, (name, reason) in zip(
        messages,
        [
            ("all", "holds further archives"),
            ("t2", "get it again"),
            ("t3", "leads outside"),
            ("t4", "not a readable image"),
        ],
        strict=True,
    ):
        assert message.startswith(name) and reason in message and "\n" not in message


def test_overlapping_inputs(whole, tmp_path):
    assert not prepare([whole, whole / TEST, whole / TEST / "a1_GT"], tmp_path / "out", by_name()).failed
    assert tree(tmp_path / "out") == tree(whole)


def test_the_same_clip_twice(whole, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    zip_clip(whole / TEST / "a1_GT", source / "a1_GT.zip")
    shutil.copytree(whole / TEST / "a1_GT", source / "extracted" / "a1_GT")
    result = prepare([source], tmp_path / "out", by_name())
    assert not result.failed and "found 2 times" in " ".join(result.notes)

    write_image(source / "extracted" / "a1_GT" / "00005.jpg", moving_scene(1, 24, 32, 0)[0])
    (failed,) = prepare([source], tmp_path / "other", by_name()).failed
    assert "different frames" in str(failed)
    assert not (tmp_path / "other").exists()


def test_clips_that_differ_in_case_only(whole, tmp_path):
    shutil.copytree(whole / TEST / "a1_GT", tmp_path / "in" / "one" / "a1_GT")
    shutil.copytree(whole / TEST / "a1_GT", tmp_path / "in" / "two" / "A1_GT")
    (failed,) = prepare([tmp_path / "in"], tmp_path / "out", by_name()).failed
    assert "differ only in upper and lower case" in str(failed)


@pytest.mark.parametrize("name", ["a1_Rain.7z", "a1_Rain.TAR.ZST", "a1_Rain.cab"])
def test_archives_of_kinds_that_are_not_read(whole, tmp_path, name):
    shutil.copytree(whole / TEST / "a1_GT", tmp_path / "in" / "a1_GT")
    (tmp_path / "in" / name).write_bytes(b"x")
    (failed,) = prepare([tmp_path / "in"], tmp_path / "out", by_name()).failed
    assert f"{name}: archives of this kind are not supported, only ZIP, RAR and TAR" in str(failed)
    (failed,) = prepare([tmp_path / "in" / name], tmp_path / "other", by_name()).failed
    assert name in str(failed)


def test_videos(tmp_path):
    frames = moving_scene(5, 32, 48, seed=3)
    for name in ("a1_GT", "a1_Rain"):
        with av.open(str(tmp_path / f"{name}.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
            for frame in frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    result = prepare([tmp_path], tmp_path / "out", by_name())
    assert not result.failed
    store = FolderStore(tmp_path / "out")
    (sequence,) = find_sequences(store.keys(), "test")
    assert [key.rpartition("/")[2] for key in sequence.lq] == [f"{i:05d}.png" for i in range(1, 6)]
    for key, frame in zip(sequence.lq, frames, strict=True):
        np.testing.assert_array_equal(store.read(key), frame)


def scatter(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        write_image(root / name, moving_scene(1, 16, 20, seed)[0])
    return root


@pytest.mark.parametrize(
    ("pattern", "split", "rain", "gt", "name"),
    [
        ("rain/{clip}/{frame} gt/{clip}/{frame}", None, "x/rain/s1/7.png", "x/gt/s1/7.png", "s1_Rain_01"),
        (
            "blur/{clip}/{frame} sharp/{clip}/{frame}",
            "test",
            "t/blur/000/00000007.png",
            "t/sharp/000/00000007.png",
            "000_Rain",
        ),
        ("rain/{clip}_{frame} clean/{clip}_{frame}", "train", "rain/a_b_0007.png", "clean/a_b_0007.jpg", "a_b_Rain_01"),
        ("{clip}/rain{version}/{frame} {clip}/gt/{frame}", "train", "s1/rain2/7.png", "s1/gt/7.png", "s1_Rain_02"),
        (
            "{clip}/rain-{frame}.png {clip}/norain-*-{frame}.png",
            "test",
            "s/rain-007.png",
            "s/norain-x-007.png",
            "s_Rain",
        ),
    ],
)
def test_patterns(tmp_path, pattern, split, rain, gt, name):
    source = scatter(tmp_path / "in", [rain, gt, "elsewhere/1.png"])
    result = prepare([source], tmp_path / "out", by_pattern(pattern, split))
    assert not result.failed and "1 (such as" in result.notes[0]
    (sequence,) = find_sequences(FolderStore(tmp_path / "out").keys(), split or "train")
    assert f"/{name}/" in sequence.lq[0] and "7." in sequence.lq[0]
    assert (tmp_path / "out" / sequence.lq[0]).read_bytes() == (source / rain).read_bytes()
    assert (tmp_path / "out" / sequence.gt[0]).read_bytes() == (source / gt).read_bytes()


def test_a_pattern_without_truth_is_real_rain(tmp_path):
    prepare([scatter(tmp_path / "in", ["s1/1.png"])], tmp_path / "out", by_pattern("{clip}/{frame}"))
    assert (tmp_path / "out" / REAL / "s1_Rain" / "00001.png").is_file()


@pytest.mark.parametrize(
    "pattern",
    ["", "rain/{clip}", "{frame}", "{clip}/{clip}/{frame}", "{clip}/{frmae}", "a b c", "{clip}/{frame} gt/{frame}"],
)
def test_patterns_that_say_too_little(pattern):
    with pytest.raises(CSDError, match="pattern"):
        by_pattern(pattern)


def test_splits_come_from_names():
    names = ("in/t1_GT/1.png", "in/b2_Rain/1.png", "in/RA3_rain/1.png", f"{TEST}/forest_GT/1.png", "x/forest_GT/1.png")
    assert [by_name()(name).split for name in names] == ["train", "test", "real", "test", None]
    assert by_name("train")("x/forest_GT/1.png").split == "train"
    assert by_name("train")("x/a1_Rain/1.png").split == "test"
    assert by_name()("x/ra1_Rain/ra1_Rain/sub/1.png").folder == "ra1_Rain"
    assert by_name()("x/notes/1.png") is None


def test_clips_of_unknown_split_are_named(tmp_path):
    (failed,) = prepare([scatter(tmp_path / "in", ["forest_GT/1.png"])], tmp_path / "out", by_name()).failed
    assert "forest_GT" in str(failed) and "--split" in str(failed)


@pytest.mark.parametrize("name", ["{:05d}_x2.png", "x2_{}.png", "{}_of_12.png"])
def test_the_number_that_changes_is_kept(tmp_path, name):
    source = scatter(tmp_path / "in", [f"a1_Rain/{name.format(number)}" for number in range(8, 12)])
    result = prepare([source], tmp_path / "out", by_name())
    assert not result.failed
    written = sorted(path.name for path in (tmp_path / "out").rglob("a1_Rain/*.png"))
    assert written == ["00008.png", "00009.png", "00010.png", "00011.png"]


def test_frames_keep_their_numbers(tmp_path):
    stamp = "1609459200123456789"  # nanoseconds
    assert file_name(f"cam_{stamp}", ".png") == f"{stamp}.png"
    assert [file_name(label, ".jpg") for label in ("00001", "7", "img_0012", "0000000123", "cam2_x9")] == [
        "00001.jpg",
        "00007.jpg",
        "00012.jpg",
        "0000000123.jpg",
        "00009.jpg",
    ]
    for names, words in ((["a1_GT/x1.png", "a1_GT/y1.png"], "one number"), (["a1_GT/first.png"], "has no number")):
        source = scatter(tmp_path / words, names)
        (failed,) = prepare([source], tmp_path / "out", by_name()).failed
        assert words in str(failed)


def test_nothing_to_prepare(tmp_path, whole):
    (tmp_path / "in").mkdir()
    for source in (tmp_path / "in", tmp_path / "none", scatter(tmp_path / "loose", ["walk/1.png"])):
        with pytest.raises(CSDError, match=source.name):
            prepare([source], tmp_path / "out", by_name())
    assert not (tmp_path / "out").exists()
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(CSDError, match="file"):
        prepare([whole], blocked / "out", by_name())


def test_no_room(whole, tmp_path, monkeypatch):
    source = archives(whole, tmp_path / "in")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(CSDError, match="make room"):
        prepare([source], tmp_path / "out", by_name())
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_not_the_inputs_fault(whole, tmp_path, monkeypatch, capsys):
    resource = pytest.importorskip("resource", reason="limits of a file's size")

    def no_links(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert csd(["prepare", str(whole), str(tmp_path / "out"), "--jobs", "1"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = f"csd prepare: error: {tmp_path / 'out'}: file too large; make room there, and run again\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "out").exists()


def test_without_shared_memory_there_is_one_process(whole, tmp_path, monkeypatch, capsys):
    def refused():
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(workers, "Lock", refused)
    assert csd(["prepare", str(whole), str(tmp_path / "out"), "--jobs", "2"]) == 2
    error = capsys.readouterr().err
    assert "the shared memory of this machine" in error and "cannot be used (Read-only file system)" in error
    assert error.endswith("or use --jobs 1\n") and error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert csd(["prepare", str(whole), str(tmp_path / "out"), "--jobs", "1"]) == 0
    assert csd(["prepare", str(whole), str(tmp_path / "out"), "--lmdb", "raw", "--jobs", "2"]) == 2
    assert "or use --jobs 1" in capsys.readouterr().err and list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_the_published_list():
    assert len(PUBLISHED["train"]) == 8 + 25 and len(PUBLISHED["test"]) == 16 and len(PUBLISHED["real"]) == 7
    present = [(split, name) for split, names in PUBLISHED.items() for name in names]
    assert missing_clips(present) == {}
    assert missing_clips([("train", "forest_GT")]) == {}  # another data set
    assert missing_clips(present[:-1]) == {"real": ["rb3_Rain"]}


def test_a_failure_leaves_no_empty_folders_and_is_what_is_said(tmp_path, capsys):
    archive, out = tmp_path / "a1_Rain.zip", tmp_path / "out"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("00001.png", b"no image")
    assert csd(["prepare", str(archive), str(out)]) == 2
    assert f"{archive}: 00001.png: not a readable image" in capsys.readouterr().err
    assert not out.exists()


def test_only_a_folder_is_taken_for_a_clip_that_is_there(whole, tmp_path):
    target = tmp_path / "out" / TRAIN / "t1_GT"
    target.parent.mkdir(parents=True)
    target.touch()
    result = prepare([whole], tmp_path / "out", by_name())
    [error] = result.failed
    assert str(error).startswith(f"{target}: not a folder: remove it") and result.new == 5


def test_whatever_has_the_name_of_what_is_half_written_gives_way(whole, tmp_path):
    half = tmp_path / "out" / TRAIN
    half.mkdir(parents=True)
    (half / ".t1_GT.part").touch()
    (half / ".t1_Rain_01.part").symlink_to("nowhere")
    assert prepare([whole], tmp_path / "out", by_name()).failed == []
    assert tree(tmp_path / "out") == tree(whole)
