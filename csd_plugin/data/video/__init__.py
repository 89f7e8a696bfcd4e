"""Video files and folders of frames, read and written through one interface.

    with open_reader("rain.mp4") as reader, open_writer("clean.mp4", like=reader) as writer:
        for frame in reader:
            writer.write(frame)

or, for frames that come from elsewhere, `open_writer("clean.mp4", fps=25)`.

Frames are RGB arrays (H, W, 3) as a viewer shows them, rotation applied: uint8, or, from videos and images
with more than 8 bits per channel, uint16 over its full range.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from pathlib import Path

from csd_plugin.atomic import refuse_inputs
from csd_plugin.data.images import NUMBER, files_of, images_in, natural_key, numbered, refuse_two_numbers
from csd_plugin.data.video.camera import CameraReader, is_camera
from csd_plugin.data.video.decode import VideoReader
from csd_plugin.data.video.encode import VideoWriter
from csd_plugin.data.video.folder import FolderReader, FolderWriter, make_folder
from csd_plugin.data.video.interface import (
    ALSO_VIDEOS,
    PIPE,
    VIDEO_SUFFIXES,
    FrameReader,
    FrameWriter,
    Order,
    Position,
    SteadyOrder,
    position_of,
    rate_of,
)
from csd_plugin.data.video.origin import Origin
from csd_plugin.data.video.pipes import PipeReader, PipeWriter
from csd_plugin.data.video.unfinished import settings_beside, worth_resuming
from csd_plugin.data.video.webp import WebPReader, is_webp
from csd_plugin.errors import CSDError, path_of, type_in_words

_KIND = re.compile(r"\.[0-9]*[A-Za-z][A-Za-z0-9]*")
"""A suffix that shows the kind of file: .mp4 or .3gp, but not what follows a dot in v1.2 or in v1.2_new."""


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
        path: a video file or animated WebP; a folder of images, in the natural order of their names; a
            pattern of image files such as frames_%05d.png; '-', raw rgb24 frames of `size` on standard input; or a
            camera, see `is_camera`, which takes no `start` and no `context`.
        start, end: the part to read: from the frame at `start` up to, but without, the one at `end`. Whole numbers are
            frames, fractions and floats are seconds.
        fps: the rate of images and pipes; a video file has its own.
        context: also read up to this number of frames before and after the part; `in_part` tells them apart.
        size: (width, height) of a pipe's frames.
        keep_going: leave out undecodable frames of a video, with a warning, instead of stopping.

    Raises:
        CSDError: the path does not exist, is not a video or camera, or has no pictures; the part is empty or invalid.
    """
    path, fps = path_of(path, "a video, a folder of images or a camera (camera:0)"), rate_of(fps)
    start, end = position_of(start, "start"), None if end is None else position_of(end, "end")
    if context < 0:
        raise CSDError(f"context is {context}: give a number of frames from 0")
    if path == PIPE:
        return PipeReader(size, start=start, end=end, fps=fps, context=context)
    if is_camera(path):
        return CameraReader(path, start=start, end=end)
    if NUMBER.search(path.name) and not path.exists():
        return FolderReader(path, numbered(path), start=start, end=end, fps=fps, context=context)
    if not path.exists():
        raise CSDError(f"{path} does not exist; check the path")
    if path.is_dir():
        _refuse_videos(path)
        return FolderReader(path, images_in(path), start=start, end=end, fps=fps, context=context)
    if not path.is_file():  # a named pipe, which could be opened only once
        raise CSDError(
            f"{path} is neither a file nor a folder: raw frames of a pipe are read from standard input, as -"
        )
    if is_webp(path):
        return WebPReader(path, start=start, end=end, context=context)
    return VideoReader(path, start=start, end=end, keep_going=keep_going, context=context)


def videos_in(folder: Path) -> list[Path]:
    """The videos of a folder in natural order, by their suffixes; none if it has images, which are then its frames."""
    if not folder.is_dir() or files_of(folder):
        return []
    kinds = (*VIDEO_SUFFIXES, *ALSO_VIDEOS)
    videos = (file for file in folder.iterdir() if file.suffix.lower() in kinds and file.is_file())
    return sorted((video for video in videos if video.name[0] != "."), key=lambda video: natural_key(video.name))


def written_as(name: str) -> str:
    """The name for the result of a video of this name: the same where `open_writer` writes that kind, else .mp4."""
    return name if Path(name).suffix.lower() in VIDEO_SUFFIXES else f"{Path(name).stem}.mp4"


def _refuse_videos(folder: Path) -> None:
    """Raise CSDError for a folder of videos: each is a clip of its own."""
    if videos := videos_in(folder):
        raise CSDError(f"{folder} holds videos, not images: give a video by its name, such as {videos[0]}")


def open_writer(
    path: str | Path,
    *,
    like: FrameReader | None = None,
    fps: Fraction | float | None = None,
    overwrite: bool = False,
    quick: bool = False,
    inputs: Collection[Path] = (),
    made_by: Mapping[str, Origin] | None = None,
) -> FrameWriter:
    """Open an output: a video file if the name ends in one of `VIDEO_SUFFIXES`, else a folder of PNG files.

    Names that end like other files, in .xyz, are refused unless such a folder exists; clean_v1.2 is a folder.
    A name such as clean_%05d.png is a pattern of PNG files; '-' is raw rgb24 frames on standard output. The first frame
    gives the size. A video needs `like` or `fps`.

    Args:
        like: the source of the frames: the n-th frame written gets the time, or the name, of the n-th frame read; a
            video also takes over codec, colours, sound and everything else that its container can hold.
        fps: frames per second, in place of `like`, for frames that come from elsewhere: a video is H.264, or what its
            container holds, and silent; files of a folder are numbered from 1.
        overwrite: replace an existing video, or frames of the same names in a folder.
        quick: encode a video faster, into a larger file, see `QUICK_OPTIONS`.
        inputs: files, folders or patterns that are also read while the output is written.
        made_by: the origins of the frames, stored in image files, see `FolderWriter`, and beside videos, see
            `VideoWriter`.

    Raises:
        CSDError: a video's rate is unknown, or there is one besides `like`; the kind of file cannot be written, the
            video or frames exist already, or an output is also an input, under whatever spelling or link.
    """
    path = path_of(path, "the name of a video or of a folder of PNG files")
    if path == PIPE:
        return PipeWriter()
    order = _order(path, like, fps)
    inputs = (like.path, *inputs) if like else inputs
    if not names_a_file(path):
        return FolderWriter(path, like=order, overwrite=overwrite, inputs=inputs, made_by=made_by)
    if NUMBER.search(path.name) and path.suffix.lower() == ".png":
        refuse_two_numbers(path.name)
        pattern, path = path.name, path.parent
        return FolderWriter(path, like=order, pattern=pattern, overwrite=overwrite, inputs=inputs, made_by=made_by)
    check_kind(path)
    make_folder(path.parent)
    refuse_inputs([path], [file for given in inputs for file in files_of(given)])
    if path.exists() and not overwrite:
        raise CSDError(f"{path} already exists; replace it with --overwrite, or give another name")
    if overwrite:
        settings_beside(path)  # raises for a file that is something else
    elif left := worth_resuming(path):
        raise CSDError(
            f"{left.path} has {left.num_frames:,} frames of a run that was stopped; --resume continues it, --overwrite "
            f"begins anew"
        )
    return VideoWriter(path, like=order, replace=overwrite, quick=quick, made_by=made_by)


def _order(path: Path, like: FrameReader | None, fps: Fraction | float | None) -> Order:
    """The times and names of the frames to write. Raises CSDError if a video's would be unknown, or stated twice."""
    if like is not None and not isinstance(like, FrameReader):
        raise CSDError(f"like is {type_in_words(like)}, not a reader: give one of `open_reader`, or fps in place of it")
    if like is not None and fps is not None:
        raise CSDError(f"{path}: like and fps are both given: frames have the times of like, so leave fps out")
    if like is not None:
        return like
    if fps is None and path.suffix.lower() in VIDEO_SUFFIXES and names_a_file(path):
        raise CSDError(f"{path}: give fps, the frames per second, or like, the reader of the frames")
    return SteadyOrder(Fraction(25) if fps is None else rate_of(fps))  # the names of images need no rate


def names_a_file(path: Path) -> bool:
    """Whether a name ends like a file's, and is not that of an existing folder: clean_v1.2 ends like a folder's."""
    return bool(_KIND.fullmatch(path.suffix)) and not path.is_dir()


def check_kind(path: Path) -> None:
    """Raise CSDError if a name is that of a file, but not of a video that can be written."""
    if names_a_file(path) and path.suffix.lower() not in VIDEO_SUFFIXES:
        kinds = " ".join(VIDEO_SUFFIXES)
        raise CSDError(f"{path}: cannot write '{path.suffix}'; use {kinds}, or no suffix for a folder of PNG files")
