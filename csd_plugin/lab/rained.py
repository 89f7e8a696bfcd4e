"""The data of `csd reproduce`: rain, rendered once on clean clips, the same for all slices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csd_plugin.atomic import write_text
from csd_plugin.data.layout import SPLITS
from csd_plugin.data.rain import PRESETS
from csd_plugin.data.rain.clips import CleanClip, find_clips
from csd_plugin.data.rain.pairs import MOST_VARIANTS, PairOptions, write_pairs
from csd_plugin.data.video import open_reader
from csd_plugin.errors import CSDError
from csd_plugin.lab.matrix import Run
from csd_plugin.plain import entries, parse_json, plain_text, read_text, section, whole_number

DATA = Path("datasets", "rain_clips")
QUALITY = 75
"""JPEG quality of rainy frames, about that of NTURain's."""


@dataclass(frozen=True)
class Part:
    """Clips for training or for validation.

    Attributes:
        flag: the flag of the command line that names their folder.
        split, variants, seed: see `PairOptions`.
    """

    flag: str
    split: str
    variants: int
    seed: int

    @property
    def record(self) -> Path:
        """The file in which the first call records the clips of this part."""
        return DATA / ".rain" / f"{self.split}_clips.json"

    @property
    def options(self) -> PairOptions:
        preset = PRESETS["nturain"]
        return PairOptions(preset, seed=self.seed, split=self.split, variants=self.variants, quality=QUALITY)

    def present(self, variants: int) -> set[str]:
        """Names of the clips that exist with this number of rainy versions."""
        root = DATA / SPLITS[self.split]
        names = {folder.name.removesuffix("_GT") for folder in root.glob("*_GT")}
        rainy = self.options.rainy_name
        return {name for name in names if all((root / rainy(name, v + 1)).is_dir() for v in range(variants))}


@dataclass(frozen=True)
class Record:
    """The clips by name, and the number of rainy versions of each. The folder may hold further clips."""

    clips: tuple[str, ...]
    variants: int


TRAINING = Part("--clean", "train", variants=4, seed=0)
VALIDATION = Part("--validation", "test", variants=1, seed=1000)


def find_data(clean: Path | None, validation: Path | None, runs: Sequence[Run]) -> dict[Part, Path]:
    """Find and check the folders of clean clips on which rain is to be rendered. Nothing is written.

    Clips that were in `DATA` before the first call, from `csd rain` or `csd prepare`, are used, too.

    Args:
        clean: folder of clips to train on, if given.
        validation: folder of clips to validate on, if given.
        runs: what will be trained and tested. If that uses other data sets than `DATA`, no clips are needed.

    Returns:
        The folder of each part that was given.

    Raises:
        CSDError: a folder has no clips, a clip is in both folders or too short for the windows and frame ranges of
            `runs`, the clips differ from those of the first call, or there are no clips although they are needed.
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
    """Render rain on what `find_data` has found, unless it exists. Raises CSDError like `write_pairs`."""
    for part in (TRAINING, VALIDATION):
        if part in data:
            _note(part, Record(tuple(clip.name for clip in find_clips(data[part])), part.variants))
            write_pairs(data[part], DATA, part.options)
        elif part.present(1) and not part.record.is_file():
            _note(part, Record(tuple(sorted(part.present(1))), 1))


def _note(part: Part, record: Record) -> None:
    part.record.parent.mkdir(parents=True, exist_ok=True)
    write_text(part.record, json.dumps(asdict(record), indent=1) + "\n")


def _frames_needed(runs: Iterable[Run], part: Part) -> Mapping[str, int]:
    """The readers of this part of `DATA`, and the number of frames that each needs of a clip."""
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
                f"{where}: {length} frames, {reader} needs {needed[reader]} frames of every clip; leave the clip out, "
                f"or change the option file (frame_range, num_frame)"
            )


def _length(clip: CleanClip) -> int | None:
    if not clip.is_video:
        return len(clip.files)
    with open_reader(clip.files[0]) as reader:
        return reader.num_frames


def _check_same(clips: Iterable[CleanClip], part: Part, folder: Path) -> None:
    names, record = {clip.name for clip in clips}, _read(part)
    if record and names != set(record.clips):
        other = sorted(names ^ set(record.clips))[0]
        lacks = f"{folder} lacks" if other in record.clips else f"{DATA} was made without"
        raise CSDError(
            f"{part.flag}: {lacks} the clip {other}, but slices are compared on the same data: leave {part.flag} out "
            f"to use the clips that exist, or work in another folder"
        )


def _check_there(part: Part) -> None:
    record = _read(part)
    missing = set(record.clips) - part.present(record.variants) if record else ()
    if missing:
        raise CSDError(
            f"{DATA}: the rain on {sorted(missing)[0]} is not complete; give {part.flag} again to complete it"
        )
    if not part.present(1):
        raise CSDError(f"{DATA} has no clips in {SPLITS[part.split]}; give a folder of clean clips with {part.flag}")


def _read(part: Part) -> Record | None:
    try:
        content = section(parse_json(read_text(part.record)), "it")
        clips = tuple(plain_text(clip, "clips") for clip in entries(content.get("clips"), "clips"))
        return Record(clips, whole_number(content.get("variants"), "variants", 1, MOST_VARIANTS))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CSDError(f"{part.record} is damaged ({error}); remove it to use the clips that exist") from error
