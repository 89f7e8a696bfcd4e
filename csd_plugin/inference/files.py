"""Derains whole files: from one video or folder of frames to another."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from csd_plugin.data.images import one_depth
from csd_plugin.data.video import open_reader, open_writer
from csd_plugin.data.video.camera import is_camera
from csd_plugin.data.video.folder import FolderWriter
from csd_plugin.data.video.interface import PIPE, EmptyPart, FrameReader, FrameWriter, Position, position_of
from csd_plugin.data.video.origin import Origin, origin_of_clip
from csd_plugin.data.video.pipes import is_single_pass
from csd_plugin.data.video.unfinished import beside
from csd_plugin.errors import CSDError
from csd_plugin.inference.cuts import CutDetector
from csd_plugin.inference.facts import Facts
from csd_plugin.inference.runner import Derainer, peak_of
from csd_plugin.inference.streaming import WindowStream, ahead
from csd_plugin.lifeline import heard, ignore_hangups, put_back

Observer = Callable[[str, np.ndarray, np.ndarray, np.ndarray | None], None]
"""Called with each frame's name, the rainy frame, the clean frame, and the truth if there is one."""


class Derained(NamedTuple):
    """The number of frames written, and the indices, in the clip, of the frames that begin another shot.

    For a camera: delay, the seconds from each frame's arrival until it was written; dropped, the number of frames that
    were left out because they arrived too fast. For a video that was resumed: kept, the number of frames from the run
    before.
    """

    num_frames: int
    cuts: list[int]
    delay: Sequence[float] = ()
    dropped: int = 0
    kept: int = 0


def derain_file(
    source: Path,
    output: Path,
    derainer: Derainer,
    *,
    start: Position = 0,
    end: Position | None = None,
    fps: Fraction = Fraction(25),
    size: tuple[int, int] | None = None,
    side_by_side: bool = False,
    truth: Path | None = None,
    keep_going: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    quick: bool | None = None,
    begin: Callable[[FrameReader, int], None] | None = None,
    observe: Observer | None = None,
) -> Derained:
    """Derain a video, images, a pipe or a camera; see `open_reader` and `open_writer` for all kinds.

    Reading, network and writing overlap in three threads; memory does not grow with the clip. The frames of a part are
    those of the whole clip, as the frames around it are read, too (sequence networks start their runs of frames where
    the part starts, which makes a small difference). Windows never hold frames of two shots. A camera's clip ends with
    Ctrl-C, SIGTERM or SIGHUP, and its output is then complete; if frames arrive faster than they are cleaned and
    written, some are dropped (see `CameraReader`), so that the delay does not grow.

    Args:
        size: (width, height) of a pipe's frames.
        side_by_side: write rainy frame, clean frame and truth side by side, with the largest of their depths.
        truth: a video or folder with the same number of frames, of the same size, which are passed to `observe`. Not
            with `keep_going`, which may leave out frames.
        resume: skip frames that an earlier run has written to the output, a folder, pattern or video. Of a video, all
            frames are read again, as their times are needed.
        overwrite: see `open_writer`.
        quick: encode faster, into a larger file; the default for cameras and real-time networks.
        begin: called with the reader and the number of kept frames before the first frame, unless none is left to do.

    Returns:
        What this run has done. If it fails, an unfinished video is removed; from some length on, a file beside it
        remains, with which another run resumes.

    Raises:
        CSDError: as for these two functions; also for a truth that does not match, and for an output that cannot be
            resumed. If the truth has more frames than the clip, the output is nevertheless complete.
    """
    if truth and keep_going:
        raise CSDError(
            "keep_going (--keep-going) may leave out frames that the truth (--compare) needs: use only one of the two"
        )
    part = _Part(source, position_of(start, "start"), None if end is None else position_of(end, "end"), fps)
    inputs, made_by = [truth] if truth else [], _made_by(derainer, source, truth if side_by_side else None)
    kept = 0
    with ExitStack() as stack:
        if resume:
            if truth:  # checked even if nothing is left to do
                open_reader(truth, fps=fps).close()
            resumed = _resume_at(part, output, panels_in_frame(side_by_side, truth), inputs, made_by)
            if resumed is None:
                return Derained(0, [])
            part, kept = resumed
        try:
            reader = stack.enter_context(part.open(keep_going=keep_going, context=derainer.num_frame // 2, size=size))
        except EmptyPart:
            if resume:  # all frames exist: only reading to the end shows how many a raw stream has
                return Derained(0, [])
            raise
        true_frames = _truth(stack.enter_context(_open_truth(truth, reader, part)), reader) if truth else None
        hurries = reader.live or derainer.in_real_time if quick is None else quick
        replace = overwrite or resume
        writer = stack.enter_context(
            open_writer(output, like=reader, overwrite=replace, quick=hurries, inputs=inputs, made_by=made_by)
        )
        if kept:
            width, height = reader.size
            writer.resume_at((width * panels_in_frame(side_by_side, truth), height))
        if begin:
            begin(reader, kept)
        stack.enter_context(_interrupt_ends(reader))
        # kept frames are not cleaned again, but for the context of the next one
        passed = max(kept - derainer.num_frame // 2, 0)
        # Closed before the reader, as its threads may still be reading.
        pairs = stack.enter_context(
            contextlib.closing(paired(reader, derainer, depth=1 if reader.live else 4, passed=passed))
        )
        trues = _while_paired(true_frames, truth, source) if truth and true_frames else repeat(None)
        derained = _write_pairs(pairs, trues, reader, writer, kept, side_by_side=side_by_side, observe=observe)
        count = kept + derained.num_frames
        if count < kept:
            raise CSDError(
                f"{beside(output)} has {kept:,} frames, but the part has only {count:,}: use the same end to resume, "
                f"or remove this file to begin anew"
            )
        truth_goes_on = true_frames is not None and part.end is None and next(true_frames, None) is not None
    if truth and truth_goes_on:
        raise CSDError(f"{_unpaired(truth, source, count)}; {output} is complete, but its scores would be wrong")
    return derained


def _write_pairs(
    pairs: Iterable[Pair],
    trues: Iterator[np.ndarray | None],
    reader: FrameReader,
    writer: FrameWriter,
    kept: int,
    *,
    side_by_side: bool,
    observe: Observer | None,
) -> Derained:
    """Write and observe the clean frames of the part; the writer has the first `kept` already.

    Args:
        trues: a true frame, or None, for each frame of the part.

    Returns:
        As `derain_file`; if the part has fewer than `kept` frames, `num_frames` is negative.
    """
    count, cuts, delay = 0, [], array("d")
    with progress(reader) as bar:
        for index, pair in enumerate(pairs):
            if not reader.in_part(index):
                continue
            if pair.begins_shot and count >= max(kept, 1):
                cuts.append(reader.first + count)
            true = next(trues)
            if count < kept:
                writer.keep()
            else:
                writer.write(_panels(pair, true) if side_by_side else pair.clean)
                if observe:
                    observe(reader.name(count), pair.rainy, pair.clean, true)
            count += 1
            if reader.live:
                delay.append(reader.age(index))
            bar.update()
    return Derained(count - kept, cuts, delay, reader.dropped, kept)


class _Part(NamedTuple):
    """What is to be read; see `open_reader`."""

    source: Path
    start: Position
    end: Position | None
    fps: Fraction

    def open(self, *, keep_going: bool = False, context: int = 0, size: tuple[int, int] | None = None) -> FrameReader:
        return open_reader(
            self.source,
            start=self.start,
            end=self.end,
            fps=self.fps,
            keep_going=keep_going,
            context=context,
            size=size,
        )


def check_ends(
    source: Path,
    output: Path,
    *,
    start: Position = 0,
    end: Position | None = None,
    fps: Fraction = Fraction(25),
    size: tuple[int, int] | None = None,
    truth: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Raise the CSDError of an input or output that `derain_file` would refuse, before a network is loaded for it.

    Loading and timing a large network takes up to a minute. A camera, which may only be opened once, is left out. So is
    what depends on the network: whether frames that are to be resumed are its own.
    """
    if is_camera(source):
        return
    part = _Part(source, position_of(start, "start"), None if end is None else position_of(end, "end"), fps)
    with _first_look(), ExitStack() as stack:
        reader = stack.enter_context(part.open(keep_going=True, size=size))
        if truth:
            _truth(stack.enter_context(_open_truth(truth, reader, part)), reader)
        inputs = [truth] if truth else []
        writer = open_writer(output, like=reader, overwrite=overwrite or resume, inputs=inputs)
        stack.callback(writer.abort)
        if resume and output == PIPE:
            writer.resume_at(reader.size)


def has_deep_frames(source: Path) -> bool:
    """Whether a video's or folder's frames have more than 8 bits per channel, some of which bf16 would lose.

    Only a first look: faults of the source are reported by the job that reads it.
    """
    if is_single_pass(source):
        return False
    try:
        with _first_look(), open_reader(source, keep_going=True) as reader:
            return next(iter(reader)).dtype == np.uint16
    except CSDError:
        return False


@contextlib.contextmanager
def _first_look() -> Iterator[None]:
    """Inside, readers and writers give no warnings: the job that follows gives them."""
    said = logging.getLogger("csd_plugin.data.video")
    level = said.level
    said.setLevel(logging.ERROR)
    try:
        yield
    finally:
        said.setLevel(level)


def progress(reader: FrameReader) -> tqdm:
    """A progress bar with frames per second and, if the clip's length is known, the time left."""
    shape = "{l_bar}{bar}| {n_fmt}/{total_fmt} frames, {rate_noinv_fmt}, {remaining} left"
    shape = "{desc}: {n_fmt} frames in {elapsed}, {rate_noinv_fmt}" if reader.num_frames is None else shape
    return tqdm(
        total=reader.num_frames, unit=" frames", desc=reader.path.name, disable=None, bar_format=shape, smoothing=0.05
    )


@contextlib.contextmanager
def _interrupt_ends(reader: FrameReader) -> Iterator[None]:
    """Inside, the first Ctrl-C, SIGTERM or SIGHUP ends a live clip, whose output is then finished.

    The next one acts as usual, except a SIGHUP.
    """
    if not reader.live or threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, *heard())}

    def as_usual() -> None:
        # SIGHUP may be ignored by now
        put_back({number: handler for number, handler in usual.items() if signal.getsignal(number) is stop})

    def stop(*_: object) -> None:
        ignore_hangups()
        as_usual()
        reader.stop()

    for number in usual:
        signal.signal(number, stop)
    try:
        yield
    finally:
        as_usual()


class Pair(NamedTuple):
    """A rainy frame and its clean one."""

    rainy: np.ndarray
    clean: np.ndarray
    begins_shot: bool


def paired(
    frames: Iterable[np.ndarray], derainer: Derainer, depth: int = 4, *, passed: int = 0
) -> Generator[Pair, None, None]:
    """Each frame with its clean one, in order; every shot is derained as a separate clip.

    The first `passed` frames are not cleaned: each comes with itself.

    Frames are read and cleaned ahead in separate threads: up to `depth` frames wait for the network, and up to `depth`
    wait to be taken here. Do not write to rainy frames of a reader, as later windows hold the same arrays.
    """
    own = isinstance(frames, FrameReader)
    waiting: deque[tuple[np.ndarray, bool]] = deque()
    detector = CutDetector()

    def started() -> Iterator[tuple[np.ndarray, bool, Future[np.ndarray]]]:
        clip = derainer.begin()
        for number, frame in enumerate(ahead(frames, depth)):
            if number < passed:
                as_it_is: Future[np.ndarray] = Future()
                as_it_is.set_result(frame)
                yield frame, False, as_it_is
                continue
            cut, rest = detector.cut(frame), []
            if cut:
                rest, clip = clip.finish(), derainer.begin()
            waiting.append((frame, cut))
            for clean in (*rest, *clip.submit(frame, own=own)):
                yield (*waiting.popleft(), clean)
        for clean in clip.finish():
            yield (*waiting.popleft(), clean)

    for rainy, begins_shot, clean in ahead(started(), depth + derainer.at_once - 1):
        yield Pair(rainy, clean.result(), begins_shot)


def panels_in_frame(side_by_side: bool, truth: Path | None) -> int:
    """The number of pictures side by side in an output frame; see `derain_file`."""
    return 1 + side_by_side * (2 if truth else 1)


def _panels(pair: Pair, true: np.ndarray | None) -> np.ndarray:
    """Rainy frame, clean frame and, where there is one, truth side by side, with the depth of the deepest."""
    panels = [pair.rainy, pair.clean] if true is None else [pair.rainy, pair.clean, true]
    return np.concatenate(one_depth(panels), axis=1)


def _made_by(derainer: Derainer, source: Path, truth: Path | None) -> dict[str, Origin]:
    """The origins of the frames, for image files; empty unless all are known.

    Args:
        truth: given if it is shown beside the frames.
    """
    parts = {"clip": source} | ({"truth": truth} if truth else {})
    if not derainer.made_by or any(is_single_pass(path) for path in parts.values()):
        return {}
    origins = {kind: origin_of_clip(path) for kind, path in parts.items()}
    return derainer.made_by | {kind: origin for kind, origin in origins.items() if origin}


def _resume_at(
    part: _Part, output: Path, num_panel: int, inputs: list[Path], made_by: Mapping[str, Origin]
) -> tuple[_Part, int] | None:
    """The part that is left to read, and how many of its frames are kept; None if all are known to exist.

    Files of frames are left as they are, so the part begins after them. A video is written anew, with the frames that
    are kept.

    Args:
        num_panel: pictures side by side in an output frame.
        inputs, made_by: as for `open_writer`.

    Raises:
        CSDError: existing frames have another size or origin, or the source cannot be read again.
    """
    if is_single_pass(part.source):
        raise CSDError(
            f"{part.source}: frames from a pipe or camera cannot be read again, so --resume needs a file or a folder"
        )
    with ExitStack() as stack:
        reader = stack.enter_context(part.open())
        writer = open_writer(output, like=reader, overwrite=True, inputs=inputs, made_by=made_by)
        stack.callback(writer.abort)
        done = writer.resume_at((reader.size[0] * num_panel, reader.size[1]))
        if done is None:
            return None
        return (part._replace(start=reader.first + done), 0) if isinstance(writer, FolderWriter) else (part, done)


def sample_windows(source: Path, facts: Facts, *, count: int = 16, size: int = 512) -> list[Tensor]:
    """Windows from the whole length of a clip, (1, T, 3, H, W) float32 RGB in [0, 1]; T is `facts.num_seen`.

    Args:
        count: the most windows.
        size: the largest side in pixels; larger frames are cropped to their centre.
    """
    windows: list[Tensor] = []
    with open_reader(source) as reader:
        step = max((reader.num_frames or 0) // count, 1)
        stream: WindowStream[Tensor] = WindowStream(facts.num_frame, num_future=facts.num_future)
        top, left = (max(length - size, 0) // 2 for length in reversed(reader.size))
        made = (window for frame in reader for window in stream.push(_cut(frame, top, left, size)))
        windows += [torch.stack(window)[None] for window in islice(made, 0, count * step, step)]
        return windows or [torch.stack(window)[None] for window in stream.flush()][:count]


def _cut(frame: np.ndarray, top: int, left: int, size: int) -> Tensor:
    pixels = frame[top : top + size, left : left + size].astype(np.float32) / peak_of(frame)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _open_truth(truth: Path, rainy: FrameReader, part: _Part) -> FrameReader:
    """The true frames with the same indices, whatever the frame rates of the two clips. Raises CSDError."""
    end = part.end
    if not (end is None or isinstance(end, int)):
        end = rainy.first + rainy.num_frames if rainy.counted and rainy.num_frames is not None else None
    return open_reader(truth, start=rainy.first, end=end, fps=part.fps)


def _truth(truth: FrameReader, rainy: FrameReader) -> Iterator[np.ndarray]:
    """The true frames. Raises CSDError if their size differs, or their number, if both are known."""
    if truth.size != rainy.size:
        width, height = truth.size
        raise CSDError(f"{truth.path} is {width}x{height}, but {rainy.path} is {rainy.size[0]}x{rainy.size[1]}")
    if truth.counted and rainy.counted and truth.num_frames != rainy.num_frames:
        raise _unpaired(truth.path, rainy.path, min(truth.num_frames or 0, rainy.num_frames or 0), truth.num_frames)
    return iter(truth)


def _while_paired(true_frames: Iterator[np.ndarray], truth: Path, rainy: Path) -> Iterator[np.ndarray]:
    """The true frames. Raises CSDError for the frame after the last one, as the rainy clip goes on there."""
    count = 0
    for count, frame in enumerate(true_frames, 1):  # noqa: B007
        yield frame
    raise _unpaired(truth, rainy, count, of_truth=count)


def _unpaired(truth: Path, rainy: Path, common: int, of_truth: int | None = None) -> CSDError:
    """The error if only one clip ends after `common` frames; of_truth: the truth's number of frames, if known."""
    ends, goes_on = (truth, rainy) if of_truth == common else (rainy, truth)
    return CSDError(f"{ends} ends after {common} frames, {goes_on} continues; truth and rain must pair frame for frame")
