"""The contents of a data set, clip by clip, and its problems; as text and as JSON. `dataset_page` makes the page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from csd_plugin.data.census import take_census
from csd_plugin.data.parallel import run_all
from csd_plugin.data.rain.statistics import RainStatistics, difference_counts, statistics_of
from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.interface import FrameStore
from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import luma_8bit, psnr
from csd_plugin.report.text import aligned, counted
from csd_plugin.types import PairedSequence

_THUMBNAIL = (374, 1496)
"""The most pixels of a thumbnail: its width, which most have, and its height."""
DIFFERENCE_GAIN = 3
"""The magnification of differences in thumbnails."""

_MAX_PROBLEMS = 5
_TRAINING_FRAMES, _TRAINING_CROP = 11, 128
"""Frames of a training clip, and pixels of a crop's side, as in the paper; smaller clips need other options."""


@dataclass(frozen=True)
class ClipFacts:
    """One rainy clip and its truth.

    Attributes:
        split: None outside NTURain's layout.
        frames: their number in the rainy clip; its truth has the same.
        size: 'WIDTHxHEIGHT' of most frames, and how many times larger clean ones are, if so; '' if none can be read.
        brightness: mean RGB value of rainy and of clean frames, 0 .. 255; statistics; psnr in dB of the 8-bit luma, as
            the published tables have it: of the sampled frames, None without truth. psnr is `inf` for equal frames.
        problems: one line each.
        pictures: JPEG thumbnails of the middle frame: rain and, with truth, truth and difference.
    """

    name: str
    split: str | None
    frames: int
    size: str
    brightness: tuple[float | None, float | None]
    statistics: RainStatistics | None
    psnr: float | None
    problems: tuple[str, ...]
    pictures: tuple[bytes, ...]


@dataclass(frozen=True)
class DatasetFacts:
    """The contents of a data set.

    Attributes:
        samples: the number of frames of every clip that were used for statistics.
        decoded: whether all frames were decoded.
        layout_problems: problems that belong to no clip.
    """

    path: str
    samples: int
    decoded: bool
    clips: tuple[ClipFacts, ...]
    layout_problems: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        return (*self.layout_problems, *(problem for clip in self.clips for problem in clip.problems))

    @property
    def summary(self) -> str:
        paired = sum(clip.statistics is not None for clip in self.clips)
        frames = sum(clip.frames for clip in self.clips)
        sizes = [size for size, _ in Counter(clip.size for clip in self.clips if clip.size).most_common(3)]
        clips = f"{counted(len(self.clips), 'clip')} ({paired} with truth)"
        return ", ".join([clips, counted(frames, "frame"), *sizes])


def examine(path: Path, samples: int = 16, decode: bool = False, jobs: int = 1) -> DatasetFacts:
    """Examine a folder or an LMDB store, and every image header in it.

    Args:
        samples: frames of every clip that are decoded for the statistics, evenly spread over it, at least 1.
        decode: decode all frames, to find damaged ones.

    Raises:
        CSDError: there is nothing to examine; problems of clips and frames are in the result.
    """
    if samples < 1:
        raise CSDError(f"samples = {samples}: give at least 1")
    store = open_store(path)
    census = take_census(store, path)
    tasks = [(store, split, sequence, samples, decode) for split, sequence in census.clips]
    weights = [len(sequence.lq) if decode else min(samples, len(sequence.lq)) for _, sequence in census.clips]
    clips: list[ClipFacts] = []
    for facts in run_all(_examine_clip, tasks, jobs, "looking at frames", "frame", weights):
        if isinstance(facts, CSDError):
            raise facts
        clips.append(facts)
    return DatasetFacts(str(path), samples, decode, tuple(clips), tuple(census.problems))


def _examine_clip(
    store: FrameStore,
    split: str | None,
    sequence: PairedSequence,
    samples: int,
    decode: bool,
    tick: Callable[[], object],
) -> ClipFacts:
    usual, scale, problems = _sizes(store, sequence)
    if split == "train":
        problems += _too_small_to_train(sequence, usual and (usual[0] * scale, usual[1] * scale))
    size = f"{usual[1]}x{usual[0]}" + f" (clean {scale} times)" * (scale > 1) if usual else ""
    count = len(sequence.lq)
    sampled = [round(share) for share in np.linspace(0, count - 1, min(samples, count))]
    levels: list[float] = []
    clean_levels: list[float] = []
    quality: list[float] = []
    counts: list[np.ndarray] = []
    pictures: tuple[bytes, ...] = ()
    for number in range(count) if decode else sampled:
        tick()
        rain, truth, unread = _read(store, sequence, number)
        problems += unread
        if number not in sampled or rain is None:
            continue
        levels.append(float(rain.mean()))
        if truth is not None:
            clean_levels.append(float(truth.mean()))
            counts.append(difference_counts(rain, truth))
            quality.append(psnr(luma_8bit(rain), luma_8bit(truth)))
        if number == sampled[len(sampled) // 2]:
            pictures = _thumbnails(rain, truth)
    if quality and math.isinf(min(quality)):
        problems.append(f"{sequence.name}: rainy and clean frames are identical: there is no rain to learn from")
    return ClipFacts(
        name=sequence.name,
        split=split,
        frames=count,
        size=size,
        brightness=(_mean(levels), _mean(clean_levels)),
        statistics=statistics_of(np.sum(counts, axis=0)) if counts else None,
        psnr=_mean(quality),
        problems=_shortened(sequence.name, problems),
        pictures=pictures,
    )


def _sizes(store: FrameStore, sequence: PairedSequence) -> tuple[tuple[int, int] | None, int, list[str]]:
    """((height, width) of most rainy frames, how many times larger clean frames are, problems), from all headers."""
    rainy: dict[str, tuple[int, int]] = {}
    clean: dict[str, tuple[int, int]] = {}
    problems = []
    for keys, sizes in ((sequence.lq, rainy), (sequence.gt or (), clean)):
        for key in keys:
            try:
                sizes[key] = store.shape(key)
            except CSDError as error:
                problems.append(str(error))
    if not rainy:
        return None, 1, problems
    scale = _scale(_usual(rainy), _usual(clean)) if clean else 1
    usual = _usual(rainy if scale > 1 else rainy | clean)
    for sizes, factor in ((rainy, 1), (clean, scale)):
        expected = usual[0] * factor, usual[1] * factor
        kind = "clean frames" if factor > 1 else "frames"
        problems += [
            f"{key}: is {width}x{height}, most {kind} of the clip are {expected[1]}x{expected[0]}"
            for key, (height, width) in sizes.items()
            if (height, width) != expected
        ]
    return usual, scale, problems


def _usual(sizes: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    return Counter(sizes.values()).most_common(1)[0][0]


def _scale(rainy: tuple[int, int], clean: tuple[int, int]) -> int:
    """By which whole number both sides grow, as for super-resolution; 1 if by none."""
    factor = clean[0] // rainy[0]
    return factor if factor > 1 and (rainy[0] * factor, rainy[1] * factor) == clean else 1


def _too_small_to_train(sequence: PairedSequence, size: tuple[int, int] | None) -> list[str]:
    """Problems of a clip whose clean frames are of this size (height, width)."""
    problems = []
    if len(sequence.lq) < _TRAINING_FRAMES:
        problems.append(
            f"{sequence.name}: {counted(len(sequence.lq), 'frame')}, fewer than the {_TRAINING_FRAMES} that training "
            f"uses at a time; to train on this clip, lower num_frame in the option file"
        )
    if size and min(size) < _TRAINING_CROP:
        problems.append(
            f"{sequence.name}: frames of {size[1]}x{size[0]} are smaller than the crops of "
            f"{_TRAINING_CROP}x{_TRAINING_CROP} that training takes, and are enlarged as far as scale_range allows; to "
            f"train on them as they are, lower gt_size in the option file"
        )
    return problems


def _read(
    store: FrameStore, sequence: PairedSequence, number: int
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """(rain, truth, problems); truth is also None if its size is not that of the rain."""
    frames: list[np.ndarray | None] = []
    problems = []
    for keys in (sequence.lq, sequence.gt):
        try:
            frames.append(None if keys is None else store.read(keys[number]))
        except CSDError as error:
            problems.append(str(error))
            frames.append(None)
    rain, truth = frames
    return rain, truth if rain is not None and truth is not None and truth.shape == rain.shape else None, problems


def _thumbnails(rain: np.ndarray, truth: np.ndarray | None) -> tuple[bytes, ...]:
    """JPEGs of rain, and, if there is truth, of truth and difference, which is mid-grey where they are equal."""
    if truth is None:
        return (_jpeg(_small(rain)),)
    difference = _small(rain.astype(np.float32) - truth) * DIFFERENCE_GAIN + 128
    return _jpeg(_small(rain)), _jpeg(_small(truth)), _jpeg(difference.clip(0, 255).astype(np.uint8))


def _small(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = min(_THUMBNAIL[0] / width, _THUMBNAIL[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _jpeg(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _shortened(clip: str, problems: list[str]) -> tuple[str, ...]:
    once = list(dict.fromkeys(problems))
    more = len(once) - _MAX_PROBLEMS
    return tuple(once) if more <= 0 else (*once[:_MAX_PROBLEMS], f"{clip}: {more} more of this kind")


# --- as text and JSON ---------------------------------------------------------------------------------------------

_COLUMNS = ("clip", "frames", "size", "light", "clean", "rain-gt", "median", ">+10 %", "<-10 %", "PSNR")


def clips_table(clips: Sequence[ClipFacts]) -> list[tuple[str, ...]]:
    """Titles, and one row per clip; without columns in which no clip has a value."""
    rows = [_row(clip) for clip in clips]
    filled = [i for i in range(len(_COLUMNS)) if any(cells[i] for cells in rows)]
    return [tuple(cells[i] for i in filled) for cells in (_COLUMNS, *rows)]


def _row(clip: ClipFacts) -> tuple[str, ...]:
    statistics = clip.statistics or (None,) * 4
    return (
        clip.name,
        str(clip.frames),
        clip.size,
        *(_number(level, 1) for level in clip.brightness),
        _number(statistics[0], 2, "+"),
        _number(statistics[1], 0),
        *(_number(share, 2) for share in statistics[2:]),
        _number(clip.psnr, 2),
    )


def by_split(facts: DatasetFacts) -> Iterable[tuple[str, list[ClipFacts]]]:
    """(title, clips) of every split that has clips."""
    for split, title in (("train", "training"), ("test", "test"), ("real", "real rain"), (None, "folders of frames")):
        if clips := [clip for clip in facts.clips if clip.split == split]:
            yield title, clips


def as_text(facts: DatasetFacts) -> str:
    lines = [f"{facts.path}: {facts.summary}"]
    for title, clips in by_split(facts):
        lines += ["", f"{title}: {counted(len(clips), 'clip')}", *aligned(clips_table(clips))]
    looked = "all frames were decoded" if facts.decoded else "headers of all frames were read (--decode reads all)"
    lines += ["", f"Levels, rain and PSNR (dB, 8-bit luma): of up to {facts.samples} frames of each clip; {looked}."]
    lines += [f"{counted(len(facts.problems), 'problem')} found" + (":" if facts.problems else ".")]
    return "\n".join([*lines, *(f"  {problem}" for problem in facts.problems)]) + "\n"


SIGN = rb'\{\s*"path": "[^\n]*",\s*"samples": \d'
"""Pattern of the beginning of the text of `as_json`."""


def as_json(facts: DatasetFacts) -> str:
    """Everything except the pictures. An infinite PSNR is null, as JSON has no infinity."""
    clips = []
    for clip in facts.clips:
        plain = asdict(clip) | {"statistics": clip.statistics and clip.statistics._asdict()}
        del plain["pictures"]
        if clip.psnr is not None and math.isinf(clip.psnr):
            plain["psnr"] = None
        clips.append(plain)
    content = {
        "path": facts.path,
        "samples": facts.samples,
        "decoded": facts.decoded,
        "clips": clips,
        "layout_problems": facts.layout_problems,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.{digits}f}"
