"""One result, the scores of one network on one dataset, as JSON, CSV and Markdown.

The JSON holds every frame and is what the other commands read; the CSV (a row a clip and protocol) and the Markdown
table are for people. Its form:

    {"format": "csd-results", "version": 1,
     "network": "student1", "dataset": "NTURain", "skip": [0, 0], "facts": {"iteration": 20000},
     "average": {"nturain_y": {"psnr": 35.17, "ssim": 0.9686}, "rgb": {..}},
     "clips": {"a1": {"average": {..}, "frames": {"00001": {"nturain_y": {..}, "rgb": {..}}, ..}}, ..}}

The PSNR of identical frames is infinite, which JSON has no number for: it is written as the string "inf".
Averages are written for other readers; `load_results` works them out from the frames again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csd_plugin.errors import CSDError
from csd_plugin.metrics.protocols import PROTOCOLS, FrameScore, Quality
from csd_plugin.metrics.scores import ClipScores, Scores
from csd_plugin.report.table import comparison_table

FORMAT = "csd-results"
VERSION = 1


@dataclass(frozen=True)
class Result:
    """network: the row's name in tables. facts: plain JSON values worth keeping (iteration, checkpoint, command)."""

    network: str
    dataset: str
    scores: Scores
    facts: dict[str, Any] = field(default_factory=dict)


def write(
    folder: Path | str, name: str, scores: Scores, meta: Mapping[str, Any], baseline: Path | str | None = None
) -> Path:
    """Write `name`.json, .csv and .md into `folder`, made if need be; returns the path of the JSON.

    Args:
        meta: "network" and "dataset", their names in tables; whatever else is in it becomes the result's facts.
        baseline: a results JSON; the Markdown table then shows the gain over it.

    Raises:
        CSDError: nothing was scored, the baseline is not a results file, or a file cannot be written.
    """
    facts = {key: value for key, value in meta.items() if key not in ("network", "dataset")}
    result = Result(meta["network"], meta["dataset"], scores, facts)
    table = comparison_table([result], baseline=load_results(baseline) if baseline else None)
    return save(Path(folder) / f"{name}.json", result, table)


def save(path: Path, result: Result, table: str) -> Path:
    """Write a result to `path`, a .json, with the .csv and `table` as .md beside it; each in a single step."""
    texts = {".csv": csv_text(result), ".md": table + "\n", ".json": json_text(result)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            _replace(path.with_name(path.name.removesuffix(".json") + suffix), text)
    except OSError as error:
        raise CSDError(f"cannot write the results {path}: {error.strerror or error}") from error
    return path


def json_text(result: Result) -> str:
    """The JSON form above, one frame a line."""
    scores = result.scores
    head = {
        "format": FORMAT,
        "version": VERSION,
        "network": result.network,
        "dataset": result.dataset,
        "skip": list(scores.skip),
        "facts": result.facts,
        "average": _plain(scores.average()),
    }
    clips = []
    for clip_name, clip in scores.clips.items():
        frames = ",\n".join(f"   {_dump(name)}: {_dump(_plain(score))}" for name, score in clip.frames.items())
        average = _dump(_plain(clip.average()))
        clips.append(f'  {_dump(clip_name)}: {{"average": {average}, "frames": {{\n{frames}\n  }}}}')
    lines = [f" {_dump(key)}: {_dump(value)}" for key, value in head.items()]
    lines.append(' "clips": {\n' + ",\n".join(clips) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def csv_text(result: Result) -> str:
    """A row a clip and protocol, then a row a protocol whose clip is `average`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["network", "dataset", "clip", "protocol", "frames", "psnr", "ssim"])

    def rows(clip: str, frames: int, average: FrameScore) -> None:
        for protocol, quality in average.items():
            figures = [f"{quality.psnr:.4f}", f"{quality.ssim:.6f}"]
            table.writerow([result.network, result.dataset, clip, protocol, frames, *figures])

    clips = result.scores.clips
    for name, clip in clips.items():
        rows(name, len(clip.frames), clip.average())
    rows("average", sum(len(clip.frames) for clip in clips.values()), result.scores.average())
    return text.getvalue()


def load_results(path: Path | str) -> Result:
    """Read a results JSON. Raises CSDError where the file cannot be read or is not one that `write` made."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CSDError(f"cannot read the results file {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CSDError(f"{path} is not a results file: it is not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CSDError(f'{path} is not a results file: it lacks "format": "{FORMAT}" (csd score --out writes one)')
    if content.get("version") != VERSION:
        raise CSDError(f"{path}: results of version {content.get('version')!r}, but this csd reads version {VERSION}")
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CSDError(f"{path}: a damaged results file ({type(error).__name__}: {error}); score again") from None


def _parse(content: dict[str, Any]) -> Result:
    first, last = (int(count) for count in content["skip"])
    clips = {
        str(clip_name): ClipScores({str(name): _score(score) for name, score in clip["frames"].items()})
        for clip_name, clip in content["clips"].items()
    }
    scores = Scores(clips, (first, last))
    scores.average()  # raises where there is no clip, or a clip without frames
    return Result(str(content["network"]), str(content["dataset"]), scores, dict(content["facts"]))


def _score(plain: dict[str, Any]) -> FrameScore:
    score = {name: Quality(float(plain[name]["psnr"]), float(plain[name]["ssim"])) for name in PROTOCOLS}
    if any(math.isnan(value) for quality in score.values() for value in quality):
        raise ValueError("a score is NaN")
    return score


def _plain(score: FrameScore) -> dict[str, dict[str, float | str]]:
    return {
        protocol: {metric: value if math.isfinite(value) else str(value) for metric, value in quality._asdict().items()}
        for protocol, quality in score.items()
    }


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside its place, then into it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
