"""Rainy frames and the teacher's results on disk: computed once, continued after an interruption, and verified."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from csd_plugin.adapt.shots import Shot, as_noted, find_shots, from_notes
from csd_plugin.adapt.teacher import Named, Teacher
from csd_plugin.atomic import write_text
from csd_plugin.data.images import files_of
from csd_plugin.data.stores.build import filling
from csd_plugin.data.stores.lmdb import open_file, split_key
from csd_plugin.data.stores.verify import check_values
from csd_plugin.data.video import open_reader
from csd_plugin.digests import file_digest, text_digest
from csd_plugin.errors import CSDError, cannot_write
from csd_plugin.locks import alone
from csd_plugin.plain import parse_json, read_text, section
from csd_plugin.report.text import counted, duration

_FORMAT = 2
"""The version of a cache's content. In version 1, the ends of a shot were cleaned without the frames around it."""
_STORE, _MANIFEST = "frames.lmdb", "manifest.json"


@dataclass(frozen=True)
class Cache:
    """Pairs of rainy and cleaned frames, in a raw LMDB store in NTURain's layout.

    Training frames are its training clips, held-back frames its test clips, so that option files of the toolbox can
    use `store` as their dataroot.

    Attributes:
        folder: the folder of the store and its manifest.
        inputs: names and digests of the videos.
        shots: the parts of them that are used.
    """

    folder: Path
    inputs: tuple[Named, ...]
    shots: tuple[Shot, ...]

    @property
    def store(self) -> Path:
        return self.folder / _STORE

    @property
    def frames(self) -> int:
        return sum(shot.length for shot in self.shots)


def open_cache(
    folder: Path,
    inputs: Sequence[Path],
    teacher: Teacher,
    *,
    ensemble: bool,
    most: int,
    say: Callable[[str], object],
) -> Cache:
    """The pairs of these inputs by this teacher: those in `folder`, after adding the missing ones.

    Args:
        ensemble: whether the teacher is averaged over mirrored and reversed clips.
        most: the most frames, see `find_shots`.
        say: called with a line for each step.

    Raises:
        CSDError: the folder holds pairs of other inputs or teachers, or damaged ones; it cannot be written to; an input
            cannot be read.
    """
    named = tuple(Named(path.name or str(path), _digest(path)) for path in inputs)
    asked = {
        "format": _FORMAT,
        "inputs": [asdict(one) for one in named],
        "teachers": [asdict(one) for one in teacher.networks],
        "ensemble": ensemble,
        "frames": most,
    }
    # several commands may read a complete cache
    with nullcontext() if (folder / _STORE).exists() else alone(folder):
        cache = Cache(folder, named, tuple(_shots(folder, inputs, asked)))
        if cache.store.exists():
            _verify(cache)
            say(f"{counted(cache.frames, 'frame')} cleaned by the teacher are in {folder}")
        else:
            _fill(cache, teacher, say)
    return cache


def _shots(folder: Path, inputs: Sequence[Path], asked: dict[str, Any]) -> list[Shot]:
    """The shots in the folder's manifest; without one, new shots, which are then listed there. Raises CSDError."""
    manifest = folder / _MANIFEST
    if manifest.exists():
        return _known_shots(manifest, asked, inputs)
    shots = find_shots(inputs, asked["frames"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(manifest, json.dumps(asked | {"shots": as_noted(shots, inputs)}, indent=1) + "\n")
    except OSError as error:
        raise cannot_write(folder, error) from error
    return shots


def _known_shots(manifest: Path, asked: Mapping[str, Any], inputs: Sequence[Path]) -> list[Shot]:
    """The shots of an existing cache. Raises CSDError if it is not the requested one."""
    try:
        there = section(parse_json(read_text(manifest)), "it")
        differing = [key for key in asked if there.get(key) != asked[key]]
        if not differing:
            return from_notes(there.get("shots"), inputs, asked["frames"])
    except (OSError, ValueError) as error:
        raise CSDError(f"{manifest}: damaged ({error}): remove {manifest.parent}, and start again") from error
    if there.get("format") in range(1, _FORMAT):
        raise CSDError(
            f"{manifest.parent}: its frames were made by an older version, which cleaned the ends of shots worse: "
            f"remove it, or give another --cache; the teacher cleans them again"
        )
    raise CSDError(
        f"{manifest.parent}: its frames were made with other {', '.join(differing)}: give another --cache, or remove it"
    )


def _verify(cache: Cache) -> None:
    """Raise CSDError if the store does not hold what was put into it."""
    wanted = {key.removesuffix(".png") for shot in cache.shots for kind in ("Rain", "GT") for key in shot.keys(kind)}
    records = dict(open_file(cache.store).records())
    changed = wanted ^ records.keys()
    changed |= {split_key(problem.key)[0] for problem in check_values(cache.store, list(records.items()))}
    if changed:
        raise CSDError(
            f"{cache.store}: {counted(len(changed), 'frame')} damaged or missing ({min(changed)}): remove "
            f"{cache.folder}, and start again"
        )


def _fill(cache: Cache, teacher: Teacher, say: Callable[[str], object]) -> None:
    """Clean the missing frames, shot by shot."""
    keys = {shot: (shot.keys("Rain"), shot.keys("GT")) for shot in cache.shots}
    with filling(cache.store, [key for pair in keys.values() for kind in pair for key in kind]) as store:
        missing = [shot for shot, pair in keys.items() if not store.there.issuperset(pair[0] + pair[1])]
        count = sum(shot.length for shot in missing)
        if missing:
            height, width = next(missing[0].read())[0].shape[:2]
            seconds, around = teacher.seconds_a_frame(width, height), 2 * teacher.context * len(missing)
            say(
                f"the teacher cleans {counted(count, 'frame')}{f', and up to {around} around them' if around else ''}: "
                f"about {seconds:.2g} s each, {duration(seconds * (count + around))}"
            )
        with tqdm(total=count, unit=" frames", desc="teacher", disable=None) as bar:
            for shot in missing:
                read = functools.partial(shot.read, teacher.context)
                for rainy_key, clean_key, (rainy, clean) in zip(*keys[shot], teacher.clean(read), strict=True):
                    store.write(rainy_key, rainy)
                    store.write(clean_key, clean)
                    bar.update()
                store.flush()


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a folder or pattern, of its images' names and digests."""
    files = sorted(files_of(path))
    if not files:
        open_reader(path).close()  # raises the reason
    try:
        if files == [path]:
            return file_digest(path)
        lines = [f"{file.name} {file_digest(file)}" for file in files]
    except OSError as error:
        raise CSDError(f"{path}: cannot be read ({error.strerror}): restore it") from error
    return text_digest("\n".join(lines))
