"""Can this machine derain in real time? Measured from file to file, and from a camera.

With the default sizes and networks, it takes several minutes, more than ten on a busy machine. Each row is printed when
it is measured; Ctrl-C keeps those that are.

FILE, or a synthetic rainy clip, is scaled to every size, then read, derained and written as by `csd derain`. The first
row of each size has no network: it is the limit that decoding and encoding set. Every row is a separate process. The
columns:
  fps        frames per second from file to file: reading, network and writing together
  of limit   that as a share of the first row's rate at this size
  read, net, write  ms per frame for each of the three alone, with the whole machine, and its share of the sum. On
            machines with several processors, the three run at the same time
  delay, 99% ms from the arrival of a frame, from a camera of --rate frames per second, until it is written: the
            median, and the value that one frame in a hundred exceeds
  dropped    frames of that camera that were left out because they arrived faster than they could be cleaned
  peak MB    the most memory that the process held from file to file

Networks are presets with random weights (as fast as trained ones), names of `csd models`, or checkpoints.

examples:
  csd bench realtime
  csd bench realtime --networks realtime --precision fp32 int8
  csd bench realtime rain.mp4 --networks realtime net_g_latest.pth --sizes 640x480 --json realtime.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from csd_plugin.bench.flags import add_networks, add_report, add_sizes
from csd_plugin.bench.process import answer, measured_apart
from csd_plugin.cli.flags import number, path_given, whole

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np

    from csd_plugin.data.video.origin import Origin

NONE = "none"
"""The row without a network."""
_START = 5.0
"""Seconds that a row takes about besides its frames."""
_CODING = 1.5e-7
"""Seconds for a pixel: each frame is read and written several times."""


class RealtimeRow(NamedTuple):
    """One network at one size; read, network and write: seconds per frame for each alone; delay: of each frame."""

    network: str
    width: int
    height: int
    precision: str
    fps: float
    read: float
    net: float
    write: float
    delay: list[float]
    dropped: int
    peak: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", metavar="FILE", type=path_given, help="rainy video or folder (default: a synthetic clip)"
    )
    add_networks(parser, "realtime", "tiny")
    add_sizes(parser, "640x480", "1280x720", "1920x1080")
    parser.add_argument(
        "--frames", type=whole(1, 100_000), default=120, metavar="N", help="frames per clip (default 120)"
    )
    parser.add_argument(
        "--rate", type=number(0.001, 1000), default=25, metavar="FPS", help="frame rate of the camera (default 25)"
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=("auto", "fp32", "bf16", "int8"),
        default=["auto"],
        help="number formats to compare, one row each (default auto, as csd derain computes)",
    )
    add_report(parser)


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from csd_plugin.bench.measure import Report, announce, check_report
    from csd_plugin.report.text import counted, duration

    check_report(args.json)
    ways = list(product(args.networks, args.precision))
    count = len(args.sizes) * (1 + len(ways))
    seconds = expected_seconds(ways, args.sizes, args.frames, args.rate)
    announce(f"{counted(count, 'row')}, about {duration(seconds)}")
    with (
        TemporaryDirectory() as folder,
        Report(args.json, realtime_table, RealtimeRow._asdict, {"rate": args.rate}, partial(draw, args.rate)) as report,
        tqdm(total=count, desc="bench realtime", unit="row", disable=None) as bar,
    ):
        for size in args.sizes:
            clip = Path(folder) / f"{size[0]}x{size[1]}.mp4"
            make_clip(clip, args.file, size, args.frames)
            for name, precision in ((NONE, "-"), *ways):
                arguments = [name, str(clip), str(args.rate), precision]
                what = f"{name}, {clip.stem}"
                report.add(RealtimeRow(*measured_apart("csd_plugin.bench.realtime", arguments, what)))
                bar.update()


def expected_seconds(
    ways: Sequence[tuple[str, str]], sizes: Sequence[tuple[int, int]], frames: int, rate: float
) -> float:
    """About how long all rows take on this machine, from a short trial of each network at the smallest size.

    Args:
        ways: networks, each with its precision.

    Raises CSDError for an unknown network, or one that does not compute in the precision.
    """
    from csd_plugin.bench.speed import find_network
    from csd_plugin.inference.runner import Derainer

    width, height = min(sizes, key=lambda size: size[0] * size[1])
    trials = [
        Derainer(find_network(name), precision=precision, device="cpu").seconds_a_frame(width, height)
        for name, precision in ways
    ]
    total = 0.0
    for size in sizes:
        pixels = size[0] * size[1]
        for trial in (0.0, *trials):
            total += _START + frames * (1 / rate + pixels * (trial / (width * height) + _CODING))
    return total


def make_clip(path: Path, source: Path | None, size: tuple[int, int], count: int) -> None:
    """Make a video of up to `count` frames of the source, or synthetic ones, in this size. Raises CSDError."""
    from itertools import islice

    import av
    import cv2
    import numpy as np

    from csd_plugin.data.images import eight_bits
    from csd_plugin.data.video import open_reader
    from csd_plugin.inference.precision import rainy_clip

    def frames() -> Iterator[np.ndarray]:
        if source is None:
            yield from rainy_clip(count, size)
            return
        with open_reader(source) as reader:
            yield from islice(reader, count)

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        for frame in frames():
            resized = cv2.resize(eight_bits(frame), size, interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(resized.astype(np.uint8), "rgb24")))
        container.mux(stream.encode(None))


def measure(network: str, clip: Path, rate: float, precision: str = "auto") -> RealtimeRow:
    """Measure one row, in this process.

    Args:
        network: as for `csd bench infer`, or NONE.
        rate: the camera's, in frames per second.
        precision: as for `Derainer`.

    Raises:
        CSDError: the network or the clip cannot be used.
    """
    from csd_plugin.bench.measure import peak_memory, seconds
    from csd_plugin.bench.speed import find_network
    from csd_plugin.data.video import open_reader, open_writer
    from csd_plugin.inference.files import derain_file, paired
    from csd_plugin.inference.memory import keep_freed_memory
    from csd_plugin.inference.runner import Derainer

    keep_freed_memory()
    derainer: Any = (
        Untouched() if network == NONE else Derainer(find_network(network), precision=precision, device="cpu")
    )
    out = clip.with_name("out.mp4")
    whole = seconds(lambda: derain_file(clip, out, derainer, overwrite=True, quick=True))
    peak = peak_memory()
    with open_reader(clip) as reader:
        (width, height), frames = reader.size, list(reader)
        net = derainer.seconds_a_frame(width, height, closely=True)

        def write() -> None:
            with open_writer(out, like=reader, overwrite=True, quick=True) as writer:
                for frame in frames:
                    writer.write(frame)

        reading, writing = seconds(lambda: _read(clip)), seconds(write)
        camera = Paced(frames, rate)
        delay = []
        with open_writer(out, like=reader, overwrite=True, quick=True) as writer:
            for index, pair in enumerate(paired(camera, derainer, depth=1)):
                writer.write(pair.clean)
                delay.append(time.perf_counter() - camera.came[index])
    count = len(frames)
    return RealtimeRow(
        network,
        width,
        height,
        derainer.precision.name,
        count / whole,
        reading / count,
        net,
        writing / count,
        delay,
        camera.dropped,
        peak,
    )


class Untouched:
    """Replaces a `Derainer`, and returns frames unchanged."""

    def __init__(self) -> None:
        from csd_plugin.inference.precision import Precision

        self.num_frame, self.num_future, self.at_once = 1, 0, 1
        self.precision = Precision("-")
        self.made_by: dict[str, Origin] = {}

    def begin(self) -> Untouched:
        return self

    def submit(self, frame: np.ndarray, *, own: bool = False) -> list[Future[np.ndarray]]:
        from csd_plugin.inference.lanes import there

        return [there(frame)]

    def finish(self) -> list[Future[np.ndarray]]:
        return []

    def seconds_a_frame(self, width: int, height: int, *, closely: bool) -> float:
        return 0.0


class Paced:
    """Frames at a camera's rate; those that nobody takes in time are dropped.

    Attributes:
        came: the arrival time of each frame that was not dropped.
    """

    def __init__(
        self, frames: Sequence[np.ndarray], rate: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._frames, self._lasts, self._clock = frames, 1 / rate, clock
        self.came: list[float] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        began = self._clock()
        for place, frame in enumerate(self._frames):
            comes = began + place * self._lasts
            if self._clock() > comes + self._lasts:
                self.dropped += 1
                continue
            time.sleep(max(0.0, comes - self._clock()))
            self.came.append(comes)
            yield frame


def _read(clip: Path) -> None:
    from csd_plugin.data.video import open_reader

    with open_reader(clip) as reader:
        for _ in reader:
            pass


def realtime_table(rows: Sequence[RealtimeRow]) -> str:
    """As Markdown."""
    from csd_plugin.bench.measure import median
    from csd_plugin.report.text import markdown

    cells = []
    for row in rows:
        limit = next(other.fps for other in rows if other[1:3] == row[1:3] and other.network == NONE)
        parts = row.read, row.net, row.write
        cells.append(
            [row.network, f"{row.width}x{row.height}", row.precision, f"{row.fps:.1f}", f"{row.fps / limit:.0%}"]
            + [f"{1000 * part:.1f} ({part / sum(parts):.0%})" for part in parts]
            + [f"{1000 * median(row.delay):.0f}", f"{1000 * _late(row.delay):.0f}"]
            + [f"{row.dropped / (row.dropped + len(row.delay)):.0%}", f"{row.peak:.0f}"]
        )
    head = ["network", "size", "precision", "fps", "of limit", "read", "net", "write", "delay", "99%", "dropped"]
    return markdown([*head, "peak MB"], cells, 3)


def _late(delay: Iterable[float]) -> float:
    import numpy as np

    return float(np.percentile(list(delay), 99))


def draw(rate: float, figure: Any, rows: Sequence[RealtimeRow]) -> None:
    """Frames per second as bars, the camera's `rate` for comparison."""
    axes = figure.subplots()
    names = [f"{row.network} {row.precision} {row.width}x{row.height}" for row in rows]
    axes.barh(names, [row.fps for row in rows])
    axes.axvline(rate, color="k", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("frames per second, from file to file")


if __name__ == "__main__":
    answer(lambda: measure(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
