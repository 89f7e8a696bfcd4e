"""The measurement of `csd bench data`: stores of one data set, read by the training data set in loader workers."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from csd_plugin.atomic import link_or_copy
from csd_plugin.bench.measure import announce
from csd_plugin.data.datasets.paired_video import PairedVideoDataset
from csd_plugin.data.stores.build import build_store
from csd_plugin.data.stores.folder import FolderStore
from csd_plugin.data.stores.interface import FrameStore
from csd_plugin.data.stores.lmdb import split_key
from csd_plugin.report.text import duration, markdown

logger = logging.getLogger(__name__)

SCALES = {"no": (1.0, 1.0), "0.4 - 2": (0.4, 2.0)}
_START = 0.5
"""Seconds that a pass takes about besides its measurements."""
_COLD_BATCHES = 32
"""The most samples that are read from the disk."""


@dataclass(frozen=True)
class Settings:
    """The settings; see `csd bench data --help`.

    Attributes:
        split: `train` or `test`.
        clips: only these; None for all.
        num_frame: rainy frames per sample, and clean ones.
        gt_size: pixels of a crop's side.
        as_uint8: whether samples are bytes instead of float32.
        batch_size: samples per batch.
        workers: of a loader.
        rounds: how many times each row is measured.
        seconds: length of each measurement.
    """

    split: str
    clips: list[str] | None
    num_frame: int
    gt_size: int
    as_uint8: bool
    batch_size: int
    workers: int
    rounds: int
    seconds: float

    def options(self, dataroot: Path | FrameStore, scale: tuple[float, float]) -> dict[str, Any]:
        """The options of the training data set."""
        return {
            "dataroot": dataroot,
            "split": self.split,
            "clips": self.clips,
            "num_frame": self.num_frame,
            "num_target": self.num_frame,
            "gt_size": self.gt_size,
            "scale_range": scale,
            "random_reverse": True,
            "as_uint8": self.as_uint8,
        }


@dataclass
class LoadingRow:
    """One kind of storage with one augmentation: rates in samples per second, sizes in MB, times in seconds."""

    frames_from: str
    scale: str
    size: float
    first: float | None = None
    warm: list[float] = field(default_factory=list)
    loader: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    private: float | None = None
    shared: float | None = None


def measure(dataroot: Path, settings: Settings, jobs: int = 1, work: Path | None = None) -> Iterator[LoadingRow]:
    """Build the stores in a folder below `work`, read from them in turns, give the rows, and remove the stores.

    Ctrl-C is raised after the rows of the rounds before it.

    Args:
        dataroot: a data set in NTURain's layout.
        jobs: processes that build stores.
        work: by default a temporary folder.

    Raises:
        CSDError: the data set cannot be used, or stores cannot be built.
    """
    with tempfile.TemporaryDirectory(prefix="csd-bench-", dir=work) as folder:
        places = _build(dataroot, settings, Path(folder), jobs)
        contenders = []
        for scale, bounds in SCALES.items():
            for name, (root, files) in places.items():
                dataset = PairedVideoDataset(settings.options(root, bounds))
                contenders.append((dataset, files, LoadingRow(name, scale, sum(map(_size, files)) / 2**20)))
        passes = len(contenders) * settings.rounds
        announce(f"{passes} passes, about {duration(passes * (2 * settings.seconds + _START))}")
        stopped = None
        try:
            _take_turns(contenders, settings)
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
        rows = [row for _, _, row in contenders]
        whole = min(len(row.loader) for row in rows)
        for row in rows if whole else ():
            del row.warm[whole:], row.loader[whole:], row.start[whole:]
            yield row
        if stopped:
            raise stopped


def _take_turns(contenders: Sequence[tuple[PairedVideoDataset, list[Path], LoadingRow]], settings: Settings) -> None:
    """Fill in the rows of (data set, its files, row)."""
    steps = tqdm(total=len(contenders) * (1 + settings.rounds), desc="bench data", unit="pass", disable=None)
    with steps:
        for dataset, files, row in contenders:
            if _forget(files):
                row.first = _worker_rate(dataset, settings, _every_frame_once(dataset, settings), row)
            steps.update()
        for number in range(settings.rounds):
            for dataset, _, row in contenders:
                endless = _endless(dataset, number)
                row.warm.append(_worker_rate(dataset, settings, endless, row, settings.seconds))
                _measure_loader(dataset, settings, _endless(dataset, number), row)
                steps.update()


def _build(
    dataroot: Path, settings: Settings, work: Path, jobs: int
) -> dict[str, tuple[Path | FrameStore, list[Path]]]:
    """Name -> (dataroot for a data set, the files that hold its pixels)."""
    folder = FolderStore(dataroot)
    sequences = PairedVideoDataset(settings.options(folder, (1.0, 1.0))).sequences
    keys = sorted({key for sequence in sequences for key in (*sequence.lq, *(sequence.gt or ()))})
    chosen = work / "chosen"  # only the measured part of a large data set
    for key in keys:
        (chosen / key).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(dataroot / key, chosen / key)
    places: dict[str, tuple[Path | FrameStore, list[Path]]] = {"folder": (folder, [dataroot / key for key in keys])}
    for encoding in ("source", "png", "raw"):
        build_store(chosen, work / f"{encoding}.lmdb", encoding, jobs)
        places[encoding] = (work / f"{encoding}.lmdb", [work / f"{encoding}.lmdb" / "data.mdb"])
    theirs = _build_by_basicsr(chosen, keys, work / "basicsr.lmdb")
    if theirs:
        places["basicsr"] = (theirs, [work / "basicsr.lmdb" / "data.mdb"])
    return places


# --- one measurement ------------------------------------------------------------------------------------------------


class _Timed:
    """A data set whose batches stay in the worker, which sends (seconds, samples, private MB, shared MB) instead."""

    def __init__(self, dataset: PairedVideoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[float, int, float | None, float | None]]:
        began = time.perf_counter()
        samples = self.dataset.__getitems__(indices)
        return [(time.perf_counter() - began, len(samples), *_memory())]


def _worker_rate(
    dataset: PairedVideoDataset, settings: Settings, indices: Iterable[int], row: LoadingRow, seconds: float = math.inf
) -> float:
    """Samples of `indices` that one worker makes per second, within `seconds`; also fills in the row's memory."""
    spent = samples = 0.0
    began = time.perf_counter()
    for ((took, made, row.private, row.shared),) in _loader(_Timed(dataset), settings, indices, collate_fn=list):
        spent, samples = spent + took, samples + made
        if time.perf_counter() - began > seconds:
            break
    return samples / spent


def _measure_loader(dataset: PairedVideoDataset, settings: Settings, indices: Iterable[int], row: LoadingRow) -> None:
    began = time.perf_counter()
    batches = iter(_loader(dataset, settings, indices))
    next(batches)
    row.start.append(time.perf_counter() - began)
    for _ in range(2 * settings.workers):  # batches that were made ahead, before anybody took them
        next(batches)
    began = time.perf_counter()
    for count in itertools.count(1):
        next(batches)
        elapsed = time.perf_counter() - began
        if elapsed > settings.seconds:
            row.loader.append(count * settings.batch_size / elapsed)
            return


def _loader(dataset: Any, settings: Settings, indices: Iterable[int], **keywords: Any) -> DataLoader:
    torch.manual_seed(0)
    sampler: Any = indices  # any iterable works
    return DataLoader(
        dataset, batch_size=settings.batch_size, num_workers=settings.workers, sampler=sampler, **keywords
    )


def _every_frame_once(dataset: PairedVideoDataset, settings: Settings) -> list[int]:
    """Consecutive runs of frames that do not overlap."""
    indices: list[int] = []
    first = 0
    for sequence in dataset.sequences:
        runs = len(sequence.lq) - settings.num_frame + 1
        indices += range(first, first + runs, settings.num_frame)
        first += runs
    return indices[: _COLD_BATCHES * settings.batch_size]


def _endless(dataset: PairedVideoDataset, seed: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(len(dataset)).tolist()


def _forget(files: Iterable[Path]) -> bool:
    """Drop files from the system's cache, if it allows that (Linux)."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _memory() -> tuple[float | None, float | None]:
    """MB of memory that only this process uses, and that it shares: maps of files, and pages from before its fork."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    except OSError:  # not Linux
        return None, None
    megabytes = {name: int(value.split()[0]) / 1024 for name, _, value in (line.partition(":") for line in lines)}
    own = megabytes["Private_Dirty"]
    return own, megabytes["Rss"] - own


def _size(path: Path) -> int:
    return path.stat().st_size


# --- BasicSR's own LMDB ---------------------------------------------------------------------------------------------


class _BasicSRStore(FrameStore):
    """Frames read like in BasicSR's video data sets, whole and one by one."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        lines = (folder / "meta_info.txt").read_text().splitlines()
        entries = (re.fullmatch(r"(.+) \((\d+),(\d+),3\) \d+", line) for line in lines)
        self._shapes = {entry[1]: (int(entry[2]), int(entry[3])) for entry in entries if entry}
        self._client: Any = None

    def keys(self) -> list[str]:
        return sorted(self._shapes)

    def shape(self, key: str) -> tuple[int, int]:
        return self._shapes[key]

    def read(self, key: str) -> np.ndarray:
        from basicsr.utils import FileClient, imfrombytes

        if self._client is None:
            self._client = FileClient("lmdb", db_paths=[str(self.root)], client_keys=["lq"])
        return cv2.cvtColor(imfrombytes(self._client.get(split_key(key)[0], "lq")), cv2.COLOR_BGR2RGB)


def _build_by_basicsr(chosen: Path, keys: list[str], out: Path) -> _BasicSRStore | None:
    try:
        from csd_plugin import compat

        compat.prepare_imports()
        from basicsr.utils.lmdb_util import make_lmdb_from_imgs
    except ModuleNotFoundError:
        logger.warning("BasicSR is not installed, so its own LMDB is left out")
        return None
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        make_lmdb_from_imgs(str(chosen), str(out), keys, [split_key(key)[0] for key in keys])
    return _BasicSRStore(out)


# --- what comes out -------------------------------------------------------------------------------------------------


def loading_table(rows: Sequence[LoadingRow]) -> str:
    """As Markdown."""
    head = ["frames from", "scale", "MB", "first", "x", "warm", "x", "loader", "x", "start s", "private", "shared"]
    lines = []
    for row in rows:
        base = next(other for other in rows if other.scale == row.scale)  # the folder comes first
        rates = [cell for rate, of in zip(_rates(row), _rates(base), strict=True) for cell in _with_ratio(rate, of)]
        memory = ["-" if value is None else f"{value:.0f}" for value in (row.private, row.shared)]
        lines.append(
            [row.frames_from, row.scale, f"{row.size:.1f}", *rates, f"{statistics.median(row.start):.2f}", *memory]
        )
    return markdown(head, lines, text_columns=2)


def _rates(row: LoadingRow) -> tuple[float | None, float, float]:
    return row.first, statistics.median(row.warm), statistics.median(row.loader)


def _with_ratio(rate: float | None, base: float | None) -> tuple[str, str]:
    return ("-", "-") if rate is None or base is None else (f"{rate:.1f}", f"{rate / base:.1f}")
