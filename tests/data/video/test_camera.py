"""Cameras, by a file that plays one: they end when they are told to, and leave a whole file with right times."""

from __future__ import annotations

import re
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from videos import make_video, picture

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.cli import main
from csd_plugin.data.video import camera, open_reader
from csd_plugin.data.video.camera import is_camera
from csd_plugin.errors import CSDError


class Clock:
    """Ours, in seconds. A camera's frame is there when its time has come, or at once where that is over."""

    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now


class Device:
    """An open capture device: the packets of a file, its clock far from 0, with what `before` does before each."""

    def __init__(self, path: Path, before, clock: Clock) -> None:
        self._container, self._before, self._taken = av.open(str(path)), before, 0
        self._clock, self._began = clock, clock.now
        self.streams = self._container.streams
        self._packets = self._container.demux(self.streams.video[0])

    def demux(self, stream):
        for packet in self._packets:
            self._taken += 1
            if packet.pts is not None:
                self._clock.now = max(self._clock.now, self._began + float(packet.pts * packet.time_base))
                packet.pts += 10**6
            self._before(self._taken)
            yield packet

    def close(self) -> None:
        self._container.close()


@pytest.fixture
def plugged_in(tmp_path, monkeypatch):
    """Makes camera:0 play a file of eight frames, 40 ms apart with one longer pause; gives the clock."""
    source = make_video(tmp_path / "seen.mkv", codec="ffv1", times=[0, 40, 80, 200, 240, 280, 320, 360])
    clock = Clock()
    monkeypatch.setattr(camera, "_clock", clock)

    def plug(before=lambda number: None) -> Clock:
        monkeypatch.setattr(camera, "open_device", lambda path: Device(source, before, clock))
        return clock

    return plug


@pytest.fixture
def model(tmp_path) -> str:
    torch.save({"params": SLDNet(preset="student2", num_feat=3).state_dict()}, tmp_path / "net.pth")
    return str(tmp_path / "net.pth")


def begins(path: Path) -> list[Fraction]:
    with open_reader(path) as reader:
        return [reader.stamp(i)[0] * reader.time_base for i, _ in enumerate(reader)]


def test_names_of_cameras():
    assert all(is_camera(Path(name)) for name in ("camera:0", "camera:Integrated Webcam", "/dev/video12"))
    assert not any(is_camera(Path(name)) for name in ("camera", "/dev/video", "video0", "my/camera:0"))


def test_frames_with_their_times_counted_from_the_first(plugged_in):
    plugged_in()
    with open_reader("camera:0") as reader:
        frames = list(reader)
        times = [reader.stamp(i)[0] * reader.time_base for i in range(len(frames))]
        assert reader.live and reader.size == (64, 48) and reader.num_frames is None
    assert times == [Fraction(t, 1000) for t in (0, 40, 80, 200, 240, 280, 320, 360)]
    assert all(np.abs(frame - picture(i).astype(float)).mean() < 2 for i, frame in enumerate(frames))


def test_frames_that_come_too_fast_are_dropped_and_the_delay_does_not_grow(plugged_in):
    clock = plugged_in()
    with open_reader("camera:0") as reader:
        times, ages = [], []
        for index, _ in enumerate(reader):
            ages.append(reader.age(index))
            clock.now += 0.09  # what is done with it takes longer than a frame lasts
            times.append(reader.stamp(index)[0] * reader.time_base)
    # at 90 ms the frame of 40 is late, that of 80 not; that of 200 is waited for
    assert times == [Fraction(t, 1000) for t in (0, 80, 200, 280, 360)]
    assert reader.dropped == 3
    assert max(ages) <= 0.04


def test_frames_that_waited_for_the_start_are_left_out_uncounted(plugged_in):
    clock = plugged_in()
    with open_reader("camera:0") as reader:
        clock.now += 0.25  # the network is loaded
        first = next(iter(reader))
    assert np.abs(first - picture(4).astype(float)).mean() < 2
    assert reader.dropped == 0 and reader.stamp(0)[0] == 0


def test_clocks_may_drift_apart(plugged_in):
    plugged_in()
    with open_reader("camera:0") as reader:
        frames = iter(reader)
        next(frames)
        reader._behind -= 1.0  # as if the camera's clock had lost a second since
        assert len(list(frames)) >= 6  # one that was waited for puts it right


def test_the_delay_of_a_camera_is_said(plugged_in, model, tmp_path, capsys):
    plugged_in()
    assert main(["derain", "camera:0", str(tmp_path / "out.mp4"), "--model", model, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"each frame will be about \d+ ms late, as it waits for 1 later frame", said)
    assert re.search(r"delay per frame: -?\d+ ms \(median\), \d+ ms \(99 %\), none dropped", said)


@pytest.mark.parametrize(("end", "count"), [(3, 3), (Fraction("0.2"), 3), (Fraction("0.21"), 4)])
def test_an_end(plugged_in, end, count):
    plugged_in()
    with open_reader("camera:0", end=end) as reader:
        assert len(list(reader)) == count


def test_a_device_that_has_nothing_yet_is_asked_again(plugged_in):
    asked = []

    def not_yet(number: int) -> None:
        if number not in asked:
            asked.append(number)
            if number == 3:
                raise av.BlockingIOError(11, "not yet")

    plugged_in(not_yet)
    with open_reader("camera:0") as reader:
        assert len(list(reader)) in (7, 8)  # the packet that the fake lost, or not


ENDING = pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_with_a_whole_file(plugged_in, model, tmp_path, capsys, ending):
    """A terminal that is closed sends SIGHUP more than once, and service managers after another signal."""

    def twice(number: int) -> None:
        if number in (5, 6):
            signal.raise_signal(ending if number == 5 else signal.SIGHUP)

    plugged_in(twice)
    handler = signal.getsignal(ending)
    assert main(["derain", "camera:0", str(tmp_path / "out.mp4"), "--model", model, "--device", "cpu"]) == 0
    assert signal.getsignal(ending) is handler
    times = begins(tmp_path / "out.mp4")
    assert 1 <= len(times) <= 8 and f"{len(times)} frames written" in capsys.readouterr().out
    assert times == [Fraction(t, 1000) for t in (0, 40, 80, 200, 240, 280, 320, 360)][: len(times)]
    assert not list(tmp_path.glob(".*"))


@ENDING
def test_a_second_signal_interrupts_and_leaves_no_file(plugged_in, model, tmp_path, capsys, ending):
    def twice(number: int) -> None:
        if number in (3, 4):
            signal.raise_signal(ending)

    plugged_in(twice)
    status = main(["derain", "camera:0", str(tmp_path / "out.mp4"), "--model", model, "--device", "cpu"])
    assert status in (0, 128 + ending)  # 0: the first had ended it already
    assert (tmp_path / "out.mp4").exists() == (status == 0) and not list(tmp_path.glob(".*"))
    capsys.readouterr()


def test_without_a_camera_or_with_what_it_has_not_one_line(plugged_in, model, tmp_path, capsys):
    for arguments, message in (
        (("/dev/video987",), "/dev/video987: no camera there"),
        (("camera:987",), "camera:987: no camera there"),
        (("camera:0", "--start", "3"), "a camera has no earlier frames"),
        (("camera:0", "--end", "0"), "give a later --end"),
        (("camera:0", "--resume"), "cannot be read again, so --resume needs"),
    ):
        assert main(["derain", arguments[0], str(tmp_path / "o.mp4"), *arguments[1:], "--model", model]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert not (tmp_path / "o.mp4").exists()

    def unplugged(number: int) -> None:
        if number == 4:
            raise av.OSError(19, "no such device")

    plugged_in(unplugged)
    with pytest.raises(CSDError, match="camera:0: the camera stopped"), open_reader("camera:0") as reader:
        list(reader)
