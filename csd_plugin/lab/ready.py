"""Rows whose frames are there already: the rainy input, and folders of results that others made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from csd_plugin.data.datasets.paired_video import PairedVideoTestDataset
from csd_plugin.data.layout import SPLITS
from csd_plugin.errors import CSDError
from csd_plugin.lab.matrix import Run
from csd_plugin.metrics.protocols import to_uint8
from csd_plugin.metrics.scores import ClipScores, Scores
from csd_plugin.report import results
from csd_plugin.report.scoring import score_folders


def score_ready(run: Run) -> None:
    """Score the frames of a run on each of its test sets, into results/RUN as the test pipeline would. CSDError."""
    assert run.test is not None
    for content in run.test["datasets"].values():
        scores = _rainy(content) if run.frames is None else _frames(run.frames, content)
        results.write(
            Path("results", run.name), content["name"], scores, {"network": run.row, "dataset": content["name"]}
        )


def _rainy(content: Mapping[str, Any]) -> Scores:
    dataset = PairedVideoTestDataset({**content, "num_frame": 1})
    scores = Scores()
    for item in (dataset[index] for index in range(len(dataset))):
        if "gt" not in item:
            raise CSDError(f"the test set {content['name']} has no ground truth: nothing of it can be scored")
        scores.add(item["folder"], Path(item["lq_path"]).stem, to_uint8(item["lq"][0]), to_uint8(item["gt"]))
    return scores


def _frames(folder: Path, content: Mapping[str, Any]) -> Scores:
    """Those frames of the folder that belong to the test set: its clips, and its part of each."""
    dataset = PairedVideoTestDataset({**content, "num_frame": 1})
    wanted: dict[str, list[int]] = {}
    for number, frame in dataset.samples:
        wanted.setdefault(dataset.sequences[number].name, []).append(frame)
    truth = Path(content["dataroot"]) / SPLITS[content.get("split") or "test"]
    every = score_folders(folder, truth, clips=list(wanted))
    missing = wanted.keys() - every.clips.keys()
    if missing:
        raise CSDError(f"{folder} has no frames of {', '.join(sorted(missing))}")
    return Scores({name: _part(every.clips[name], frames) for name, frames in wanted.items()})


def _part(clip: ClipScores, frames: Iterable[int]) -> ClipScores:
    names = list(clip.frames)
    return ClipScores({names[i]: clip.frames[names[i]] for i in frames})
