"""Checks whether an LMDB store still holds what was put into it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TypeAlias

from tqdm import tqdm

from csd_plugin.data.stores.folder import FolderStore
from csd_plugin.data.stores.lmdb import DATA, META_INFO, Record, ToolboxFile, open_file, split_key
from csd_plugin.data.workers import Processes
from csd_plugin.errors import CSDError

_TOGETHER = 32
"""Frames per task."""


@dataclass(frozen=True)
class Problem:
    """One frame or file of a store that differs from what was built; `str` is a line about it.

    Attributes:
        kind: changed, missing, extra or truncated.
        key: the frame, or a file of the store.
        detail: what is wrong, in words.
    """

    kind: str
    key: str
    detail: str

    def __str__(self) -> str:
        return f"{self.key}: {self.kind}: {self.detail}"


_Check: TypeAlias = "Callable[[Path, list[tuple[str, Record]]], list[Problem]]"


def verify_store(
    path: str | Path,
    source: str | Path | None = None,
    jobs: int = 1,
    frames: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Compare all frames of a store with their checksums, and with the files below `source` if it is given.

    Args:
        source: the data set's folder.
        jobs: processes.
        frames: as for `build_store`.

    Returns:
        The problems, in the order of the keys; empty for an intact store.

    Raises:
        CSDError: there is no finished store at `path`, or its keys cannot be listed.
    """
    path = Path(path)
    try:
        # In other processes, as LMDB may crash the one that reads a damaged file.
        with Processes(jobs) as processes:
            (contents,) = processes.map(_list_contents, [(path,)])
            problems = _compare_lists(path, contents)
            problems += _checked(processes, check_values, path, contents.records.items(), "store")
            if source is not None:
                folder = FolderStore(source)
                if frames is None:
                    frames = {split_key(key)[0]: key for key in folder.keys()}  # noqa: SIM118, a store is not a mapping
                problems += _compare_with_folder(frames, contents.records)
                files = {key: split_key(file) for key, file in frames.items()}
                both = [
                    (files[key][0], record)
                    for key, record in contents.records.items()
                    if key in files and files[key][1] == record.suffix
                ]
                problems += _checked(processes, _check_files, folder.root, both, "files")
    except BrokenProcessPool:
        raise CSDError(
            f"{path}: {DATA} is damaged (reading it crashes the process): remove the store, and build it again"
        ) from None
    return sorted(problems, key=lambda problem: problem.key)


@dataclass(frozen=True)
class _Contents:
    """The store's encoding; its records; and the keys, without suffix, of all values (`stored`)."""

    encoding: str
    records: dict[str, Record]
    stored: list[str]


def _list_contents(path: Path) -> _Contents:
    file = open_file(path)
    if isinstance(file, ToolboxFile):
        raise CSDError(f"{path}: made by BasicSR, without checksums, so it cannot be verified")
    return _Contents(file.header.encoding, dict(file.records()), file.value_keys())


def _compare_lists(path: Path, contents: _Contents) -> list[Problem]:
    """Problems of the lists: values without a record, and meta_info.txt. Missing values show when they are read."""
    expected = Counter(record.meta_info(key, contents.encoding) for key, record in contents.records.items())
    try:
        found = Counter((path / META_INFO).read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        return [Problem("missing", META_INFO, f"cannot be read ({error})")]
    return [
        *(
            Problem("extra", key, "has no record in the store")
            for key in contents.stored
            if key not in contents.records
        ),
        *(Problem("changed", META_INFO, f"lacks the line {line!r}") for line in expected - found),
        *(Problem("changed", META_INFO, f"has the line {line!r}") for line in found - expected),
    ]


def _compare_with_folder(files: Mapping[str, str], records: dict[str, Record]) -> list[Problem]:
    """Problems of frames that are only in the folder or only in the store. files: key without suffix -> file."""
    stored = {key + record.suffix for key, record in records.items()}
    wanted = {key + split_key(file)[1] for key, file in files.items()}
    return [
        *(Problem("missing", key, "is in the folder but not in the store") for key in wanted - stored),
        *(Problem("extra", key, "is in the store but not in the folder") for key in stored - wanted),
    ]


def _checked(
    processes: Processes, check: _Check, place: Path, records: Iterable[tuple[str, Record]], what: str
) -> list[Problem]:
    problems: list[Problem] = []
    in_order = sorted(records, key=itemgetter(0))
    with tqdm(total=len(in_order), desc=f"verify {what}", unit="frame", disable=None) as progress:
        frames = iter(in_order)
        tasks = iter(lambda: (place, list(islice(frames, _TOGETHER))), (place, []))
        for found in processes.map(check, tasks):
            problems += found
            progress.update(_TOGETHER)
    return problems


def check_values(path: Path, frames: list[tuple[str, Record]]) -> list[Problem]:
    """The problems of these frames' values in a store, by their records."""
    file = open_file(path)
    problems = []
    for key, record in frames:
        name = key + record.suffix
        value = file.value(key)
        if value is None:
            problems.append(Problem("missing", name, "has a record but no data in the store"))
        elif len(value) != record.size:
            problems.append(Problem("truncated", name, f"{len(value)} bytes in the store, {record.size} were put in"))
        elif hashlib.sha256(value).hexdigest() != record.value:
            problems.append(Problem("changed", name, "its data in the store has another checksum"))
    return problems


def _check_files(root: Path, frames: list[tuple[str, Record]]) -> list[Problem]:
    problems = []
    for key, record in frames:
        name = key + record.suffix
        try:
            digest = hashlib.sha256((root / name).read_bytes()).hexdigest()
        except OSError as error:
            problems.append(Problem("missing", name, f"its file cannot be read ({error.strerror})"))
            continue
        if digest != record.source:
            problems.append(Problem("changed", name, "its file has changed since it was put into the store"))
    return problems
