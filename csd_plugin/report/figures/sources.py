"""What a picture compares: one clip, its truth, and methods, each a network or existing result frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from csd_plugin.data.images import eight_bits, rounded
from csd_plugin.data.video import open_reader
from csd_plugin.data.video.interface import VIDEO_SUFFIXES
from csd_plugin.errors import CSDError
from csd_plugin.inference.files import paired
from csd_plugin.inference.runner import Derainer
from csd_plugin.metrics.image_quality import Image
from csd_plugin.weights import find_checkpoint

INPUT, TRUTH = "input", "ground truth"


class Method(NamedTuple):
    """One column of a picture.

    Attributes:
        label: its name in pictures.
        path: a checkpoint or exported network, or a folder or video of its result frames.
    """

    label: str
    path: Path

    @property
    def is_frames(self) -> bool:
        """Whether `path` holds result frames rather than a network."""
        return self.path.is_dir() or self.path.suffix.lower() in VIDEO_SUFFIXES


def find_method(text: str) -> Method:
    """The method for 'student2', 'net.pth', 'results/a1', 'out.mp4', or 'LABEL=' and one of these.

    Without a label: the shipped network's name, the experiment's for experiments/NAME/models/net_g_latest.pth, or the
    file's. Raises CSDError if there is no such method.
    """
    label, _, name = ("", "", text) if Path(text).exists() else text.rpartition("=")
    if not Path(name).exists():
        return Method(label or name, find_checkpoint(name))
    path = Path(name)
    experiment = path.resolve().parent.parent.name if path.parent.name == "models" else ""
    return Method(label or experiment or (path.resolve().name if path.is_dir() else path.stem), path)


@dataclass(frozen=True)
class Scene:
    """What a picture compares.

    Attributes:
        clip, truth: a video file or a folder of images each; frames of the truth pair with those of the clip.
        methods: in the order of their columns; existing result frames also pair with the clip's.
        device: 'cpu', 'cuda' or 'auto', for the networks.
    """

    clip: Path
    truth: Path | None = None
    methods: tuple[Method, ...] = ()
    device: str = "auto"

    def __post_init__(self) -> None:
        names = [*self.labels, *([] if self.truth else [TRUTH])]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise CSDError(f"two columns are called {twice}: name them, e.g. --models 'mine={self.methods[0].path}'")

    @property
    def labels(self) -> list[str]:
        """Titles of the columns, left to right: the input, every method, the truth."""
        return [INPUT, *(method.label for method in self.methods), *([TRUTH] if self.truth else [])]

    @property
    def inputs(self) -> list[Path]:
        """All inputs: files, folders and patterns."""
        return [self.clip, *([self.truth] if self.truth else []), *(method.path for method in self.methods)]

    def middle(self) -> int:
        """The index of the clip's middle frame; 0 if the file does not state its number of frames."""
        with open_reader(self.clip) as reader:
            return (reader.num_frames or 0) // 2

    def frames(self, start: int = 0, end: int | None = None) -> Iterator[dict[str, Image]]:
        """Label -> frame (H, W, 3) uint8 RGB, for each frame from `start` up to, but without, `end`.

        Raises CSDError if a method's or the truth's frames differ in size or are fewer, and, at the end of the whole
        clip, if they are more.
        """
        sources: dict[str, Callable[[], Iterator[np.ndarray]]] = {INPUT: lambda: read(self.clip, start, end)}
        for method in self.methods:
            sources[method.label] = lambda method=method: self._results(method, start, end)  # type: ignore[misc]
        if self.truth:
            sources[TRUTH] = lambda: read(self.truth, start, end)  # type: ignore[arg-type]
        running = {label: source() for label, source in sources.items()}
        number = start
        for number, rainy in enumerate(rounded(running.pop(INPUT), self.clip), start=start):
            frames = {INPUT: rainy}
            for label, column in running.items():
                frame = next(column, None)
                if frame is None:
                    raise CSDError(f"{label} ends before frame {number} of {self.clip}: they must pair frame for frame")
                if frame.shape != rainy.shape:
                    raise CSDError(f"{label} is {_size(frame)}, but {self.clip} is {_size(rainy)}: they must match")
                frames[label] = eight_bits(frame)
            yield frames
        for label, column in running.items():
            if end is None and next(column, None) is not None:
                raise CSDError(f"{label} continues after frame {number}, the last of {self.clip}: they must match")

    def frame(self, number: int) -> dict[str, Image]:
        """Label -> one frame of the clip, counted from 0."""
        return next(self.frames(number, number + 1))

    def _results(self, method: Method, start: int, end: int | None) -> Iterator[np.ndarray]:
        if method.is_frames:
            yield from read(method.path, start, end)
            return
        derainer = Derainer(method.path, device=self.device)
        with open_reader(self.clip, start=start, end=end, context=derainer.num_frame // 2) as reader:
            for index, pair in enumerate(paired(reader, derainer)):
                if reader.in_part(index):
                    yield pair.clean


def read(path: Path, start: int, end: int | None) -> Iterator[np.ndarray]:
    """The frames of a part of a clip, which is closed after the last one."""
    with ExitStack() as stack:
        yield from stack.enter_context(open_reader(path, start=start, end=end))


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]}"
