"""The data of `csd reproduce`: rain rendered once on clean clips, the same for all slices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csd_plugin.atomic import write_text
from csd_plugin.data.layout import SPLITS
from csd_plugin.data.rain import PRESETS
from csd_plugin.data.rain.clips import CleanClip, find_clips
from csd_plugin.data.rain.pairs import PairOptions, write_pairs
from csd_plugin.data.video import open_reader
from csd_plugin.errors import CSDError
from csd_plugin.lab.matrix import Run

DATA = Path("datasets", "rain_clips")
QUALITY = 75  # of the JPEG files, about that of NTURain's


@dataclass(frozen=True)
class Part:
    """Clips for training or for validation.

    flag: by which the command line is given them. split, variants, seed: see `PairOptions`.
    """

    flag: str
    split: str
    variants: int
    seed: int

    @property
    def record(self) -> Path:
        """The names of the clips that this part is made of."""
        return DATA / ".rain" / f"{self.split}_clips.json"

    @property
    def options(self) -> PairOptions:
        preset = PRESETS["nturain"]
        return PairOptions(preset, seed=self.seed, split=self.split, variants=self.variants, quality=QUALITY)

    def present(self, variants: int) -> set[str]:
        """The clips that are there with so many rainy versions."""
        root = DATA / SPLITS[self.split]
        names = {folder.name.removesuffix("_GT") for folder in root.glob("*_GT")}
        rainy = self.options.rainy_name
        return {name for name in names if all((root / rainy(name, v + 1)).is_dir() for v in range(variants))}


TRAINING = Part("--clean", "train", variants=4, seed=0)
VALIDATION = Part("--validation", "test", variants=1, seed=1000)


def find_data(clean: Path | None, validation: Path | None, runs: Sequence[Run]) -> dict[Part, Path]:
    """Which folders of clean clips are to be rained on, after all is found to fit; nothing is written.

    runs: what will train and be tested; where that is on other data sets than `DATA`, no clips are needed.

    Raises CSDError: a folder without clips, clips in both, clips too short for the windows and frame ranges of `runs`,
    other clips than those that the data is made of, and none where they are needed.
    """
    folders = {TRAINING: clean, VALIDATION: validation}
    found = {part: find_clips(folder) for part, folder in folders.items() if folder is not None}
    for part, folder in folders.items():
        needed = _frames_needed(runs, part)
        if folder is not None:
            _check_length(found[part], needed)
            _check_same(found[part], part, folder)
        elif needed:
            _check_there(part)
    learned = {file.resolve() for clip in found.get(TRAINING, []) for file in clip.files}
    for clip in found.get(VALIDATION, []):
        if any(file.resolve() in learned for file in clip.files):
            raise CSDError(f"{clip.name} is in --clean and in --validation; validate on clips that nothing trains on")
    return {part: folder for part, folder in folders.items() if folder is not None}


def render_rain(data: Mapping[Part, Path]) -> None:
    """Render what `find_data` found, as far as it is not there. Raises CSDError as `write_pairs` does."""
    for part, folder in data.items():
        try:
            part.record.parent.mkdir(parents=True, exist_ok=True)
            write_text(part.record, json.dumps([clip.name for clip in find_clips(folder)], indent=1) + "\n")
        except OSError as error:
            raise CSDError(f"{DATA}: cannot be written to ({error.strerror})") from error
        write_pairs(folder, DATA, part.options)


def _frames_needed(runs: Iterable[Run], part: Part) -> Mapping[str, int]:
    """What reads this part of `DATA`, and how many frames a clip must have for it."""
    needed: dict[str, int] = {}
    for run in runs:
        for options, name in ((run.options, run.row), (run.test, "the test set")):
            for key, content in (options or {}).get("datasets", {}).items():
                if Path(str(content.get("dataroot"))) == DATA and _split(key, content) == part.split:
                    needed[f"datasets.{key} of {name}"] = _least(content)
    return needed


def _split(key: str, content: Mapping[str, Any]) -> str:
    return content.get("split") or ("train" if key == "train" else "test")


def _least(content: Mapping[str, Any]) -> int:
    """Test windows are reflected at a clip's ends, training windows lie within it."""
    if content.get("frame_range"):
        return int(content["frame_range"][1])
    return int(content["num_frame"]) if "num_target" in content else 1


def _check_length(clips: Iterable[CleanClip], needed: Mapping[str, int]) -> None:
    if not needed:
        return
    reader = max(needed, key=lambda name: needed[name])
    for clip in clips:
        length = _length(clip)
        if length is not None and length < needed[reader]:
            where = clip.files[0] if clip.is_video else clip.files[0].parent
            raise CSDError(
                f"{where}: {length} frames, {reader} needs {needed[reader]} of every clip; leave the clip out, or "
                f"change the option file (frame_range, num_frame)"
            )


def _length(clip: CleanClip) -> int | None:
    if not clip.is_video:
        return len(clip.files)
    with open_reader(clip.files[0]) as reader:
        return reader.num_frames


def _check_same(clips: Iterable[CleanClip], part: Part, folder: Path) -> None:
    names, before = {clip.name for clip in clips}, _made_of(part)
    if before and names != before:
        other = sorted(names ^ before)[0]
        lacks = f"{folder} lacks" if other in before else f"{DATA} was made without"
        raise CSDError(
            f"{part.flag}: {lacks} the clip {other}; slices are compared on the same data: leave {part.flag} out to go "
            f"on with what is there, or work in another folder"
        )


def _check_there(part: Part) -> None:
    missing = _made_of(part) - part.present(part.variants if part.record.is_file() else 1)
    if missing:
        raise CSDError(f"{DATA}: the rain on {sorted(missing)[0]} is not whole; give {part.flag} again to complete it")
    if not part.present(1):
        raise CSDError(f"{DATA} has no clips in {SPLITS[part.split]}; give a folder of clean clips by {part.flag}")


def _made_of(part: Part) -> set[str]:
    """The names of the clips, also of those whose rendering was interrupted; those of `csd rain` left no record."""
    try:
        return set(json.loads(part.record.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return part.present(1)
    except ValueError as error:
        raise CSDError(f"{part.record}: is no JSON ({error}); remove it") from error
