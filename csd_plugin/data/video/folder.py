"""Folders of image files as clips."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from csd_plugin.data.layout import is_frame_name
from csd_plugin.data.video.images import nth_name, read_image, shape_of, write_png
from csd_plugin.data.video.interface import FrameReader, FrameWriter, Position, frame_number
from csd_plugin.errors import CSDError


class FolderReader(FrameReader):
    """Image files as a clip of constant rate."""

    def __init__(
        self, path: Path, files: list[Path], *, start: Position, end: Position | None, fps: Fraction, context: int
    ) -> None:
        self.first = frame_number(start, fps)
        last = len(files) if end is None else min(frame_number(end, fps), len(files))
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
        make_folder(path)
        self._path, self._like, self._pattern, self._written = path, like, pattern, 0
        if not overwrite and (there := self.there()):
            raise CSDError(
                f"{path} holds frames already, such as {there.name}; --resume adds those that are missing, --overwrite "
                f"replaces those of the same names, or give another folder"
            )

    def there(self) -> Path | None:
        """A frame that an earlier run may have written."""
        shape = shape_of(self._pattern) if self._pattern else None
        files = (file for file in self._path.iterdir() if file.suffix.lower() == ".png" and is_frame_name(file.name))
        return min((file for file in files if shape is None or shape.fullmatch(file.name)), default=None)

    def file(self, index: int) -> Path:
        """Where the part's index-th frame is written."""
        name = f"{self._like.name(index)}.png"
        if self._pattern:
            digits = re.search(r"(\d+)\D*$", self._like.name(index))
            number = int(digits[1]) if digits else self._like.first + index + 1
            name = nth_name(self._pattern, number)
        return self._path / name

    def write(self, frame: np.ndarray) -> None:
        write_png(self.file(self._written), frame)
        self._written += 1

    def close(self) -> None:
        pass  # every frame is finished as it is written

    def abort(self) -> None:
        pass


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises CSDError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CSDError(f"{folder}: cannot make this folder ({error.strerror})") from error
