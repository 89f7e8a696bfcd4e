"""Selects the frames a network is adapted to: shots from all parts of the videos, without cuts inside."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from csd_plugin.data.images import eight_bits, rounded
from csd_plugin.data.layout import SPLITS
from csd_plugin.data.video import open_reader
from csd_plugin.data.video.camera import is_camera
from csd_plugin.data.video.interface import PIPE, EmptyPart
from csd_plugin.errors import CSDError
from csd_plugin.inference.cuts import CutDetector
from csd_plugin.plain import entries, file_name, section_of, whole_number
from csd_plugin.report.text import counted

logger = logging.getLogger(__name__)

_RUN = 60
"""Consecutive frames from one place of a long video."""
_LONGEST = 150
"""The most frames of a shot: if its cleaning is interrupted, it starts again at the first."""
_LEARNED = 9
"""The fewest training frames of a shot: three targets with windows of seven frames."""
_SHORTEST = 12
"""The fewest frames of a shot: those, and the fewest that are held back."""
_HELD = (3, 12)
"""The fewest and most held-back frames of a shot; between these bounds it is a tenth."""
_LAST = 10**9
"""The largest frame number of a video."""
_NAME = re.compile(r"\d+-[A-Za-z0-9.-]+-\d+")
"""The name of a shot: the input's number, what is left of the input's name, the first frame."""


@dataclass(frozen=True)
class Shot:
    """Consecutive frames of one video that show one scene.

    Attributes:
        name: the name of its clip.
        source: the video or folder.
        start: number of the first frame in it, from 0.
        length: number of frames.
        held: how many of the last frames are held back.
    """

    name: str
    source: str
    start: int
    length: int
    held: int

    def keys(self, kind: str) -> list[str]:
        """Keys of the frames in a data set of NTURain's layout; held-back frames are its test clip.

        Args:
            kind: `Rain` or `GT`.
        """
        learned = self.length - self.held
        return [
            f"{SPLITS['train' if number < learned else 'test']}/{self.name}_{kind}/{number + 1:05d}.png"
            for number in range(self.length)
        ]

    def read(self, context: int = 0) -> Iterator[tuple[np.ndarray, bool]]:
        """The frames, (H, W, 3) uint8 RGB, and whether each belongs to the shot: windows extend beyond its ends.

        Args:
            context: also read this many frames of the same scene before and after the shot, if the video has them.

        Raises:
            CSDError: a frame cannot be read.
        """
        detector, before, begun = CutDetector(), list[np.ndarray](), False
        with open_reader(self.source, start=self.start, end=self.start + self.length, context=context) as reader:
            for index, frame in enumerate(rounded(reader, self.source)):
                cut, own = detector.cut(frame), reader.in_part(index)
                if cut and begun and not own:
                    return
                if cut and not begun:
                    before.clear()
                begun = begun or own
                if not begun:
                    before.append(frame)  # a cut may follow
                    continue
                while before:
                    yield before.pop(0), False
                yield frame, own

    def around(self, context: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The frames that `read` gives before and after those of the shot."""
        sides: tuple[list[np.ndarray], list[np.ndarray]] = [], []
        begun = False
        for frame, own in self.read(context):
            begun = begun or own
            if not own:
                sides[begun].append(frame)
        return sides


def refuse_live(inputs: Sequence[Path]) -> None:
    """Raise CSDError for inputs that cannot be read twice."""
    for path in inputs:
        if path == PIPE or is_camera(path):
            raise CSDError(f"{path}: a camera or pipe cannot be read twice: record it, and give the video")


def find_shots(inputs: Sequence[Path], most: int) -> list[Shot]:
    """Shots with about `most` frames in all at most, an equal part from each input.

    A short input is used whole. From a longer one, runs of 60 frames are taken that are spread evenly over it. Shots
    of fewer than 12 frames are left out, with a warning: nine to learn from, and three that are held back.

    Raises:
        CSDError: an input cannot be read, or not twice (a camera, a pipe), or no shot is long enough.
    """
    refuse_live(inputs)
    shots: list[Shot] = []
    short = 0
    for number, path in enumerate(inputs, start=1):
        label = re.sub(r"[^A-Za-z0-9.-]+", "-", path.stem)[:40].strip("-.") or "clip"
        for start, length in _pieces(path, max(most // len(inputs), _SHORTEST)):
            if length < _SHORTEST:
                short += 1
                continue
            held = min(max(round(length / 10), _HELD[0]), _HELD[1])
            name = f"{number}-{label}-{start:06d}"
            shots.append(Shot(name, str(path), start, length, held))
    if not shots:
        raise CSDError(
            f"{', '.join(map(str, inputs))}: no shot of {_SHORTEST} frames or more, of which {_HELD[0]} are held back "
            f"to judge the result: give longer clips"
        )
    if short:
        logger.warning("%s of fewer than %d frames, left out", counted(short, "shot"), _SHORTEST)
    return shots


def as_noted(shots: Sequence[Shot], inputs: Sequence[Path]) -> list[dict[str, Any]]:
    """What a manifest stores of shots; their sources are indices of inputs, which may be moved."""
    numbers = {str(path): number for number, path in reversed(list(enumerate(inputs)))}
    return [asdict(shot) | {"source": numbers[shot.source]} for shot in shots]


def from_notes(notes: Any, inputs: Sequence[Path], most: int) -> list[Shot]:
    """The shots that `as_noted` has stored, for the same inputs, wherever they are now.

    Args:
        most: as given to `find_shots`.

    Raises:
        ValueError: `find_shots` cannot have found this.
    """
    shots = [_from_note(note, f"shots.{number}", inputs) for number, note in enumerate(entries(notes, "shots"))]
    if len({shot.name for shot in shots}) < len(shots):
        raise ValueError("shots: two have the same name")
    if not shots:
        raise ValueError("shots: there are none")
    if sum(shot.length for shot in shots) > max(most, len(inputs) * _SHORTEST):
        raise ValueError(f"shots: more than {most} frames")
    return shots


def _from_note(note: Any, what: str, inputs: Sequence[Path]) -> Shot:
    """Raises ValueError."""
    content = section_of(note, what, frozenset(field.name for field in fields(Shot)))
    name = file_name(content["name"], f"{what}.name")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what}.name is {name!r:.60}, not the name of a shot")
    length = whole_number(content["length"], f"{what}.length", _SHORTEST, _LONGEST)
    return Shot(
        name,
        str(inputs[whole_number(content["source"], f"{what}.source", 0, len(inputs) - 1)]),
        whole_number(content["start"], f"{what}.start", 0, _LAST),
        length,
        whole_number(content["held"], f"{what}.held", _HELD[0], min(_HELD[1], length - _LEARNED)),
    )


def _pieces(path: Path, most: int) -> Iterator[tuple[int, int]]:
    """(first frame, frames) of shots with at most `most` frames in all."""
    with open_reader(path) as reader:
        there = reader.num_frames
    if there is None or there <= most:
        runs = [(0, most)]
    else:
        count = -(-most // _RUN)
        length = most // count
        runs = [(round(first), length) for first in np.linspace(0, there - length, count)]
    for first, length in runs:
        try:
            yield from _between_cuts(path, first, length)
        except EmptyPart:  # the number of frames was an estimate
            logger.warning("%s has no frame %d, although its header says so", path, first)


def _between_cuts(path: Path, first: int, length: int) -> Iterator[tuple[int, int]]:
    """(first frame, frames) of the shots in a run of frames."""
    detector, cuts, number = CutDetector(), [0], 0
    with open_reader(path, start=first, end=first + length) as reader:
        for number, frame in enumerate(map(eight_bits, reader), start=1):  # like `Shot.read`
            if detector.cut(frame) and number > 1:
                cuts.append(number - 1)
    for begin, end in zip(cuts, [*cuts[1:], number], strict=True):
        parts = -(-(end - begin) // _LONGEST)
        for part in np.array_split(np.arange(begin, end), max(parts, 1)):
            yield first + int(part[0]), len(part)
