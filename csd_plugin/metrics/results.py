"""One result, the scores of one network on one dataset, as JSON, CSV and Markdown.

The JSON holds every frame and is read by other commands; the CSV (one row per clip and protocol, written by
`spreadsheets`) and the Markdown table are for people. Its form:

    {"format": "csd-results", "version": 1,
     "network": "student1", "dataset": "NTURain", "skip": [0, 0], "facts": {"iteration": 20000},
     "average": {"nturain_y": {"psnr": 35.17, "ssim": 0.9686}, "rgb": {..}},
     "clips": {"a1": {"average": {..}, "frames": {"00001": {"nturain_y": {..}, "rgb": {..}}, ..}}, ..}}

Metrics other than PSNR and SSIM stand next to the protocols, in a frame and in averages: {"nturain_y": {..}, "rgb":
{..}, "measures": {"niqe": 3.34, "warping": 0.41}}. Frames without a truth only have "measures".

The PSNR of identical frames is infinite; as JSON has no such number, it is written as the string "inf".
Averages are written for other readers; `load_results` computes them from the frames again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from csd_plugin import atomic
from csd_plugin.errors import CSDError, cannot_write
from csd_plugin.metrics.protocols import PROTOCOLS, FrameScore, Quality
from csd_plugin.metrics.scores import ClipScores, Result, Scores
from csd_plugin.metrics.table import comparison_table
from csd_plugin.plain import (
    as_json_has_it,
    entries,
    parse_json,
    plain_text,
    read_text,
    score_number,
    section,
    whole_number,
)
from csd_plugin.spreadsheets import as_csv

FORMAT = "csd-results"
VERSION = 1
METRICS_KEY = "measures"
_MOST_SKIPPED = 10**9


def write(
    folder: Path | str, name: str, scores: Scores, meta: Mapping[str, Any], baseline: Path | str | None = None
) -> Path:
    """Write `name`.json, .csv and .md into `folder`, which is made if needed; returns the path of the JSON.

    Args:
        meta: "network" and "dataset", their names in tables; all other keys become the result's facts.
        baseline: a results JSON; the Markdown table then shows the gain over it.

    Raises:
        CSDError: nothing was scored, the baseline is not a results file, or a file cannot be written.
    """
    facts = {key: value for key, value in meta.items() if key not in ("network", "dataset")}
    result = Result(meta["network"], meta["dataset"], scores, facts)
    table = comparison_table([result], baseline=load_results(baseline) if baseline else None)
    return save(Path(folder) / f"{name}.json", result, table)


def save(path: Path, result: Result, table: str) -> Path:
    """Write a result to `path`, a .json, with the .csv and `table` as .md next to it; each in a single step.

    Raises CSDError if it cannot be written.
    """
    texts = [json_text(result), csv_text(result), table + "\n"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, text in reversed(list(zip(files_written(path), texts, strict=True))):  # the JSON last
            atomic.write_text(file, text)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def files_written(path: Path) -> list[Path]:
    """The files that `save` writes for `path`, a .json: this file, and the .csv and .md next to it."""
    return [path.with_name(path.name.removesuffix(".json") + suffix) for suffix in (".json", ".csv", ".md")]


def refuse_strangers(path: Path) -> None:
    """Raise CSDError if `save` would replace a file that is not a result, or could not write."""
    signs = (
        rb'\{\s*"format":\s*"' + FORMAT.encode() + b'"',
        b"network,dataset,clip,protocol,",
        rb"\*\*[^\n]+\n\n\| network \|",
    )
    for file, sign in zip(files_written(path), signs, strict=True):
        atomic.refuse_strangers(file, sign)
    atomic.refuse_unwritable(path)


def json_text(result: Result) -> str:
    """The JSON form above, one frame per line."""
    scores = result.scores
    head = {
        "format": FORMAT,
        "version": VERSION,
        "network": result.network,
        "dataset": result.dataset,
        "skip": list(scores.skip),
        "facts": result.facts,
        "average": _plain(scores.average(), scores.metric_means()),
    }
    clips = []
    for clip_name, clip in scores.clips.items():
        frames = ",\n".join(
            f"   {_dump(name)}: {_dump(_plain(score, clip.metrics_of(name)))}" for name, score in clip.frames.items()
        )
        average = _dump(_plain(clip.average(), clip.metric_means()))
        clips.append(f'  {_dump(clip_name)}: {{"average": {average}, "frames": {{\n{frames}\n  }}}}')
    lines = [f" {_dump(key)}: {_dump(value)}" for key, value in head.items()]
    lines.append(' "clips": {\n' + ",\n".join(clips) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def csv_text(result: Result) -> str:
    """One row per clip and protocol, then one row per protocol with the clip `average`; `frames` counts its frames.

    Further metrics have such rows, too, with their values in a last column, `value`.
    """
    clips = result.scores.clips
    further = any(clip.metrics for clip in clips.values())
    table: list[list[object]] = [
        ["network", "dataset", "clip", "protocol", "frames", "psnr", "ssim", *(["value"] * further)]
    ]

    def rows(name: str, of: Collection[ClipScores], average: FrameScore, means: Mapping[str, float]) -> None:
        for protocol, quality in average.items():
            frames = sum(protocol in score for clip in of for score in clip.frames.values())
            figures = [f"{quality.psnr:.4f}", f"{quality.ssim:.6f}", *([""] * further)]
            table.append([result.network, result.dataset, name, protocol, frames, *figures])
        for metric, value in means.items():
            frames = sum(len(clip.metrics.get(metric, ())) for clip in of)
            table.append([result.network, result.dataset, name, metric, frames, "", "", f"{value:.6f}"])

    for name, clip in clips.items():
        rows(name, [clip], clip.average(), clip.metric_means())
    rows("average", clips.values(), result.scores.average(), result.scores.metric_means())
    return as_csv(table)


def load_results(path: Path | str) -> Result:
    """Read a results JSON. Raises CSDError if the file cannot be read or was not made by `write`."""
    try:
        content = parse_json(read_text(Path(path)))
    except OSError as error:
        raise CSDError(f"cannot read the results file {path}: {error.strerror or error}") from error
    except CSDError:
        raise
    except ValueError as error:
        raise CSDError(f"{path} is not a results file: it is not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CSDError(f'{path} is not a results file: it lacks "format": "{FORMAT}" (csd score --out writes one)')
    if content.get("version") != VERSION:
        raise CSDError(f"{path}: results of version {content.get('version')!r}, but this csd reads version {VERSION}")
    try:
        return _parse(content)
    except (KeyError, ValueError) as error:
        raise CSDError(f"{path}: a damaged results file ({type(error).__name__}: {error}); score again") from None


def _parse(content: dict[str, Any]) -> Result:
    """Raises KeyError and ValueError."""
    first, last = (whole_number(count, "skip", 0, _MOST_SKIPPED) for count in entries(content["skip"], "skip"))
    scores = Scores(skip=(first, last))
    for clip_name, clip in section(content["clips"], "clips").items():
        where = f"clips.{plain_text(clip_name, 'a clip')}"
        for name, frame in section(section(clip, where)["frames"], where).items():
            at = f"{where}.{plain_text(name, 'a frame')}"
            values = section(section(frame, at).get(METRICS_KEY, {}), at).items()
            metrics = {metric: score_number(value, f"{at}.{metric}") for metric, value in values}
            scores.record(clip_name, name, _score(frame, at), metrics)
    scores.average()  # raises if there is no clip, or a clip without frames
    network, dataset = (plain_text(content[key], key) for key in ("network", "dataset"))
    return Result(network, dataset, scores, section(content["facts"], "facts"))


def _score(frame: dict[str, Any], at: str) -> FrameScore:
    """Raises KeyError and ValueError."""
    if frame.keys() == {METRICS_KEY}:
        return {}
    found = {name: section(frame[name], f"{at}.{name}") for name in PROTOCOLS}
    return {
        name: Quality(*(score_number(one[key], f"{at}.{name}.{key}") for key in Quality._fields))
        for name, one in found.items()
    }


def _plain(score: FrameScore, metrics: Mapping[str, float]) -> dict[str, dict[str, float | str]]:
    """Both in the JSON form; metrics are left out if there are none and the frame has a truth."""
    sections: dict[str, Any] = {protocol: quality._asdict() for protocol, quality in score.items()}
    if metrics or not score:
        sections[METRICS_KEY] = dict(metrics)
    return as_json_has_it(sections)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
