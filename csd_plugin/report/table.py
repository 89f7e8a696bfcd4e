"""Markdown tables shaped like the paper's Table 1: two rows a network, a column a clip, the average and the gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csd_plugin.errors import CSDError
from csd_plugin.metrics.protocols import PROTOCOLS, Quality
from csd_plugin.report import published as published_numbers

if TYPE_CHECKING:
    from csd_plugin.report.results import Result

NONE = "-"
DECIMALS = Quality(psnr=2, ssim=4)


@dataclass(frozen=True)
class _Row:
    """One network in one protocol; clips it was not scored on are missing."""

    name: str
    clips: dict[str, Quality]

    def average(self, clips: Sequence[str]) -> Quality | None:
        """Mean over `clips`; None where one is missing, since averages over different clips cannot be compared."""
        if not all(clip in self.clips for clip in clips):
            return None
        psnrs, ssims = zip(*(self.clips[clip] for clip in clips), strict=True)
        return Quality(sum(psnrs) / len(clips), sum(ssims) / len(clips))


def comparison_table(results: Sequence[Result], *, baseline: Result | None = None, published: bool = False) -> str:
    """Several results in one Markdown text, a table a protocol, rows in the order given.

    With a baseline, which becomes the first row unless it is among the results, every other row shows its gain over
    it. The clips shown, which averages are over, are those of the other results. `published` appends the published
    NTURain numbers of those clips, which exist for the luma protocol only. Raises CSDError where nothing was scored.
    """
    others = [result for result in results if result is not baseline]
    clips = list(dict.fromkeys(clip for result in others or results for clip in result.scores.clips))
    if not clips:
        raise CSDError("no frame was scored: there is nothing to put into a table")
    if baseline is not None and len(others) == len(results):
        results = [baseline, *results]
    sections = []
    for protocol, facts in PROTOCOLS.items():
        rows = [_row(result, protocol) for result in results]
        base = _row(baseline, protocol) if baseline is not None else None
        if published and protocol == published_numbers.PROTOCOL:
            rows += _published_rows(clips)
        sections.append(f"**{facts.title}**\n\n{_table(rows, clips, base)}")
    return "\n\n".join(sections)


def _row(result: Result, protocol: str) -> _Row:
    first, last = result.scores.skip
    skipped = f" (without the first {first} and last {last} frames)" if first or last else ""
    averages = {clip: scores.average()[protocol] for clip, scores in result.scores.clips.items()}
    return _Row(result.network + skipped, averages)


def _published_rows(clips: Sequence[str]) -> list[_Row]:
    return [
        _Row(f"{name} (published)", numbers)
        for name, numbers in published_numbers.PUBLISHED.items()
        if any(clip in numbers for clip in clips)
    ]


def _table(rows: Sequence[_Row], clips: Sequence[str], base: _Row | None) -> str:
    gains = ["ΔPSNR", "ΔSSIM"] if base else []
    lines = [
        _line(["network", "", *clips, "average", *gains]),
        _line(["---", "---", *["---:"] * (len(clips) + 1 + len(gains))]),
    ]
    for row in rows:
        average = row.average(clips)
        gain = _gain(row, base, clips) if base else None
        for metric in Quality._fields:
            values = [row.clips.get(clip) for clip in clips]
            cells = [_number(value, metric) for value in (*values, average)]
            deltas = [_number(gain, name, "+") if name == metric else "" for name in Quality._fields] if base else []
            lines.append(_line([row.name if metric == "psnr" else "", metric.upper(), *cells, *deltas]))
    return "\n".join(lines)


def _gain(row: _Row, base: _Row, clips: Sequence[str]) -> Quality | None:
    ours, theirs = row.average(clips), base.average(clips)
    if row == base or ours is None or theirs is None:
        return None
    return Quality(ours.psnr - theirs.psnr, ours.ssim - theirs.ssim)


def _number(quality: Quality | None, metric: str, sign: str = "") -> str:
    """`inf - inf`, the gain between two perfect results, is no number."""
    value = getattr(quality, metric) if quality is not None else float("nan")
    return NONE if value != value else f"{value:{sign}.{getattr(DECIMALS, metric)}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
