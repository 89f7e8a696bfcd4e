"""Whole jobs, from file to file: every frame once, sound in step, memory bounded, and a line that says how it goes."""

from __future__ import annotations

import io
import threading
from fractions import Fraction
from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
import torch
from synthetic import write_image
from videos import make_video, packets, picture, read

from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.data.video import open_reader
from csd_plugin.inference import files
from csd_plugin.inference.facts import study
from csd_plugin.inference.files import derain_file, paired, progress, sample_windows
from csd_plugin.inference.runner import Derainer

COUNT = 150


@pytest.fixture
def derainer() -> Derainer:
    """Leaves frames nearly as they are."""
    torch.manual_seed(0)
    return Derainer(HalfNet(preset="tiny", num_feat=4).eval(), device="cpu")


def numbered(number: int, size: tuple[int, int]) -> np.ndarray:
    """A grey picture whose level says its number, modulo 40."""
    return np.full_like(picture(0, size), 40 + 5 * (number % 40))


def test_a_long_video_loses_and_repeats_no_frame_and_its_sound_stays_in_step(derainer, tmp_path, monkeypatch):
    monkeypatch.setattr("videos.picture", numbered)
    times = [40 * i for i in range(COUNT)]
    source = make_video(tmp_path / "in.mp4", times=times, audio=1)
    done = derain_file(source, tmp_path / "out.mp4", derainer)
    assert done.num_frames == COUNT and not done.delay
    (before, began), (frames, begins) = read(source), read(tmp_path / "out.mp4")
    assert begins == began
    levels = [round((float(frame.mean()) - 40) / 5) for frame in frames]
    assert levels == [round((float(frame.mean()) - 40) / 5) for frame in before] == [i % 40 for i in range(COUNT)]
    (sound,), (copied,) = packets(source, "audio"), packets(tmp_path / "out.mp4", "audio")
    assert (
        copied == sound[: len(copied)] and len(copied) >= COUNT * 0.04 * 48000 / 1024
    )  # the pictures end a little earlier
    assert times_of_sound(tmp_path / "out.mp4") == times_of_sound(source)[: len(copied)]


def times_of_sound(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [round(float(p.pts * p.time_base), 5) for p in container.demux(stream) if p.size]


@pytest.mark.parametrize(("start", "end"), [(np.int64(2), np.int64(6)), (0.08, Fraction(6, 25))])
def test_a_part_is_given_by_numbers_of_any_kind_also_to_be_resumed(start, end, derainer, tmp_path):
    source = make_video(tmp_path / "in.mp4")
    seen = []
    parts = {"start": start, "end": end, "truth": source}
    derain_file(source, tmp_path / "out", derainer, **parts, observe=lambda *frames: seen.append(frames))
    assert len(seen) == 4 and all(np.array_equal(rainy, true) for _, rainy, _, true in seen)
    names = [f"{number:05d}.png" for number in (3, 4, 5, 6)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    (tmp_path / "out" / names[-1]).unlink()
    assert derain_file(source, tmp_path / "out", derainer, start=start, end=end, resume=True).num_frames == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


@pytest.mark.parametrize("start", [0, 2])
def test_shots_begin_where_they_do_in_the_clip_whatever_part_is_derained(derainer, tmp_path, start):
    for number in range(12):
        color = (200, 60, 20) if number < 6 else (20, 90, 220)
        write_image(tmp_path / "clip" / f"{number:03d}.png", np.full((24, 32, 3), color, np.uint8))
    done = derain_file(tmp_path / "clip", tmp_path / "out", derainer, start=start)
    assert done.num_frames == 12 - start and done.cuts == [6]


def test_sampled_windows_are_from_all_parts_of_the_clip_and_of_the_middle_of_its_frames(tmp_path):
    place = np.arange(20)[:, None] * 4 + np.arange(30)[None]  # row and column
    for number in range(40):
        frame = np.stack([np.full((20, 30), number), place, place], axis=2).astype(np.uint8)
        write_image(tmp_path / "clip" / f"{number:03d}.png", frame)
    facts = study(HalfNet(preset="tiny", num_feat=4))
    windows = sample_windows(tmp_path / "clip", facts, count=4, size=8)
    found = [[255 * frame[0, 0, 0].item() for frame in window[0]] for window in windows]
    assert [np.round(numbers).tolist() for numbers in found] == [[1, 0, 1], [9, 10, 11], [19, 20, 21], [29, 30, 31]]
    for window in windows:
        assert window.shape == (1, 3, 3, 8, 8) and window.dtype == torch.float32
        assert np.array_equal((255 * window[0, 0, 1]).round().int().numpy(), place[6:14, 11:19])


def test_no_more_frames_are_under_way_than_there_is_room_for(derainer):
    alive, most, lock = [0], [0], threading.Lock()

    def frames():
        for number in range(60):
            with lock:
                alive[0] += 1
                most[0] = max(most[0], alive[0])
            yield numbered(number, (32, 24))

    for depth in (1, 4):
        most[0] = alive[0] = 0
        for _ in paired(frames(), derainer, depth):
            with lock:
                alive[0] -= 1
        # those read ahead, one in hand, the window's future, those that are cleaned, and those that wait to be taken
        assert most[0] <= 2 * depth + derainer.at_once + derainer.num_future + 3


def test_an_error_in_one_frame_ends_the_job_and_leaves_no_file(derainer, tmp_path):
    source = make_video(tmp_path / "in.mp4")
    calls = iter(range(100))
    clean = derainer._blocks.clean

    def fails(*arguments):
        if next(calls) == 3:
            raise RuntimeError("broken")
        return clean(*arguments)

    with mock.patch.object(derainer._blocks, "clean", fails), pytest.raises(RuntimeError, match="broken"):
        derain_file(source, tmp_path / "out.mp4", derainer)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_the_bar_shows_frames_per_second_and_the_time_left(tmp_path):
    source = make_video(tmp_path / "in.mp4")
    with open_reader(source) as reader:
        for total, expected in (
            (8, "4/8 frames,  2.00 frames/s, 00:02 left"),
            (None, "4 frames in 00:02,  2.00 frames/s"),
        ):
            reader.num_frames, out, now = total, io.StringIO(), [100.0]
            with mock.patch.object(files, "tqdm", _tqdm_on(out, now)):
                bar = progress(reader)
            now[0] += 2
            bar.update(4)
            bar.refresh()
            bar.close()
            assert expected in out.getvalue() and "in.mp4" in out.getvalue()


def _tqdm_on(out: io.StringIO, now: list[float]):
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, **options) -> None:
            super().__init__(**options | {"disable": False, "file": out, "smoothing": 0, "ncols": 120})
            self._time = lambda: now[0]
            self.start_t = self.last_print_t = now[0]

    return Bar


@pytest.mark.parametrize(
    ("network", "quick", "hurries"),
    [("half", None, True), ("half", False, False), ("sld", None, False), ("sld", True, True)],
)
def test_videos_are_encoded_quickly_where_the_network_is_quick(network, quick, hurries, derainer, tmp_path):
    if network == "sld":
        derainer = Derainer(SLDNet(preset="student2", num_feat=3), device="cpu")
    source = make_video(tmp_path / "in.mp4", size=(160, 120))
    derain_file(source, tmp_path / "out.mp4", derainer, quick=quick)
    # x264 writes its settings into the stream
    settings = (tmp_path / "out.mp4").read_bytes()
    assert b"crf=16.0" in settings
    assert (b"subme=0 " in settings) == hurries
    assert (b"subme=7 " in settings) == (not hurries)
