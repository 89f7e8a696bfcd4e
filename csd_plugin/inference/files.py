"""A whole job: from a video or a folder of frames to another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from csd_plugin.data.video import FrameReader, Position, open_reader, open_writer
from csd_plugin.errors import CSDError
from csd_plugin.inference.runner import Derainer, peak_of
from csd_plugin.inference.streaming import WindowStream, ahead

Observer = Callable[[str, np.ndarray, np.ndarray, np.ndarray | None], None]
"""Called with each frame's name, the rainy frame, the clean one, and the truth if there is one."""


def derain_file(
    source: Path,
    output: Path,
    derainer: Derainer,
    *,
    start: Position = 0,
    end: Position | None = None,
    fps: Fraction = Fraction(25),
    side_by_side: bool = False,
    truth: Path | None = None,
    keep_going: bool = False,
    observe: Observer | None = None,
) -> int:
    """Derain a video file or a folder of frames into another; see `open_reader` and `open_writer` for both.

    Reading, network and writing overlap in three threads; memory does not grow with the clip.

    Args:
        side_by_side: write the rainy frame beside the clean one, and the truth beside both.
        truth: a video or folder with as many frames of the same size, handed to `observe`.

    Returns:
        How many frames were written. A video that is not finished, for whatever reason, is removed.

    Raises:
        CSDError: as the two functions do, and for a truth that does not fit.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(open_reader(source, start=start, end=end, fps=fps, keep_going=keep_going))
        true_reader = stack.enter_context(open_reader(truth, start=start, end=end, fps=fps)) if truth else None
        true_frames = _truth(true_reader, reader) if true_reader else None
        writer = stack.enter_context(open_writer(output, like=reader))
        bar = stack.enter_context(tqdm(total=reader.num_frames, unit="frame", desc=source.name, disable=None))
        count = 0
        for rainy, clean in ahead(paired(reader, derainer)):
            true = next(true_frames) if true_frames else None
            panels = [frame for frame in (rainy, clean, true) if frame is not None] if side_by_side else [clean]
            writer.write(np.concatenate(panels, axis=1))
            if observe:
                observe(reader.name(count), rainy, clean, true)
            count += 1
            bar.update()
    return count


def paired(reader: FrameReader, derainer: Derainer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each frame with its clean one, in order, reading ahead."""
    waiting: deque[np.ndarray] = deque()

    def remembered() -> Iterator[np.ndarray]:
        for frame in ahead(reader):
            waiting.append(frame)
            yield frame

    for clean in derainer(remembered()):
        yield waiting.popleft(), clean


def sample_windows(source: Path, num_frame: int, *, count: int = 16, size: int = 512) -> list[Tensor]:
    """Up to `count` windows from all over a clip, (1, T, 3, H, W) float32 in [0, 1], cut to `size` in the middle."""
    windows: list[Tensor] = []
    with open_reader(source) as reader:
        step = max((reader.num_frames or 0) // count, 1)
        stream: WindowStream[Tensor] = WindowStream(num_frame)
        top, left = (max(length - size, 0) // 2 for length in reversed(reader.size))
        made = (window for frame in reader for window in stream.push(_cut(frame, top, left, size)))
        windows += [torch.stack(window)[None] for window in islice(made, 0, count * step, step)]
        return windows or [torch.stack(window)[None] for window in stream.flush()][:count]


def _cut(frame: np.ndarray, top: int, left: int, size: int) -> Tensor:
    pixels = frame[top : top + size, left : left + size].astype(np.float32) / peak_of(frame)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _truth(truth: FrameReader, rainy: FrameReader) -> Iterator[np.ndarray]:
    if truth.size != rainy.size:
        width, height = truth.size
        raise CSDError(f"{truth.path} is {width}x{height}, {rainy.path} is {rainy.size[0]}x{rainy.size[1]}")

    def frames() -> Iterator[np.ndarray]:
        count = 0
        for frame in truth:
            count += 1
            yield frame
        raise CSDError(f"{truth.path} ends after {count} frames, {rainy.path} goes on; truth and rain must pair")

    return frames()
