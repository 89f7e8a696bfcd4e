"""Writes rainy and clean frames, in NTURain's folder layout, from clean clips."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from csd_plugin.atomic import remove, same_place, write_text
from csd_plugin.data.images import eight_bits, read_image, rounded
from csd_plugin.data.layout import SPLITS, gap_between, is_frame_name, refuse_store
from csd_plugin.data.parallel import run_all
from csd_plugin.data.rain.clips import CleanClip, find_clips
from csd_plugin.data.rain.params import RainParams
from csd_plugin.data.rain.renderer import clip_renderer
from csd_plugin.data.video import open_reader, open_writer
from csd_plugin.data.workers import check_shared_memory
from csd_plugin.errors import CSDError, at
from csd_plugin.plain import parse_json, read_text

logger = logging.getLogger(__name__)

MOST_VARIANTS = 999
_COPIED_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class PairOptions:
    """Options for writing pairs.

    Attributes:
        split: 'train' (`NAME_GT`, `NAME_Rain_01` ..) or 'test' (`NAME_GT`, `NAME_Rain`), see `data.layout`.
        variants: rainy versions of every clip, 1 to 999; must be 1 for test clips.
        vary: every version gets its own rain, drawn around `params`; otherwise all have `params` and only seeds differ.
        suffix: '.jpg' or '.png' of rainy frames.
        quality: of JPEG, 1 to 100.
        fps: frames per second of clips that are folders of frames.
        keep_going: leave out unreadable frames of a damaged video, with a warning, instead of stopping.
    """

    params: RainParams
    seed: int = 0
    split: str = "train"
    variants: int = 1
    vary: bool = True
    suffix: str = ".jpg"
    quality: int = 95
    fps: float = 25.0
    keep_going: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.variants <= (1 if self.split == "test" else MOST_VARIANTS):
            allowed = "1 in the test layout" if self.split == "test" else f"1 to {MOST_VARIANTS}"
            raise CSDError(f"rain variants = {self.variants}: give {allowed}")
        if not 1 <= self.quality <= 100:
            raise CSDError(f"JPEG quality = {self.quality}: give 1 to 100")

    def rainy_name(self, clip: str, variant: int) -> str:
        return f"{clip}_Rain" if self.split == "test" else f"{clip}_Rain_{variant:02d}"

    def record(self) -> dict[str, object]:
        """All options on which the pixels of a rainy folder depend."""
        kept = asdict(self)
        del kept["split"], kept["variants"], kept["keep_going"]
        return kept


def write_pairs(
    source: Path, out: Path, options: PairOptions, clips: Sequence[str] | None = None, jobs: int = 1
) -> int:
    """Write clean and rainy folders for every clip below `out`, and return how many folders were new.

    A folder appears under its name only when it is complete; folders that exist already stay unchanged. `out/.rain`
    records the options, so that all folders have the same kind of rain.

    Args:
        source: clean clips, see `find_clips`.
        clips: only these, by name; None for all.
        jobs: processes.

    Raises:
        CSDError: as for `find_clips`; `out` is `source` or an LMDB store; frames cannot be decoded or change their
            size; the options differ from the recorded ones; something else is in the place of a folder.
        OSError: a folder cannot be written to.
    """
    refuse_store(out)
    found = find_clips(source, clips)
    if same_place(source, out):  # next time, the rainy clips would be inputs, too
        raise CSDError(f"{out} is also the input; give the output another name")
    root = out / SPLITS[options.split]
    tasks: list[tuple[Path, CleanClip, int]] = []
    for clip in found:
        tasks.append((root / f"{clip.name}_GT", clip, 0))  # first: it shows which clip the rain beside it belongs to
        tasks += [(root / options.rainy_name(clip.name, v), clip, v) for v in range(1, options.variants + 1)]
    record = out / ".rain" / f"{options.split}.json"
    try:
        recorded = _is_recorded(record, options)
        for clip in found:
            _check_same(clip, root / f"{clip.name}_GT")
            _refuse_orphans(clip, root)
            _say_gaps(clip)
        tasks = [task for task in tasks if not _is_there(task[0], task[1])]
        jobs = min(jobs, len(tasks))
        if jobs > 1:
            check_shared_memory("use --jobs 1")
        # only now, as what is refused leaves nothing behind
        root.mkdir(parents=True, exist_ok=True)
        if not recorded:
            record.parent.mkdir(exist_ok=True)
            write_text(record, json.dumps(options.record(), indent=1))
    except OSError as error:
        raise at(Path(error.filename or out), error) from error

    if jobs > 1:
        _write_in_parallel(tasks, options, jobs)
    else:
        frames = sum(len(clip.files) for _, clip, _ in tasks) if not any(clip.is_video for clip in found) else None
        with tqdm(total=frames, desc="rain", unit="frame", disable=None) as progress:
            for task in tasks:
                _write_folder(*task, options, progress.update)
    return len(tasks)


def _say_gaps(clip: CleanClip) -> None:
    """Warn where numbers of frames are missing, as the rain and the pairs' names continue across the gap."""
    gap = None if clip.is_video else gap_between([file.stem for file in clip.files])
    if gap is not None:
        logger.warning(
            "clip %s: frames are missing between %s and %s; its %s frames are treated as consecutive, and their "
            "pairs get new numbers",
            *(clip.name, *gap, len(clip.files)),
        )


def rain_on_video(source: Path, out: Path, options: PairOptions, *, overwrite: bool = False) -> int:
    """Write one clip (video file or folder of frames) with rain to a video file; returns the number of frames.

    Raises CSDError like `open_reader` and `open_writer`.
    """
    rate = Fraction(options.fps).limit_denominator(1_000_000)
    with (
        open_reader(source, fps=rate, keep_going=options.keep_going) as reader,
        open_writer(out, like=reader, overwrite=overwrite) as writer,
    ):
        rain, count, fps = None, 0, float(reader.fps)
        frames = rounded(reader, source)
        for frame in tqdm(frames, total=reader.num_frames, desc="rain", unit="frame", disable=None):
            if rain is None:
                rain = clip_renderer(options.params, options.seed, source.stem, 1, frame, fps=fps, vary=options.vary)
            writer.write(rain.render(frame, count))
            count += 1
    return count


def _is_recorded(path: Path, options: PairOptions) -> bool:
    """Whether the options of the rain that is there are in this file. Raises CSDError if they are others."""
    made = any((path.parent.parent / SPLITS[options.split]).glob("*_Rain*"))
    if not (path.exists() and made):
        return False
    try:
        old = parse_json(read_text(path))
    except ValueError:
        raise CSDError(f"{path}: not valid JSON: remove it, and the folders whose options it describes") from None
    if old != options.record():
        raise CSDError(
            f"{path.parent.parent}: holds rain made with other options ({path}): give another OUT, or move it away"
        )
    return True


def _check_same(clip: CleanClip, folder: Path) -> None:
    """Raise CSDError if the existing clean copy belongs to another clip, by length and first frame."""
    there = _frames_in(folder)
    if not there:
        return
    same = clip.is_video or len(there) == len(clip.files)
    if same and all(path.suffix.lower() in _COPIED_SUFFIXES for path in clip.files):
        same = there[0].read_bytes() == clip.files[0].read_bytes()
    elif same:
        same = np.array_equal(eight_bits(read_image(there[0])), next(clip.frames(keep_going=True)))
    if not same:
        raise CSDError(
            f"{folder}: its frames are not those of {clip.files[0].parent if not clip.is_video else clip.files[0]}; "
            f"give another OUT, or rename the clip"
        )


def _refuse_orphans(clip: CleanClip, root: Path) -> None:
    """Raise CSDError for rain without its clean copy, as only that shows to which clip the rain belongs."""
    truth = root / f"{clip.name}_GT"
    if os.path.lexists(truth):
        return
    for folder in sorted(root.glob(f"{glob.escape(clip.name)}_Rain*")):
        if re.fullmatch(r"_Rain(_\d+)?", folder.name.removeprefix(clip.name)) and _frames_in(folder):
            raise CSDError(
                f"{folder}: its clean frames, {truth.name}, are missing, so it may be of another clip; remove it, "
                f"so that it is made again, or give another OUT"
            )


def _is_there(folder: Path, clip: CleanClip) -> bool:
    """Whether a clip's folder exists. Raises CSDError if it is not complete; the length of a video is not checked."""
    if not os.path.lexists(folder):
        return False
    there, wanted = len(_frames_in(folder)), len(clip.files)
    if there and (clip.is_video or there == wanted):
        return True
    what = f"has {there} frames, and the clip {wanted}" if there else "is not a folder of frames"
    raise CSDError(f"{folder}: {what}; remove it, so that it is made again, or give another OUT")


def _frames_in(folder: Path) -> list[Path]:
    """The frames in a folder, by name; empty if there is no folder."""
    return sorted(file for file in folder.iterdir() if is_frame_name(file.name)) if folder.is_dir() else []


def _write_in_parallel(tasks: list[tuple[Path, CleanClip, int]], options: PairOptions, jobs: int) -> None:
    """Write all clean folders first, as there must be no rain without its truth."""
    for part in ([task for task in tasks if not task[2]], [task for task in tasks if task[2]]):
        with closing(run_all(_write_one, [(*task, options) for task in part], jobs, "rain", "folder")) as results:
            for result in results:
                if isinstance(result, CSDError):
                    raise result


def _write_one(target: Path, clip: CleanClip, variant: int, options: PairOptions, tick: Callable[[], object]) -> None:
    """`_write_folder`, counted as one step."""
    _write_folder(target, clip, variant, options)
    tick()


def _write_folder(
    target: Path, clip: CleanClip, variant: int, options: PairOptions, tick: Callable[[], object] | None = None
) -> None:
    """Fill a hidden folder next to the target, then give it its name; variant 0 is the clean clip."""
    scratch = target.with_name(f".{target.name}.part")
    tick = tick or (lambda: None)
    try:
        remove(scratch)
        scratch.mkdir(parents=True)
        if variant == 0:
            _write_clean(scratch, clip, options, tick)
        else:
            _write_rainy(scratch, clip, variant, options, tick)
        scratch.rename(target)
    except OSError as error:
        raise at(target, error) from error
    finally:
        with suppress(OSError):
            remove(scratch)


def _write_clean(folder: Path, clip: CleanClip, options: PairOptions, tick: Callable[[], object]) -> None:
    """Write the clean frames. Copied files are decoded, too: unusable ones must be refused before any rain is made."""
    copied = all(path.suffix.lower() in _COPIED_SUFFIXES for path in clip.files)
    for number, frame in enumerate(clip.images() if copied else clip.frames(options.keep_going), 1):
        if copied:
            path = clip.files[number - 1]
            (folder / f"{number:05d}{path.suffix.lower()}").write_bytes(path.read_bytes())
        else:
            _write_frame(folder / f"{number:05d}.png", frame, 100, clip.name)
        tick()


def _write_rainy(folder: Path, clip: CleanClip, variant: int, options: PairOptions, tick: Callable[[], object]) -> None:
    rain = None
    for number, frame in enumerate(clip.frames(options.keep_going)):
        if rain is None:
            fps = clip.rate(options.fps)
            rain = clip_renderer(options.params, options.seed, clip.name, variant, frame, fps=fps, vary=options.vary)
        path = folder / f"{number + 1:05d}{options.suffix}"
        _write_frame(path, rain.render(frame, number), options.quality, clip.name)
        tick()


def _write_frame(path: Path, frame: np.ndarray, quality: int, clip: str) -> None:
    """Write a JPEG or PNG. Raises CSDError, which names the clip, for a frame too large for that."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), settings)
    if not done:
        kind, other = ("a JPEG", "--format png, or ") if settings else ("a PNG", "")
        raise CSDError(
            f"clip {clip}, frame {path.stem}: OpenCV cannot write {kind} of {frame.shape[1]}x{frame.shape[0]} pixels; "
            f"give {other}smaller frames"
        )
    path.write_bytes(data.tobytes())
