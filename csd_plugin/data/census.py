"""All clips of a data set, and everything that is wrong with its layout; data sets stop at the first mistake."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from csd_plugin.data.layout import SPLITS, find_sequences, is_clip_name, natural_key
from csd_plugin.data.stores.interface import FrameStore
from csd_plugin.errors import CSDError
from csd_plugin.types import PairedSequence


@dataclass(frozen=True)
class Census:
    """The contents of a data set.

    Attributes:
        clips: (split, sequence); the split is None for folders of images outside NTURain's layout, one clip each.
        problems: one line each: what the data sets refuse, and what they skip.
    """

    clips: list[tuple[str | None, PairedSequence]]
    problems: list[str]


def take_census(store: FrameStore, root: Path) -> Census:
    """All usable clips of every split.

    Args:
        root: the folder that the store's keys are relative to, as for `find_sequences`.

    Raises:
        CSDError: there are no frames.
    """
    clips: list[tuple[str | None, PairedSequence]] = []
    with _collected_warnings() as problems:
        keys = store.keys()
        if not keys:
            raise CSDError(f"{root}: no frames in it: give the folder that holds {', '.join(SPLITS.values())}")
        folders: dict[str, list[str]] = defaultdict(list)
        for key in keys:
            folders[key.rpartition("/")[0]].append(key)
        for split in SPLITS:
            names = [parts[-1] for parts in (_parts(root, path) for path in folders) if SPLITS[split] in parts]
            if names:
                clips += [(split, sequence) for sequence in _usable(keys, split, names, root, problems)]
        if not clips and not problems:
            problems.append(
                f"{root}: not in NTURain's layout ({SPLITS['train']}/..): `csd prepare` converts pairs to it, "
                f"`csd rain` adds rain to clean clips"
            )
    if not clips:
        for folder in sorted(folders, key=natural_key):
            name = folder or root.absolute().name
            clips.append((None, PairedSequence(name, tuple(sorted(folders[folder], key=natural_key)))))
    return Census(clips, list(dict.fromkeys(problems)))


def _parts(root: Path, folder: str) -> tuple[str, ...]:
    return (*root.absolute().parts, *PurePosixPath(folder).parts)


def _usable(keys: list[str], split: str, names: list[str], root: Path, problems: list[str]) -> list[PairedSequence]:
    """All clips of the split, or, if these are refused together, those that are accepted one by one."""
    try:
        return find_sequences(keys, split, root=root)
    except CSDError:
        pass
    found = []
    rainy = [name for name in names if is_clip_name(name) and not name.lower().endswith("_gt")]
    choices: list[list[str] | None] = [[name] for name in sorted(rainy, key=natural_key)]
    for chosen in choices or [None]:  # without a rainy clip: only to get the reason
        try:
            found += find_sequences(keys, split, clips=chosen, root=root)
        except CSDError as error:
            problems.append(str(error))
    return found


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Inside, warnings of the data layer go into the list, not to the terminal."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("csd_plugin.data")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
