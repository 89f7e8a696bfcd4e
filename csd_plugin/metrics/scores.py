"""Scores of many frames: per frame, averaged over a clip, averaged over the clips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import Image
from csd_plugin.metrics.protocols import FrameScore, Quality, score_frame

Item = TypeVar("Item")


def without_ends(items: Sequence[Item], skip: tuple[int, int]) -> Sequence[Item]:
    """`items` without the first skip[0] and the last skip[1]; may be empty. Raises CSDError for negative numbers."""
    first, last = skip
    if first < 0 or last < 0:
        raise CSDError(f"cannot skip a negative number of frames: {first} {last}")
    return items[first : max(first, len(items) - last)]


@dataclass
class ClipScores:
    """The scores of one clip's frames, in display order.

    Attributes:
        frames: frame name -> protocol -> Quality; empty without a truth.
        metrics: metric -> frame name -> value, for metrics other than PSNR and SSIM. A metric may lack frames: one that
            compares neighbours has no value for the first.
    """

    frames: dict[str, FrameScore] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    def average(self) -> FrameScore:
        """Mean over the frames that have a truth, per protocol; empty if none has.

        One frame identical to its truth makes the clip's PSNR infinite.
        """
        return _mean(self.frames.values())

    def metric_means(self) -> dict[str, float]:
        """Metric -> mean over the frames that have a value."""
        return {name: sum(values.values()) / len(values) for name, values in self.metrics.items() if values}

    def metrics_of(self, frame: str) -> dict[str, float]:
        """Metric -> value of one frame."""
        return {name: values[frame] for name, values in self.metrics.items() if frame in values}


@dataclass
class Scores:
    """All scored frames, by clip.

    Attributes:
        clips: clip name -> ClipScores, in the order they were added.
        skip: the numbers of frames left out at both ends of every clip; they are not in `clips`.
    """

    clips: dict[str, ClipScores] = field(default_factory=dict)
    skip: tuple[int, int] = (0, 0)

    def add(self, clip: str, frame: str, result: Image, truth: Image) -> FrameScore:
        """Score one frame, (H, W, 3) uint8 RGB against its truth, and keep the scores.

        Raises CSDError, naming clip and frame, if the two cannot be compared.
        """
        try:
            score = score_frame(result, truth)
        except CSDError as error:
            raise CSDError(f"clip {clip}, frame {frame}: {error}") from None
        self.record(clip, frame, score)
        return score

    def record(self, clip: str, frame: str, score: FrameScore, metrics: Mapping[str, float] | None = None) -> None:
        """Keep the scores of a frame that was scored elsewhere (a thread, another process), with further metrics.

        Raises CSDError for a frame that already has scores, and for NaN, which would make every average NaN.
        """
        _refuse_nan(score, metrics or {}, f"clip {clip}, frame {frame}")
        scores = self.clips.setdefault(clip, ClipScores())
        if frame in scores.frames:
            raise CSDError(f"clip {clip}, frame {frame} was scored twice: frame names must differ within a clip")
        scores.frames[frame] = score
        for name, value in (metrics or {}).items():
            scores.metrics.setdefault(name, {})[frame] = value

    def without_ends(self, skip: tuple[int, int]) -> Scores:
        """The same scores without the first skip[0] and last skip[1] frames of every clip.

        Raises CSDError for a clip that would have none left.
        """
        clips = {}
        for name, clip in self.clips.items():
            kept = without_ends(tuple(clip.frames), skip)
            if not kept:
                raise CSDError(
                    f"clip {name}: skipping {skip[0]} and {skip[1]} of {len(clip.frames)} frames leaves none"
                )
            metrics = {
                metric: {frame: values[frame] for frame in kept if frame in values}
                for metric, values in clip.metrics.items()
            }
            clips[name] = ClipScores({frame: clip.frames[frame] for frame in kept}, metrics)
        return Scores(clips, (self.skip[0] + skip[0], self.skip[1] + skip[1]))

    def average(self) -> FrameScore:
        """Mean over the clips of their averages, per protocol: a long clip has no more weight than a short one.

        Clips without truth do not count: see `without_truth`.
        """
        return _mean([clip.average() for clip in self.clips.values()])

    def without_truth(self) -> list[str]:
        """The clips that are not part of `average`."""
        return [name for name, clip in self.clips.items() if not clip.average()]

    def metric_means(self) -> dict[str, float]:
        """Metric -> mean over the clips that have a value, of their means."""
        clips = [clip.metric_means() for clip in self.clips.values()]
        names = dict.fromkeys(name for clip in clips for name in clip)
        columns = {name: [clip[name] for clip in clips if name in clip] for name in names}
        return {name: sum(values) / len(values) for name, values in columns.items()}

    def summary(self) -> dict[str, float]:
        """The averages under flat names for a logger: `nturain_y/psnr`, `nturain_y/ssim`, `rgb/psnr`, `rgb/ssim`, and
        the further metrics under their own."""
        protocols = {
            f"{protocol}/{metric}": value
            for protocol, quality in self.average().items()
            for metric, value in quality._asdict().items()
        }
        return protocols | self.metric_means()


def _refuse_nan(score: FrameScore, metrics: Mapping[str, float], where: str) -> None:
    """Raise CSDError for scores of a frame that are NaN."""
    # MMEngine hands qualities back as plain tuples
    qualities = [item for quality in score.values() for item in zip(Quality._fields, quality, strict=True)]
    for name, number in [*qualities, *metrics.items()]:
        if math.isnan(number):
            raise CSDError(f"{where}: its {name} is nan; leave out metrics without a value")


def _mean(scores: Iterable[FrameScore]) -> FrameScore:
    """Per protocol over those that have it. Raises CSDError if there are none."""
    scores = list(scores)
    if not scores:
        raise CSDError("no frame was scored: there are no scores to average")
    protocols = dict.fromkeys(protocol for score in scores for protocol in score)
    return {
        protocol: Quality(*(sum(values) / len(values) for values in zip(*columns, strict=True)))
        for protocol in protocols
        if (columns := [score[protocol] for score in scores if protocol in score])
    }


@dataclass(frozen=True)
class Result:
    """Scores of one network on one data set.

    Attributes:
        network: the row's name in tables.
        facts: plain JSON values worth keeping (iteration, checkpoint, command).
    """

    network: str
    dataset: str
    scores: Scores
    facts: dict[str, Any] = field(default_factory=dict)
