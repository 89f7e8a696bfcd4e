"""Reads and writes folders of image files as clips."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from csd_plugin.atomic import refuse_inputs, same_place
from csd_plugin.data.images import (
    eight_bits,
    files_of,
    is_cut_png,
    is_whole_png,
    lost_in,
    note_in_png,
    nth_name,
    number_in,
    read_image,
    sixteen_bits,
    write_png,
)
from csd_plugin.data.layout import frame_numbers, gap_between, is_frame_name, refuse_store
from csd_plugin.data.video.interface import EmptyPart, FrameReader, FrameWriter, Order, Position, frame_number
from csd_plugin.data.video.origin import Origin, as_note, differs
from csd_plugin.errors import CSDError, cannot_write

logger = logging.getLogger(__name__)


class FolderReader(FrameReader):
    """Image files as a clip of constant rate, with the depth of the first image: 8 or 16 bits."""

    counted = True

    def __init__(
        self, path: Path, files: list[Path], *, start: Position, end: Position | None, fps: Fraction, context: int
    ) -> None:
        super().__init__(path)
        self.first = frame_number(start, fps)
        last = len(files) if end is None else min(frame_number(end, fps), len(files))
        if self.first >= last:
            raise EmptyPart(
                f"{path}: no frames from {self.first} on before {last}; it has {len(files)}, counted from 0, and "
                f"--end is the frame after the last"
            )
        self.lead = min(context, self.first)
        self._files = files[self.first - self.lead : last + context]
        self._numbers = frame_numbers([file.stem for file in files])
        self.fps = fps
        self.time_base = 1 / fps
        self.num_frames: int = last - self.first
        self.trail = len(self._files) - self.lead - self.num_frames
        self._first = read_image(self._files[0])
        self.size = (self._first.shape[1], self._first.shape[0])
        self._said: set[str] = set()

    def _read(self) -> Iterator[np.ndarray]:
        deep, rounded = self._first.dtype == np.uint16, False
        self._say_what_is_missing()
        self._say_what_is_lost(self._files[0])
        yield self._first
        for file in self._files[1:]:
            self._say_what_is_lost(file)
            frame = read_image(file)
            if not deep and not rounded and frame.dtype == np.uint16:
                logger.warning(
                    "%s has 16 bits, but the frames before it have 8: it and others are rounded to 8 bits", file
                )
                rounded = True
            frame = sixteen_bits(frame) if deep else eight_bits(frame)
            height, width = frame.shape[:2]
            if (width, height) != self.size:
                raise CSDError(
                    f"{file} is {width}x{height}, but the frames before it are {self.size[0]}x{self.size[1]}: "
                    f"a clip needs frames of one size; move the others into a folder of their own"
                )
            yield frame

    def _say_what_is_lost(self, file: Path) -> None:
        for lost in lost_in(file):
            if lost not in self._said:
                logger.warning("%s: left out: %s; also of further images of the clip", file, lost)
                self._said.add(lost)

    def _say_what_is_missing(self) -> None:
        gap = gap_between([file.stem for file in self._files])
        if gap is not None:
            logger.warning(
                "%s: frames are missing between %s and %s; the remaining ones are treated as consecutive",
                *(self.path, *gap),
            )

    def in_part(self, index: int) -> bool:
        return 0 <= index - self.lead < self.num_frames

    def stamp(self, index: int) -> tuple[int, int]:
        return index, 1

    def name(self, index: int) -> str:
        if index >= self.num_frames:
            raise self.no_such(index)
        return self._files[self.lead + index].stem

    def number(self, index: int) -> int:
        if index >= self.num_frames:
            raise self.no_such(index)
        return self._numbers[self.first + index] if self._numbers else super().number(index)


class FolderWriter(FrameWriter):
    """PNG files named after the frames of `like`, or by a pattern. Every file appears complete or not at all.

    Args:
        inputs: all files, folders and patterns that are read; nothing of them may be written to.
        made_by: the origins of the frames, by kind. They are stored in every file, and compared by a run that resumes.
    """

    def __init__(
        self,
        path: Path,
        *,
        like: Order,
        pattern: str | None = None,
        overwrite: bool = False,
        inputs: Collection[Path] = (),
        made_by: Mapping[str, Origin] | None = None,
    ) -> None:
        super().__init__(path)
        refuse_store(path)
        make_folder(path)  # first, as a path through a missing folder cannot be resolved
        if any(given.is_dir() and same_place(path, given) for given in inputs):
            raise CSDError(f"{path} is also the input; give the output another folder")
        self._like, self._pattern = like, pattern
        self._made_by = dict(made_by or {})
        self._note = as_note(self._made_by) if made_by else ""
        refuse_inputs(self._frames(), [file for given in inputs for file in files_of(given)])
        if not overwrite and (there := self._there()):
            raise CSDError(
                f"{path} holds frames already, such as {there.name}; --resume adds the missing ones, --overwrite "
                f"replaces those with the same names, or give another folder"
            )

    def _there(self) -> Path | None:
        """A frame that an earlier run may have written; None if there is none."""
        return min(self._frames(), default=None)

    def _frames(self) -> Iterator[Path]:
        """Existing files with names that this writer would give."""
        for file in self.path.iterdir():
            is_png = file.suffix.lower() == ".png" and is_frame_name(file.name)
            if is_png and (self._pattern is None or number_in(self._pattern, file.name) is not None):
                yield file

    def _file(self, index: int) -> Path:
        """The file of the part's index-th frame."""
        name = f"{self._like.name(index)}.png"
        if self._pattern:
            name = nth_name(self._pattern, self._like.number(index))
        return self.path / name

    def _put(self, frame: np.ndarray) -> None:
        write_png(self._file(self._count), frame, self._note)

    def resume_at(self, size: tuple[int, int]) -> int | None:
        there = next(filter(is_whole_png, sorted(self._frames())), None)
        if there and (found := read_image(there).shape[1::-1]) != size:
            raise CSDError(
                f"{there} is {found[0]}x{found[1]}, but frames would now be {size[0]}x{size[1]}; --resume needs the "
                f"same clip and options"
            )
        count = self._like.num_frames if self._like.counted else None
        done, unknown = 0, 0
        while done != count and is_whole_png(file := self._file(done)):
            unknown += not self._made_alike(file)
            done += 1
        if unknown and self._made_by:
            logger.warning(
                "%s: %s of its frames do not state their origin; they are kept",
                *(self.path, unknown),
            )
        if done == count:
            return None
        self._refuse_others(done, count)
        return done

    def _refuse_others(self, done: int, count: int | None) -> None:
        """Raise CSDError if a file would be replaced that was not written by a run of the same network and clip."""
        for file in self._behind(done, count):
            difference = differs(note_in_png(file), self._made_by)
            if difference:
                raise _made_otherwise(file, difference)
            if difference is None and not is_cut_png(file):
                raise CSDError(
                    f"{file}: does not state its origin, and a frame before it is missing, so --resume would "
                    f"replace it; use --overwrite for that, or give another folder"
                )

    def _behind(self, done: int, count: int | None) -> Iterator[Path]:
        """Existing files with the names of the part's frames from `done` on.

        Args:
            count: frames of the part; None if unknown.
        """
        if count is not None:
            yield from filter(Path.exists, map(self._file, range(done, count)))
            return
        source = self._like.source_format
        if source and isinstance(source.end, int):
            count = source.end - self._like.first
        for file in sorted(self._frames()):  # a video may have any number of frames, which number their names
            number = number_in(self._pattern or "%05d.png", file.name)
            index = -1 if number is None else number - self._like.number(0)
            if index >= done and (count is None or index < count):
                yield file

    def _made_alike(self, file: Path) -> bool:
        """Whether a frame states the same origin as the others. Raises CSDError if it states another one."""
        difference = differs(note_in_png(file), self._made_by)
        if difference and self._made_by:
            raise _made_otherwise(file, difference)
        return difference is not None


def _made_otherwise(file: Path, difference: str) -> CSDError:
    return CSDError(f"{file}: {difference}; --resume needs the same one, --overwrite makes the frames again")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises CSDError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if folder.is_symlink() and not folder.exists():
            raise CSDError(
                f"{folder}: cannot be written (the target of this link does not exist); remove the link"
            ) from error
        raise cannot_write(folder, error) from error
