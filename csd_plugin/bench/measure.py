"""What the benchmarks share: measuring in turns, the machine's own speed, and reports."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from csd_plugin.atomic import refuse_strangers, refuse_unwritable, replacing, write_text
from csd_plugin.errors import CSDError, cannot_write
from csd_plugin.report.text import counted, duration

_SIDES = {"cpu": 1024, "cuda": 8192}
_SIDE = 4096
"""Rows of the multiplied matrices, enough to use the whole device; `_SIDE` for other kinds of device."""


def seconds(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """The duration of one call."""
    began = clock()
    action()
    return clock() - began


def in_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    title: str,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[str], object] | None = None,
    times: dict[str, list[float]] | None = None,
    say: Callable[[str], object] | None = None,
) -> dict[str, list[float]]:
    """Time everything `rounds` times, in turns, so that a busy machine slows all alike.

    Each action first runs once, untimed.

    Args:
        contenders: name -> action to time.
        rounds: how many times each is timed.
        title: of the progress bar.
        clock: returns seconds.
        before: called with the name of the contender that is timed next.
        times: an empty dict to return, which gets every whole round at its end: Ctrl-C leaves those before it there.
        say: called after the untimed round with a line that says how long the others take about.

    Returns:
        name -> seconds of each call.
    """
    times = {} if times is None else times
    times |= {name: [] for name in contenders}
    began = time.perf_counter()
    with tqdm(total=len(contenders) * (rounds + 1), desc=title, unit="run", disable=None) as bar:
        for number in range(rounds + 1):
            took = {}
            for name, action in contenders.items():
                if number and before:
                    before(name)
                took[name] = seconds(action, clock)
                bar.update()
            for name, value in took.items() if number else ():
                times[name].append(value)
            if not number and say:
                say(f"{title}: {counted(rounds, 'round')}, about {duration(rounds * (time.perf_counter() - began))}")
    return times


class MatrixRate:
    """The machine's multiply-adds per second in matrix products; on a CPU, with torch's number of threads.

    On a CPU, the fastest of the available libraries (torch's own, oneDNN, numpy's), which differ by up to three times.
    """

    def __init__(self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> None:
        device = torch.device(device)
        self._side = _SIDES.get(device.type, _SIDE)
        matrix = torch.rand(self._side, self._side, device=device).to(dtype)
        product = torch._int_mm if dtype == torch.int8 else torch.matmul
        ways: list[Callable[[], object]] = [finished(lambda: product(matrix, matrix), device)]
        if device.type == "cpu" and dtype.is_floating_point:
            ways += _ways_on_cpu(matrix)
        self._best = min(ways, key=lambda way: min(seconds(way) for _ in range(4)))

    def measure(self) -> float:
        """The current multiply-adds per second."""
        return self._side**3 / min(seconds(self._best) for _ in range(3))


def _ways_on_cpu(matrix: torch.Tensor) -> list[Callable[[], object]]:
    ways: list[Callable[[], object]] = []
    if torch.backends.mkldnn.is_available() and matrix.dtype != torch.float16:
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(matrix, matrix, None, "none", [], ""))
    numpys_threads_are_ours = torch.get_num_threads() == 1 or os.cpu_count() == torch.get_num_threads()
    if matrix.dtype == torch.float32 and numpys_threads_are_ours:
        array = matrix.numpy()
        ways.append(lambda: array @ array)
    return ways


def finished(action: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The action, extended to wait for its device: calls for devices other than the CPU return early."""
    if device.type == "cpu":
        return action
    synchronize = getattr(torch, device.type).synchronize
    which = () if device.type == "mps" else (device,)  # there is only one such device

    def until_done() -> None:
        action()
        synchronize(*which)

    return until_done


def peak_memory() -> float:
    """The most MiB that this process has held since its start."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage's figure starts with that of the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> dict[str, Any]:
    """A description of the machine on which the figures were measured."""
    found: dict[str, Any] = {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        found |= {"gpus": names, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def check_report(path: Path | None) -> None:
    """Before measuring, raise CSDError if `save_report` could not write there."""
    if path is None:
        return
    if path.suffix != ".json":
        raise CSDError(f"--json {path}: the name must end in .json")
    if not path.parent.is_dir():
        raise CSDError(f"--json {path}: the folder {path.parent} does not exist; make it first")
    refuse_strangers(path, rb'\{\s*"machine": \{', [path.with_suffix(".md"), path.with_suffix(".png")])
    refuse_unwritable(path)


def say(line: str) -> None:
    """Print a line at once, above progress bars."""
    tqdm.write(line)
    sys.stdout.flush()


def announce(line: str) -> None:
    """Print how long something takes, on stderr: stdout is for results."""
    tqdm.write(line, file=sys.stderr)


Row = TypeVar("Row")


@dataclass
class Report(Generic[Row]):
    """A benchmark's table, of which each row is printed when it is added.

    As a context manager, it writes the report at the end, see `save_report`. An error or Ctrl-C loses no row: the
    report is written with those that there are, and says that it is not whole.

    Attributes:
        path: of the report; None for none.
        table: the rows as Markdown; a row's line may not depend on those after it.
        figures: a row's numbers for the report.
        content: other numbers for it.
        plot: draws rows on a matplotlib Figure.
        below: the text below the table of all rows.
        key: the name of the rows in the report.
        rows: those added so far.
    """

    path: Path | None
    table: Callable[[Sequence[Row]], str]
    figures: Callable[[Row], Mapping[str, Any]]
    content: dict[str, Any]
    plot: Callable[[Any, Sequence[Row]], None] | None = None
    below: Callable[[Sequence[Row]], str] = lambda rows: ""
    key: str = "rows"
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Print another row, the first one with the head of the table."""
        shown = len(self.table(self.rows).splitlines()) if self.rows else 0
        self.rows.append(row)
        say("\n".join(self.table(self.rows).splitlines()[shown:]))

    def __enter__(self) -> Report[Row]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.rows:
            return
        below = [self.below(self.rows), "Stopped before everything was measured." if kind else ""]
        parts = [part for part in below if part]
        for part in parts:
            print(f"\n{part}")
        if self.path:
            content = {"machine": machine()} | self.content | {self.key: [dict(self.figures(row)) for row in self.rows]}
            content |= {"stopped": True} if kind else {}
            text = "\n\n".join([self.table(self.rows), *parts])
            print("\n" + save_report(self.path, content, text, self.plot and self._draw))

    def _draw(self, figure: Any) -> None:
        assert self.plot is not None
        self.plot(figure, self.rows)


def save_report(path: Path, content: Mapping[str, Any], table: str, plot: Callable[[Any], None] | None = None) -> str:
    """Write the figures to `path`, the table next to it as .md and, with matplotlib, the plot as .png.

    Args:
        plot: draws on a matplotlib Figure.

    Returns:
        A line that says what was written. Raises CSDError if nothing can be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        plot = None
    written = [path, path.with_suffix(".md")]
    try:
        write_text(written[0], json.dumps(content, indent=1) + "\n")
        write_text(written[1], table + "\n")
        if plot is not None:
            figure = Figure(figsize=(8, 4.5), layout="constrained")
            plot(figure)
            written.append(path.with_suffix(".png"))
            with replacing(written[2]) as draft:
                figure.savefig(draft, format="png", dpi=120)
    except OSError as error:
        raise cannot_write(path, error) from error
    return "written: " + ", ".join(str(target) for target in written)


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    return float(np.median(values))
