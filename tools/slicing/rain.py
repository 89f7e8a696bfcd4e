"""Renders the rain of a slice's clips."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slicing.clips import DATA, TRAINING, VALIDATING
from slicing.processes import PROCESSES
from slicing.telling import SliceError, say

VERSIONS = 10  # of the rain on a training clip
JPEG_QUALITIES = (75, 95, 85)  # by version, in turns; validation clips have the first
SMALL_CLIPS, SMALL_FRAMES = 4, 14


def render_rain(clips: Path, cpu: bool, until: float) -> None:
    """The rain of `csd reproduce`, as far as time goes: several versions of a training clip, one of others.

    Not by `csd rain`, which reads videos too: PyAV's wheel would take half of what may travel.
    Raises SliceError where not even one training clip gets done.
    """
    began = time.monotonic()
    tasks = [task for task in rain_tasks(clips, cpu) if not task.target.is_dir()]
    workers = min(max((os.cpu_count() or 1) - 1, 1), len(tasks))  # one measures
    done = 0
    with PROCESSES.Pool(max(workers, 1)) as pool:  # which ends with the block, whatever is left
        results = pool.imap_unordered(rain_on, tasks)
        try:
            for _ in tasks:
                results.next(max(until - time.monotonic(), 0.01))  # type: ignore[attr-defined]
                done += 1
        except multiprocessing.TimeoutError:
            pass
    training = complete(DATA / TRAINING)
    seconds = time.monotonic() - began
    say(f"rain rendered on {done} of {len(tasks)} clips in {seconds:.0f} s" if tasks else "all clips have their rain")
    if not training:
        raise SliceError(f"no training clip was rendered in {seconds:.0f} s; give more --seconds")


@dataclass(frozen=True)
class Rain:
    """clip: its clean frames, of which `frames` count. target: the folder of rainy ones, beside the clean `truth`."""

    clip: Path
    target: Path
    truth: Path
    frames: int | None
    seed: int
    version: int


def rain_tasks(clips: Path, cpu: bool) -> list[Rain]:
    """Validation first, then a first version of every training clip, then the others. Raises SliceError."""
    tasks = []
    for part, split, versions, seed in (("validation", VALIDATING, 1, 1000), ("train", TRAINING, VERSIONS, 0)):
        if not (clips / part).is_dir():
            raise SliceError(f"{clips} has no folder {part}; pack clips, or give --clips")
        folders = sorted((clips / part).iterdir())[: SMALL_CLIPS if cpu else None]
        for version in range(1, 2 if cpu else versions + 1):
            for clip in folders:
                name = f"{clip.name}_Rain_{version:02d}" if versions > 1 else f"{clip.name}_Rain"
                folder, frames = DATA / split, SMALL_FRAMES if cpu else None
                tasks.append(Rain(clip, folder / name, folder / f"{clip.name}_GT", frames, seed, version))
    return tasks


def rain_on(task: Rain) -> None:
    """A folder of rainy frames and, with the first version and before them, the clean ones next to it."""
    import cv2

    from csd_plugin.data.rain import PRESETS
    from csd_plugin.data.rain.renderer import clip_renderer

    cv2.setNumThreads(1)
    files = sorted(task.clip.iterdir())[: task.frames]
    if task.version == 1 and not task.truth.is_dir():
        with draft_of(task.truth) as draft:
            for number, file in enumerate(files):
                shutil.copyfile(file, draft / f"{number + 1:05d}{file.suffix.lower()}")
    rain, quality = None, JPEG_QUALITIES[(task.version - 1) % len(JPEG_QUALITIES)]
    with draft_of(task.target) as draft:
        for number, file in enumerate(files):
            frame = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
            rain = rain or clip_renderer(PRESETS["nturain"], task.seed, task.clip.name, task.version, frame)
            rainy = cv2.cvtColor(rain.render(frame, number), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(draft / f"{number + 1:05d}.jpg"), rainy, [cv2.IMWRITE_JPEG_QUALITY, quality])


@contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete."""
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    draft.rename(folder)


def complete(split: Path) -> list[str]:
    """Remove what is half rendered: drafts, and truth without rain. Returns the clips that are left."""
    rainy = {folder.name.split("_Rain")[0] for folder in split.glob("[!.]*_Rain*")}
    for folder in split.glob("*"):
        if folder.name.startswith(".") or folder.name.removesuffix("_GT") not in {*rainy, folder.name}:
            shutil.rmtree(folder)
    return sorted(rainy)
