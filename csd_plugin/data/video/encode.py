"""Encodes video files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from array import array
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from csd_plugin.atomic import draft_of
from csd_plugin.data.video.clock import Clock
from csd_plugin.data.video.colours import BT709, Colours, from_rgb
from csd_plugin.data.video.decode import open_input
from csd_plugin.data.video.encoders import Setup, choose
from csd_plugin.data.video.interface import FrameWriter, Look, Order, SourceFormat
from csd_plugin.data.video.origin import Origin, differs
from csd_plugin.data.video.tracks import Tracks, picture_tags
from csd_plugin.data.video.unfinished import EncodedFrame, Recorder, Unfinished, discard, find_unfinished
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)

_CONSTANT = ("avi",)
"""Containers that only have a constant rate, with pictures in display order."""
_HIGHEST_RATE = Fraction(240)
_MOST_REORDERED = 64
_FORMATS = {".m4v": "mp4"}
"""Suffixes of which FFmpeg chooses an unsuitable container: its own .m4v leaves out much of what MP4 can hold."""

_CONTAINER_OPTIONS = {".avi": {"avoid_negative_ts": "disabled"}}
"""Sound that begins before 0, as AAC's does, would shift AVI's pictures by half a frame."""


class VideoWriter(FrameWriter):
    """Encodes to a temporary file next to the output, which gets the output's name when everything is written.

    The encoder is set up when the first frame gives the size, which may differ from `like`'s. It only counts
    frames; the container gets their times, so these are as exact as the container allows, whatever rates the encoder
    supports.

    Args:
        like: the frames' times, and what else the video takes over.
        replace: at the end, replace an existing file.
        quick: encode faster, into a larger file, see `encoders.QUICK_OPTIONS`.
        made_by: the origins of the frames, by kind, if another run can make the same frames. If this one is stopped,
            what it has encoded then remains, see `unfinished`; not of AVI, whose frames may be repeated.
    """

    def __init__(
        self,
        path: Path,
        *,
        like: Order,
        replace: bool = True,
        quick: bool = False,
        made_by: Mapping[str, Origin] | None = None,
    ) -> None:
        super().__init__(path)
        self._like, self._replace, self._quick = like, replace, quick
        self._made_by = dict(made_by or {})
        self._before: Unfinished | None = None
        self._kept: Generator[EncodedFrame, None, None] | None = None
        self._recorder: Recorder | None = None
        self._has_room = True
        self._draft = draft_of(path)
        self._container: av.container.OutputContainer | None = None
        self._setup: Setup
        self._tracks: Tracks | None = None
        self._tick: Fraction
        self._last: av.VideoFrame | None = None
        self._begins = array("q")
        self._end = 0
        self._held: deque[av.Packet] = deque()
        self._decoded: int | None = None
        self._first_decoded: int | None = None
        self._repeated = self._skipped = 0

    def resume_at(self, size: tuple[int, int]) -> int | None:
        before = find_unfinished(self.path)
        if before is None:
            return None if self.path.exists() else 0
        shape, now = before.settings.get("shape"), [*reversed(size), 3]
        if shape != now or before.settings.get("dtype") not in ("uint8", "uint16"):
            raise _made_otherwise(before, f"its frames were {shape!s:.80}, now they are {now}")
        if difference := differs(json.dumps(before.settings.get("made_by")), self._made_by):
            raise _made_otherwise(before, difference)
        self._before, self._kept = before, before.frames()
        return before.num_frames

    def _keep(self) -> None:
        assert self._before is not None and self._kept is not None
        with self._named_errors():
            if self._container is None:
                shape, kind = self._before.settings["shape"], np.dtype(self._before.settings["dtype"])
                self._kind = (tuple(shape), kind)
                self._container = self._begin(np.zeros(shape, kind))
            frame = next(self._kept, None)
            if frame is None:
                raise CSDError(f"{self._before.path} has been changed meanwhile; remove it to begin anew")
            self._begins.append(self._next_begin())
            packet = av.Packet(frame.data)
            packet.pts, packet.dts, packet.is_keyframe = frame.number, frame.order, frame.keyframe
            self._mux([packet])

    def _next_begin(self) -> int:
        """When the `_count`-th frame begins, in ticks. Encoders and containers refuse times that do not advance."""
        begin = round(self._seconds(self._count, 0) / self._tick)
        return max(begin, self._begins[-1] + 1) if self._begins and not self._constant else begin

    def _put(self, frame: np.ndarray) -> None:
        with self._named_errors():
            if self._container is None:
                self._container = self._begin(frame)
            picture = from_rgb(frame, self._setup.pix_fmt, self._setup.colours)
            begin = self._next_begin()
            if self._constant:
                self._show_until(begin, self._last or picture)
                if begin < len(self._begins):
                    self._skipped += 1
                else:
                    self._show(picture, begin)
            else:
                self._show(picture, begin)
            self._last = picture

    def _finish(self) -> None:
        if self._container is None:
            raise CSDError(f"{self.path}: no frame was written")
        try:
            with self._named_errors():
                self._write_rest(self._container)
        except BaseException:
            self._remove()
            raise
        if self._tracks:
            self._tracks.close()

    def _remove(self) -> None:
        try:
            self._record_rest()
        finally:  # also after another Ctrl-C
            self._remove_draft()

    def _record_rest(self) -> None:
        """Record the frames that are still in the encoder, up to about fifty, as a run that continues needs them."""
        if self._last is None or not self._recorder or not self._has_room:
            return
        if self._recorder.saves_work(len(self._begins)):
            with contextlib.suppress(av.FFmpegError, OSError):  # the encoder has ended or failed, or the disk is full
                for packet in self._stream.encode(None):
                    self._recorder.add(_to_record(packet))

    def _remove_draft(self) -> None:
        if self._tracks:
            self._tracks.close()
        if self._container is not None:
            # Closing writes the file's end, which may fail for the same reason as before.
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()
        with contextlib.suppress(OSError):
            self._draft.unlink(missing_ok=True)
        if self._kept:
            self._kept.close()
        if self._recorder:
            self._recorder.stop()

    def _begin(self, frame: np.ndarray) -> av.container.OutputContainer:
        """Open the file and the encoder for frames like this one."""
        like, size = self._like, (frame.shape[1], frame.shape[0])
        source = like.source_format
        suffix = self.path.suffix.lower()
        container = av.open(
            # FFmpeg never takes an absolute path for an address, whatever its characters.
            str(self._draft.absolute()),
            "w",
            format=_FORMATS.get(suffix),
            container_options=_CONTAINER_OPTIONS.get(suffix, {}),
        )
        self._container = container
        form = container.format.name
        self._constant = form in _CONSTANT
        whole_start = source is not None and source.start == 0  # sound may begin before the first picture
        self._offset = source.origin if source and whole_start else like.stamp(0)[0] * like.time_base
        rate = _steady_rate(source, self._offset) if source and self._constant else like.fps
        self._setup = choose(
            self.path,
            form,
            source.look if source else _look(frame),
            size,
            rate,
            codec=like.codec,
            reorder=not self._constant,
            quick=self._quick,
        )
        try:
            self._stream = self._setup.add_to(container, rate)
        except ValueError as error:
            raise CSDError(f"{self.path}: {self._setup.encoder.name} cannot be set up ({error})") from error
        self._stream.time_base = 1 / rate if self._constant else like.time_base
        if source:
            self._stream.metadata.update(picture_tags(source))
            self._tracks = Tracks(source, container, self._setup, self._offset)
        container.start_encoding()
        self._tick = 1 / rate if self._constant else self._stream.time_base or like.time_base
        if self._made_by and not self._constant:
            self._recorder = self._begin_recording(frame)
        else:
            discard(self.path)
        return container

    def _begin_recording(self, frame: np.ndarray) -> Recorder:
        """Record what is encoded, after what an earlier run has left. Raises CSDError if it was encoded otherwise."""
        setup, context = self._setup, self._stream.codec_context
        settings: dict[str, Any] = {
            "made_by": {kind: list(origin) for kind, origin in self._made_by.items()},
            "first frame": self._like.first,
            "shape": list(frame.shape),
            "dtype": str(frame.dtype),
            "encoder": f"{setup.encoder.name}, {setup.pix_fmt}",
            "encoder's options": " ".join(f"{key}={value}" for key, value in sorted(setup.options.items())),
            "stream's header": hashlib.sha256(bytes(context.extradata or b"")).hexdigest()[:12],
        }
        if self._before:
            was = self._before.settings
            for name in (name for name in settings if name != "made_by" and was.get(name) != settings[name]):
                difference = f"its {name} was {was.get(name)!s:.80}, now it is {settings[name]}"
                raise _made_otherwise(self._before, difference)
        return Recorder(self.path, settings, self._before)

    def _write_rest(self, container: av.container.OutputContainer) -> None:
        """Write the rest, and give the file its name."""
        end = self._seconds(self._count - 1, 1)
        self._end = max(round(end / self._tick), self._begins[-1] + 1)
        if self._constant and self._last:
            self._show_until(self._end, self._last)
        self._mux(self._encoded(None), ends=True)
        if self._tracks:
            source = self._like.source_format
            self._tracks.copy_until(self._end * self._tick if source and source.cut else None)
        container.close()
        if self._tracks:
            self._tracks.say_what_is_lost(self._draft)
        if self._repeated or self._skipped:
            logger.warning(
                "%s: %s only has a constant rate, %.6g fps: %d frames are repeated and %d left out, so that sound "
                "stays in sync",
                self.path,
                container.format.name,
                1 / self._tick,
                self._repeated,
                self._skipped,
            )
        if not self._replace and self.path.exists():
            raise CSDError(
                f"{self.path} has been written by another program meanwhile; give another name, or --overwrite"
            )
        self._draft.replace(self.path)
        if self._kept:
            self._kept.close()  # Windows does not remove open files
        if self._recorder:
            self._recorder.remove()

    def _seconds(self, index: int, frames: int) -> Fraction:
        """The output's time, in seconds, at which the index-th frame begins, or, for `frames` of 1, ends."""
        start, duration = self._like.stamp(index)
        return (start + frames * duration) * self._like.time_base - self._offset

    def _show_until(self, end: int, picture: av.VideoFrame) -> None:
        """At a constant rate, repeat a picture up to a time, in ticks."""
        while len(self._begins) < end:
            self._show(picture, len(self._begins))
            self._repeated += 1

    def _show(self, picture: av.VideoFrame, begin: int) -> None:
        """Encode a picture that is shown from this time on, in the container's ticks."""
        picture.pts, picture.time_base = len(self._begins), self._stream.codec_context.time_base
        self._begins.append(begin)
        self._mux(self._encoded(picture))

    def _encoded(self, picture: av.VideoFrame | None) -> list[av.Packet]:
        """What the encoder gives, in the order of decoding, after a picture, or at the end; it is recorded."""
        packets = self._stream.encode(picture)
        if self._recorder and self._has_room:
            try:
                for packet in packets:
                    self._recorder.add(_to_record(packet))
            except OSError as error:
                self._has_room = False
                self._make_room(self._recorder, error.strerror or str(error))
        return packets

    def _make_room(self, recorder: Recorder, reason: str) -> None:
        """End the recording on a full disk; also remove it if that makes room for the rest of the video.

        What is recorded takes as much room as what is written. So from the middle on, the rest is likely to fit in its
        place. Before that, the disk is too small for the video, and what is recorded will be all that remains.
        """
        total = self._like.num_frames
        if total is None or 2 * len(self._begins) >= total:
            recorder.remove()
            loss = "a stopped run will have to begin anew, as its frames cannot be recorded"
        else:
            recorder.stop()
            loss = f"a stopped run will lose the frames from about {len(self._begins)} on, as they cannot be recorded"
        logger.warning("%s: %s (%s)", self.path, loss, reason)

    def _mux(self, packets: list[av.Packet], ends: bool = False) -> None:
        """Write the packets of frames whose end is known: the beginning of the next frame, or the video's end."""
        assert self._container is not None
        self._held.extend(packets)
        while self._held and (ends or (self._held[0].pts or 0) + 1 < len(self._begins)):
            packet = self._held.popleft()
            number = packet.pts or 0
            begin = packet.pts = self._begins[number]
            packet.dts = self._time_of(self._order(packet, number))
            packet.duration = self._time_of(number + 1) - begin
            if self._first_decoded is None:
                self._first_decoded = packet.dts
            whole = self._first_decoded + self._end - self._begins[0]
            if ends and not self._held and packet.dts + packet.duration < whole:
                # MP4's length is that of decoding; the last frame shown, for longer, was decoded before this one.
                packet.dts, packet.duration = begin, self._end - begin
            packet.time_base = self._tick
            packet.stream = self._stream
            if self._tracks:
                self._tracks.copy_until(begin * self._tick)
            self._container.mux(packet)

    def _order(self, packet: av.Packet, number: int) -> int:
        """The number of the frame at whose time a packet is decoded; negative before the first frame."""
        reordered = self._stream.codec_context.reorder_depth
        given = packet.dts
        # libx265 returns random numbers if a clip ends before any frame was reordered.
        last = self._decoded
        if given is None or not (-_MOST_REORDERED <= given <= number) or (last is not None and given <= last):
            given = min(number, -reordered if last is None else last + 1)
        self._decoded = given
        return given

    def _time_of(self, number: int) -> int:
        """Ticks at which a frame begins; frames before the first are consecutive, the one after the last is the end."""
        if number < 0:
            return self._begins[0] + number * max(1, round(1 / (self._like.fps * self._tick)))
        return self._begins[number] if number < len(self._begins) else self._end

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"({error.strerror or error}); check the free space and the permissions"
            raise CSDError(f"{self.path}: cannot be written {reason}") from error
        except av.FFmpegError as error:
            encoder = self._setup.encoder.name if self._container else "the encoder"
            raise CSDError(
                f"{self.path}: cannot be written ({encoder}: {error.strerror or error}); try another kind of file"
            ) from error


def _to_record(packet: av.Packet) -> EncodedFrame:
    return EncodedFrame(packet.pts or 0, packet.dts, packet.is_keyframe, bytes(packet))


def _made_otherwise(before: Unfinished, difference: str) -> CSDError:
    return CSDError(f"{before.path}: {difference}; use the same one to resume, or remove this file to begin anew")


def _look(frame: np.ndarray) -> Look:
    """The look of a video whose frames come from no video, as far as it can hold it."""
    pix_fmt = "yuv420p" if frame.dtype == np.uint8 else "yuv420p10le"
    return Look(pix_fmt, Colours(BT709, 0, BT709, BT709), depth=8 * frame.dtype.itemsize)


def _steady_rate(source: SourceFormat, offset: Fraction) -> Fraction:
    """The lowest of the likely constant rates at which no two frames of a file coincide."""
    with open_input(source.path) as container:
        stream = cast("av.VideoStream", container.streams[source.index])
        base = stream.base_rate or source.fps
        try:
            stamps = sorted({packet.pts for packet in Clock(stream).packets(stream) if packet.pts is not None})
        except av.FFmpegError:
            return source.fps  # a damaged end: the reader reports it
        times = [stamp * source.time_base - offset for stamp in stamps]
    if len(times) < 2:
        return source.fps
    shortest = min(later - earlier for earlier, later in pairwise(times))
    likely = [base] if base <= 4 * source.fps else []
    for rate in (*likely, source.fps):
        places = [round(time * rate) for time in times]
        if len(set(places)) == len(places):
            return rate
    return min(1 / shortest, _HIGHEST_RATE)
