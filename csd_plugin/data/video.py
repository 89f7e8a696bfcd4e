"""Video files and folders of frames, read and written through one interface.

    with open_reader("rain.mp4") as reader, open_writer("clean.mp4", like=reader) as writer:
        for frame in reader:
            writer.write(frame)

Frames are RGB arrays (H, W, 3) as a viewer shows them, rotation applied: uint8, or, from videos with more
than 8 bits a channel, uint16 over its full range.
"""

from __future__ import annotations

import contextlib
import logging
import re
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from av.codec.codec import UnknownCodecError
from av.video.reformatter import Interpolation

from csd_plugin.atomic import replacing
from csd_plugin.data.layout import IMAGE_SUFFIXES, is_frame_name, natural_key
from csd_plugin.data.store import decode_image
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)

Position = int | Fraction
"""A place in a clip: a frame number from 0, or seconds from its start."""

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Files that `open_writer` makes; `open_reader` looks at the content and takes more."""

# Containers that hold their own frames. Playlists (HLS, DASH, concat) are left out: a file from a stranger
# could name any other file of the machine, or an address, to be read into the output.
_READABLE = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,webp,h264,hevc,av1,obu,ivf,m4v,"
    "mjpeg,yuv4mpegpipe,mxf,nut,wtv,rm,dv"
)

# Near the source's quality; deraining, not the codec, should decide what a frame looks like.
_ENCODER_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "16"},
    "libx265": {"crf": "18", "x265-params": "log-level=error"},
    "libvpx-vp9": {"crf": "20", "b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4"},
    "libsvtav1": {"crf": "22"},
    "ffv1": {},
    "prores": {},
}
_EVEN_ONLY = ("libx264", "libx265")
"""Encoders that refuse odd sizes where colours are at half the size."""
_OLD_ENCODER_OPTIONS = {"qmin": "1", "qmax": "4"}

PIPE = Path("-")
"""Standard input or output, as a path."""

_NUMBER = re.compile(r"%0?\d?d")

_BT709 = 1
# Without the last two, pictures get 1.4 grey levels darker on their way from RGB to 8-bit YUV and back.
_INTERPOLATION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class FrameReader(ABC):
    """The frames of one clip in display order, once. A context manager.

    Attributes:
        path: the file or folder.
        size: (width, height) of every frame, in pixels.
        fps: mean frames per second.
        time_base: seconds in one tick of `stamp`.
        num_frames: how many frames the part asked for has; an estimate for some files, None where nothing tells.
        first: the number, in the whole clip, of the part's first frame.
        lead, trail: frames of the context that come before and after the part; where the end of a file is not known
            yet, `trail` is how many are wanted.
        live: frames come as they are seen, until `stop` is called.
    """

    path: Path
    size: tuple[int, int]
    fps: Fraction
    time_base: Fraction
    num_frames: int | None
    first: int
    lead: int = 0
    trail: int = 0
    live: bool = False

    @property
    def num_read(self) -> int | None:
        """How many frames come in all, the part and its context; an estimate where `num_frames` or `trail` is."""
        return None if self.num_frames is None else self.lead + self.num_frames + self.trail

    @abstractmethod
    def __iter__(self) -> Iterator[np.ndarray]:
        """RGB (H, W, 3), uint8 or uint16: the part, and up to `context` frames around it (see `open_reader`).

        Raises CSDError naming the frame that cannot be read.
        """

    @abstractmethod
    def in_part(self, index: int) -> bool:
        """Whether the index-th frame that was read belongs to the part, not to the context."""

    @abstractmethod
    def stamp(self, index: int) -> tuple[int, int]:
        """(start, duration) in ticks, of the part's index-th frame, counted from 0, once it was read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The file name, without suffix, that belongs to the part's index-th frame."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def stop(self) -> None:
        """End a live clip with the frame that is being read; from any thread."""
        raise RuntimeError(f"{self.path} ends by itself")

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FrameWriter(ABC):
    """Takes frames one by one. As a context manager it finishes the output, or removes it if an error came."""

    @abstractmethod
    def write(self, frame: np.ndarray) -> None:
        """RGB (H, W, 3), uint8 or uint16, all of one size. Raises CSDError."""

    @abstractmethod
    def close(self) -> None:
        """Finish the output; only now does a video appear under its name."""

    @abstractmethod
    def abort(self) -> None:
        """Leave no unfinished file behind."""

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def open_reader(
    path: str | Path,
    *,
    start: Position = 0,
    end: Position | None = None,
    fps: Fraction = Fraction(25),
    keep_going: bool = False,
    context: int = 0,
    size: tuple[int, int] | None = None,
) -> FrameReader:
    """Open a video file, images, a pipe, or a camera.

    Args:
        path: a video file; a folder of images, which are taken in the natural order of their names; a pattern of
            image files such as frames_%05d.png; '-', raw rgb24 frames of `size` on standard input; or a camera,
            see `is_camera`, which has no `start` and no `context`.
        start, end: the part to read: from the frame at `start` up to, not with, the one at `end`.
        fps: the rate of images and pipes; a video file knows its own.
        context: read up to so many frames before and after the part too; `in_part` tells which they are.
        size: (width, height) of a pipe's frames.
        keep_going: leave out frames of a video that cannot be decoded, with a warning, instead of stopping.

    Raises:
        CSDError: nothing there, not a video, no picture in it, no camera, or an empty part.
    """
    path = Path(path)
    if path == PIPE:
        from csd_plugin.data.pipes import PipeReader

        return PipeReader(size, start=start, end=end, fps=fps, context=context)
    if is_camera(path):
        from csd_plugin.data.camera import CameraReader

        return CameraReader(path, start=start, end=end)
    if _NUMBER.search(path.name) and not path.exists():
        return FolderReader(path, numbered(path), start=start, end=end, fps=fps, context=context)
    if not path.exists():
        raise CSDError(f"{path} does not exist; check the path")
    if path.is_dir():
        return FolderReader(path, images_in(path), start=start, end=end, fps=fps, context=context)
    return VideoReader(path, start=start, end=end, keep_going=keep_going, context=context)


def is_camera(path: Path) -> bool:
    """Whether a path means a camera: camera:0, camera:1, .., camera:NAME (on Windows), or /dev/video0."""
    return re.fullmatch(r"camera:.+|/dev/video\d+", path.as_posix()) is not None


def open_writer(path: str | Path, *, like: FrameReader, overwrite: bool = False) -> FrameWriter:
    """Open an output: a video file if the name ends in one of `VIDEO_SUFFIXES`, else a folder of PNG files.

    A name such as clean_%05d.png is a pattern of PNG files; '-' is raw rgb24 frames on standard output.

    Args:
        like: where the frames come from: the n-th frame written gets the time, or the name, of the n-th frame
            read; a video also takes over codec, colours, sound and subtitles where its container holds them.
        overwrite: replace a video that is there, and frames of the same names in a folder.

    Raises:
        CSDError: a kind of file that is not written, a video or frames that are there already, or input and output
            are one.
    """
    path = Path(path)
    if path == PIPE:
        from csd_plugin.data.pipes import PipeWriter

        return PipeWriter()
    if path.exists() and path.resolve() == like.path.resolve():
        raise CSDError(f"{path} is the input too; give the output another name")
    if path.is_dir() or not path.suffix:
        return FolderWriter(path, like=like, overwrite=overwrite)
    if _NUMBER.search(path.name) and path.suffix.lower() == ".png":
        if path == like.path:
            raise CSDError(f"{path} is the input too; give the output another name")
        return FolderWriter(path.parent, like=like, pattern=path.name, overwrite=overwrite)
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        kinds = " ".join(VIDEO_SUFFIXES)
        raise CSDError(f"{path}: cannot write '{path.suffix}'; use {kinds}, or no suffix for a folder of PNG files")
    if path.exists() and not overwrite:
        raise CSDError(f"{path} is there already; --overwrite replaces it, or give another name")
    _make(path.parent)
    return VideoWriter(path, like=like)


# --- folders ------------------------------------------------------------------------------------------------------


class FolderReader(FrameReader):
    """Image files as a clip of constant rate."""

    def __init__(
        self, path: Path, files: list[Path], *, start: Position, end: Position | None, fps: Fraction, context: int
    ) -> None:
        self.first = _frame_number(start, fps)
        last = len(files) if end is None else min(_frame_number(end, fps), len(files))
        if self.first >= last:
            raise CSDError(
                f"{path}: no frames from {self.first} on before {last}; it has {len(files)}, counted from 0, and "
                f"--end is the frame after the last"
            )
        self.lead = min(context, self.first)
        self._files = files[self.first - self.lead : last + context]
        self.path = path
        self.fps = fps
        self.time_base = 1 / fps
        self.num_frames: int = last - self.first
        self.trail = len(self._files) - self.lead - self.num_frames
        self._first = read_image(self._files[0])
        self.size = (self._first.shape[1], self._first.shape[0])

    def __iter__(self) -> Iterator[np.ndarray]:
        yield self._first
        for file in self._files[1:]:
            frame = read_image(file)
            height, width = frame.shape[:2]
            if (width, height) != self.size:
                raise CSDError(
                    f"{file} is {width}x{height}, the frames before it are {self.size[0]}x{self.size[1]}: "
                    f"a clip has frames of one size"
                )
            yield frame

    def in_part(self, index: int) -> bool:
        return 0 <= index - self.lead < self.num_frames

    def stamp(self, index: int) -> tuple[int, int]:
        return index, 1

    def name(self, index: int) -> str:
        return self._files[self.lead + index].stem

    def close(self) -> None:
        pass  # no file stays open between frames


class FolderWriter(FrameWriter):
    """PNG files named after the frames read, or by a pattern. Every file appears whole or not at all."""

    def __init__(self, path: Path, *, like: FrameReader, pattern: str | None = None, overwrite: bool = False) -> None:
        _make(path)
        self._path, self._like, self._pattern, self._written = path, like, pattern, 0
        if not overwrite and (there := self.there()):
            raise CSDError(
                f"{path} holds frames already, such as {there.name}; --resume adds those that are missing, --overwrite "
                f"replaces those of the same names, or give another folder"
            )

    def there(self) -> Path | None:
        """A frame that an earlier run may have written."""
        shape = _shape_of(self._pattern) if self._pattern else None
        files = (file for file in self._path.iterdir() if file.suffix.lower() == ".png" and is_frame_name(file.name))
        return min((file for file in files if shape is None or shape.fullmatch(file.name)), default=None)

    def file(self, index: int) -> Path:
        """Where the part's index-th frame is written."""
        name = f"{self._like.name(index)}.png"
        if self._pattern:
            digits = re.search(r"(\d+)\D*$", self._like.name(index))
            number = int(digits[1]) if digits else self._like.first + index + 1
            name = _numbered(self._pattern, number)
        return self._path / name

    def write(self, frame: np.ndarray) -> None:
        write_png(self.file(self._written), frame)
        self._written += 1

    def close(self) -> None:
        pass  # every frame is finished as it is written

    def abort(self) -> None:
        pass


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in their natural order; other files are not looked at. Raises CSDError for none."""
    files = [file for file in folder.iterdir() if is_frame_name(file.name) and file.is_file()]
    if not files:
        raise CSDError(f"{folder} holds no images ({' '.join(IMAGE_SUFFIXES)}); give the folder that holds the frames")
    return sorted(files, key=lambda file: natural_key(file.name))


def numbered(pattern: Path) -> list[Path]:
    """The files that a pattern such as frames_%05d.png means, by number. Raises CSDError for none, or a gap."""
    if not pattern.parent.is_dir():
        raise CSDError(f"{pattern}: the folder {pattern.parent} does not exist; check the path")
    shape = _shape_of(pattern.name)
    found = ((shape.fullmatch(file.name), file) for file in pattern.parent.iterdir())
    files = {int(match[1]): file for match, file in found if match}
    # %d and %05d write a number in one way only: file_7 is not file_00007's place.
    files = {n: f for n, f in files.items() if _numbered(pattern.name, n) == f.name}
    if not files:
        raise CSDError(f"{pattern}: no file is named so; check the folder and the number of digits")
    missing = next((n for n in range(min(files), max(files)) if n not in files), None)
    if missing is not None:
        raise CSDError(f"{pattern}: number {missing} of {min(files)} to {max(files)} is missing; restore the file")
    return [files[n] for n in sorted(files)]


def _shape_of(pattern: str) -> re.Pattern[str]:
    """What names of a pattern such as frames_%05d.png look like; the number is the first group."""
    before, after = (re.escape(part) for part in _NUMBER.split(pattern, maxsplit=1))
    return re.compile(f"{before}(\\d+){after}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CSDError(f"{folder}: cannot make this folder ({error.strerror})") from error


def _numbered(pattern: str, number: int) -> str:
    return _NUMBER.sub(lambda found: found[0] % number, pattern, count=1)


def read_image(path: Path) -> np.ndarray:
    """uint8 RGB (H, W, 3); see `decode_image` for what it makes of other kinds. Raises CSDError."""
    try:
        return decode_image(path.read_bytes(), str(path))
    except OSError as error:
        raise CSDError(f"{path}: cannot be read ({error.strerror or error}): restore the file") from error


def eight_bits(frame: np.ndarray) -> np.ndarray:
    """uint8 as it is, uint16 (full range) rounded."""
    return frame if frame.dtype == np.uint8 else ((frame.astype(np.uint32) + 128) // 257).astype(np.uint8)


def write_png(path: Path, frame: np.ndarray) -> None:
    """Write RGB (H, W, 3), uint8 or uint16, so that the file appears whole or not at all. Raises CSDError."""
    _, data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    try:
        with replacing(path) as draft:
            draft.write_bytes(data.tobytes())
    except OSError as error:
        raise CSDError(f"{path}: cannot be written ({error.strerror})") from error


def _frame_number(position: Position, fps: Fraction) -> int:
    return position if isinstance(position, int) else -int(-position * fps // 1)


# --- video files --------------------------------------------------------------------------------------------------


class VideoReader(FrameReader):
    """The first video stream of a file. The first frame is decoded at once: it tells size, depth and colours."""

    def __init__(
        self, path: Path, *, start: Position, end: Position | None, keep_going: bool, context: int = 0
    ) -> None:
        self.path = path
        self.start, self.end, self._context = start, end, context
        self._keep_going = keep_going
        self._container = _open_input(path)
        try:
            if not self._container.streams.video or self._container.streams.video[0].codec_context is None:
                raise CSDError(f"{path}: no video in this file that can be decoded; is it complete, and a video?")
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            self.fps = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
            self.time_base = self._stream.time_base or 1 / self.fps
            # Seconds at which the file's own clock shows the clip's start; often not 0, as in MPEG-TS.
            self.origin = Fraction(self._container.start_time or 0, av.time_base)
            self._starts, self._durations = array("q"), array("q")
            self._frames = self._part()
            first = next(self._frames, None)
            if first is None:
                raise CSDError(f"{path}: no frames in the part asked for; --end is the frame after the last")
        except BaseException:
            self._container.close()
            raise
        self._first: av.VideoFrame | None = first
        self.pix_fmt = first.format.name
        self.codec = self._stream.codec_context.codec.canonical_name
        self.bit_rate = self._stream.codec_context.bit_rate
        self.colors = (first.colorspace, first.color_range, first.color_primaries, first.color_trc)
        self.pixel_aspect = self._stream.sample_aspect_ratio
        self.metadata = {k: v for k, v in self._stream.metadata.items() if k in ("title", "language")}
        self._rgb_format = "rgb48le" if max(c.bits for c in first.format.components) > 8 else "rgb24"
        height, width = to_rgb(first, self._rgb_format).shape[:2]
        self.size = (width, height)
        self.first = self._skipped
        self.num_frames = self._count()

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._first is None:
            raise RuntimeError("a video is read once; open it again")
        first, self._first = self._first, None
        yield to_rgb(first, self._rgb_format)
        for frame in self._frames:
            yield to_rgb(frame, self._rgb_format)

    def in_part(self, index: int) -> bool:
        return 0 <= index - self.lead < len(self._starts)

    def stamp(self, index: int) -> tuple[int, int]:
        return self._starts[index], self._durations[index]

    def name(self, index: int) -> str:
        return f"{self._skipped + index + 1:05d}"

    def close(self) -> None:
        self._container.close()

    def _part(self) -> Iterator[av.VideoFrame]:
        """The frames from start to end, their times noted, and those of the context."""
        self._skipped = 0
        before: deque[av.VideoFrame] = deque(maxlen=self._context)
        after = 0
        tick = max(1, round(1 / (self.fps * self.time_base)))
        expected = round(self.origin / self.time_base)
        last = expected - 1
        for number, frame in enumerate(self._decoded()):
            # Some files have no times, or (AVI) those of decoding; in display order time always moves on.
            begin = expected if frame.pts is None or frame.pts <= last else frame.pts
            last = begin
            duration = frame.duration or tick
            expected = begin + duration
            seconds = begin * self.time_base - self.origin
            if self.end is not None and _reached(self.end, number, seconds):
                if after == self._context or not self._starts:
                    return
                after += 1
                yield frame
                continue
            if not _reached(self.start, number, seconds):
                self._skipped += 1
                before.append(frame)
                continue
            if before:
                self.lead = len(before)
                while before:
                    yield before.popleft()
            self._starts.append(begin)
            self._durations.append(duration)
            yield frame

    def _decoded(self) -> Iterator[av.VideoFrame]:
        packets, frames, seconds = 0, 0, 0.0
        demuxer = self._container.demux(self._stream)
        while True:
            try:
                packet = next(demuxer, None)
                if packet is None:
                    break
                packets += packet.size > 0
                seconds = max(seconds, float((packet.pts or 0) * self.time_base))
                if packet.is_corrupt:
                    self._damaged(frames, "its data is cut off")
                    continue
                decoded = packet.decode()
            except av.FFmpegError as error:
                self._damaged(frames, error.strerror or str(error))
                continue
            for frame in decoded:
                yield frame
                frames += 1
        if self._ends_early(packets, seconds):
            self._damaged(frames, "the file ends before its time")

    def _ends_early(self, packets: int, seconds: float) -> bool:
        """Whether the file says that it holds more, as far as its container is to be trusted in this."""
        if "mp4" in self._container.format.name:
            return packets < self._stream.frames
        # Matroska writes 00:00:02.400000000, and how long the last frame shows it may not know.
        clock = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", self._stream.metadata.get("DURATION", ""))
        if clock is None:
            return False
        hours, minutes, rest = clock.groups()
        return seconds < 3600 * int(hours) + 60 * int(minutes) + float(rest) - 1.0

    def _damaged(self, frame: int, reason: str) -> None:
        message = f"{self.path}: the video is damaged after frame {frame} ({reason})"
        if not self._keep_going:
            raise CSDError(f"{message}; keep_going (--keep-going) leaves out what cannot be read")
        logger.warning("%s; what cannot be read is left out", message)

    def _count(self) -> int | None:
        seconds = Fraction(self._container.duration, av.time_base) if self._container.duration else None
        total = self._stream.frames or (None if seconds is None else round(seconds * self.fps))
        if total is None:
            return None
        last = total if self.end is None else min(total, _frame_number(self.end, self.fps))
        self.trail = min(self._context, total - last)
        return max(1, last - self._skipped)


class VideoWriter(FrameWriter):
    """Encodes to a temporary file beside the output, which takes its name when all is written.

    The encoder is set up when the first frame tells the size, which need not be the reader's.
    """

    def __init__(self, path: Path, *, like: FrameReader) -> None:
        self._path, self._like = path, like
        self._temporary = path.with_name(f".{path.stem}.part{path.suffix}")
        self._container: av.container.OutputContainer | None = None
        self._tracks: _Tracks | None = None
        self._written = 0

    def write(self, frame: np.ndarray) -> None:
        with self._named_errors():
            container = self._container or self._begin(frame)
            picture = self._picture(frame)
            if self._tracks:
                self._tracks.copy_until(self._begins)
            container.mux(self._stream.encode(picture))
            self._written += 1

    def close(self) -> None:
        if self._container is None:
            raise CSDError(f"{self._path}: no frame was written")
        try:
            with self._named_errors():
                self._container.mux(self._stream.encode(None))
                if self._tracks:
                    self._tracks.copy_until(self._end)
                self._container.close()
                self._temporary.replace(self._path)
        except BaseException:
            self.abort()
            raise
        if self._tracks:
            self._tracks.close()

    def abort(self) -> None:
        if self._tracks:
            self._tracks.close()
        if self._container is not None:
            # Closing writes the file's end, which may fail for the very reason that brought us here.
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()
        self._temporary.unlink(missing_ok=True)

    def _begin(self, frame: np.ndarray) -> av.container.OutputContainer:
        """Open the file and the encoder for frames like this one."""
        like = self._like
        source = like if isinstance(like, VideoReader) else None
        container_format = "mp4" if self._path.suffix.lower() == ".m4v" else None
        self._container = av.open(str(self._temporary), "w", format=container_format)
        encoder = _encoder(self._container, source.codec if source else self._container.default_video_codec)
        stream = cast("av.VideoStream", self._container.add_stream(encoder.name, rate=like.fps))
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt = _pixel_format(encoder, source.pix_fmt if source else None, frame)
        stream.codec_context.options = dict(_ENCODER_OPTIONS.get(encoder.name, _OLD_ENCODER_OPTIONS))
        context = stream.codec_context
        # AVI and the older codecs know constant rates only.
        constant = self._container.format.name == "avi" or encoder.name not in _ENCODER_OPTIONS
        self._time_base = 1 / like.fps if constant else like.time_base
        if constant:
            context.max_b_frames = 0
        context.time_base = self._time_base
        self._colors = source.colors if source else (_BT709, 0, _BT709, _BT709)
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = self._colors
        self._offset = Fraction(0)
        self._last_pts: int | None = None
        if source:
            stream.metadata.update(source.metadata)
            if source.pixel_aspect:
                context.sample_aspect_ratio = source.pixel_aspect
            if encoder.name not in _ENCODER_OPTIONS and source.bit_rate:
                context.bit_rate = 2 * source.bit_rate
            self._offset = source.origin if source.start == 0 else source.stamp(0)[0] * source.time_base
            self._tracks = _Tracks(source.path, self._container, self._offset)
        self._stream = stream
        return self._container

    def _picture(self, pixels: np.ndarray) -> av.VideoFrame:
        """Pixels -> a frame as the encoder takes it, with its time."""
        if pixels.shape[:2] != (self._stream.height, self._stream.width):
            raise CSDError(
                f"{self._path}: frame {self._written} is {pixels.shape[1]}x{pixels.shape[0]}, "
                f"the video is {self._stream.width}x{self._stream.height}"
            )
        rgb = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels), "rgb24" if pixels.dtype == np.uint8 else "rgb48le"
        )
        space, color_range, primaries, trc = self._colors
        picture = rgb.reformat(
            format=self._stream.pix_fmt, dst_colorspace=space, dst_color_range=color_range, interpolation=_INTERPOLATION
        )
        picture.colorspace, picture.color_range = space, color_range
        picture.color_primaries, picture.color_trc = primaries, trc

        start, duration = self._like.stamp(self._written)
        ticks = self._like.time_base / self._time_base
        pts = round(start * ticks - self._offset / self._time_base)
        if self._last_pts is not None:
            pts = max(pts, self._last_pts + 1)  # encoders refuse time that stands still
        self._last_pts = pts
        picture.pts, picture.time_base = pts, self._time_base
        picture.duration = max(1, round(duration * ticks))
        self._begins, self._end = pts * self._time_base, (pts + picture.duration) * self._time_base
        return picture

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise CSDError(
                f"{self._path}: cannot be written ({error.strerror or error}); is there room, and the right to?"
            ) from error


class _Tracks:
    """Sound and subtitles of a file, copied into another as they are, in step with the pictures."""

    def __init__(self, path: Path, output: av.container.OutputContainer, offset: Fraction) -> None:
        self._source = _open_input(path)
        self._output, self._offset = output, offset
        self._streams: dict[int, Any] = {}
        for stream in (*self._source.streams.audio, *self._source.streams.subtitles):
            try:
                copy = output.add_stream_from_template(stream)
            except (ValueError, av.FFmpegError):
                name = stream.codec_context.name if stream.codec_context else "unknown"
                track = f"{stream.type} track {stream.index} ({name})"
                logger.warning("%s: %s does not go into %s, it is left out", path, track, output.format.name)
                continue
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            self._streams[stream.index] = copy
        wanted = [self._source.streams[index] for index in self._streams]
        self._packets = self._timed(self._source.demux(*wanted)) if wanted else iter(())
        self._waiting = next(self._packets, None)

    def copy_until(self, seconds: Fraction) -> None:
        """Write what begins before this time of the output."""
        while self._waiting is not None and self._waiting[0] < seconds:
            self._output.mux(self._waiting[1])
            self._waiting = next(self._packets, None)

    def close(self) -> None:
        self._source.close()

    def _timed(self, packets: Iterator[av.Packet]) -> Iterator[tuple[Fraction, av.Packet]]:
        """Packets with the output's times; the ones before its start are dropped."""
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                return  # a damaged end: the pictures' reader says so
            if packet is None:
                return
            if packet.dts is None or packet.pts is None:  # demuxers end every stream with an empty packet
                continue
            shift = round(self._offset / packet.time_base)
            begin = packet.pts * packet.time_base - self._offset
            if begin + (packet.duration or 0) * packet.time_base <= 0 < self._offset:
                continue
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = self._streams[packet.stream.index]
            yield begin, packet


def _open_input(path: Path) -> av.container.InputContainer:
    """A local file that holds its own frames, whatever its name says. Raises CSDError."""
    try:
        # An absolute path is never taken for an address, whatever characters are in it.
        return av.open(
            str(path.resolve()), container_options={"format_whitelist": _READABLE, "protocol_whitelist": "file"}
        )
    except (av.FFmpegError, OSError) as error:
        if path.stat().st_size == 0:
            raise CSDError(f"{path} is empty (0 bytes)") from error
        raise CSDError(f"{path}: not a video file that can be read, or damaged ({error.strerror or error})") from error


def _encoder(container: av.container.OutputContainer, codec: str) -> av.Codec:
    """The encoder for the source's codec if the container holds it, else the container's usual one."""
    names = [codec] if codec in container.supported_codecs else []
    for name in (*names, container.default_video_codec):
        with contextlib.suppress(UnknownCodecError):
            return av.Codec(name, "w")
    raise CSDError(f"this PyAV has no encoder for {container.format.name}; install PyAV's own wheel: pip install av")


def _pixel_format(encoder: av.Codec, source: str | None, frame: np.ndarray) -> str:
    """The source's pixel format where the encoder has it; 4:4:4 for odd sizes that it takes in no other."""
    wanted = source if source and source.startswith("yuv") else "yuv420p" if frame.dtype == np.uint8 else "yuv420p10le"
    wanted = wanted.replace("yuvj", "yuv").replace("yuva", "yuv")
    if encoder.name in _EVEN_ONLY and (frame.shape[0] % 2 or frame.shape[1] % 2):
        wanted = re.sub("42[02]|41[01]|440", "444", wanted)
    offered = [pixel_format.name for pixel_format in encoder.video_formats or ()]
    eight_bits = re.sub(r"p\d+[lb]e$", "p", wanted)
    return next((name for name in (wanted, eight_bits, "yuv420p") if name in offered), offered[0])


def to_rgb(frame: av.VideoFrame, rgb_format: str = "rgb24") -> np.ndarray:
    """The picture as a viewer shows it: (H, W, 3), uint8, or uint16 of 'rgb48le'."""
    pixels = frame.to_ndarray(format=rgb_format, interpolation=_INTERPOLATION)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    return _turn(pixels, np.frombuffer(matrix, np.int32))  # type: ignore[call-overload]


def _turn(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror by quarter turns as a 3x3 display matrix (9 integers, row by row) says."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) > abs(a):  # x and y change places
        pixels, flip_x, flip_y = pixels.swapaxes(0, 1), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _reached(position: Position, number: int, seconds: Fraction) -> bool:
    return number >= position if isinstance(position, int) else seconds >= position
