"""Videos whose run was stopped, and resumed: nothing is lost, repeated, moved or encoded otherwise."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from synthetic import write_image
from videos import SIZE, differ, make_video, packets, picture, read

from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.cli import main
from csd_plugin.cli.derain import interrupted
from csd_plugin.data.video import encode, open_reader, open_writer
from csd_plugin.data.video.unfinished import beside, find_unfinished
from csd_plugin.errors import CSDError
from csd_plugin.inference.files import Derained, derain_file
from csd_plugin.inference.runner import Derainer

COUNT = 90
TIMES = [40 * i + 7 * (i % 3) for i in range(COUNT)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Adds a little to frames, from three of them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "net_g.pth"
    torch.save({"params": HalfNet(preset="tiny", num_feat=4).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def derainer(model) -> Derainer:
    return Derainer(model, device="cpu", precision="fp32")


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    """Pictures grow brighter and darker again, without jumps."""
    monkeypatch.setattr("videos.picture", lambda number, size=SIZE: picture(0, size) + np.uint8(abs(number % 80 - 40)))


@pytest.fixture
def keep_all(monkeypatch):
    monkeypatch.setattr("csd_plugin.data.video.unfinished.WORTH_KEEPING", 1)


def stopped(source: Path, output: Path, derainer: Derainer, *, after: int, **how) -> int:
    """Interrupt a run after this many frames. Returns how many of them it has kept."""
    seen = []

    def observe(*frames):
        seen.append(frames)
        if len(seen) == after:
            raise KeyboardInterrupt

    there = output.exists()
    with pytest.raises(KeyboardInterrupt):
        derain_file(source, output, derainer, observe=observe, **how)
    assert output.exists() == there
    left = find_unfinished(output)
    return left.num_frames if left else 0


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize(
    ("name", "codec", "how"),
    [
        ("v.mp4", "libx264", {"quick": True}),
        ("v.mp4", "libx264", {}),
        ("v.mp4", "libx264", {"start": 2, "end": Fraction(82, 25), "side_by_side": True}),
        ("v.mkv", "libx265", {}),
        ("v.webm", "libvpx-vp9", {}),
        ("v.mkv", "libsvtav1", {}),
        ("v.mkv", "ffv1", {}),
    ],
)
def test_a_resumed_video_is_that_of_a_run_that_was_not_stopped(derainer, tmp_path, name, codec, how):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    sound = {"audio": 1, "sound": "libopus" if name == "v.webm" else "aac"}
    source = make_video(tmp_path / name, codec=codec, times=TIMES, **sound)
    whole, cut = tmp_path / f"whole{source.suffix}", tmp_path / f"cut{source.suffix}"
    done = derain_file(source, whole, derainer, **how)
    assert stopped(source, cut, derainer, after=60, **how) == 60  # also those that the encoder still held
    assert stopped(source, cut, derainer, after=15, **how, resume=True) == 75
    last = derain_file(source, cut, derainer, **how, resume=True)
    assert (last.num_frames, last.kept) == (done.num_frames - 75, 75)
    assert last.cuts == [cut for cut in done.cuts if cut >= 75 + how.get("start", 0)]
    (frames, begins), (resumed, begun) = read(whole), read(cut)
    assert begun == begins and len(resumed) == done.num_frames
    assert differ(frames, resumed) <= (0 if codec == "ffv1" else 2.5)
    assert packets(cut, "audio") == packets(whole, "audio")
    with av.open(str(cut)) as one, av.open(str(whole)) as other:
        assert one.duration == other.duration
    assert not beside(cut).exists()
    again = derain_file(source, cut, derainer, **how, resume=True)
    assert again == Derained(0, [])


@pytest.mark.usefixtures("keep_all")
def test_frames_after_the_kept_ones_are_cleaned_with_their_neighbours(model, tmp_path):
    """Losslessly: the windows at the place where the run was stopped hold the same frames."""
    for number in range(12):
        write_image(tmp_path / f"clip/{number:03d}.png", picture(number))
    derainer = Derainer(model, device="cpu", precision="fp32")
    source = make_video(tmp_path / "v.mkv", codec="ffv1", pix_fmt="bgr0", times=[40 * i for i in range(30)])
    for given in (source, tmp_path / "clip"):
        whole, cut = (tmp_path / f"{given.stem}_{name}.mkv" for name in ("whole", "cut"))
        derain_file(given, whole, derainer, quick=True)
        seen: list[str] = []
        kept = stopped(given, cut, derainer, after=8, quick=True)
        assert kept
        truth = {"truth": given} if given.is_dir() else {}
        note = partial(_note, seen)
        assert derain_file(given, cut, derainer, resume=True, quick=True, observe=note, **truth).kept == kept
        expected, found = read(whole)[0], read(cut)[0]
        assert differ(expected[:kept], found[:kept]) == 0
        assert differ(expected, found) <= (0 if given == source else 2.5)  # images become H.264
        with open_reader(given) as reader:
            assert seen == [reader.name(i) for i in range(kept, sum(1 for _ in reader))]


def _note(seen: list[str], name: str, *_: object) -> None:
    seen.append(name)


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"start": 1}, "its first frame was 0, now it is 1"),
        ({"quick": True}, "its encoder's options was .*, now it is .*preset=ultrafast"),
        ({"side_by_side": True}, r"its frames were \[48, 64, 3\], now they are \[48, 128, 3\]"),
    ],
)
def test_other_options_do_not_continue_a_video(derainer, tmp_path, how, words):
    source, output = make_video(tmp_path / "in.mkv", times=TIMES), tmp_path / "out.mkv"
    assert stopped(source, output, derainer, after=70, quick=False)
    before = beside(output).read_bytes()
    with pytest.raises(CSDError, match=f"out.mkv.unfinished: {words}; use the same one to resume, or remove this"):
        derain_file(source, output, derainer, resume=True, **{"quick": False} | how)
    assert beside(output).read_bytes() == before


@pytest.mark.usefixtures("keep_all")
def test_another_network_or_clip_does_not_continue_a_video(derainer, tmp_path):
    source, output = make_video(tmp_path / "in.mp4", codec="mpeg4"), tmp_path / "out.mp4"
    assert stopped(source, output, derainer, after=7, quick=True)
    torch.manual_seed(1)
    torch.save({"params": HalfNet(preset="tiny", num_feat=4).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(CSDError, match=r"out.mp4.unfinished: its network was net_g.pth .*, now it is other.pth"):
        derain_file(source, output, Derainer(tmp_path / "other.pth", device="cpu", precision="fp32"), resume=True)
    with pytest.raises(CSDError, match=r"its clip was in.mp4 .*, now it is other.mp4"):
        derain_file(make_video(tmp_path / "other.mp4", times=[0, 40]), output, derainer, resume=True)


def test_a_short_run_leaves_nothing_and_a_long_one_is_not_replaced_without_a_word(derainer, tmp_path, monkeypatch):
    source, output = make_video(tmp_path / "in.mkv", codec="ffv1", times=TIMES), tmp_path / "out.mkv"
    assert stopped(source, output, derainer, after=50) == 0
    assert not beside(output).exists()
    monkeypatch.setattr("csd_plugin.data.video.unfinished.WORTH_KEEPING", 40)
    kept = stopped(source, output, derainer, after=50)
    assert kept >= 40
    with pytest.raises(CSDError, match=f"out.mkv.unfinished has {kept} frames of a run that was stopped; --resume"):
        derain_file(source, output, derainer)
    assert stopped(source, output, derainer, after=3, resume=True) >= kept  # what was kept before is kept
    assert derain_file(source, output, derainer, overwrite=True).num_frames == COUNT
    assert not beside(output).exists()


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize("after", [6, 8])
def test_of_a_video_that_is_replaced_the_old_one_stays_until_the_end(derainer, tmp_path, after):
    source, output = make_video(tmp_path / "in.mkv", codec="ffv1"), make_video(tmp_path / "out.mkv", times=[0, 40])
    before = output.read_bytes()
    kept = stopped(source, output, derainer, after=after, overwrite=True)
    assert kept and output.read_bytes() == before
    assert derain_file(source, output, derainer, resume=True).num_frames == 8 - kept
    assert len(read(output)[0]) == 8


def test_frames_that_no_run_makes_again_are_not_kept(derainer, tmp_path):
    """Those of a caller without `made_by`, and an AVI's, which may be repeated."""
    source = make_video(tmp_path / "in.mkv", codec="ffv1", times=TIMES)
    assert stopped(source, tmp_path / "out.avi", derainer, after=80) == 0
    with open_reader(source) as reader:
        writer = open_writer(tmp_path / "out.mkv", like=reader)
        for frame in reader:
            writer.write(frame)
        writer.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def full(self, frame):
    raise OSError(28, "No space left on device")


def test_a_disk_without_room_for_the_frames_beside_a_video_does_not_end_the_run(
    derainer, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(encode.Recorder, "add", full)
    source = make_video(tmp_path / "in.mp4")
    assert derain_file(source, tmp_path / "out.mp4", derainer).num_frames == 8
    [line] = [record.getMessage() for record in caplog.records]
    assert "a stopped run will lose the frames from about 2 on, as they cannot be recorded (No space left" in line
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4"}


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize(
    ("room", "loss"), [(30, "will lose the frames from about 31 on"), (60, "will have to begin anew")]
)
def test_a_disk_too_small_for_a_video_leaves_its_frames_unless_their_room_is_enough_for_the_rest(
    derainer, tmp_path, monkeypatch, caplog, room, loss
):
    add, put = encode.Recorder.add, encode.VideoWriter._put

    def add_while_there_is_room(self, frame):
        (add if frame.number < room else full)(self, frame)

    def put_while_there_is_room(self, frame):
        if self._count > room and beside(self.path).exists():
            raise OSError(28, "No space left on device")
        put(self, frame)

    monkeypatch.setattr(encode.Recorder, "add", add_while_there_is_room)
    monkeypatch.setattr(encode.VideoWriter, "_put", put_while_there_is_room)
    source, output = make_video(tmp_path / "in.mkv", codec="ffv1", times=TIMES), tmp_path / "out.mkv"
    if room < COUNT / 2:
        with pytest.raises(OSError, match="No space"):
            derain_file(source, output, derainer)
        monkeypatch.undo()
        assert find_unfinished(output).num_frames == room
        assert derain_file(source, output, derainer, resume=True).kept == room
    else:
        derain_file(source, output, derainer)
    assert loss in caplog.text and len(read(output)[0]) == COUNT
    assert not beside(output).exists()


@pytest.mark.usefixtures("keep_all")
def test_a_part_that_is_shorter_than_what_is_kept_is_refused(derainer, tmp_path):
    source, output = make_video(tmp_path / "in.mkv", codec="ffv1"), tmp_path / "out.mkv"
    assert stopped(source, output, derainer, after=6)
    with pytest.raises(CSDError, match=r"out.mkv.unfinished has \d frames, but the part has only 3: use the same end"):
        derain_file(source, output, derainer, resume=True, end=3)
    assert find_unfinished(output) is not None and not output.exists()
    assert derain_file(source, output, derainer, resume=True).num_frames


@pytest.mark.usefixtures("keep_all")
def test_a_video_that_is_begun_anew_discards_what_another_run_has_left(derainer, tmp_path):
    """Also if its own frames are not kept: --resume would put the old ones in their place."""
    source, output = make_video(tmp_path / "in.mkv", codec="ffv1"), tmp_path / "out.mkv"
    assert stopped(source, output, derainer, after=7)
    with open_reader(source) as reader, open_writer(output, like=reader, overwrite=True) as writer:
        for frame in reader:
            writer.write(frame)
    assert not beside(output).exists()


@pytest.mark.usefixtures("keep_all")
def test_an_interruption_says_how_to_go_on_and_a_folder_of_videos_goes_on_by_itself(
    model, tmp_path, monkeypatch, capsys
):
    (tmp_path / "in").mkdir()
    for name in ("a.mkv", "b.mkv"):
        make_video(tmp_path / "in" / name, codec="ffv1")
    put, calls = encode.VideoWriter._put, iter(range(1, 100))

    def ended(self, frame):
        if next(calls) == 14:
            raise KeyboardInterrupt
        put(self, frame)

    monkeypatch.setattr(encode.VideoWriter, "_put", ended)
    folder = ["derain", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(model), "--device", "cpu"]
    assert main(folder) == 130
    assert "the same command goes on" in capsys.readouterr().err
    left = find_unfinished(tmp_path / "out/b.mkv")
    assert left is not None and left.num_frames == 5
    calls = iter(range(14, 100))
    video = ["derain", str(tmp_path / "in/b.mkv"), str(tmp_path / "alone.mkv"), *folder[3:]]
    assert main(video) == 130
    assert "interrupted; no video was written" in capsys.readouterr().err
    calls = iter(range(8, 100))
    assert main(video) == 130
    end = f"{tmp_path / 'alone.mkv'}.unfinished has 6 frames; --resume continues the run\n"
    assert capsys.readouterr().err.endswith(end)
    calls = iter(range(100, 200))
    assert main(folder) == 0
    assert "3 frames written to" in (out := capsys.readouterr().out) and "after 5 of the run before" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mkv", "b.mkv"]
    assert differ(read(tmp_path / "out/a.mkv")[0], read(tmp_path / "out/b.mkv")[0]) == 0


def test_a_folder_of_videos_begins_one_anew_of_which_few_frames_are_left(derainer, model, tmp_path, monkeypatch):
    """As the command for a single video does; another run's frames would otherwise be refused."""
    (tmp_path / "in").mkdir()
    source = make_video(tmp_path / "in/a.mkv", codec="ffv1")
    with monkeypatch.context() as patch:
        patch.setattr("csd_plugin.data.video.unfinished.WORTH_KEEPING", 1)
        assert stopped(source, tmp_path / "out/a.mkv", derainer, after=6, side_by_side=True)
    folder = ["derain", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(model), "--device", "cpu"]
    assert main(folder) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.mkv"]


def test_an_interruption_beside_something_else_is_an_interruption(tmp_path):
    beside(tmp_path / "out.mp4").mkdir()
    args = argparse.Namespace(source=tmp_path / "in.mp4", output=tmp_path / "out.mp4")
    assert interrupted(args) == "no video was written"


def test_a_killed_run_is_resumed_by_the_command_that_the_error_names(model, tmp_path, monkeypatch, capsys):
    source = make_video(tmp_path / "in.mkv", codec="ffv1", times=[40 * i for i in range(1200)])
    command = ["derain", str(source), str(tmp_path / "out.mkv"), "--model", str(model), "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "csd_plugin", *command], stdout=subprocess.DEVNULL)
    while process.poll() is None and not ((left := find_unfinished(tmp_path / "out.mkv")) and left.num_frames > 120):
        time.sleep(0.02)  # leave the processor to the run that is watched
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = find_unfinished(tmp_path / "out.mkv")
    assert left is not None and 100 < left.num_frames < 1200
    assert main(command) == 2
    assert f"out.mkv.unfinished has {left.num_frames:,} frames" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    out = capsys.readouterr().out
    new = 1200 - left.num_frames
    assert f"{new} frames written to {tmp_path / 'out.mkv'}, after {left.num_frames:,} of the run before" in out
    assert f" in all, after {left.num_frames:,} frames of the run before" in out
    assert read(tmp_path / "out.mkv")[1] == read(source)[1]
    assert {path.suffix for path in tmp_path.iterdir()} == {".mkv"}
    monkeypatch.setattr("csd_plugin.inference.runner.Derainer", None)  # no network is needed to see that
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().out == f"0 frames written to {tmp_path / 'out.mkv'}: all are there already\n"
