"""Markdown tables like the paper's Table 1: two rows per network, one column per clip, the average and the gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csd_plugin.data.layout import frame_numbers, natural_key
from csd_plugin.errors import CSDError
from csd_plugin.metrics import METRICS
from csd_plugin.metrics import published as published_numbers
from csd_plugin.metrics.protocols import PROTOCOLS, Quality
from csd_plugin.metrics.scores import Result
from csd_plugin.spreadsheets import markdown_row

NONE = "-"
WITHOUT_TRUTH = "without_truth"
"""The fact of a result that names clips that existed but could not be scored."""
DECIMALS = Quality(psnr=2, ssim=4)
OTHER_DECIMALS = 4
"""Decimal places of metrics that an option file names and METRICS does not."""


@dataclass(frozen=True)
class _ScoreRow:
    """One network in one protocol; clips on which it was not scored are missing. Whether its gain is shown."""

    name: str
    clips: dict[str, Quality]
    comparable: bool = True

    def average(self, clips: Sequence[str]) -> Quality | None:
        """Mean over `clips`; None if one is missing, since averages over different clips cannot be compared."""
        if not all(clip in self.clips for clip in clips):
            return None
        psnrs, ssims = zip(*(self.clips[clip] for clip in clips), strict=True)
        return Quality(sum(psnrs) / len(clips), sum(ssims) / len(clips))


def comparison_table(results: Sequence[Result], *, baseline: Result | None = None, published: bool = False) -> str:
    """Several results in one Markdown text: one table per protocol, one of further metrics, rows in the given order.

    With a baseline, which becomes the first row unless it is among the results, every other row shows its gain over
    it; one that was scored on other frames shows none, and a line below says so. The clips shown, over which averages
    are taken, are those of the other results. `published` appends the published NTURain numbers of these clips, which
    only exist for the luma protocol. Raises CSDError if nothing was scored.
    """
    others = [result for result in results if result is not baseline]
    clips = list(dict.fromkeys(clip for result in others or results for clip in result.scores.clips))
    if not clips:
        raise CSDError("no frame was scored: there is nothing to put into a table")
    if baseline is not None and len(others) == len(results):
        results = [baseline, *results]
    sections = []
    scored = _with_truth(others or results, clips)
    unscored = (clip for result in others or results for clip in result.facts.get(WITHOUT_TRUTH, ()))
    of_them = share(scored, list(dict.fromkeys([*clips, *unscored])))
    for protocol, facts in PROTOCOLS.items() if scored else ():
        rows = [_row(result, protocol, baseline) for result in results]
        base = _row(baseline, protocol) if baseline is not None else None
        if published and protocol == published_numbers.PROTOCOL:
            rows += _published_rows(scored)
        sections.append(f"**{facts.title}**{of_them}\n\n{_table(rows, scored, base)}")
    if any(clip.metrics for result in results for clip in result.scores.clips.values()):
        further = _metrics_table(results, clips, baseline)
        legend = "↑ higher is better, ↓ lower is better" if "↑" in further else "↓ lower is better"
        sections.append(f"**Further metrics** ({legend})\n\n{further}")
    if published and (known := _published_clips(scored)):
        sections.append(_published_note(others or results, known))
    sections += [
        f"No gain of {_name(result)}: {difference}"
        for result in (others if baseline is not None else [])
        if (difference := other_frames(result, baseline))
    ]
    return "\n\n".join(sections)


def _with_truth(results: Sequence[Result], clips: Sequence[str]) -> list[str]:
    """The clips that any of the results has scored against a truth."""
    return [clip for clip in clips if any(clip in (known := r.scores.clips) and known[clip].average() for r in results)]


def share(scored: Sequence[str], clips: Sequence[str]) -> str:
    """The addition to a title if scores are not of all clips."""
    if len(scored) == len(clips):
        return ""
    others = ", ".join(clip for clip in clips if clip not in scored)
    return f" of {len(scored)} of {len(clips)} clips; without truth: {others}"


def other_frames(result: Result, baseline: Result | None) -> str | None:
    """A clip that was scored on other frames than in the baseline, with one that shows it; else None."""
    for name, clip in result.scores.clips.items():
        base = baseline.scores.clips.get(name) if baseline is not None else None
        if base is None or clip.frames.keys() == base.frames.keys():
            continue
        numbers = [frame_numbers(sorted(scores.frames, key=natural_key)) for scores in (clip, base)]
        if numbers[0] is None or numbers[0] != numbers[1]:
            lonely = min(clip.frames.keys() ^ base.frames.keys(), key=natural_key)
            holder = "the baseline" if lonely in base.frames else "the result"
            counts = f"{len(clip.frames)} frames, in the baseline {len(base.frames)}"
            return f"clip {name} has {counts}; only {holder} has {lonely}"
    return None


def _row(result: Result, protocol: str, baseline: Result | None = None) -> _ScoreRow:
    averages = {clip: scores.average() for clip, scores in result.scores.clips.items()}
    clips = {clip: score[protocol] for clip, score in averages.items() if protocol in score}
    return _ScoreRow(_name(result), clips, comparable=not other_frames(result, baseline))


def _name(result: Result) -> str:
    first, last = result.scores.skip
    return result.network + (f" (without the first {first} and last {last} frames)" if first or last else "")


def _published_clips(clips: Sequence[str]) -> list[str]:
    return [clip for clip in clips if any(clip in numbers for numbers in published_numbers.PUBLISHED.values())]


def _published_rows(clips: Sequence[str]) -> list[_ScoreRow]:
    return [
        _ScoreRow(f"{name} (published)", numbers)
        for name, numbers in published_numbers.PUBLISHED.items()
        if any(clip in numbers for clip in clips)
    ]


def _published_note(results: Sequence[Result], clips: Sequence[str]) -> str:
    """What the published rows are averages of, and the results; readers have to compare the frames."""
    counts = {
        clip: sorted({len(r.scores.clips[clip].frames) for r in results if clip in r.scores.clips}) for clip in clips
    }
    numbers = ", ".join(f"{clip} {' or '.join(map(str, found))}" for clip, found in counts.items())
    return (
        f"Published rows are over all frames of NTURain's own clips; these are the frames of each clip here: {numbers}."
    )


def _table(rows: Sequence[_ScoreRow], clips: Sequence[str], base: _ScoreRow | None) -> str:
    gains = ["ΔPSNR", "ΔSSIM"] if base else []
    lines = [
        markdown_row(["network", "", *clips, "average", *gains]),
        markdown_row(["---", "---", *["---:"] * (len(clips) + 1 + len(gains))]),
    ]
    for row in rows:
        average = row.average(clips)
        gain = _gain(row, base, clips) if base else None
        for metric in Quality._fields:
            values = [row.clips.get(clip) for clip in clips]
            cells = [_number(value, metric) for value in (*values, average)]
            deltas = [_number(gain, name, "+") if name == metric else "" for name in Quality._fields] if base else []
            lines.append(markdown_row([row.name if metric == "psnr" else "", metric.upper(), *cells, *deltas]))
    return "\n".join(lines)


def _metrics_table(results: Sequence[Result], clips: Sequence[str], baseline: Result | None) -> str:
    """A row per network and metric; with a baseline, the difference from it.

    Averages are over all clips, or of what only clips with a truth have, over these; the same for all results or none.
    """
    given = {name: None for result in results for clip in result.scores.clips.values() for name in clip.metrics}
    names = [name for name in METRICS if name in given] + [name for name in given if name not in METRICS]
    lines = [
        markdown_row(["network", "metric", *clips, "average", *(["Δ"] if baseline else [])]),
        markdown_row(["---", "---", *["---:"] * (len(clips) + 1 + bool(baseline))]),
    ]
    true = _with_truth(results, clips)
    scored = {
        name: true if true == [clip for clip in clips if _any_value(results, clip, name)] else clips for name in names
    }
    means = {name: _metric_average(baseline, name, scored[name]) for name in names} if baseline else {}
    for result in results:
        title = _name(result)
        for name in names:
            decimals = METRICS[name].decimals if name in METRICS else OTHER_DECIMALS
            values = [_value_of(result, clip, name) for clip in clips]
            average, base = _metric_average(result, name, scored[name]), means.get(name)
            cells = [_plain_number(value, decimals) for value in (*values, average)]
            if baseline:
                none = result is baseline or bool(other_frames(result, baseline))
                gain = None if none or average is None or base is None else average - base
                cells.append(_plain_number(gain, decimals, "+"))
            share = "" if len(scored[name]) == len(clips) else f" of {len(scored[name])} of {len(clips)} clips"
            lines.append(markdown_row([title, _metric_title(name) + share, *cells]))
            title = ""
    return "\n".join(lines)


def _metric_title(name: str) -> str:
    """With an arrow that shows which direction is better, if that is known."""
    if name not in METRICS:
        return name
    return f"{METRICS[name].title} {'↑' if METRICS[name].higher_is_better else '↓'}"


def _value_of(result: Result, clip: str, name: str) -> float | None:
    return result.scores.clips[clip].metric_means().get(name) if clip in result.scores.clips else None


def _any_value(results: Sequence[Result], clip: str, name: str) -> bool:
    return any(_value_of(result, clip, name) is not None for result in results)


def _metric_average(result: Result, name: str, clips: Sequence[str]) -> float | None:
    """Mean over `clips`; None if one has no value, or there are none."""
    known = [value for clip in clips if (value := _value_of(result, clip, name)) is not None]
    return sum(known) / len(clips) if known and len(known) == len(clips) else None


def _plain_number(value: float | None, decimals: int, sign: str = "") -> str:
    return NONE if value is None or value != value else f"{value:{sign}.{decimals}f}"


def _gain(row: _ScoreRow, base: _ScoreRow, clips: Sequence[str]) -> Quality | None:
    ours, theirs = row.average(clips), base.average(clips)
    if row == base or not row.comparable or ours is None or theirs is None:
        return None
    return Quality(ours.psnr - theirs.psnr, ours.ssim - theirs.ssim)


def _number(quality: Quality | None, metric: str, sign: str = "") -> str:
    """`inf - inf`, the gain between two perfect results, is shown as no number."""
    value = getattr(quality, metric) if quality is not None else None
    return _plain_number(value, int(getattr(DECIMALS, metric)), sign)
