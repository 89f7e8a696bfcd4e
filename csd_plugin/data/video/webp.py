"""Reads animated WebP files, which FFmpeg cannot read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from csd_plugin.data.images import lost_of
from csd_plugin.data.video.interface import EmptyPart, FrameReader, Position, reached
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)

_UNTIMED = 100
"""Milliseconds of a picture that has no duration in the file, as in browsers."""


def is_webp(path: Path) -> bool:
    """Whether a file's content begins like WebP, whatever its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


class WebPReader(FrameReader):
    """The pictures of a WebP file, decoded by Pillow; transparency is dropped.

    The file is read once for the times, and again for the pictures. Raises CSDError for a damaged one.
    """

    time_base = Fraction(1, 1000)
    counted = True
    codec = "webp"

    def __init__(self, path: Path, *, start: Position, end: Position | None, context: int) -> None:
        super().__init__(path)
        self._durations = [int(image.info.get("duration", 0)) or _UNTIMED for image in self._images()]
        self._starts = list(accumulate(self._durations, initial=0))
        numbers = range(len(self._durations))
        seconds = [begins * self.time_base for begins in self._starts]
        self.first = next((n for n in numbers if reached(start, n, seconds[n])), len(numbers))
        last = next((n for n in numbers if end is not None and reached(end, n, seconds[n])), len(numbers))
        if self.first >= last:
            raise EmptyPart(f"{path}: no frames between --start and --end; it has {len(numbers)}, counted from 0")
        self.num_frames: int = last - self.first
        self.lead = min(context, self.first)
        self.trail = min(context, len(numbers) - last)
        self.fps = len(numbers) / seconds[-1]
        with self._open() as image:
            self.size = image.size
        self._said: set[str] = set()

    def _read(self) -> Iterator[np.ndarray]:
        for number, image in enumerate(self._images()):
            if number >= self.first + self.num_frames + self.trail:
                return
            if number >= self.first - self.lead:
                for lost in lost_of(image):
                    if lost not in self._said:
                        logger.warning("%s: left out: %s", self.path, lost)
                        self._said.add(lost)
                yield np.asarray(image.convert("RGB"))

    def in_part(self, index: int) -> bool:
        return 0 <= index - self.lead < self.num_frames

    def stamp(self, index: int) -> tuple[int, int]:
        if index >= self.num_frames:
            raise self.no_such(index)
        return self._starts[self.first + index], self._durations[self.first + index]

    def name(self, index: int) -> str:
        return f"{self.first + index + 1:05d}"

    def _open(self) -> Image.Image:
        try:
            return Image.open(self.path, formats=["WEBP"])
        except (OSError, Image.DecompressionBombError) as error:
            raise self._damaged(error) from error

    def _images(self) -> Iterator[Image.Image]:
        with self._open() as animation:
            try:
                for image in ImageSequence.Iterator(animation):
                    image.load()
                    yield image
            except (OSError, EOFError, SyntaxError) as error:
                raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> CSDError:
        return CSDError(f"{self.path}: the WebP file is damaged or cannot be read ({error}); restore it")
