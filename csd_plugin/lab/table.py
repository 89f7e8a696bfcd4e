"""The table of a matrix: scores from the results of its runs, and the cost of its networks."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from csd_plugin.archs.complexity import FRAME_SIZE, UntracedError, complexity
from csd_plugin.bench.measure import in_turns, median, seconds
from csd_plugin.devices import forked_random
from csd_plugin.errors import CSDError
from csd_plugin.lab.matrix import Frames, Matrix, PublishedScore, RainyInput, Row, Run
from csd_plugin.lab.runner import result_files
from csd_plugin.metrics.protocols import Quality
from csd_plugin.metrics.published import PROTOCOL, PUBLISHED
from csd_plugin.metrics.results import load_results
from csd_plugin.report.grid import Grid
from csd_plugin.report.text import counted, duration, three_digits

COUNTED_SIZE = 128
"""Side of the frames for which operations are counted, as in the paper's Table 2."""
ROUNDS = 3
"""How many times each network is timed."""
_TRIAL_SIDE = 128
"""Side of the part of a frame on which the time of all this is estimated, in pixels."""

NONE = "-"
_PROTOCOLS = {"nturain_y": "Y", "rgb": "RGB"}


@dataclass(frozen=True)
class Cost:
    """The cost of a network; None for what was not requested or is not known.

    Attributes:
        parameters: their number.
        operations: multiply-adds and bias additions of one frame of 128x128.
        seconds: time of one frame of `FRAME_SIZE`.
    """

    parameters: int | None = None
    operations: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Published:
    """Published figures: PSNR in dB and SSIM on the 8-bit luma, averages over clips.

    Attributes:
        of: a description of these clips; empty if unknown.
        clips: their names, if the paper has a number for each.
    """

    psnr: float
    ssim: float | None
    of: str
    clips: frozenset[str] | None = None


@dataclass
class Line:
    """A row's figures.

    Attributes:
        label: its name in the table.
        trained: whether its figures depend on a seed.
        averages: test set -> protocol -> seed -> the average.
        clips: test set -> clip -> the average of each seed, by the published protocol.
        published: the published figures for it.
    """

    label: str
    trained: bool
    averages: dict[str, dict[str, dict[int, Quality]]] = field(default_factory=dict)
    clips: dict[str, dict[str, list[Quality]]] = field(default_factory=dict)
    published: Published | None = None

    def of_seeds(self, dataset: str, protocol: str, metric: str) -> dict[int, float]:
        averages = self.averages.get(dataset, {}).get(protocol, {})
        return {seed: getattr(quality, metric) for seed, quality in averages.items()}

    def mean(self, dataset: str, protocol: str, metric: str) -> float | None:
        values = self.of_seeds(dataset, protocol, metric).values()
        return statistics.fmean(values) if values else None

    def deviation(self, dataset: str, protocol: str, metric: str) -> float | None:
        return _deviation(list(self.of_seeds(dataset, protocol, metric).values()))


def _deviation(values: Sequence[float]) -> float | None:
    """The standard deviation; None for a single value, or if one is infinite, like the PSNR of equal frames."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def build(matrix: Matrix, runs: Mapping[str, Run], costs: Mapping[str, Cost], notes: Sequence[str] = ()) -> Grid:
    """The table of the shown rows. A missing result is a dash.

    Args:
        matrix: its rows and columns.
        runs: the runs of its rows.
        costs: by row, for the columns that `complexity` and `speed` request.
        notes: to add below the table, after those on seeds, clips and orderings.
    """
    lines = _lines(matrix, runs)
    datasets = list(dict.fromkeys(name for line in lines.values() for name in line.averages))
    base = lines.get(matrix.baseline) if matrix.baseline else None

    head = [""]
    columns: list[list[str]] = [[line.label for line in lines.values()]]
    best: set[tuple[int, int]] = set()

    def add(title: str, cells: list[str], rows: Iterable[int] = ()) -> None:
        best.update((row, len(head)) for row in rows)
        head.append(title)
        columns.append(cells)

    for title, cell in _cost_columns(matrix):
        add(title, [cell(costs[key]) if key in costs else NONE for key in lines])
    for dataset in datasets:
        if matrix.clips:
            clips = dict.fromkeys(clip for line in lines.values() for clip in line.clips.get(dataset, {}))
            for clip in clips:
                add(clip, [_clip_cell(line.clips.get(dataset, {}).get(clip)) for line in lines.values()])
        for protocol, short in _PROTOCOLS.items():
            for metric, decimals in (("psnr", 2), ("ssim", 4)):
                values = [line.mean(dataset, protocol, metric) for line in lines.values()]
                cells = [_cell(line, dataset, protocol, metric, decimals) for line in lines.values()]
                add(f"{dataset} {short} {metric.upper()}", cells, _best(values, decimals))
        if base is not None:
            add(f"{dataset} Y ΔPSNR", [_gain(line, base, dataset) for line in lines.values()])
    for title, cells in _published_columns(lines.values()).items():
        add(title, cells)
    own = _seed_notes(list(lines.values()), base, datasets) if base is not None else []
    own += _published_notes(matrix, lines)
    own += orderings(list(lines.values()), datasets[0]) if datasets else []
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    return Grid(matrix.title or matrix.name, head, rows, 1, frozenset(best), [*own, *notes])


def check_costs(matrix: Matrix, runs: Mapping[str, Run]) -> None:
    """Raise CSDError if a network of a row that is not trained, whose cost is to be shown, cannot be built."""
    given = {run.row for run in runs.values() if run.options is None}
    for row, options in _with_costs(matrix, runs).items():
        try:
            if row in given:
                _build(options)
        except CSDError as error:
            raise CSDError(f"the row {row}: {error}") from error


def costs_of(matrix: Matrix, runs: Mapping[str, Run]) -> dict[str, Cost]:
    """The cost of the networks of shown rows, by row, as far as the matrix requests it."""
    networks = {row: _build(options) for row, options in _with_costs(matrix, runs).items()}
    times = _seconds(networks) if matrix.speed else {}
    return {row: _cost(*built, times.get(row), counted=matrix.complexity) for row, built in networks.items()}


def _with_costs(matrix: Matrix, runs: Mapping[str, Run]) -> dict[str, Mapping[str, Any]]:
    """The rows whose costs the matrix shows, with options that name their networks."""
    named: dict[str, Mapping[str, Any]] = {}
    for run in runs.values() if matrix.complexity or matrix.speed else ():
        options = None if isinstance(run.source, RainyInput | Frames) else run.options or run.test
        if matrix.rows[run.row].shown and options and "network_g" in options:
            named.setdefault(run.row, options)
    return named


def orderings(lines: Sequence[Line], dataset: str) -> list[str]:
    """How many neighbours of the published order keep their order here, and one line for each pair that does not.

    Empty if the published figures, or ours, are not all of the same clips. Published ties have no order.
    """
    known = [(line, here) for line in lines if line.published and (here := line.mean(dataset, PROTOCOL, "psnr"))]
    if not _of_one_set([line for line, _ in known], dataset):
        return []
    known.sort(key=lambda pair: pair[0].published.psnr)  # type: ignore[union-attr]
    pairs, notes = 0, []
    for (lower, below), (upper, above) in pairwise(known):
        assert lower.published is not None and upper.published is not None
        gap = upper.published.psnr - lower.published.psnr
        pairs += gap > 0
        if gap > 0 and above <= below:
            spread = max(_spread(line, dataset) for line in (lower, upper))
            within = f", within the seeds' deviation of {spread:.2f}" if spread >= below - above else ""
            notes.append(
                f"published: {upper.label} over {lower.label} by {gap:.2f} dB; "
                f"here on {dataset}: {_difference(above, below)} dB{within}"
            )
    if not pairs:
        return []
    return [
        f"{pairs - len(notes)} of {pairs} neighbours in the published order stand in that order on {dataset}",
        *notes,
    ]


def _of_one_set(lines: Sequence[Line], dataset: str) -> bool:
    """Whether these rows have figures of the same clips: published, here, and in both cases, if clips are known."""
    scored = {frozenset(line.clips.get(dataset, ())) for line in lines}
    published = {line.published.of for line in lines if line.published}
    clips = {line.published.clips for line in lines if line.published} - {None}
    return len(scored) == 1 and len(published) == 1 and clips <= scored


def _spread(line: Line, dataset: str) -> float:
    return line.deviation(dataset, PROTOCOL, "psnr") or 0.0


def _lines(matrix: Matrix, runs: Mapping[str, Run]) -> dict[str, Line]:
    """All shown rows. Published figures of a row without results are of the clips of the others."""
    lines = {key: _line(key, row, runs) for key, row in matrix.rows.items() if row.shown}
    scored = {key: {clip for clips in line.clips.values() for clip in clips} for key, line in lines.items()}
    every = {clip for clips in scored.values() for clip in clips}
    for key, line in lines.items():
        line.published = _published(matrix, matrix.rows[key], scored[key] or every)
    return lines


def _line(key: str, row: Row, runs: Mapping[str, Run]) -> Line:
    line = Line(row.label or key, row.trains)
    seeds = set()
    for run in runs.values():
        if run.row == key:
            for file in filter(Path.is_file, result_files(run)):
                seeds.add(run.seed)
                _add(line, run.seed, file)
    if len(seeds) > 1:
        line.label += f" ({len(seeds)} seeds)"
    return line


def _add(line: Line, seed: int, file: Path) -> None:
    result = load_results(file)
    averages = line.averages.setdefault(result.dataset, {})
    for protocol, quality in result.scores.average().items():
        averages.setdefault(protocol, {})[seed] = quality
    clips = line.clips.setdefault(result.dataset, {})
    for name, clip in result.scores.clips.items():
        if PROTOCOL in clip.average():
            clips.setdefault(name, []).append(clip.average()[PROTOCOL])


def _published(matrix: Matrix, row: Row, scored: Collection[str]) -> Published | None:
    """A row's published figures; figures of single clips are averaged over the scored clips, or all if none was."""
    if row.published is None:
        return None
    if isinstance(row.published, PublishedScore):
        return Published(row.published.psnr, row.published.ssim, matrix.published_of)
    known = PUBLISHED[row.published]
    clips = [clip for clip in known if clip in scored or not scored]
    if not clips:
        return None
    psnr, ssim = (statistics.fmean(getattr(known[clip], metric) for clip in clips) for metric in Quality._fields)
    return Published(psnr, ssim, ", ".join(clips), frozenset(clips))


def _published_columns(lines: Collection[Line]) -> dict[str, list[str]]:
    """Heading -> cells; the headings name the clips of the figures, if these are the same for all."""
    figures = [line.published for line in lines]
    if not any(figures):
        return {}
    of = {published.of for published in figures if published}
    of_what = f" ({of.pop()})" if len(of) == 1 and of != {""} else ""
    return {
        f"published PSNR{of_what}": [f"{p.psnr:.2f}" if p else NONE for p in figures],
        f"published SSIM{of_what}": [f"{p.ssim:.4f}" if p and p.ssim is not None else NONE for p in figures],
    }


def _published_notes(matrix: Matrix, lines: Mapping[str, Line]) -> list[str]:
    """Notes on the clips of published figures, if not the same for all rows, and on rows without figures for theirs."""
    labels: dict[str, list[str]] = {}
    for key, line in lines.items():
        if matrix.rows[key].published is not None:
            labels.setdefault(line.published.of if line.published else NONE, []).append(line.label)
    absent = labels.pop(NONE, [])
    notes = []
    if len(labels) > 1:
        notes += [f"published for {', '.join(names)}: of {of or 'unnamed clips'}" for of, names in labels.items()]
    if absent:
        notes.append(f"published for {', '.join(absent)}: nothing of the clips here")
    return notes


def _cost_columns(matrix: Matrix):
    if matrix.complexity:
        yield "parameters", lambda cost: f"{cost.parameters:,}" if cost.parameters else NONE
        yield "G multiply-adds", lambda cost: f"{cost.operations / 1e9:.2f}" if cost.operations else NONE
    if matrix.speed:
        yield "s/frame", lambda cost: three_digits(cost.seconds) if cost.seconds else NONE


def _cell(line: Line, dataset: str, protocol: str, metric: str, decimals: int) -> str:
    mean, deviation = line.mean(dataset, protocol, metric), line.deviation(dataset, protocol, metric)
    if mean is None:
        return NONE
    return f"{mean:.{decimals}f}" + ("" if deviation is None else f" ± {deviation:.{decimals}f}")


def _clip_cell(qualities: Sequence[Quality] | None) -> str:
    return f"{statistics.fmean(quality.psnr for quality in qualities):.2f}" if qualities else NONE


def _gain(line: Line, base: Line, dataset: str) -> str:
    """The mean of the differences, seed by seed, with their deviation if there are several."""
    pairs = _pairs(line, base, dataset)
    if line is base or not pairs:
        return NONE
    differences = [ours - theirs for ours, theirs in pairs.values()]
    mean, deviation = statistics.fmean(differences), _deviation(differences)
    if math.isnan(mean):  # two perfect results
        return NONE
    return f"{mean:+.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _pairs(line: Line, base: Line, dataset: str) -> dict[int, tuple[float, float]]:
    """Seed -> the PSNR of both, for seeds that both have. Rows that are not trained have the same for every seed."""
    ours, theirs = (row.of_seeds(dataset, PROTOCOL, "psnr") for row in (line, base))
    if ours and not line.trained:
        ours = dict.fromkeys(theirs, *ours.values())
    elif theirs and not base.trained:
        theirs = dict.fromkeys(ours, *theirs.values())
    return {seed: (ours[seed], theirs[seed]) for seed in ours if seed in theirs}


def _seed_notes(lines: Sequence[Line], base: Line, datasets: Sequence[str]) -> list[str]:
    """The seeds that are compared, if not all of both rows: one line for all rows with the same seeds."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for dataset in datasets:
        theirs = base.of_seeds(dataset, PROTOCOL, "psnr")
        for line in lines:
            ours = line.of_seeds(dataset, PROTOCOL, "psnr")
            both = tuple(sorted(ours.keys() & theirs.keys()))
            if line.trained and base.trained and ours and theirs and not len(both) == len(ours) == len(theirs):
                found.setdefault((dataset, both), []).append(line.label)
    notes = []
    for (dataset, seeds), labels in found.items():
        if seeds:
            over = f"over seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} of {base.label}"
        else:
            over = f"none, as {base.label} has no seed in common"
        notes.append(f"{dataset} Y ΔPSNR of {', '.join(labels)}: {over}")
    return notes


def _difference(one: float, other: float) -> str:
    """The difference; `inf - inf`, of two perfect results, is not a number, and shown as a dash."""
    return NONE if math.isnan(one - other) else f"{one - other:+.2f}"


def _best(values: Sequence[float | None], decimals: int) -> list[int]:
    """The rows whose value, as shown, is the highest; none if there is nothing to compare."""
    shown = [-math.inf if value is None else round(value, decimals) for value in values]
    return [row for row, value in enumerate(shown) if value == max(shown) > -math.inf] if len(shown) > 1 else []


def _build(options: Mapping[str, Any]) -> tuple[Any, Any]:
    """A network with random weights, and its interface."""
    from csd_plugin.models.building import build_networks

    with forked_random():
        networks, interfaces = build_networks({**options, "is_train": False})
    return networks["network_g"].eval(), interfaces["network_g"]


def _cost(network: Any, interface: Any, seconds: float | None, *, counted: bool) -> Cost:
    parameters = sum(p.numel() for p in network.parameters())
    if not counted:
        return Cost(parameters, None, seconds)
    try:
        operations = complexity(network, interface.input_shape(COUNTED_SIZE, COUNTED_SIZE)).operations
    except UntracedError as error:
        print(f"{error}; the table leaves them out", file=sys.stderr, flush=True)
        return Cost(parameters, None, seconds)
    return Cost(parameters, operations // interface.num_made, seconds)


def _seconds(networks: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Seconds per frame of `FRAME_SIZE`: all networks in turns, each in its fastest exact form.

    A line on stderr first says how long this takes, by a trial on a small part of a frame.
    """
    from csd_plugin.inference.folding import fold
    from csd_plugin.inference.memory import keep_freed_memory

    keep_freed_memory()  # only here, at the end: trainings in other processes need the memory before
    width, height = FRAME_SIZE
    ready = {row: (fold(net) if interface.one_length else net, interface) for row, (net, interface) in networks.items()}
    if ready:
        expected = sum(_trial(*one) for one in ready.values()) * width * height / _TRIAL_SIDE**2 * (ROUNDS + 1)
        print(
            f"timing {counted(len(ready), 'network')} on frames of {width}x{height}, {ROUNDS + 1} times each: about "
            f"{duration(expected)}",
            file=sys.stderr,
            flush=True,
        )
    times = in_turns({row: _pass(*one, width, height) for row, one in ready.items()}, ROUNDS, "speed")
    return {row: median(times[row]) / interface.num_made for row, (_, interface) in networks.items()}


def _trial(network: Any, interface: Any) -> float:
    """Seconds of a pass on a small part of a frame."""
    once = _pass(network, interface, _TRIAL_SIDE, _TRIAL_SIDE)
    once()  # one-time work
    return seconds(once)


def _pass(network: Any, interface: Any, width: int, height: int) -> Callable[[], object]:
    frames = torch.rand(1, *interface.input_shape(height, width))

    def once() -> object:
        with torch.inference_mode():
            return network(frames)

    return once
