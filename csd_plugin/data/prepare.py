"""Converts archives, extracted folders and video files, in any mix, to one data set in NTURain's layout."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from csd_plugin.atomic import link_or_copy, remove
from csd_plugin.data.archives import archive_stem, is_archive_name, is_other_archive_name, members, unread_kind
from csd_plugin.data.images import decode_image, header_shape, write_png
from csd_plugin.data.layout import SPLITS, is_frame_name, natural_key, refuse_store
from csd_plugin.data.links import refuse_way_out
from csd_plugin.data.naming import Naming, file_name, frame_labels, missing_clips
from csd_plugin.data.parallel import run_all
from csd_plugin.data.video import open_reader
from csd_plugin.data.video.interface import VIDEO_SUFFIXES
from csd_plugin.errors import FULL, CSDError, at, cannot_write

_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Frame:
    """One frame as it was found in the input.

    Attributes:
        source: its path, or its name in an archive.
        name: its name in the layout.
        size: in bytes.
    """

    source: str
    name: str
    size: int


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip as it was found in the input.

    Attributes:
        source: the archive, the video file or a folder that holds its frames.
        frames: empty for a video, as only decoding shows them.
    """

    split: str
    folder: str
    source: Path
    frames: tuple[Frame, ...]

    @property
    def is_video(self) -> bool:
        return not self.frames

    def target(self, root: Path) -> Path:
        return root / SPLITS[self.split] / self.folder


@dataclass
class Prepared:
    """What `prepare` has done.

    Attributes:
        clips: all clips that were found, in the order of their names.
        new: how many of them this run wrote.
        failed: errors of clips and archives that could not be read or written; the others were.
        notes: harmless facts, such as files that were left out.
        missing: split -> clips of NTURain that were not found.
    """

    clips: list[Clip] = field(default_factory=list)
    new: int = 0
    failed: list[CSDError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)


def prepare(inputs: Sequence[Path], out: Path, naming: Naming, jobs: int = 1, *, keep_going: bool = False) -> Prepared:
    """Convert all clips below `inputs` to the folder `out`; clips that are already there stay unchanged.

    A clip's folder appears under its name only when it is complete, so running again completes an interrupted run.
    All archives are listed before anything is written.

    Args:
        inputs: folders, archives and video files; they are only read. Files in folders are hard-linked if the file
            system allows it, otherwise copied. `out` may be one of them.
        naming: finds the clip that a frame belongs to, see `data.naming`.
        jobs: processes that read archives and write clips.
        keep_going: leave out unreadable frames of a damaged video, with a warning, instead of failing its clip.

    Returns:
        What was done, including the errors of single archives and clips.

    Raises:
        CSDError: there is nothing to prepare, or `out` is an LMDB store, or cannot be written.
    """
    result = Prepared()
    refuse_store(out)
    found = _find(inputs, out, naming, jobs, result)
    result.clips = _one_of_each(found, out, result)
    if not result.clips and not result.failed:
        what = result.notes[0] if result.notes else "no frame, archive or video file"
        raise CSDError(
            f"{inputs[0]}: no clips found ({what}): name folders or archives NAME_GT, NAME_Rain or NAME_Rain_NN, "
            f"or give --pattern; `csd rain` adds rain to clean clips"
        )
    todo = [clip for clip in result.clips if not _is_there(clip, out, result)]
    _check_space(todo, out)
    result.new = _write_all(todo, out, jobs, keep_going, result)
    result.missing = missing_clips((clip.split, clip.folder) for clip in result.clips)
    return result


# --- finding ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file below an input. virtual: its path from the input's parent folder on, '/' separated."""

    path: Path
    virtual: str
    size: int


_Frames = dict[tuple[Path, str | None, str], list[tuple[str, str, str, int]]]
"""(source, split, clip folder) -> (path or name in the source, label, suffix, size) of its frames."""


def _find(inputs: Sequence[Path], out: Path, naming: Naming, jobs: int, result: Prepared) -> list[Clip]:
    """The clips of all inputs; some may be found more than once."""
    frames: _Frames = defaultdict(list)
    archives: list[_File] = []
    strays: Counter[str] = Counter()
    homeless: list[str] = []
    for file in {file.path: file for root in inputs for file in _walk(root, out)}.values():
        if is_frame_name(file.path.name):
            _sort_in(frames, homeless, naming, file.path.parent, file.virtual, str(file.path), file.size)
        elif is_archive_name(file.path.name):
            archives.append(file)
        elif is_other_archive_name(file.path.name):
            result.failed.append(unread_kind(file.path))
        elif file.path.suffix.lower() in VIDEO_SUFFIXES:
            place = naming(str(PurePosixPath(file.virtual).with_suffix("") / "1.png"))
            if place is None:
                homeless.append(file.virtual)
            else:
                frames[file.path, place.split, place.folder] = []  # only decoding shows them
        else:
            strays[file.path.name] += 1

    listings = run_all(_list_archive, [(file.path,) for file in archives], jobs, "archives", "archive")
    for archive, listing in zip(archives, listings, strict=True):
        if isinstance(listing, CSDError):
            result.failed.append(listing)
            continue
        around = archive_stem(archive.virtual)
        for name, size in listing:
            if is_frame_name(PurePosixPath(name).name):
                _sort_in(frames, homeless, naming, archive.path, f"{around}/{name}", name, size)
            else:
                strays[PurePosixPath(name).name] += 1
    if homeless:
        result.notes.append(f"images and videos that do not belong to a clip: {len(homeless)} (such as {homeless[0]})")
    if strays:
        names = ", ".join(f"{name} ({n}x)" if n > 1 else name for name, n in strays.most_common(3))
        result.notes.append(f"files that are not images, left out: {strays.total()} ({names})")
    return _clips_of(frames, result)


def _walk(root: Path, out: Path) -> Iterator[_File]:
    """The files below an input, or the input itself, without hidden ones and without those in `out` below it."""
    start = "/".join(root.absolute().parts[-2:])
    if root.is_file():
        yield _File(root, start, root.stat().st_size)
        return
    if not root.is_dir():
        raise CSDError(f"{root}: does not exist: give archives, video files, or folders of them or of frames")
    seen = {root.resolve()}
    try:
        for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
            for name in (*subfolders, *names):
                _refuse_special(refuse_way_out(Path(folder, name), root))
            subfolders[:] = sorted(name for name in subfolders if _is_to_be_entered(Path(folder, name), out, seen))
            below = Path(folder).relative_to(root).as_posix()
            virtual = start if below == "." else f"{start}/{below}"
            for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
                yield _File(path, f"{virtual}/{path.name}", path.stat().st_size)
    except OSError as error:
        raise CSDError(f"{error.filename}: cannot be read ({error.strerror}): fix or remove it") from error


def _refuse_special(path: Path) -> None:
    """Raise CSDError for a pipe or device, whose reading might never end."""
    kind = os.lstat(path).st_mode
    if not any(is_kind(kind) for is_kind in (stat.S_ISLNK, stat.S_ISREG, stat.S_ISDIR)):
        raise CSDError(f"{path}: neither a file nor a folder, but a pipe or device: remove it")


def _raise(error: OSError) -> None:
    raise error


def _is_to_be_entered(folder: Path, out: Path, seen: set[Path]) -> bool:
    """Whether to enter a folder: it is not hidden, not the output, and not a link to a folder entered before."""
    real = folder.resolve()
    if folder.name.startswith((".", "__MACOSX")) or real == out.resolve() or real in seen:
        return False
    seen.add(real)
    return True


def _sort_in(
    frames: _Frames, homeless: list[str], naming: Naming, source: Path, virtual: str, name: str, size: int
) -> None:
    place = naming(virtual)
    if place is None:
        homeless.append(virtual)
    else:
        frames[source, place.split, place.folder].append((name, place.label, PurePosixPath(name).suffix, size))


def _list_archive(path: Path, tick: Callable[[], object]) -> list[tuple[str, int]]:
    """(name, size) of all files. Raises CSDError, also for an archive of archives."""
    listing = [(member.name, member.size) for member in members(path)]
    nested = next((name for name, _ in listing if is_archive_name(name) or is_other_archive_name(name)), None)
    if nested:
        raise CSDError(f"{path}: holds further archives ({nested}): unpack it yourself and give the folder")
    tick()
    return listing


def _clips_of(frames: _Frames, result: Prepared) -> list[Clip]:
    clips = []
    for (source, split, folder), found in frames.items():
        try:
            if split is None:
                raise CSDError(f"{source}: {folder} is not a clip of NTURain: give its split (--split)")
            clips.append(Clip(split, folder, source, _named(source, found)))
        except CSDError as error:
            result.failed.append(error)
    return clips


def _named(source: Path, found: Iterable[tuple[str, str, str, int]]) -> tuple[Frame, ...]:
    frames: dict[str, Frame] = {}
    found = sorted(found, key=lambda one: natural_key(one[1]))
    labels = frame_labels([label for _, label, _, _ in found])
    for (name, _, suffix, size), label in zip(found, labels, strict=True):
        frame = Frame(name, file_name(label, suffix), size)
        other = frames.setdefault(Path(frame.name).stem, frame)
        if other is not frame:
            raise CSDError(f"{source}: {other.source} and {name} are frames with the same number: remove or rename one")
    return tuple(frames[stem] for stem in sorted(frames))


def _one_of_each(found: list[Clip], out: Path, result: Prepared) -> list[Clip]:
    """One source for each clip that was found more than once: first `out` itself, then folders, then archives.

    Clips whose sources differ are failures.
    """
    same: dict[tuple[str, str], list[Clip]] = defaultdict(list)
    for clip in found:
        same[clip.split, clip.folder.casefold()].append(clip)
    chosen = []
    for clips in same.values():
        clips.sort(key=lambda clip: (clip.source.resolve() != clip.target(out).resolve(), not clip.source.is_dir()))
        first = clips[0]
        if like := next((clip for clip in clips if clip.folder != first.folder), None):
            result.failed.append(
                CSDError(
                    f"{first.source}: the clips {first.folder} and {like.folder} ({like.source}) differ only in upper "
                    f"and lower case: rename or remove one"
                )
            )
            continue
        other = next((clip for clip in clips if _content(clip) != _content(first)), None)
        if other or (first.is_video and len(clips) > 1):
            result.failed.append(
                CSDError(
                    f"{first.folder}: {first.source} and {(other or clips[1]).source} have different frames: "
                    f"give only one of them"
                )
            )
            continue
        if len(clips) > 1:
            result.notes.append(
                f"{first.folder}: found {len(clips)} times with the same frames: {first.source} is used"
            )
        chosen.append(first)
    return sorted(chosen, key=lambda clip: (list(SPLITS).index(clip.split), clip.folder))


def _content(clip: Clip) -> list[tuple[str, int]]:
    return [(frame.name, frame.size) for frame in clip.frames]


# --- writing ------------------------------------------------------------------------------------------------------


def _is_there(clip: Clip, out: Path, result: Prepared) -> bool:
    """Whether the clip exists already; if it exists with other frames, that is a failure."""
    target = clip.target(out)
    if not os.path.lexists(target):
        return False
    if not target.is_dir():
        result.failed.append(CSDError(f"{target}: not a folder: remove it, so that the clip can be written there"))
        return True
    there = sorted((file.name, file.stat().st_size) for file in target.iterdir() if is_frame_name(file.name))
    differs = not there if clip.is_video else there != sorted(_content(clip))
    if differs and target.resolve() != clip.source.resolve():
        result.failed.append(
            CSDError(
                f"{target}: its frames are not those of {clip.source}: delete it, so that it is made again, or move it"
            )
        )
    return True


def _check_space(clips: Iterable[Clip], out: Path) -> None:
    """Raise CSDError if the contents of archives will not fit. Links need no space; that of videos is not known."""
    needed = sum(frame.size for clip in clips if not clip.source.is_dir() for frame in clip.frames)
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + _SPARE_BYTES > free:
        raise CSDError(
            f"{out}: {needed >> 20} MB will be unpacked, and {_SPARE_BYTES >> 20} MB must stay free, but only "
            f"{free >> 20} MB are free: make room"
        )


def _write_all(clips: list[Clip], out: Path, jobs: int, keep_going: bool, result: Prepared) -> int:
    """Write the clips, those of one archive by one process in one pass; the number of clips written."""
    by_source: dict[tuple[Path, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        by_source[clip.source, clip.folder if clip.source.is_dir() else ""].append(clip)
    tasks = [(source, of_source, out, keep_going) for (source, _), of_source in by_source.items()]
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    weights = [sum(max(len(clip.frames), 1) for clip in of_source) for _, of_source, *_ in tasks]
    try:
        written = run_all(_write_clips, tasks, jobs, "frames", "frame", weights)
        result.failed += [error for error in written if isinstance(error, CSDError)]
    finally:
        for folder in (*{clip.target(out).parent for clip in clips}, *made):
            with contextlib.suppress(OSError):
                folder.rmdir()  # removed only if nothing was written into it
    return sum(clip.target(out).is_dir() for clip in clips)


def _write_clips(source: Path, clips: list[Clip], out: Path, keep_going: bool, tick: Callable[[], object]) -> None:
    """Fill hidden folders next to the targets; each gets its name when it has all its frames.

    Raises CSDError for faults of the source, and OSError for what would affect all clips: a disk that is full or
    refuses to be written.
    """
    scratch = {clip: clip.target(out).with_name(f".{clip.folder}.part") for clip in clips}
    try:
        for folder in scratch.values():
            remove(folder)
            folder.mkdir(parents=True)
        decode = partial(_decode_video, keep_going=keep_going)
        write = decode if clips[0].is_video else _link_files if source.is_dir() else _unpack
        for clip in write(source, clips, scratch, tick):
            scratch[clip].rename(clip.target(out))
    except OSError as error:
        if error.errno in FULL or Path(error.filename or "").is_relative_to(out):
            raise at(out, error) from error  # names neither the hidden file nor, after a failed copy, the input
        raise CSDError(f"{error.filename or source}: {error.strerror}: {source} was not prepared") from error
    finally:
        for folder in scratch.values():
            with contextlib.suppress(OSError):
                remove(folder)


def _unpack(source: Path, clips: list[Clip], scratch: dict[Clip, Path], tick: Callable[[], object]) -> Iterator[Clip]:
    """Write the frames in the archive's order, and yield each clip after its last one."""
    wanted = {frame.source: (clip, frame) for clip in clips for frame in clip.frames}
    waiting = {clip: len(clip.frames) for clip in clips}
    for member in members(source):
        clip, frame = wanted.pop(member.name, (None, None))
        if clip is None or frame is None:
            continue
        data = member.read()
        _check_header(io.BytesIO(data), f"{source}: {member.name}")
        (scratch[clip] / frame.name).write_bytes(data)
        tick()
        waiting[clip] -= 1
        if not waiting[clip]:
            yield clip
    if wanted:
        raise CSDError(f"{source}: {next(iter(wanted))} has disappeared since the archive was listed: run again")


def _link_files(
    source: Path, clips: list[Clip], scratch: dict[Clip, Path], tick: Callable[[], object]
) -> Iterator[Clip]:
    del source
    for clip in clips:
        for frame in clip.frames:
            with Path(frame.source).open("rb") as file:
                _check_header(file, frame.source)
            link_or_copy(Path(frame.source), scratch[clip] / frame.name)
            tick()
        yield clip


def _decode_video(
    source: Path, clips: list[Clip], scratch: dict[Clip, Path], tick: Callable[[], object], keep_going: bool
) -> Iterator[Clip]:
    (clip,) = clips
    with open_reader(source, keep_going=keep_going) as reader:
        for number, frame in enumerate(reader, 1):
            write_png(scratch[clip] / f"{number:05d}.png", frame)
    tick()
    yield clip


def _check_header(file: Any, where: str) -> None:
    """Raise CSDError for a file that is not an image. Pixels are not checked: `csd data --decode` does that."""
    if header_shape(file) is None:
        file.seek(0)
        decode_image(file.read(), where)
