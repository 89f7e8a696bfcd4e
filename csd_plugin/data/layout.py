"""From the names of frames to paired sequences, without touching a pixel.

NTURain's layout, for any clip names:

    Dataset_Training_Synthetic/  NAME_GT/  NAME_Rain_01/  NAME_Rain_02/ ..    split train
    Dataset_Testing_Synthetic/   NAME_GT/  NAME_Rain/                         split test
    Dataset_Testing_RealRain/    NAME_Rain/                                   split real

Only keys are examined, so names may come from a folder or from the list of an archive.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from csd_plugin.errors import CSDError
from csd_plugin.plain import read_text
from csd_plugin.types import PairedSequence

logger = logging.getLogger(__name__)

SPLITS = {
    "train": "Dataset_Training_Synthetic",
    "test": "Dataset_Testing_Synthetic",
    "real": "Dataset_Testing_RealRain",
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
LMDB_SUFFIXES = (".lmdb", ".lmdb.partial")
LMDB_DATA = "data.mdb"
_NUMBER = r"\d{1,18}"
"""The most digits of a frame's number; longer ones are something else, and slow to parse."""
_CLIP_FOLDER = re.compile(r"(?P<scene>.+)_(?:(?P<truth>GT)|Rain(?:_\d+)?)", re.IGNORECASE)


def is_frame_name(name: str) -> bool:
    """Whether a file of this name is an image; hidden files, such as those of macOS beside images, are not."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def is_clip_name(folder: str) -> bool:
    """Whether a folder of this name is a clip of NTURain's layout."""
    return _CLIP_FOLDER.fullmatch(folder) is not None


def is_store(path: Path) -> bool:
    """Whether a path is an LMDB store, or has the name of one; files in it are never looked for."""
    return path.name.endswith(LMDB_SUFFIXES) or holds_store(path)


def holds_store(folder: Path) -> bool:
    """Whether the file of an LMDB store is in a folder, whatever its name is."""
    return (folder / LMDB_DATA).exists()


def refuse_store(folder: Path) -> None:
    """Raise CSDError if files are to be written into an LMDB store, or into a folder that would be taken for one."""
    if is_store(folder):
        raise CSDError(
            f"{folder}: is an LMDB store, or named like one, and files in it would not be found again: give another "
            f"folder, whose name does not end in .lmdb"
        )


def tail_from_split(path: str | Path) -> str:
    """The part of a path from its innermost split folder on, '/' separated; '' if there is none."""
    parts = Path(os.path.normpath(Path(path).absolute())).parts
    at = max((i for i, part in enumerate(parts) if part in SPLITS.values()), default=len(parts))
    return "/".join(parts[at:])


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts frame2 before frame10."""
    parts = re.findall(rf"{_NUMBER}|\D+", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts)


def number_columns(names: Iterable[str]) -> list[tuple[int, ...]]:
    """The numbers in names, place by place from the last: 'a1_07', 'a1_08' -> [(7, 8), (1, 1)]."""
    numbers = [reversed(re.findall(r"[0-9]+", name)) for name in names]
    return [tuple(map(int, column)) for column in zip(*numbers, strict=False)]


def frame_numbers(names: Sequence[str]) -> tuple[int, ...] | None:
    """The number of each frame in display order: of all the numbers in the names, the one that rises with every frame.

    '00000_x2', '00001_x2' -> (0, 1). If several rise, the one with the smallest steps; None if none does.
    """
    rising = [column for column in number_columns(names) if all(a < b for a, b in pairwise(column))]
    return min(rising, key=lambda column: column[-1] - column[0], default=None) if names else None


def first_gap(numbers: Sequence[int]) -> int | None:
    """Index of the frame after which the first numbers are missing; None if no frame is missing.

    Equal steps, as in every fifth frame of a video, and frames named by a camera's time stamps are not gaps.
    """
    steps = [b - a for a, b in pairwise(numbers)]
    usual = min(steps, default=0)
    if usual <= 0 or any(step % usual for step in steps):
        return None
    return next((index for index, step in enumerate(steps) if step > usual), None)


def gap_between(names: Sequence[str]) -> tuple[str, str] | None:
    """The names before and after the first gap in the numbers of frames; None if no frame is missing."""
    gap = first_gap(frame_numbers(names) or ())
    return None if gap is None else (names[gap], names[gap + 1])


def find_sequences(
    keys: Iterable[str],
    split: str,
    *,
    clips: str | Path | Sequence[str] | None = None,
    root: str | Path = "",
) -> list[PairedSequence]:
    """The clips of a split, in natural order.

    A sequence is named after its rainy folder, without a final `_Rain`: `a1`, `t1_Rain_02`.

    Args:
        keys: frames below `root`, '/' separated (see FrameStore.keys).
        split: train (truth is required), test, real (truth is used where it exists).
        clips: a text file with one clip per line (# begins a comment), or the names themselves; a name is that of a
            scene (`t1`: all its rainy versions) or of a rainy folder (`t1_Rain_02`). None: all clips.
        root: the folder that the keys are relative to; also the folder above the data set, or the split's own.

    Raises:
        CSDError: the root is wrong, a clip is unknown, or frames do not pair.
    """
    if split not in SPLITS:
        raise CSDError(f"split: {split!r} is unknown: give one of {', '.join(SPLITS)}")
    rainy, truth = _clip_folders(list(keys), split, root)
    chosen = rainy if clips is None else _choose(rainy, clips, f"split {split}")
    sequences = [_pair(clip, truth.get(clip.scene), split) for clip in chosen]
    _warn_of_oddities(sequences, rainy, truth, split)
    return sequences


def find_clean_clips(
    keys: Iterable[str],
    split: str = "train",
    *,
    clips: str | Path | Sequence[str] | None = None,
    root: str | Path = "",
) -> list[PairedSequence]:
    """Clean clips to render rain on, in natural order: folders of frames, each its own truth.

    Any folder of frames is a clip, named by its path. In NTURain's layout, only the split's NAME_GT are.

    Args:
        keys, clips, root: as for `find_sequences`; a name is a folder's path below the root, its last part, or its
            scene.

    Raises:
        CSDError: there are no clips, or a name is unknown.
    """
    if split not in SPLITS:
        raise CSDError(f"split: {split!r} is unknown: give one of {', '.join(SPLITS)}")
    above = Path(os.path.normpath(Path(root).absolute())).parts if root else ()
    folders: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        folders[key.rpartition("/")[0]].append(key)
    found = []
    for path, members in folders.items():
        parts = (*above, *PurePosixPath(path).parts)
        match = _CLIP_FOLDER.fullmatch(parts[-1]) if parts else None
        rainy = match is not None and match["truth"] is None
        if not rainy and _split_folder(parts) in (None, SPLITS[split]):
            scene = match["scene"] if match else parts[-1] if parts else ""
            found.append(_Clip(path, path or scene, scene, members))
    if not found:
        raise CSDError(f"{root or 'the data set'}: no clean clips: give a folder of folders of images")
    found.sort(key=lambda clip: natural_key(clip.name))
    sequences = []
    for clip in found if clips is None else _choose(found, clips, f"split {split}"):
        _refuse_doubles(clip)
        frames = tuple(sorted(clip.keys, key=natural_key))
        sequences.append(PairedSequence(clip.name, frames, frames))
    return sequences


def find_pairs(
    keys: Iterable[str], truth: bool, *, clips: str | Path | Sequence[str] | None = None
) -> list[PairedSequence]:
    """The clips of a `JoinedStore` of lq and gt, in natural order: each folder of lq with gt's folder of the same path.

    A sequence is named after its folder's path, with `_` for `/`; frames outside any folder are one clip, `clip`.

    Args:
        truth: whether there is a gt.
        clips: as for `find_sequences`.

    Raises:
        CSDError: a clip is unknown or has no partner, or frames do not pair.
    """
    found: dict[str, dict[str, list[str]]] = {"lq": defaultdict(list), "gt": defaultdict(list)}
    for key in keys:
        side, _, inside = key.partition("/")
        found[side][inside.rpartition("/")[0]].append(key)
    if not found["lq"]:
        raise CSDError("dataroot_lq: no images found: give the folder or store of the rainy clips")

    def clip(side: str, path: str) -> _Clip:
        name = path.replace("/", "_") or "clip"
        return _Clip(f"{side}/{path}", name, name, found[side][path])

    rainy = sorted((clip("lq", path) for path in found["lq"]), key=lambda each: natural_key(each.name))
    clean = {each.name: each for each in (clip("gt", path) for path in found["gt"])}
    chosen = rainy if clips is None else _choose(rainy, clips, "lq")
    lonely = [each.name for each in chosen if truth and each.name not in clean]
    if lonely:
        raise CSDError(f"dataroot_gt: no clip {lonely[0]}, which dataroot_lq has: add it, or leave it out (clips: ..)")
    sequences = [_pair(each, clean.get(each.name), "test") for each in chosen]
    if truth:
        _warn_of_oddities(sequences, rainy, clean, "test")
    return sequences


@dataclass(frozen=True)
class _Clip:
    """One folder of frames. The scene of t1_Rain_02 and of t1_GT is t1."""

    path: str
    name: str
    scene: str
    keys: list[str]


def _clip_folders(keys: list[str], split: str, root: str | Path) -> tuple[list[_Clip], dict[str, _Clip]]:
    """(rainy clips in natural order, clean clips by scene) of the split."""
    folders: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        folders[key.rpartition("/")[0]].append(key)
    if not folders:
        raise CSDError(f"{root or 'the data set'}: no images found: give the folder that holds {SPLITS[split]}")

    rainy: dict[str, _Clip] = {}
    truth: dict[str, _Clip] = {}
    strange: list[str] = []
    above = Path(os.path.normpath(Path(root).absolute())).parts if root else ()
    split_of = {path: _split_folder((*above, *PurePosixPath(path).parts)) for path in folders}
    for path in (path for path, folder in split_of.items() if folder == SPLITS[split]):
        folder = (*above, *PurePosixPath(path).parts)[-1]
        match = _CLIP_FOLDER.fullmatch(folder)
        if match is None:
            strange.append(path)
            continue
        name = re.sub(r"_Rain$", "", folder, flags=re.IGNORECASE)
        clip = _Clip(path or str(root), name, match["scene"], folders[path])
        known, label = (truth, clip.scene) if match["truth"] else (rainy, clip.name)
        if known.setdefault(label, clip) is not clip:
            raise CSDError(
                f"{folder} exists twice, {known[label].path} and {clip.path}: "
                f"point dataroot at one data set, or remove one of the folders"
            )
    if not rainy:
        raise _wrong_root(root, split, keys, set(split_of.values()))
    if strange:
        logger.warning(
            "%s: folders of images not named NAME_GT, NAME_Rain or NAME_Rain_NN, ignored: %d (%s)",
            root or SPLITS[split],
            len(strange),
            ", ".join(strange[:3]),
        )
    return sorted(rainy.values(), key=lambda clip: natural_key(clip.name)), truth


def _split_folder(parts: Sequence[str]) -> str | None:
    """The innermost split folder of a path."""
    return next((part for part in reversed(parts) if part in SPLITS.values()), None)


def _wrong_root(root: str | Path, split: str, keys: list[str], splits_seen: set[str | None]) -> CSDError:
    where = root or "the data set"
    found = sorted({key.split("/")[0] for key in keys})
    expected = f"{SPLITS[split]}/NAME_Rain{'_NN' if split == 'train' else ''}"
    if SPLITS[split] in splits_seen:
        return CSDError(f"{where}: no rainy clip in {SPLITS[split]}: expected {expected} with images")
    others = [name for name, folder in SPLITS.items() if folder in splits_seen]
    cure = f"set split: {' or '.join(others)}, or " if others else ""
    listing = ", ".join(found[:5]) + (", .." if len(found) > 5 else "")
    return CSDError(
        f"{where}: no {expected} (found: {listing}): {cure}set dataroot to the folder that holds {SPLITS[split]}"
    )


def _choose(rainy: list[_Clip], clips: str | Path | Sequence[str], where: str) -> list[_Clip]:
    """Those of the rainy clips that are named; `where` says in the message what was searched."""
    source, names = _read_names(clips)
    if not names:
        raise CSDError(f"{source}: names no clips: give one per line, or leave `clips` out for all")
    labels = {label for clip in rainy for label in _labels(clip)}
    for name in names:
        if name not in labels:
            nearest = difflib.get_close_matches(name, sorted(labels), n=1, cutoff=0)
            raise CSDError(f"{source}: {where} has no clip {name!r}: did you mean {nearest[0]!r}?")
    wanted = set(names)
    return [clip for clip in rainy if wanted.intersection(_labels(clip))]


def _labels(clip: _Clip) -> tuple[str, ...]:
    return clip.name, clip.scene, PurePosixPath(clip.path).name


def _read_names(clips: str | Path | Sequence[str]) -> tuple[str, list[str]]:
    """(source of the names, the names)."""
    if not isinstance(clips, str | Path):
        return "clips", list(clips)
    try:
        text = read_text(Path(clips), encoding="utf-8-sig")
    except OSError as error:
        raise CSDError(
            f"clips: list file {clips} cannot be read ({error.strerror}): give its path, or a list of names"
        ) from error
    except UnicodeDecodeError as error:
        raise CSDError(f"clips: list file {clips} is not UTF-8 text: write one clip name per line") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return str(clips), [line for line in lines if line]


def _pair(rain: _Clip, truth: _Clip | None, split: str) -> PairedSequence:
    """Pair by name, or else by number; every frame of both sides must have its partner."""
    _refuse_doubles(rain)
    lq = tuple(sorted(rain.keys, key=natural_key))
    if truth is None:
        if split == "train":
            raise CSDError(
                f"{rain.name}: no clean frames: put them into {rain.scene}_GT next to {PurePosixPath(rain.path).name}, "
                f"or leave the clip out (clips: a list file)"
            )
        return PairedSequence(rain.name, lq)

    _refuse_doubles(truth)
    lonely: list[tuple[str, _Clip]] = []
    for labels in (_stems, _last_numbers, _rising_numbers):
        rainy, clean = _labelled(rain.keys, labels), _labelled(truth.keys, labels)
        if rainy is None or clean is None:
            continue
        if rainy.keys() == clean.keys():
            partner = {key: clean[label] for label, key in rainy.items()}
            return PairedSequence(rain.name, lq, tuple(partner[key] for key in lq))
        lonely = [(rainy[name], truth) for name in rainy.keys() - clean.keys()]
        lonely += [(clean[name], rain) for name in clean.keys() - rainy.keys()]
    key, other = min(lonely, key=lambda pair: natural_key(_stem(pair[0])))
    raise CSDError(
        f"{rain.name}: {len(rain.keys)} rainy and {len(truth.keys)} clean frames do not pair by name or number: "
        f"{key} has no partner in {other.path}: restore or rename it, or leave the clip out (clips: a list file)"
    )


def _refuse_doubles(clip: _Clip) -> None:
    seen: dict[str, str] = {}
    for key in clip.keys:
        other = seen.setdefault(_stem(key), key)
        if other != key:
            raise CSDError(f"{clip.name}: two files for the same frame, {other} and {key}: remove one of them")


def _labelled(keys: list[str], labels: Callable[[list[str]], Iterable[Any]]) -> dict[Any, str] | None:
    """Label -> key, or None if two keys share a label or one has none."""
    keys = sorted(keys, key=natural_key)
    labelled = dict(zip(labels(keys), keys, strict=False))
    return labelled if len(labelled) == len(keys) and None not in labelled else None


def _stems(keys: list[str]) -> list[str]:
    return list(map(_stem, keys))


def _last_numbers(keys: list[str]) -> list[int | None]:
    return list(map(_number, keys))


def _rising_numbers(keys: list[str]) -> Sequence[int]:
    """The numbers that change where the last ones do not, as in 00000_x2.png, 00001_x2.png; none if none do."""
    return frame_numbers(_stems(keys)) or ()


def _stem(key: str) -> str:
    """The file name without an image suffix; keys in archives may have none."""
    name = key.rpartition("/")[2]
    return name.rpartition(".")[0] if name.lower().endswith(IMAGE_SUFFIXES) else name


def _number(key: str) -> int | None:
    """The last number in a frame's name."""
    numbers = re.findall(_NUMBER, _stem(key))
    return int(numbers[-1]) if numbers else None


def _warn_of_oddities(sequences: list[PairedSequence], rainy: list[_Clip], truth: dict[str, _Clip], split: str) -> None:
    """Warn, with one line for each kind of harmless oddity."""
    blind = [sequence.name for sequence in sequences if sequence.gt is None]
    if blind and split != "real":
        logger.warning("clips without clean frames, which cannot be scored: %d (%s)", len(blind), ", ".join(blind[:3]))
    scenes = {clip.scene for clip in rainy}
    unused = sorted(set(truth) - scenes, key=natural_key)
    if unused:
        logger.warning("clean clips without rainy ones, not used: %d (%s)", len(unused), ", ".join(unused[:3]))
    gaps = [gap for sequence in sequences if (gap := _gap_in(sequence))]
    if gaps:
        logger.warning(
            "frames are missing in the middle of %d clips; the frames around a gap count as neighbours: %s",
            len(gaps),
            "; ".join(gaps[:3]),
        )


def _gap_in(sequence: PairedSequence) -> str | None:
    """'clip: last frame before the first gap -> first after it'."""
    numbers = [number for key in sequence.lq if (number := _number(key)) is not None]
    i = first_gap(numbers) if len(numbers) == len(sequence.lq) else None
    return None if i is None else f"{sequence.name}: {_stem(sequence.lq[i])} -> {_stem(sequence.lq[i + 1])}"
