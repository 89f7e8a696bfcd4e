"""Scores frames in folders, whoever made them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from csd_plugin.data.images import decode_image, frames_in, header_shape
from csd_plugin.data.layout import SPLITS, holds_store, natural_key, number_columns
from csd_plugin.data.links import refuse_way_out
from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import Image, enlarged
from csd_plugin.metrics.metric import Metric, View, values_of
from csd_plugin.metrics.protocols import FrameScore, score_frame
from csd_plugin.metrics.scores import Scores, without_ends

_RAIN = re.compile(r"_Rain(_\d+)?$", re.IGNORECASE)
_TRUTH = re.compile(r"_GT$", re.IGNORECASE)

logger = logging.getLogger(__name__)


class FramePair(NamedTuple):
    """The files of a frame to score.

    Attributes:
        partner: its truth; without one, the rainy frame, or the result itself.
    """

    clip: str
    frame: str
    result: Path
    partner: Path


def score_folders(
    results: Path,
    truth: Path | None,
    *,
    guide: Path | None = None,
    metrics: Mapping[str, Metric] | None = None,
    skip: tuple[int, int] = (0, 0),
    clips: Collection[str] | None = None,
    of_input: bool = False,
    jobs: int | None = None,
) -> Scores:
    """Score every frame of one clip, or of a folder of clips, against its truth, or without one.

    The folders hold frames, or clip folders of frames; either may also be the root of NTURain, of which the split with
    the other's clips is used. Clips pair by name (without NTURain's endings _Rain and _GT), frames by name, or else by
    number.

    Args:
        truth: without it, only `metrics` are computed.
        guide: without a truth, the rainy frames, which move as the results should. Default: the results themselves.
        metrics: further metrics, from `open_metrics`.
        skip: the numbers of frames at both ends of every true clip that are left out, and need no result.
        clips: of several clips, score only these; default: all clips in `results`.
        of_input: `results` are the rainy frames themselves; messages then say so, and in super-resolution, where they
            are smaller by a whole factor, they are enlarged.
        jobs: threads (OpenCV and numpy release the interpreter's lock while they compute); default: one per processor.

    Raises:
        CSDError: a folder has no frames, a result no truth, or a frame no result; frames are too small for a metric, or
            differ in size; a file is not an image.
    """
    partner = truth or guide
    pairs = (
        _alone(results, skip, clips)
        if partner is None
        else pair_folders(results, partner, skip, clips, is_truth=bool(truth), of_input=of_input)
    )
    _check_sizes(pairs, (metrics or {}).values(), of_input=of_input)
    before = [None, *pairs[:-1]]
    score = partial(_score_pair, has_truth=truth is not None, metrics=metrics or {}, of_input=of_input)
    scores = Scores(skip=skip)
    with (
        ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool,
        tqdm(total=len(pairs), unit="frame", desc=f"score {results.name}", disable=None) as bar,
    ):
        for pair, (quality, values) in zip(pairs, pool.map(score, pairs, before), strict=True):
            scores.record(pair.clip, pair.frame, quality, values)
            bar.update()
    if not of_input:  # the same was reported for the results
        _say_what_has_no_value(scores, metrics or {})
    return scores


def _say_what_has_no_value(scores: Scores, metrics: Mapping[str, Metric]) -> None:
    """Warn about each metric that needs the previous frame, for clips of which only one frame is scored."""
    single = [name for name, clip in scores.clips.items() if len(clip.frames) == 1]
    for metric in metrics.values() if single else ():
        if metric.temporal:
            logger.warning("clip %s: no %s, which needs two frames: only one is scored", *(_some(single), metric.title))


def pair_folders(
    results: Path,
    partner: Path,
    skip: tuple[int, int] = (0, 0),
    clips: Collection[str] | None = None,
    is_truth: bool = True,
    of_input: bool = False,
) -> list[FramePair]:
    """Every scored frame with its truth (or rainy frame), clip by clip, in order.

    Args:
        results, skip, clips, of_input: as for `score_folders`.
        partner: the truth, or without one the rainy frames.
        is_truth: which of these `partner` is.

    Raises:
        CSDError: a clip or frame has no partner.
    """
    kind = "truth" if is_truth else "rainy input"
    result_clips = find_scored_clips(results, ignored=_TRUTH, wanted=clips or ())
    true_clips = find_scored_clips(partner, _RAIN if is_truth else _TRUTH, wanted=result_clips)
    if clips is not None and len(result_clips) > 1:
        result_clips = {clip: files for clip, files in result_clips.items() if clip in clips}
    if len(result_clips) == len(true_clips) == 1:
        result_clips = dict(zip(true_clips, result_clips.values(), strict=True))
    partner_of = {clip: clip if clip in true_clips else _scene(clip) for clip in result_clips}
    for clip, scene in partner_of.items():
        if scene not in true_clips:
            raise CSDError(
                f"clip {clip} of {results} has no {kind} in {partner}, which holds {_some(list(true_clips))}"
            )
    absent = sorted(set(clips or ()) - set(result_clips)) if of_input and len(clips or ()) > 1 else []
    if absent:
        logger.warning("%s: no rainy frames of %s; the row of the rainy input leaves them out", results, _some(absent))
    unscored = sorted(true_clips.keys() - set(partner_of.values()))
    if unscored and clips is None:
        logger.warning("%s: no results for %s; the average leaves them out", results, _some(unscored))
    return [
        FramePair(clip, *frame)
        for clip, files in result_clips.items()
        for frame in _pair_frames(clip, files, true_clips[partner_of[clip]], skip, kind, of_input)
    ]


def _alone(results: Path, skip: tuple[int, int], clips: Collection[str] | None) -> list[FramePair]:
    """Every scored frame, as its own partner."""
    pairs = []
    for clip, files in find_scored_clips(results, ignored=_TRUTH).items():
        if clips is not None and clip not in clips:
            continue
        kept = without_ends(files, skip)
        if not kept:
            raise CSDError(f"clip {clip}: skipping {skip[0]} and {skip[1]} of its {len(files)} frames leaves none")
        pairs += [FramePair(clip, file.stem, file, file) for file in kept]
    return pairs


def find_scored_clips(folder: Path, ignored: re.Pattern[str], wanted: Collection[str] = ()) -> dict[str, list[Path]]:
    """Clip name -> its frames in display order, for a folder of frames, of clip folders, or NTURain's root.

    Args:
        ignored: names of clip folders that are ignored if there are others, as NTURain has rain and truth side by side.
        wanted: names of clips; for NTURain's root, the first of test, training and real clips that has one of these
            scenes is used, else the first.

    Raises:
        CSDError: not a folder, or a folder without frames.
    """
    if not folder.is_dir():
        raise CSDError(f"{folder} is not a folder: give one of frames, or of clip folders")
    splits = [folder / SPLITS[split] for split in ("test", "train", "real") if (folder / SPLITS[split]).is_dir()]
    found = [_clips_in(refuse_way_out(split, folder), ignored, folder) for split in splits or [folder]]
    scenes = set(map(_scene, wanted))
    return next((clips for clips in found if scenes & set(map(_scene, clips))), found[0])


def _clips_in(folder: Path, ignored: re.Pattern[str], root: Path) -> dict[str, list[Path]]:
    frames = _frames(folder, root)
    if frames:
        return {_clip_name(folder.resolve()): frames}
    children = sorted(folder.iterdir(), key=lambda child: natural_key(child.name))
    folders = [refuse_way_out(child, root) for child in children if child.is_dir()]
    clips = {child: frames for child in folders if (frames := _frames(child, root))}
    if not clips:
        kind = "is an LMDB store" if holds_store(folder) else "holds no images or folders of images"
        raise CSDError(f"{folder} {kind}: give a folder of frames, or of clip folders")
    chosen = [child for child in clips if not ignored.search(child.name)] or list(clips)
    return {clip: clips[child] for clip, child in _by_key(chosen, map(_clip_name, chosen)).items()}


def _frames(folder: Path, root: Path) -> list[Path]:
    return sorted(frames_in(folder, root), key=lambda file: natural_key(file.stem))


def _clip_name(folder: Path) -> str:
    """'a1_Rain', 'a1_GT', 'a1' -> 'a1'; several rainy versions of a scene stay apart: 't1_Rain_02'."""
    return re.sub(r"_(GT|Rain)$", "", folder.name, flags=re.IGNORECASE)


def _scene(clip: str) -> str:
    """The clip that has the truth: 't1_Rain_02' -> 't1'."""
    return re.sub(r"_Rain_\d+$", "", clip, flags=re.IGNORECASE)


def _pair_frames(
    clip: str, results: Sequence[Path], truths: Sequence[Path], skip: tuple[int, int], kind: str, of_input: bool
) -> list[tuple[str, Path, Path]]:
    """(name, result, truth or rainy frame as `kind` says) of each scored frame."""
    result_of = _by_key(results, [file.stem for file in results])
    truth_of = _by_key(truths, [file.stem for file in truths])
    if not result_of.keys() <= truth_of.keys():
        result_of, truth_of = _by_key(results, _numbers(results)), _by_key(truths, _numbers(truths))

    # also if ends are skipped: frames counted from 0 instead of 1 would be compared with their neighbours
    extra = [file for key, file in result_of.items() if key not in truth_of]
    if extra:
        adjective = "true" if kind == "truth" else "rainy"
        raise CSDError(
            f"clip {clip}: {extra[0]} has no {adjective} frame with its name or number in {truths[0].parent}"
        )
    kept = without_ends(list(truth_of.items()), skip)
    if not kept:
        raise CSDError(f"clip {clip}: skipping {skip[0]} and {skip[1]} of its {len(truths)} frames leaves none")
    missing = [file for key, file in kept if key not in result_of]
    if missing:
        lacks = f"{len(missing)} of {len(kept)} frames have no result, the first is that of {missing[0]}"
        way_out = "derain the others first"
        if of_input:
            folder = results[0].parent
            lacks = f"{folder} lacks {len(missing)} of {len(kept)} rainy frames, the first that of {missing[0]}"
            way_out = "add the others, or leave --input out"
        there = [key in result_of for key in truth_of]
        raise CSDError(f"clip {clip}: {lacks}; {_skip_to(there) or way_out}")
    return [(truth.stem, result_of[key], truth) for key, truth in kept]


def _skip_to(there: Sequence[bool]) -> str:
    """How to score the existing frames if only some at the ends are missing; else empty."""
    ends = there.index(True), there[::-1].index(True)
    return f"--skip {ends[0]} {ends[1]} scores the frames that exist" if sum(there) == len(there) - sum(ends) else ""


def _by_key(files: Sequence[Path], keys: Iterable[str]) -> dict[str, Path]:
    by_key: dict[str, Path] = {}
    for key, file in zip(keys, files, strict=True):
        if key in by_key:
            raise CSDError(f"{by_key[key]} and {file} are both {key}: keep one of them")
        by_key[key] = file
    return by_key


def _numbers(files: Sequence[Path]) -> list[str]:
    """Frame numbers without leading zeros: of all numbers in the names, the one that differs between files.

    The names may also contain a constant number, such as a network's or an iteration.
    """
    texts = {re.sub(r"[0-9]+", "0", file.stem) for file in files}
    columns = number_columns(file.stem for file in files)[::-1]
    changing = [column for column in columns if len(set(column)) > 1] or columns[:1]
    if len(texts) != 1 or len(changing) != 1:
        raise CSDError(
            f"{files[0].parent}: which number in names such as {files[0].name} is the frame's is unclear; "
            f"name the results like their true frames"
        )
    return [str(number) for number in changing[0]]


def _check_sizes(pairs: Iterable[FramePair], metrics: Collection[Metric], *, of_input: bool) -> None:
    """Raise CSDError for frames that are too small for a metric, by their headers, before hours of work on others.

    Args:
        of_input: smaller results are enlarged, as `score_folders` says, so that their partners' sizes count.
    """
    first: dict[tuple[int, int], FramePair] = {}
    for pair in pairs if metrics else ():
        with suppress(OSError), (pair.partner if of_input else pair.result).open("rb") as file:
            shape = header_shape(file)
            if shape:
                first.setdefault(shape, pair)
    for shape, pair in first.items():
        try:
            for metric in metrics:
                metric.check_size(*shape)
        except CSDError as error:
            raise CSDError(f"clip {pair.clip}, {pair.result}: {error}") from None


def _score_pair(
    pair: FramePair, before: FramePair | None, *, has_truth: bool, metrics: Mapping[str, Metric], of_input: bool
) -> tuple[FrameScore, dict[str, float]]:
    """The scores of a frame, and the values of the metrics that have one for it.

    Args:
        before: the previous pair, which belongs to another clip if this one begins here.
        of_input: enlarge a smaller result, as `score_folders` says.
    """
    result = _read(pair.result)
    partner = result if pair.partner == pair.result else _read(pair.partner)
    result = enlarged(result, partner.shape) if of_input else result
    view = View(result, partner if has_truth else None, partner)
    if before and before.clip == pair.clip and any(metric.temporal for metric in metrics.values()):
        previous = enlarged(_read(before.result), result.shape) if of_input else _read(before.result)
        guide = previous if before.partner == before.result else _read(before.partner)
        view = view._replace(previous=previous, previous_guide=guide)
    try:
        quality = score_frame(result, partner) if has_truth else {}
        values = values_of(metrics, view, f"clip {pair.clip}, {pair.result}")
    except CSDError as error:
        against = f" against {pair.partner}" if pair.partner != pair.result else ""
        raise CSDError(f"clip {pair.clip}, {pair.result}{against}: {error}") from None
    return quality, values


def _read(path: Path) -> Image:
    """(H, W, 3) uint8 RGB."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CSDError(f"{path}: cannot be read ({error.strerror or error})") from error
    return decode_image(data, str(path))


def _some(names: Sequence[str]) -> str:
    """Up to four names in one line."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
