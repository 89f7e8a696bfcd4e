"""From the path of a frame, wherever it is, to its place in NTURain's layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from csd_plugin.data.layout import IMAGE_SUFFIXES, SPLITS, frame_numbers, is_clip_name, natural_key
from csd_plugin.errors import CSDError

PUBLISHED: dict[str, tuple[str, ...]] = {
    "train": (
        *(f"t{scene}_{end}" for scene in range(1, 9) for end in ("GT", "Rain_01", "Rain_02", "Rain_03")),
        "t7_Rain_04",
    ),
    "test": tuple(f"{scene}{number}_{end}" for scene in "ab" for number in range(1, 5) for end in ("GT", "Rain")),
    "real": ("ra1_Rain", "ra2_Rain", "ra3_Rain", "ra4_Rain", "rb1_Rain", "rb2_Rain", "rb3_Rain"),
}
"""The clips of NTURain. The paper has Rain_01 to Rain_03 of each of eight scenes; the archives hold one more."""
_PUBLISHED_SCENES = {"train": r"t\d+_.*", "test": r"[ab]\d+_.*", "real": r"r[ab]\d+_.*"}
_PLACEHOLDERS = {"{clip}": r"(?P<clip>[^/]+)", "{version}": r"(?P<version>\d+)", "{frame}": r"(?P<frame>[^/]*\d[^/]*)"}


@dataclass(frozen=True)
class Place:
    """Where a frame belongs.

    Attributes:
        split: None if the name does not show it.
        folder: the clip's, such as t1_Rain_01.
        label: the frame's in it.
    """

    split: str | None
    folder: str
    label: str


Naming = Callable[[str], Place | None]
"""A function from a frame's path ('/' separated) to its place; None for files that belong to no clip."""


def by_name(split: str | None = None) -> Naming:
    """The innermost folder named NAME_GT, NAME_Rain or NAME_Rain_NN is the clip.

    Its split is that of the split folder around it, or else that of NTURain's clip of this name, or else `split`.
    """

    def place(path: str) -> Place | None:
        *folders, name = path.split("/")
        folder = next((folder for folder in reversed(folders) if is_clip_name(folder)), None)
        if folder is None:
            return None
        around = (key for part in reversed(folders) for key, split_folder in SPLITS.items() if part == split_folder)
        known = (key for key, scene in _PUBLISHED_SCENES.items() if re.fullmatch(scene, folder, re.IGNORECASE))
        return Place(next(around, None) or next(known, split), folder, PurePosixPath(name).stem)

    return place


def by_pattern(pattern: str, split: str | None = None) -> Naming:
    """One pattern for rainy frames and, after a space, one for clean frames: 'rain/{clip}/{frame} gt/{clip}/{frame}'.

    The end of the path, without its suffix, must match. {clip} is (a part of) one folder's or file's name, {frame}
    another with a digit in it, {version} the number of a rainy version, * anything without '/'. Without `split`, clips
    are for training, or, if there is no pattern for clean frames, real ones.
    Raises CSDError for patterns without a clip or frame.
    """
    templates = pattern.split()
    if len(templates) not in (1, 2):
        raise CSDError(f"pattern {pattern!r}: give one for rainy frames and, after a space, one for clean frames")
    rainy, clean = _compile(templates[0]), [_compile(template) for template in templates[1:]]
    split = split or ("train" if clean else "real")

    def place(path: str) -> Place | None:
        for expression in (rainy, *clean):
            match = expression.fullmatch(str(PurePosixPath(path).with_suffix("")))
            if match:
                version = match.groupdict().get("version") or ("1" if split == "train" else "")
                end = "Rain" + (f"_{int(version):02d}" if version else "") if expression is rainy else "GT"
                return Place(split, f"{match['clip']}_{end}", match["frame"])
        return None

    return place


def _compile(template: str) -> re.Pattern[str]:
    plain = str(PurePosixPath(template).with_suffix("")) if template.lower().endswith(IMAGE_SUFFIXES) else template
    parts = re.split(r"(\{\w*\}|\*)", plain)
    expression = "(?:.*/)?"
    for part in parts:
        if part.startswith("{") and part not in _PLACEHOLDERS:
            raise CSDError(f"pattern {template!r}: {part} is unknown: use {', '.join(_PLACEHOLDERS)} and *")
        expression += "[^/]*" if part == "*" else _PLACEHOLDERS.get(part, re.escape(part))
    if template.count("{clip}") != 1 or template.count("{frame}") != 1 or template.count("{version}") > 1:
        raise CSDError(f"pattern {template!r}: must have {{clip}} and {{frame}} once each, {{version}} at most once")
    return re.compile(expression)


def frame_labels(labels: Sequence[str]) -> list[str]:
    """Labels of one clip's frames, in order, as `file_name` needs them: if their last number never changes, as in
    00000_x2, 00001_x2, the number that does."""
    last = [found[-1] for label in labels if (found := re.findall(r"[0-9]+", label))]
    numbers = frame_numbers(labels) if len(set(last)) < len(labels) else None
    return list(labels) if numbers is None else [f"{number:05d}" for number in numbers]


def file_name(label: str, suffix: str) -> str:
    """The name of a frame in the layout: a label of five or more digits as it is, else the label's last number.

    Raises CSDError for a label without a number.
    """
    if label.isascii() and label.isdecimal():
        return label.zfill(5) + suffix
    numbers = re.findall(r"[0-9]+", label)
    if not numbers:
        raise CSDError(f"frame {label + suffix!r} has no number in its name: number the frames in order")
    return f"{int(numbers[-1]):05d}{suffix}"


def missing_clips(present: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Split -> the folders of NTURain that are not in `present`, (split, folder); empty if none of them is there."""
    there = {(split, folder.casefold()) for split, folder in present}
    missing = {
        split: [name for name in names if (split, name.casefold()) not in there] for split, names in PUBLISHED.items()
    }
    if all(len(missing[split]) == len(names) for split, names in PUBLISHED.items()):
        return {}
    return {split: sorted(names, key=natural_key) for split, names in missing.items() if names}
