"""`csd rain` in-process on small clips."""

from __future__ import annotations

import errno
import os
import shutil
import sys

import cv2
import numpy as np
import pytest

from csd_plugin.cli import main
from csd_plugin.data import workers
from csd_plugin.data.layout import find_sequences
from csd_plugin.data.rain import pairs
from csd_plugin.data.stores.folder import FolderStore

FRAMES, HEIGHT, WIDTH = 4, 48, 64


@pytest.fixture
def clean(tmp_path):
    """Two clips: `walk` of JPEG files with the names of some camera, `street` of BMP files."""
    root = tmp_path / "clean"
    rng = np.random.default_rng(0)
    for clip, suffix in (("walk", "jpg"), ("street", "bmp")):
        (root / clip).mkdir(parents=True)
        for i in range(FRAMES):
            picture = cv2.GaussianBlur(rng.integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8), None, 4)
            cv2.imwrite(str(root / clip / f"IMG_{i + 9}.{suffix}"), picture)
    (root / "notes.txt").write_text("not a clip")
    return root


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing(capsys, *argv) -> str:
    assert main(["rain", *map(str, argv)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message
    return message


def test_a_missing_frame_is_said(clean, tmp_path, caplog):
    """Not of every second frame, or of names that are times: nothing is missing there."""
    (clean / "walk" / "IMG_10.jpg").unlink()
    for name, numbers in (("second", (2, 4, 6)), ("times", (1000, 1033, 1067, 1100))):
        (clean / name).mkdir()
        for number in numbers:
            shutil.copy(clean / "street" / "IMG_9.bmp", clean / name / f"{number}.bmp")
    assert main(["rain", str(clean), str(tmp_path / "out")]) == 0
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith("clip walk: frames are missing between IMG_9 and IMG_11; its 3 frames")


def test_training_layout(clean, tmp_path):
    out = tmp_path / "out"
    assert main(["rain", str(clean), str(out), "--variants", "2"]) == 0
    found = find_sequences(FolderStore(out).keys(), "train")
    assert [s.name for s in found] == ["street_Rain_01", "street_Rain_02", "walk_Rain_01", "walk_Rain_02"]
    assert all(len(s.lq) == len(s.gt) == FRAMES for s in found)

    root = out / "Dataset_Training_Synthetic"
    for i, source in enumerate(["IMG_9.jpg", "IMG_10.jpg", "IMG_11.jpg", "IMG_12.jpg"], 1):
        assert (root / "walk_GT" / f"{i:05d}.jpg").read_bytes() == (clean / "walk" / source).read_bytes()
    truth, rain = (cv2.imread(str(root / name)) for name in ("street_GT/00001.png", "street_Rain_01/00001.jpg"))
    np.testing.assert_array_equal(truth, cv2.imread(str(clean / "street" / "IMG_9.bmp")))
    assert rain.astype(int).mean() > truth.mean() + 0.5
    other = cv2.imread(str(root / "street_Rain_02" / "00001.jpg"))
    assert np.abs(rain.astype(int) - other).max() > 10


def test_testing_layout_with_chosen_clips_preset_and_lossless_frames(clean, tmp_path):
    out = tmp_path / "out"
    options = ["--layout", "testing", "--clips", "walk", "--preset", "heavy", "--set", "density=0", "--fixed"]
    assert main(["rain", str(clean), str(out), *options, "--format", "png", "--set", "density=0", "veil=0"]) == 0
    [sequence] = find_sequences(FolderStore(out).keys(), "test")
    assert sequence.name == "walk" and sequence.lq[0].endswith("walk_Rain/00001.png")
    store = FolderStore(out)
    np.testing.assert_array_equal(store.read(sequence.lq[2]), store.read(sequence.gt[2]))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes file names that are not UTF-8")
def test_clips_of_names_that_are_no_utf8_are_rendered(clean, tmp_path):
    (clean / "walk").rename(clean / os.fsdecode(b"w\xff"))
    assert main(["rain", str(clean), str(tmp_path / "out")]) == 0
    rain = tmp_path / "out" / "Dataset_Training_Synthetic" / os.fsdecode(b"w\xff_Rain_01")
    assert len(list(rain.iterdir())) == FRAMES


def test_same_command_same_bytes_whichever_clips_and_processes(clean, tmp_path):
    main(["rain", str(clean), str(tmp_path / "all"), "--jobs", "2", "--seed", "5"])
    main(["rain", str(clean), str(tmp_path / "one"), "--clips", "street", "--seed", "5"])
    assert (tmp_path / "all" / "Dataset_Training_Synthetic" / "walk_Rain_01").is_dir()
    everything, one = tree(tmp_path / "all"), tree(tmp_path / "one")
    assert one.items() <= everything.items()
    main(["rain", str(clean), str(tmp_path / "other"), "--clips", "street", "--seed", "6"])
    other = tree(tmp_path / "other")
    frame = "Dataset_Training_Synthetic/street_Rain_01/00001.jpg"
    assert other[frame] != one[frame]


def test_an_interrupted_run_is_completed(clean, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    main(["rain", str(clean), str(whole)])

    write = pairs._write_frame

    def interrupted(path, frame, quality, clip):
        if path.parent.name == ".walk_Rain_01.part" and path.name == "00003.jpg":
            raise KeyboardInterrupt
        write(path, frame, quality, clip)

    monkeypatch.setattr(pairs, "_write_frame", interrupted)
    assert main(["rain", str(clean), str(out)]) == 130
    split = out / "Dataset_Training_Synthetic"
    assert sorted(path.name for path in split.iterdir()) == ["street_GT", "street_Rain_01", "walk_GT"]
    (split / ".walk_Rain_01.part").mkdir()  # as a killed run leaves it
    (split / ".walk_Rain_01.part" / "00009.jpg").write_bytes(b"")

    monkeypatch.undo()
    capsys.readouterr()
    assert main(["rain", str(clean), str(out)]) == 0
    assert "1 folder written" in capsys.readouterr().out
    assert tree(out) == tree(whole)
    assert main(["rain", str(clean), str(out)]) == 0
    assert "already" in capsys.readouterr().out


def test_other_options_do_not_mix_into_a_data_set(clean, tmp_path, capsys):
    out = tmp_path / "out"
    main(["rain", str(clean), str(out), "--clips", "walk"])
    before = tree(out)
    assert "other options" in failing(capsys, clean, out, "--preset", "heavy")
    assert tree(out) == before
    assert main(["rain", str(clean), str(out), "--variants", "2"]) == 0  # more of the same


def test_one_folder_of_frames_and_a_video(clean, tmp_path):
    assert main(["rain", str(clean / "walk"), str(tmp_path / "video.mp4")]) == 0
    assert main(["rain", str(tmp_path / "video.mp4"), str(tmp_path / "out")]) == 0
    [sequence] = find_sequences(FolderStore(tmp_path / "out").keys(), "train")
    assert sequence.name == "video_Rain_01" and len(sequence.gt) == FRAMES
    assert main(["rain", str(clean / "walk"), str(tmp_path / "frames")]) == 0
    assert len(list((tmp_path / "frames").rglob("walk_Rain_01/*.jpg"))) == FRAMES


def test_contact_sheet(clean, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert main(["rain", str(clean), "--contact-sheet", str(sheet)]) == 0
    picture = cv2.imread(str(sheet))
    assert picture.shape[1] == 5 * (WIDTH + 4) and picture.shape[0] > 2 * HEIGHT


def test_contact_sheets_follow_the_seed_and_take_the_smallest_frames(clean, tmp_path, capsys):
    sheets = []
    for seed in ("0", "77"):
        assert main(["rain", str(clean), "--contact-sheet", str(tmp_path / "s.png"), "--seed", seed]) == 0
        sheets.append((tmp_path / "s.png").read_bytes())
    assert sheets[0] != sheets[1]
    (tmp_path / "dots").mkdir()
    cv2.imwrite(str(tmp_path / "dots/1.png"), np.zeros((1, 1, 3), np.uint8))
    assert main(["rain", str(tmp_path / "dots"), "--contact-sheet", str(tmp_path / "s.png")]) == 0
    assert "ends in .png" in failing(capsys, clean, "--contact-sheet", tmp_path / "s.jpg")


def test_flags_without_effect_are_refused(clean, tmp_path, capsys):
    more = ["--clips", "walk", "--variants", "3", "--quality", "3", "--jobs", "2"]
    error = failing(capsys, clean / "walk", tmp_path / "x.mp4", *more)
    assert "--clips --variants --quality --jobs: without effect, as OUT is a video" in error
    assert "--overwrite: without effect, as OUT is a folder" in failing(capsys, clean, tmp_path / "x", "--overwrite")
    assert not list(tmp_path.glob("x*"))


def test_other_clips_of_the_same_names_are_not_taken_for_done(clean, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["rain", str(clean), str(out), "--clips", "walk", "walk", "street"]) == 0
    assert main(["rain", str(clean), str(out)]) == 0
    before = tree(out)
    for clip, message in (
        ("walk", "walk_GT: its frames are not those of"),
        ("street", "street_GT: its frames are not those of"),
    ):
        other = tmp_path / f"other_{clip}"
        shutil.copytree(clean / clip, other / clip)
        first = sorted((other / clip).iterdir(), key=lambda path: len(path.name))[0]
        cv2.imwrite(str(first), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
        assert message in failing(capsys, other, out)
    (clean / "walk" / "IMG_99.jpg").write_bytes((clean / "walk" / "IMG_9.jpg").read_bytes())
    assert "walk_GT: its frames are not those of" in failing(capsys, clean, out)
    assert tree(out) == before


def test_rain_of_an_interrupted_run_is_not_paired_with_another_clip_of_the_name(clean, tmp_path, monkeypatch, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    for file in sorted((clean / "walk").iterdir()):
        other.joinpath("walk").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(other / "walk" / file.name), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    write = pairs._write_folder

    def interrupted(target, clip, variant, *rest):
        if target.name == "walk_Rain_02":
            raise KeyboardInterrupt
        write(target, clip, variant, *rest)

    monkeypatch.setattr(pairs, "_write_folder", interrupted)
    assert main(["rain", str(clean), str(out), "--clips", "walk", "--variants", "2"]) == 130
    monkeypatch.undo()
    capsys.readouterr()
    before = tree(out)
    assert "walk_GT: its frames are not those of" in failing(capsys, other, out, "--variants", "2")
    shutil.rmtree(out / "Dataset_Training_Synthetic" / "walk_GT")  # earlier versions wrote it last
    message = failing(capsys, other, out, "--variants", "2")
    assert "walk_Rain_01: its clean frames, walk_GT, are missing" in message
    assert [name for name in tree(out) if "Rain" in name] == [name for name in before if "Rain" in name]


def test_missing_empty_and_unknown(clean, tmp_path, capsys):
    assert "no such folder" in failing(capsys, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "photo.jpg").touch()
    assert "photo.jpg: neither a folder nor a video file" in failing(capsys, tmp_path / "photo.jpg", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "no images, folders of images" in failing(capsys, tmp_path / "empty", tmp_path / "out")
    assert "no clip 'wolk'" in failing(capsys, clean, tmp_path / "out", "--clips", "wolk")
    assert "did you mean heavy" in failing(capsys, clean, tmp_path / "out", "--preset", "haevy")
    assert "nothing to do" in failing(capsys, clean)
    assert "variants = 2" in failing(capsys, clean, tmp_path / "out", "--layout", "testing", "--variants", "2")
    assert "quality = 0" in failing(capsys, clean, tmp_path / "out", "--quality", "0")
    assert not (tmp_path / "out").exists()


def test_frames_that_do_not_decode_or_fit(clean, tmp_path, capsys):
    out = tmp_path / "out"
    frame = clean / "walk" / "IMG_11.jpg"
    frame.write_bytes(frame.read_bytes()[:200])
    assert "IMG_11.jpg" in failing(capsys, clean, out)
    assert not list(out.rglob("walk_Rain_01")) and not list(out.rglob("*.part"))
    cv2.imwrite(str(frame), np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8))
    message = failing(capsys, clean, out)
    assert "IMG_11.jpg" in message and "66x48" in message and "64x48" in message


def test_a_target_that_cannot_be_written(clean, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert f"{out / 'Dataset_Training_Synthetic'}: not a directory; check the path" in failing(capsys, clean, out)


def test_clips_of_one_name(clean, tmp_path, capsys):
    shutil.copytree(clean / "walk", clean / "walk" / "walk")
    assert "two clips are named walk" in failing(capsys, clean / "walk", tmp_path / "out")


def test_an_error_in_a_worker_is_one_line_too(clean, tmp_path, capsys):
    (clean / "walk" / "IMG_11.jpg").write_bytes(b"")
    assert "IMG_11.jpg" in failing(capsys, clean, tmp_path / "out", "--jobs", "2")


def test_without_shared_memory_nothing_is_made(clean, tmp_path, capsys, monkeypatch):
    def refused():
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(workers, "Lock", refused)
    out = tmp_path / "new" / "out"
    assert "or use --jobs 1" in failing(capsys, clean, out, "--jobs", "2")
    assert not out.parent.exists()


def test_rain_without_its_clean_clip_is_refused_and_nothing_is_made(clean, tmp_path, capsys):
    rain = tmp_path / "out" / "Dataset_Training_Synthetic" / "walk_Rain_01"
    shutil.copytree(clean / "walk", rain)
    before = sorted((tmp_path / "out").rglob("*"))
    assert "its clean frames, walk_GT, are missing" in failing(capsys, clean, tmp_path / "out")
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_what_is_refused_leaves_no_clean_clip_and_no_options(clean, tmp_path, capsys):
    out = tmp_path / "out"
    damaged = sorted((clean / "walk").iterdir())[-1]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:60])
    assert damaged.name in failing(capsys, clean, out, "--clips", "walk")
    assert not [path for path in out.rglob("*") if path.is_file() and path.parent.name != ".rain"]
    damaged.write_bytes(whole)
    assert main(["rain", str(clean), str(out), "--clips", "walk", "--preset", "heavy"]) == 0


def test_frames_too_wide_for_jpeg_are_one_line(tmp_path, capfd):
    write = tmp_path / "clean" / "wide" / "1.png"
    write.parent.mkdir(parents=True)
    cv2.imwrite(str(write), np.full((2, 65_501, 3), 90, np.uint8))
    command = ["rain", str(tmp_path / "clean"), str(tmp_path / "out"), "--set", "density=0"]
    assert main(command) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "clip wide, frame 00001: OpenCV cannot write a JPEG of 65501x2 pixels; give --format png" in said
    made = tmp_path / "out" / "Dataset_Training_Synthetic"
    assert [folder.name for folder in made.iterdir()] == ["wide_GT"]
    assert main([*command, "--format", "png"]) == 0
    assert cv2.imread(str(made / "wide_Rain_01" / "00001.png")).shape == (2, 65_501, 3)


def test_a_header_without_end_is_not_copied(tmp_path, capsys):
    png = bytearray(cv2.imencode(".png", np.zeros((40, 48, 3), np.uint8))[1].tobytes())
    png[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "clean" / "hu").mkdir(parents=True)
    (tmp_path / "clean" / "hu" / "000.png").write_bytes(png)
    assert "000.png" in failing(capsys, tmp_path / "clean", tmp_path / "out", "--jobs", "2")
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize("name", ["walk_GT", "walk_Rain_01"])
def test_only_a_whole_folder_is_taken_for_done(clean, tmp_path, capsys, name):
    place = tmp_path / "pairs" / "Dataset_Training_Synthetic" / name
    place.parent.mkdir(parents=True)
    for occupy, remove in ((place.touch, place.unlink), (place.mkdir, place.rmdir)):
        occupy()
        assert f"{place}: is not a folder of frames; remove it" in failing(capsys, clean, tmp_path / "pairs")
        remove()
    place.symlink_to("nowhere")
    assert f"{place}: is not a folder of frames; remove it" in failing(capsys, clean, tmp_path / "pairs")


def test_a_folder_that_has_lost_frames_is_not_taken_for_done(clean, tmp_path, capsys):
    assert main(["rain", str(clean), str(tmp_path / "pairs")]) == 0
    capsys.readouterr()
    rainy = tmp_path / "pairs" / "Dataset_Training_Synthetic" / "walk_Rain_01"
    (rainy / "00002.jpg").unlink()
    assert f"{rainy}: has {FRAMES - 1} frames, and the clip {FRAMES}; remove it" in failing(
        capsys, clean, tmp_path / "pairs"
    )


def test_whatever_has_the_name_of_what_is_half_written_gives_way(clean, tmp_path):
    split = tmp_path / "pairs" / "Dataset_Training_Synthetic"
    split.mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "picture.png").write_bytes(b"mine")
    (split / ".walk_GT.part").touch()
    (split / ".street_GT.part").symlink_to(tmp_path / "mine")
    assert main(["rain", str(clean), str(tmp_path / "pairs")]) == 0
    assert len(list((split / "street_GT").iterdir())) == FRAMES and not list(split.glob(".*"))
    assert tree(tmp_path / "mine") == {"picture.png": b"mine"}


@pytest.mark.parametrize("occupy", [lambda path: path.touch(), lambda path: path.symlink_to("nowhere")])
def test_what_has_the_place_of_the_options_is_named(clean, tmp_path, capsys, occupy):
    (tmp_path / "pairs").mkdir()
    occupy(tmp_path / "pairs" / ".rain")
    message = failing(capsys, clean, tmp_path / "pairs")
    assert f"{tmp_path / 'pairs' / '.rain'}: file exists; remove what is there" in message
