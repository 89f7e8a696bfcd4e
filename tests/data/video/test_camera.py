"""Cameras, by a file that plays one: they end when they are told to, and leave a whole file with right times."""

from __future__ import annotations

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


class Device:
    """An open capture device: the packets of a file, its clock far from 0, with what `before` does before each."""

    def __init__(self, path: Path, before) -> None:
        self._container, self._before, self._taken = av.open(str(path)), before, 0
        self.streams = self._container.streams
        self._packets = self._container.demux(self.streams.video[0])

    def demux(self, stream):
        for packet in self._packets:
            self._taken += 1
            if packet.pts is not None:
                packet.pts += 10**6
            self._before(self._taken)
            yield packet

    def close(self) -> None:
        self._container.close()


@pytest.fixture
def plugged_in(tmp_path, monkeypatch):
    """Makes camera:0 play a file of eight frames, 40 ms apart with one longer pause."""
    source = make_video(
        tmp_path / "seen.mp4", times=[0, 40, 80, 200, 240, 280, 320, 360], options={"movflags": "faststart"}
    )

    def plug(before=lambda number: None) -> None:
        monkeypatch.setattr(camera, "open_device", lambda path: Device(source, before))

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


def test_ctrl_c_ends_with_a_whole_file(plugged_in, model, tmp_path, capsys):
    plugged_in(lambda number: signal.raise_signal(signal.SIGINT) if number == 5 else None)
    handler = signal.getsignal(signal.SIGINT)
    assert main(["derain", "camera:0", str(tmp_path / "out.mp4"), "--model", model, "--device", "cpu"]) == 0
    assert signal.getsignal(signal.SIGINT) is handler
    times = begins(tmp_path / "out.mp4")
    assert 1 <= len(times) <= 8 and f"{len(times)} frames written" in capsys.readouterr().out
    assert times == [Fraction(t, 1000) for t in (0, 40, 80, 200, 240, 280, 320, 360)][: len(times)]
    assert not list(tmp_path.glob(".*"))


def test_a_second_ctrl_c_interrupts_and_leaves_no_file(plugged_in, model, tmp_path, capsys):
    def twice(number: int) -> None:
        if number in (3, 4):
            signal.raise_signal(signal.SIGINT)

    plugged_in(twice)
    status = main(["derain", "camera:0", str(tmp_path / "out.mp4"), "--model", model, "--device", "cpu"])
    assert status in (0, 130)  # 0: the first had ended it already
    assert (tmp_path / "out.mp4").exists() == (status == 0) and not list(tmp_path.glob(".*"))
    capsys.readouterr()


def test_without_a_camera_or_with_what_it_has_not_one_line(plugged_in, model, tmp_path, capsys):
    for arguments, message in (
        (("/dev/video987",), "/dev/video987: no camera there"),
        (("camera:987",), "camera:987: no camera there"),
        (("camera:0", "--start", "3"), "a camera's frames begin now"),
        (("camera:0", "--end", "0"), "give a later --end"),
        (("camera:0", "--resume"), "frames that come once cannot be resumed"),
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
