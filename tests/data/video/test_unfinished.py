"""The file with the frames of an unfinished video: what is whole counts, whatever happened to its end."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from csd_plugin.data.video import open_writer
from csd_plugin.data.video import unfinished as module
from csd_plugin.data.video.unfinished import EncodedFrame, Recorder, beside, discard, find_unfinished, worth_resuming
from csd_plugin.errors import CSDError

SETTINGS = {"shape": [48, 64, 3], "first frame": 0}


def frames_in(order: list[int]) -> list[EncodedFrame]:
    """In the order of decoding, with data of any length, also none."""
    rng = np.random.default_rng(0)
    return [EncodedFrame(n, None if n == 2 else i - 2, n == 0, rng.bytes(37 * n)) for i, n in enumerate(order)]


def record(video: Path, frames: list[EncodedFrame], **how) -> None:
    recorder = Recorder(video, SETTINGS, **how)
    for frame in frames:
        recorder.add(frame)
    recorder.stop()


@pytest.fixture(autouse=True)
def keep_all(monkeypatch):
    monkeypatch.setattr(module, "WORTH_KEEPING", 0)


@pytest.mark.parametrize(
    ("order", "count"),
    [
        ([1], 0),
        ([0, 1, 2, 3], 4),
        ([0, 3, 1, 2], 4),
        ([0, 3, 1], 1),
        ([0, 3, 1, 2, 6, 4], 4),
        ([0, 2, 1, 5, 3, 4, 8], 6),
    ],
)
def test_frames_count_up_to_where_none_is_missing(tmp_path, order, count):
    video, frames = tmp_path / "v.mp4", frames_in(order)
    record(video, frames)
    left = find_unfinished(video)
    assert left is not None and left.settings == SETTINGS and left.num_frames == count
    assert list(left.frames()) == frames[:count]


def test_any_end_may_be_missing(tmp_path):
    """Whatever byte a file ends at, as after a power failure, the whole frames before it count."""
    video, frames = tmp_path / "v.mp4", frames_in([0, 3, 1, 2, 4])
    record(video, frames)
    content = beside(video).read_bytes()
    ends, begin = [], content.index(b"\n", content.index(b"\n") + 1) + 1
    for frame in frames:
        begin += len(frame.head()) + len(frame.data)
        ends.append(begin)
    assert ends[-1] == len(content)
    for size in range(len(content) + 1):
        beside(video).write_bytes(content[:size])
        left = find_unfinished(video)
        if size < ends[0] - len(frames[0].head()):
            assert left is None
            continue
        assert left is not None
        assert left.num_frames == (5 if size >= ends[4] else 4 if size >= ends[3] else 1 if size >= ends[0] else 0)
        assert list(left.frames()) == frames[: left.num_frames]


def test_the_last_room_on_a_disk_is_left_to_the_video(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    free = iter([2**26, 2**26, 2**24])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=next(free)))
    recorder, frames = Recorder(tmp_path / "v.mp4", SETTINGS), frames_in([0, 1, 2, 3, 4])
    for frame in frames[:4]:
        recorder.add(frame)
    with pytest.raises(OSError, match="No space left"):
        recorder.add(frames[4])
    recorder.stop()
    assert find_unfinished(tmp_path / "v.mp4").num_frames == 4


@pytest.mark.parametrize("place", [-1, -40, -200])
def test_a_frame_that_is_damaged_does_not_count_nor_do_those_after_it(tmp_path, place):
    video, frames = tmp_path / "v.mp4", frames_in([0, 1, 2, 3, 4])
    record(video, frames)
    content = bytearray(beside(video).read_bytes())
    content[place] ^= 4
    beside(video).write_bytes(content)
    left = find_unfinished(video)
    assert left is not None and left.num_frames == (3 if place == -200 else 4)


def test_another_run_goes_on_after_the_frames_that_count(tmp_path):
    video, frames = tmp_path / "v.mp4", frames_in([0, 3, 1, 2, 6, 4])
    record(video, frames)
    record(video, frames_in([0, 1, 2, 3, 5, 4])[4:], after=find_unfinished(video))
    left = find_unfinished(video)
    assert left is not None and [frame.number for frame in left.frames()] == [0, 3, 1, 2, 5, 4]


def test_what_is_not_worth_keeping_is_removed_unless_it_was_there_before(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH_KEEPING", 4)
    video = tmp_path / "v.mp4"
    record(video, frames_in([0, 1, 2, 4]))
    assert find_unfinished(video) is None and not list(tmp_path.iterdir())
    record(video, frames_in([0, 1, 2, 3]))
    record(video, [], after=find_unfinished(video))
    assert find_unfinished(video).num_frames == 4


def test_few_frames_that_took_long_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH_KEEPING", 100)
    now = [5.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    video = tmp_path / "v.mp4"
    for seconds, count in ((9.9, 0), (10.1, 3)):
        recorder = Recorder(video, SETTINGS)
        for frame in frames_in([0, 1, 2]):
            recorder.add(frame)
        now[0] += seconds
        recorder.stop()
        left = find_unfinished(video)
        assert (left.num_frames if left else 0) == count


def test_what_a_killed_run_has_left_counts_by_how_long_it_took(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH_KEEPING", 100)
    video, now = tmp_path / "v.mp4", module.time.time()
    recorder = Recorder(video, SETTINGS)
    for frame in frames_in([0, 1, 2]):
        recorder.add(frame)
    recorder._file.flush()  # as the system does with what a killed process has written
    for seconds, worth in ((9, False), (11, True)):
        os.utime(beside(video), (now, now + seconds))
        assert bool(worth_resuming(video)) == worth


@pytest.mark.parametrize(
    "content",
    [b"my notes", b"csd-plugin of mine", b"c\n", module._SIGN + b"[1]\n", module._SIGN + b"{]\n", module._SIGN * 2],
)
def test_a_file_that_is_something_else_is_told(tmp_path, content):
    beside(tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(CSDError, match=r"v.mp4.unfinished is no unfinished video of this program: move it away"):
        find_unfinished(tmp_path / "v.mp4")
    assert beside(tmp_path / "v.mp4").read_bytes() == content


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "link"])
def test_what_is_something_else_is_never_replaced(tmp_path, kind):
    video, place, notes = tmp_path / "v.mp4", beside(tmp_path / "v.mp4"), tmp_path / "notes"
    notes.write_text("mine")
    make = {"file": lambda: notes.rename(place), "folder": place.mkdir, "pipe": lambda: os.mkfifo(place)}
    make.get(kind, lambda: place.symlink_to(notes))()
    for action in (
        lambda: find_unfinished(video),
        lambda: discard(video),
        lambda: Recorder(video, SETTINGS),
        lambda: open_writer(video, fps=25, overwrite=True),
    ):
        with pytest.raises(CSDError, match=r"v.mp4.unfinished is no unfinished video of this program: move it away"):
            action()
    assert os.path.lexists(place)
    assert (place if kind == "file" else notes).read_text() == "mine"


def test_a_link_is_replaced_but_not_its_target(tmp_path):
    record(tmp_path / "other.mp4", frames_in([0, 1]))
    for target in (beside(tmp_path / "other.mp4"), tmp_path / "nothing"):
        beside(tmp_path / "v.mp4").symlink_to(target)
        record(tmp_path / "v.mp4", frames_in([0, 1, 2]))
        assert find_unfinished(tmp_path / "v.mp4").num_frames == 3
        beside(tmp_path / "v.mp4").unlink()
    assert find_unfinished(tmp_path / "other.mp4").num_frames == 2 and not (tmp_path / "nothing").exists()


def test_a_video_may_have_the_longest_name(tmp_path):
    for name in (f"{245 * 'v'}.mp4", f"{251 * 'v'}.mp4", f"{250 * 'v'}w.mp4", f"{83 * '日'}v.mkv"):
        record(tmp_path / name, frames_in([0, 1]))
        assert find_unfinished(tmp_path / name).num_frames == 2
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_that_may_not_be_continued_is_named(tmp_path, monkeypatch):
    record(tmp_path / "v.mp4", frames_in([0, 1]))
    left = find_unfinished(tmp_path / "v.mp4")

    def refused(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(CSDError, match=r"v.mp4.unfinished: cannot be written \(Permission denied\)"):
        Recorder(tmp_path / "v.mp4", SETTINGS, left)
    with pytest.raises(CSDError, match=r"v.mp4.unfinished cannot be read \(Permission denied\)"):
        find_unfinished(tmp_path / "v.mp4")
