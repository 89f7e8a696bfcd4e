"""Clean clips to render rain on: folders of frames and video files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from csd_plugin.data.images import eight_bits, frames_in, read_image, refuse_doubles, rounded
from csd_plugin.data.layout import natural_key
from csd_plugin.data.links import refuse_way_out
from csd_plugin.data.video import open_reader
from csd_plugin.data.video.interface import VIDEO_SUFFIXES
from csd_plugin.errors import CSDError

_LOOKED_AT = 50
"""The first frames of a video, from which `pick` chooses, as all frames before the last one have to be decoded."""


@dataclass(frozen=True)
class CleanClip:
    """One clip to render rain on.

    Attributes:
        files: the images in order, or the one video file.
    """

    name: str
    files: tuple[Path, ...]

    @property
    def is_video(self) -> bool:
        return self.files[0].suffix.lower() in VIDEO_SUFFIXES

    def frames(self, keep_going: bool = False) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB, all of the same size.

        Args:
            keep_going: leave out unreadable frames of a video, with a warning.

        Raises:
            CSDError: a frame, which is named, cannot be read or has another size.
        """
        if self.is_video:
            with open_reader(self.files[0], keep_going=keep_going) as reader:
                yield from rounded(reader, self.files[0])
        else:
            yield from rounded(self.images(), self.files[0].parent)

    def images(self) -> Iterator[np.ndarray]:
        """The decoded image files of a clip that is not a video: like `frames`, but uint8 or uint16 as stored."""
        first = None
        for path in self.files:
            frame = read_image(path)
            first = frame.shape if first is None else first
            if frame.shape != first:
                raise CSDError(
                    f"{path}: {frame.shape[1]}x{frame.shape[0]} pixels, but the first frame of the clip has "
                    f"{first[1]}x{first[0]}: all frames of a clip must have the same size"
                )
            yield frame

    def pick(self, shares: Sequence[float]) -> dict[int, np.ndarray]:
        """Frames by number: the first one, and those at these shares, in [0, 1], of the clip's length."""
        if self.is_video:
            frames = list(islice(self.frames(), _LOOKED_AT))
            return {n: frames[n] for n in _numbers(shares, len(frames))}
        return {n: eight_bits(read_image(self.files[n])) for n in _numbers(shares, len(self.files))}

    def rate(self, of_folders: float) -> float:
        """Frames per second; `of_folders` for folders, which have no rate of their own."""
        if not self.is_video:
            return of_folders
        with open_reader(self.files[0]) as reader:
            return float(reader.fps)


def find_clips(source: Path, names: Sequence[str] | None = None) -> list[CleanClip]:
    """The clips of a folder of clips, of one folder of frames, or of one video file.

    Args:
        names: only these, in this order.

    Raises:
        CSDError: a name does not exist, or there are no clips.
    """
    if source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES:
        found = [CleanClip(source.stem, (source,))]
    elif source.is_dir():
        entries = sorted((e for e in source.iterdir() if e.name[0] != "."), key=lambda e: natural_key(e.name))
        own = [CleanClip(source.resolve().name, files)] if (files := _images(source, source)) else []
        folders = [refuse_way_out(e, source) for e in entries if e.is_dir()]
        found = [CleanClip(folder.name, files) for folder in folders if (files := _images(folder, source))]
        videos = [refuse_way_out(e, source) for e in entries if e.is_file() and e.suffix.lower() in VIDEO_SUFFIXES]
        found = own + found + [CleanClip(video.stem, (video,)) for video in videos]
    else:
        what = "neither a folder nor a video file" if source.exists() else "no such folder or video file"
        raise CSDError(f"{source}: {what} ({' '.join(VIDEO_SUFFIXES)}): check the path")
    if not found:
        raise CSDError(f"{source}: no images, folders of images or video files in it: give the clips' folder")

    clips = {}
    for clip in found:
        if clip.name in clips:
            raise CSDError(f"{source}: two clips are named {clip.name}: rename one")
        clips[clip.name] = clip
    for name in names or ():
        if name not in clips:
            raise CSDError(f"{source}: no clip {name!r}: it has {', '.join(clips)}")
    return list(clips.values()) if names is None else [clips[name] for name in dict.fromkeys(names)]


def _images(folder: Path, root: Path) -> tuple[Path, ...]:
    files = [path for path in frames_in(folder, root) if path.is_file()]
    refuse_doubles(files)
    return tuple(sorted(files, key=lambda path: natural_key(path.name)))


def _numbers(shares: Sequence[float], length: int) -> list[int]:
    return sorted({0, *(round(share * (length - 1)) for share in shares)})
