"""Decodes video files."""

from __future__ import annotations

import logging
import re
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from csd_plugin.data.images import MOST_PIXELS, is_one_image
from csd_plugin.data.video.clock import Clock
from csd_plugin.data.video.colours import Colours, Light, carried, has_alpha, to_rgb, turns_sideways
from csd_plugin.data.video.complete import extent_of
from csd_plugin.data.video.interface import (
    EmptyPart,
    FrameReader,
    Look,
    Position,
    SourceFormat,
    frame_number,
    reached,
)
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)

_READABLE = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,webp,h264,hevc,av1,obu,ivf,m4v,"
    "mjpeg,jpeg_pipe,yuv4mpegpipe,mxf,nut,wtv,rm,dv,h261,h263,vc1,vvc,evc,dirac,cavsvideo,avs2,avs3,dnxhd,gxf,dhav,swf,"
    "roq"
)
"""Containers that hold their own frames. Playlists (HLS, DASH, concat) are excluded: an untrusted file could name any
other file of the machine, or an address, to be read into the output."""

_FIELD_ORDERS = {
    2: "top field first",
    3: "bottom field first",
    4: "top field coded first",
    5: "bottom field coded first",
}
"""FFmpeg's numbers for the order of fields, in a viewer's words."""
_PROGRESSIVE = 1
_MOST_STUCK = 4
"""Frames in a row with a time that was there already, after which a file's times are not believed."""
_KEEP_GOING = "keep_going (--keep-going of csd derain, rain and prepare)"


@dataclass
class _Count:
    """Counts what has gone into a decoder and come out of it."""

    packets: int = 0
    unshown: int = 0
    """Packets that are only decoded for others that depend on them, as before an edit list."""
    frames: int = 0
    patched: int = 0
    interlaced: bool = False


class VideoReader(FrameReader):
    """The first video stream of a file. The first frame is decoded at once, for size, depth and colours."""

    def __init__(
        self, path: Path, *, start: Position, end: Position | None, keep_going: bool, context: int = 0
    ) -> None:
        super().__init__(path)
        self._start, self._end, self._context = start, end, context
        self._keep_going = keep_going
        self._container = open_input(path)
        try:
            self._first: av.VideoFrame | None = self._first_frame()
            self._describe(self._first)
        except BaseException:
            self._container.close()
            raise

    def _first_frame(self) -> av.VideoFrame:
        """Choose the stream, and decode it up to the part's first frame. Raises CSDError."""
        pictures = [stream for stream in self._container.streams.video if not is_cover(stream)]
        pictures = [stream for stream in pictures if not is_still(stream)] or pictures
        if not pictures or pictures[0].codec_context is None:
            raise CSDError(f"{self.path}: no decodable video in this file; is it complete, and a video?")
        self._stream = pictures[0]
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        self.fps = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.time_base = self._stream.time_base or 1 / self.fps
        # The time, in seconds, of the clip's start on the file's own clock; often not 0, as in MPEG-TS.
        self._origin = Fraction(self._container.start_time or 0, av.time_base)
        self._starts, self._durations = array("q"), array("q")
        self._places: deque[int] = deque()
        self._frames = self._part()
        first = next(self._frames, None)
        if first is None:
            # if the part would begin after the last frame, all have been read
            has = "" if self._cut else f"it has {self._skipped}, counted from 0, and "
            raise EmptyPart(f"{self.path}: no frames between --start and --end; {has}--end is the frame after the last")
        return first

    def _describe(self, first: av.VideoFrame) -> None:
        """Set the facts that the first frame shows. Raises CSDError for colours that cannot be converted."""
        look = _look_of(self._stream, first)
        if not look.colours.known(look.pix_fmt):
            raise CSDError(
                f"{self.path}: its colours use matrix {look.colours.matrix} of ITU-T H.273, which is not supported "
                f"here; give a copy with a usual one, such as BT.709"
            )
        height, width = to_rgb(first).shape[:2]
        self.size = (width, height)
        self.first = self._skipped
        self.num_frames = self._count()
        self._format = SourceFormat(
            path=self.path,
            index=self._stream.index,
            look=look,
            metadata=dict(self._stream.metadata),
            fps=self.fps,
            time_base=self.time_base,
            origin=self._origin,
            start=self._start,
            end=self._end,
            first=self.first,
            cut=False,
        )

    @property
    def source_format(self) -> SourceFormat:
        return replace(self._format, cut=self._cut)

    def _read(self) -> Iterator[np.ndarray]:
        if self._first is None:
            raise CSDError(f"{self.path}: a reader gives the frames of a video only once; open it again")
        first, self._first = self._first, None
        self._say_what_is_lost(first)
        yield to_rgb(first)
        for frame in self._frames:
            yield to_rgb(frame)

    def in_part(self, index: int) -> bool:
        return 0 <= index - self.lead < len(self._starts)

    def stamp(self, index: int) -> tuple[int, int]:
        if index >= len(self._starts):
            raise self.no_such(index)
        return self._starts[index], self._durations[index]

    def name(self, index: int) -> str:
        return f"{self._skipped + index + 1:05d}"

    def _let_go(self) -> None:
        self._container.close()

    def _say_what_is_lost(self, first: av.VideoFrame) -> None:
        """Warn, with one line each, about what pixels cannot hold."""
        look, metadata = self._format.look, self._format.metadata
        if look.field_order != _PROGRESSIVE:
            logger.warning(
                "%s is interlaced, %s: each frame's two fields are treated as one picture; deinterlace first "
                "(ffmpeg -vf bwdif) for clean results",
                self.path,
                _FIELD_ORDERS[look.field_order],
            )
        seen_through = has_alpha(look.pix_fmt) and first.to_ndarray(format="rgba")[..., 3].min() < 255
        # WebM's alpha is a separate stream, which FFmpeg's decoders leave out.
        lost = ["transparency (alpha)"] if seen_through or metadata.get("alpha_mode") == "1" else []
        lost += carried(first)
        if lost:
            logger.warning("%s: %s is left out of the output", self.path, ", ".join(lost))

    def _part(self) -> Iterator[av.VideoFrame]:
        """The frames from start to end, with those of the context; notes their times."""
        self._skipped, self._cut, self._whole = 0, False, True
        before: deque[av.VideoFrame] = deque(maxlen=self._context)
        after = 0
        tick = max(1, round(1 / (self.fps * self.time_base)))
        expected = round(self._origin / self.time_base)
        last, stuck = expected - 1, 0
        pts: int | None = None
        look: str | None = None
        for number, frame in enumerate(self._decoded()):
            look_before, look = look or _kind_of(frame), _kind_of(frame)
            changed = look != look_before
            pts_before, pts = pts, self._places.popleft() if self._places else frame.pts
            duration = frame.duration or tick
            # In display order, time must always advance. A frame with the time of the one before is put before the next
            # usual time, so that those after it keep theirs. Where time goes back, stands still, or is not given, the
            # rate is constant.
            stuck = stuck + 1 if pts is not None and pts == pts_before else 0
            if 0 < stuck <= _MOST_STUCK and last + 1 < expected:
                begin = last + (expected - last) // 2
            else:
                begin = expected if pts is None or pts <= last else pts
                expected = begin + duration
            last = begin
            if len(self._starts) and not self._cut:
                self._durations[-1] = begin - self._starts[-1]
            seconds = begin * self.time_base - self._origin
            if self._end is not None and reached(self._end, number, seconds):
                self._cut = True
                if after == self._context or not self._starts or changed:
                    return
                after += 1
                yield frame
                continue
            if changed and not self._starts:
                before.clear()  # frames of another kind cannot be context
            if not reached(self._start, number, seconds):
                self._skipped += 1
                before.append(frame)
                continue
            if changed and self._starts:
                raise CSDError(
                    f"{self.path}: frame {number} is {look}, those before it are {look_before}, and a clip has frames "
                    f"of one kind: --end {number} reads those before, --start {number} those from there on"
                )
            if before:
                self.lead = len(before)
                while before:
                    yield before.popleft()
            self._starts.append(begin)
            self._durations.append(duration)
            yield frame
        if self._starts and not self._cut and self._whole:
            self._durations[-1] = self._last_duration() or self._durations[-1]

    def _last_duration(self) -> int | None:
        """Ticks for which the file's last frame is shown, if its container knows better than the frame."""
        stream, end = self._stream, None
        if "mp4" in self._container.format.name and stream.duration:
            end = (stream.start_time or 0) + stream.duration
        elif seconds := _tagged_end(stream):
            end = round(seconds / self.time_base)
        return end - self._starts[-1] if end is not None and end > self._starts[-1] else None

    def _decoded(self) -> Iterator[av.VideoFrame]:
        count = _Count()
        demuxer = self._packets()
        while True:
            try:
                packet, is_cut = next(demuxer, (None, False))
                if packet is None:
                    break
                count.packets += packet.size > 0
                count.unshown += packet.is_discard
                if is_cut:
                    self._damaged(count.frames, "its data is cut off")
                    continue
                # AVI has only decoding times: one place after the other, whichever frame is shown then.
                if packet.size and packet.dts is not None and self._container.format.name == "avi":
                    self._places.append(packet.dts)
                decoded = packet.decode()
            except av.FFmpegError as error:
                self._damaged(count.frames, error.strerror or str(error))
                continue
            for frame in decoded:
                count.interlaced |= frame.interlaced_frame
                if frame.is_corrupt:
                    self._patched(count)
                yield frame
                count.frames += 1
        self._say_what_is_hidden(count)
        if reason := self._lacks(count.packets):
            self._damaged(count.frames, reason)

    def _packets(self) -> Iterator[tuple[av.Packet, bool]]:
        """Each packet of the stream, and whether some of its data is missing. Raises av.FFmpegError."""
        clock = Clock(self._stream)
        waiting: deque[tuple[av.Packet, bool]] = deque()

        def judged() -> tuple[av.Packet, bool]:
            # Where files are joined, a transport stream's packet counters restart, and one of the two packets before
            # that place is marked as corrupt although it is complete.
            packet, _ = waiting.popleft()
            return packet, packet.is_corrupt and not any(begins for _, begins in islice(waiting, 2))

        failed: av.FFmpegError | None = None
        jumps = 0
        try:
            for packet in clock.packets(self._stream):
                waiting.append((packet, packet.is_keyframe or clock.jumps > jumps))
                if clock.jumps > jumps == 0:
                    logger.warning(
                        "%s: its clock restarts inside, as in joined files; times continue there, and sound that "
                        "would overlap the part before is left out",
                        self.path,
                    )
                jumps = clock.jumps
                if len(waiting) > 2:
                    yield judged()
        except av.FFmpegError as error:
            failed = error
        while waiting:
            yield judged()
        if failed:
            raise failed

    def _lacks(self, packets: int) -> str | None:
        """What is missing of what the file's header promises, for containers whose headers can be trusted."""
        kind, told = self._container.format.name, self._stream.frames
        extent = extent_of(self.path, kind)
        if extent.unread:
            return (
                f"{extent.unread} more files appended, which readers of its kind skip: join them with a video program"
            )
        # AVI headers also hold a number of frames, and sometimes a wrong size.
        if ("mp4" in kind and packets < told) or (extent.missing and (kind != "avi" or packets < told)):
            return "the file ends too early"
        if extent.broken is not None:  # readers of Matroska continue after such a place silently
            return f"its data is damaged at byte {extent.broken:,}, and frames after it are missing"
        return None

    def _damaged(self, frame: int, reason: str) -> None:
        message = f"{self.path}: the video is damaged after frame {frame} ({reason})"
        if not self._keep_going:
            raise CSDError(f"{message}; {_KEEP_GOING} leaves out what cannot be read")
        self._whole = False
        logger.warning("%s; what cannot be read is left out", message)

    def _patched(self, count: _Count) -> None:
        """Report a frame whose missing parts the decoder has filled in from others, as do frames that depend on it."""
        message = f"{self.path}: the video is damaged in frame {count.frames}, which the decoder has patched up"
        if not self._keep_going:
            raise CSDError(f"{message}; {_KEEP_GOING} accepts it")
        count.patched += 1
        if count.patched == 1:
            logger.warning("%s; it is used nevertheless", message)

    def _say_what_is_hidden(self, count: _Count) -> None:
        """Report damage of a file, read to its end, that `_patched` and `_damaged` have not reported."""
        if count.patched > 1:
            logger.warning("%s: %d frames are patched up in all", self.path, count.patched)
        lost = count.packets - count.unshown - count.frames
        if lost > 0 and self._whole and not count.interlaced:  # a picture of two fields may be two packets
            logger.warning(
                "%s: %d of its pictures cannot be decoded, as at the start of a cut video, or in a damaged "
                "one; they are left out",
                self.path,
                lost,
            )

    def _count(self) -> int | None:
        seconds = _tagged_end(self._stream)
        if seconds is None and self._container.duration:
            seconds = Fraction(self._container.duration, av.time_base)
        total = self._stream.frames or (None if seconds is None else round(seconds * self.fps))
        if total is None:
            return None
        last = total if self._end is None else min(total, frame_number(self._end, self.fps))
        self.trail = min(self._context, total - last)
        return max(1, last - self._skipped)


def _tagged_end(stream: av.VideoStream) -> Fraction | None:
    """The end of its last picture in seconds, if a tag of Matroska gives it, as the sound may be longer."""
    clock = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
    if clock is None:
        return None
    hours, minutes, rest = map(Fraction, clock.groups())
    return 3600 * hours + 60 * minutes + rest


def open_input(path: Path) -> av.container.InputContainer:
    """Open a local file that holds its own frames, whatever its name. Raises CSDError."""
    try:
        # FFmpeg never takes an absolute path for an address, whatever its characters.
        return av.open(
            str(path.resolve()), container_options={"format_whitelist": _READABLE, "protocol_whitelist": "file"}
        )
    except (av.FFmpegError, OSError) as error:
        if path.stat().st_size == 0:
            raise CSDError(f"{path} is empty (0 bytes)") from error
        if is_one_image(path):
            raise CSDError(
                f"{path} is a single image: give its folder, or a pattern such as frames_%05d.png, for its clip; an "
                f"image that belongs to none goes into a folder of its own"
            ) from error
        raise CSDError(f"{path}: not a video file that can be read, or damaged ({error.strerror or error})") from error


def is_cover(stream: av.VideoStream) -> bool:
    """Whether a stream is a cover picture, not a clip."""
    return bool(stream.disposition & Disposition.attached_pic)


def is_still(stream: av.VideoStream) -> bool:
    """Whether a stream is no track but a single picture, as animated AVIF has one for viewers that show no more."""
    return "mp4" in stream.container.format.name and stream.frames == 1 and stream.duration is None


def _look_of(stream: av.VideoStream, first: av.VideoFrame) -> Look:
    """The look of a stream's pictures, from its header and its first frame."""
    aspect, order = stream.sample_aspect_ratio or None, stream.codec_context.field_order
    return Look(
        pix_fmt=first.format.name,
        colours=Colours.of(first),
        codec=stream.codec_context.codec.canonical_name,
        bit_rate=stream.codec_context.bit_rate or 0,
        pixel_aspect=1 / aspect if aspect and turns_sideways(first) else aspect,
        field_order=order if order in _FIELD_ORDERS else 2 if first.interlaced_frame else _PROGRESSIVE,
        light=Light.of(first),
    )


def _kind_of(frame: av.VideoFrame) -> str:
    """What all frames of a clip must share: size, and whether 8 bits hold their values."""
    deep = max(component.bits for component in frame.format.components) > 8
    return f"{frame.width}x{frame.height}{' of more than 8 bits' if deep else ''}"
