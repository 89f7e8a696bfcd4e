"""Live frames of a camera, through FFmpeg's capture devices."""

from __future__ import annotations

import re
import sys
import time
from array import array
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from csd_plugin.data.video.colours import to_rgb
from csd_plugin.data.video.interface import FrameReader, Position
from csd_plugin.errors import CSDError

_DEVICES = {
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}"),
    "win32": ("dshow", "video={}"),
}
"""FFmpeg's capture device on each system, and how it names a camera; on Windows cameras have names only."""
_WAIT = 0.005
_clock = time.monotonic
_TICK = Fraction(1, 90_000)


def is_camera(path: Path) -> bool:
    """Whether a path means a camera: camera:0, camera:1, .., camera:NAME (on Windows), or /dev/video0."""
    return re.fullmatch(r"camera:.+|/dev/video\d+", path.as_posix()) is not None


class CameraReader(FrameReader):
    """A camera's frames until `stop` is called, or `end` is reached.

    Time counts from the first frame. If frames arrive faster than they are taken, those that have waited for longer
    than a frame's duration are dropped, so that the delay does not grow; the stamps of the others are the times at
    which they were seen.

    Attributes:
        dropped: the number of frames dropped so far.

    Raises CSDError if no camera answers, and for a `start`, which a camera does not have.
    """

    live = True

    def __init__(self, path: Path, *, start: Position, end: Position | None) -> None:
        super().__init__(path)
        if start:
            raise CSDError(f"{path}: a camera has no earlier frames; leave out --start")
        if end is not None and end <= 0:
            raise CSDError(f"{path}: no frames before {end}; give a later --end")
        self._end = end
        self._stopped, self.dropped, self._waited = False, 0, 0.0
        self._container = open_device(path)
        self._stream = self._container.streams.video[0]
        self.fps = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.time_base = _TICK
        self.num_frames = end if isinstance(end, int) else None
        self.first = 0
        self._starts, self._came = array("q"), array("d")
        self._frames = self._decoded()
        try:
            first = next(self._frames, None)
            if first is None:
                raise CSDError(f"{path}: the camera gives no frames; does another program use it?")
        except BaseException:
            self._container.close()
            raise
        self._first = first
        self._behind = _clock() - float(_seen(first))
        self.size = (first.width, first.height)

    def _read(self) -> Iterator[np.ndarray]:
        began: Fraction | None = None
        for frame in self._in_time(chain([self._first], self._frames)):
            if self._stopped:
                return
            seen = _seen(frame)
            began = seen if began is None else began
            seconds = seen - began
            if self._end is not None and (
                len(self._starts) >= self._end if isinstance(self._end, int) else seconds >= self._end
            ):
                return
            begin = round(seconds / _TICK)
            self._starts.append(max(begin, self._starts[-1] + 1) if self._starts else begin)
            self._came.append(float(seen) + self._behind)
            yield to_rgb(frame)

    def stop(self) -> None:
        """End the clip with the frame that is being read."""
        self._stopped = True

    def in_part(self, index: int) -> bool:
        return True

    def stamp(self, index: int) -> tuple[int, int]:
        if index >= len(self._starts):
            raise self.no_such(index)
        return self._starts[index], max(1, round(1 / (self.fps * _TICK)))

    def age(self, index: int) -> float:
        return _clock() - self._came[index]

    def name(self, index: int) -> str:
        return f"{index + 1:05d}"

    def _let_go(self) -> None:
        self._container.close()

    def _in_time(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """The frames without late ones, by the camera's clock compared with ours."""
        lasts = float(1 / self.fps)
        for frame in frames:
            behind = _clock() - float(_seen(frame))
            # A frame that we had to wait for is not late; the two clocks may drift apart.
            if behind < self._behind or (self._waited > lasts / 2 and frame is not self._first):
                self._behind = behind
            if behind <= self._behind + lasts:
                yield frame
            elif self._starts:  # frames before the first only waited for the network to be ready
                self.dropped += 1

    def _decoded(self) -> Iterator[av.VideoFrame]:
        demuxer = self._container.demux(self._stream)
        asked = _clock()
        while not self._stopped:
            try:
                packet = next(demuxer, None)
                if packet is None:
                    return
                self._waited = _clock() - asked
                yield from packet.decode()
                asked = _clock()
            except av.BlockingIOError:  # the next frame has not arrived yet
                time.sleep(_WAIT)
                demuxer = self._container.demux(self._stream)
            except av.InvalidDataError:  # the first packets of a stream may be cut
                continue
            except (av.FFmpegError, OSError) as error:
                raise CSDError(f"{self.path}: the camera stopped ({error.strerror or error})") from error


def _seen(frame: av.VideoFrame) -> Fraction:
    """The time at which the frame was seen, in seconds of the camera's clock."""
    return Fraction(frame.pts or 0) * (frame.time_base or _TICK)


def open_device(path: Path) -> Any:
    """The opened capture device of a path, see `is_camera`. Raises CSDError if there is none."""
    kind, pattern = _DEVICES.get(sys.platform, _DEVICES["linux"])
    name = path.as_posix().removeprefix("camera:")
    try:
        return av.open(name if name.startswith("/dev/") else pattern.format(name), format=kind)
    except ValueError as error:
        raise CSDError(f"{path}: this PyAV was built without {kind}, which cameras need on this system") from error
    except (av.FFmpegError, OSError) as error:
        raise CSDError(
            f"{path}: no camera there ({error.strerror or error}); give camera:0, camera:1, .. or the device's name"
        ) from error
