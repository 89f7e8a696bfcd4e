"""The measurement of `csd bench growth`: one process per point, which prints its time and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from csd_plugin.bench.measure import peak_memory
from csd_plugin.bench.process import answer, measured_apart
from csd_plugin.report.text import markdown, three_digits

_FRAMES = 8


class Footprint(NamedTuple):
    """The time and memory of one process.

    Attributes:
        seconds: per frame.
        peak, before: the most memory in MB, overall and before the first frame.
    """

    seconds: float
    peak: float
    before: float


class Point(NamedTuple):
    """One clip, with `factor` times the pixels or frames, and its `Footprint`."""

    grows: str
    factor: int
    width: int
    height: int
    frames: int
    seconds: float
    peak: float
    before: float


def measure(network: str, size: tuple[int, int], frames: int, steps: Sequence[int], memory: int) -> Iterator[Point]:
    """Measure both series, one process after the other, and give each point when it is measured.

    Args:
        network: as for `csd bench infer`.
        size: (width, height) of the smallest frames.
        frames: the number of frames of the shortest clip.
        steps: multiples of their pixels and of their number.
        memory: MB for the network, as for `csd derain`.

    Raises:
        CSDError: a process fails.
    """
    width, height = size
    # 2x the pixels is not a whole factor for both sides: first the width is doubled, then the height.
    clips: list[tuple[str, int, int, int, int]] = []
    for step in steps:
        across = 2 ** ((step.bit_length()) // 2)
        clips.append(("pixels", step, width * across, round(height * step / across), _FRAMES))
    clips += [("frames", step, width, height, frames * step) for step in steps]
    for grows, factor, wide, high, count in tqdm(clips, desc="bench growth", unit="clip", disable=None):
        footprint = _in_a_process(network, wide, high, count, memory)
        yield Point(grows, factor, wide, high, count, *footprint)


def _in_a_process(network: str, width: int, height: int, frames: int, memory: int) -> Footprint:
    arguments = [network, *map(str, (width, height, frames, memory))]
    return Footprint(*measured_apart(__name__, arguments, f"{width}x{height}, {frames} frames"))


def stream(network: str, width: int, height: int, frames: int, memory: int) -> Footprint:
    """Derain a synthetic clip in this process."""
    import numpy as np

    from csd_plugin.bench.speed import find_network
    from csd_plugin.inference.memory import keep_freed_memory
    from csd_plugin.inference.runner import Derainer

    keep_freed_memory()
    derainer = Derainer(find_network(network), device="cpu", memory=memory)
    list(derainer([np.zeros((32, 32, 3), np.uint8)]))  # one-time loading and initialisation
    before = peak_memory()
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    began = time.perf_counter()
    for _ in derainer(picture.copy() for _ in range(frames)):
        pass
    took = time.perf_counter() - began
    return Footprint(took / frames, peak_memory(), before)


def growth_table(points: Sequence[Point]) -> str:
    """The points as Markdown, one row per clip."""
    head = ["grows", "x", "size", "frames", "s/frame", "us/pixel", "peak MB", "+MB"]
    rows = [
        [
            point.grows,
            str(point.factor),
            f"{point.width}x{point.height}",
            str(point.frames),
            three_digits(point.seconds),
            f"{1e6 * point.seconds / (point.width * point.height):.2f}",
            f"{point.peak:.0f}",
            f"{point.peak - point.before:.0f}",
        ]
        for point in points
    ]
    return markdown(head, rows, 3)


def draw(figure: Any, points: Sequence[Point]) -> None:
    """Draw the clip's time and memory against the factor, one line per series."""
    time_axes, memory_axes = figure.subplots(1, 2)
    for grows in ("pixels", "frames"):
        series = [point for point in points if point.grows == grows]
        factors = [point.factor for point in series]
        time_axes.loglog(factors, [point.seconds * point.frames for point in series], "o-", label=f"x {grows}")
        memory_axes.semilogx(factors, [point.peak for point in series], "o-", label=f"x {grows}")
    time_axes.set_ylabel("seconds for the clip")
    memory_axes.set_ylabel("peak memory, MB")
    memory_axes.set_ylim(bottom=0)
    for axes in (time_axes, memory_axes):
        axes.set_xlabel("times larger")
        axes.legend()


if __name__ == "__main__":
    answer(lambda: stream(sys.argv[1], *map(int, sys.argv[2:])))
