"""A data set as BasicSR's own data sets need it: two LMDB stores, rain and truth, with equal keys.

    OUT_train_lq.lmdb, OUT_train_gt.lmdb   t1_Rain_01/00000000, ..: frames are numbered from 0 in every clip
    OUT_train_meta_info.txt                `t1_Rain_01 116 (480,640,3)`: the clips, for `meta_info_file`

REDSDataset and REDSRecurrentDataset read frames 0 to 99 of a clip, PairedImageDataset reads all frames. If every clip
has seven frames, they are named as Vimeo90KDataset expects: t1_Rain_01/0001/im1 to im7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from csd_plugin.atomic import write_text
from csd_plugin.data.layout import SPLITS, find_sequences
from csd_plugin.data.stores.build import BuildReport, build_store
from csd_plugin.data.stores.folder import FolderStore
from csd_plugin.data.stores.verify import Problem, verify_store
from csd_plugin.errors import CSDError

ENCODINGS = ("source", "png")
_SEPTUPLET = 7
"""Frames of a clip of Vimeo-90K."""
_REDS = 100
"""Frames of a clip of REDS; the number is fixed in the toolbox's code."""
_READ_BY_REDS = "REDSDataset, REDSRecurrentDataset"
_READ_BY_VIMEO = "Vimeo90KDataset, Vimeo90KRecurrentDataset"


@dataclass(frozen=True)
class Arranged:
    """One split, arranged for the toolbox.

    Attributes:
        split: `train` or `test`.
        lq, gt: key in the store -> file below the data set; both have the same keys.
        clips: lines of meta_info_file.
        septuplets: whether all clips have the seven frames that Vimeo90KDataset reads.
        left_out: clips without truth.
        short: clips that are too short for REDSDataset.
    """

    split: str
    lq: Mapping[str, str]
    gt: Mapping[str, str]
    clips: list[str]
    septuplets: bool
    left_out: list[str]
    short: list[str]

    def notes(self) -> list[str]:
        """What the toolbox's data sets will and will not read, as lines."""
        lines = []
        if self.left_out:
            lines.append(f"{self.split}: clips without truth are left out: {', '.join(self.left_out)}")
        if self.septuplets:
            lines.append(f"{self.split}: for {_READ_BY_VIMEO}, PairedImageDataset; {_READ_BY_REDS} read longer clips")
            return lines
        lines.append(
            f"{self.split}: for {_READ_BY_REDS} (frames 0 to {_REDS - 1} of each clip), PairedImageDataset (all); "
            f"{_READ_BY_VIMEO} read clips of {_SEPTUPLET} frames"
        )
        if self.short:
            lines.append(
                f"{self.split}: clips of fewer than {_REDS} frames are not in its meta_info_file, as {_READ_BY_REDS} "
                f"cannot read them: {', '.join(self.short)}"
            )
        return lines


def arrange(root: Path) -> list[Arranged]:
    """The splits of a data set in NTURain's layout that have truth. Raises CSDError."""
    folder = FolderStore(root)
    keys = folder.keys()
    splits = [split for split in ("train", "test") if any(f"{SPLITS[split]}/" in f"{key}/" for key in keys)]
    arranged = [_arrange(folder, keys, split) for split in splits]
    arranged = [each for each in arranged if each.lq]
    if not arranged:
        raise CSDError(f"{root}: no clip has clean frames, which BasicSR's data sets need: give a data set of pairs")
    return arranged


def _arrange(folder: FolderStore, keys: list[str], split: str) -> Arranged:
    sequences = find_sequences(keys, split, root=folder.root)
    paired = [sequence for sequence in sequences if sequence.gt is not None]
    septuplets = all(len(sequence.lq) == _SEPTUPLET for sequence in paired)
    lq: dict[str, str] = {}
    gt: dict[str, str] = {}
    clips, short = [], []
    for sequence in paired:
        name, count = sequence.name, len(sequence.lq)
        _check_name(name, folder.root)
        prefix = f"{name}/0001" if septuplets else name
        names = [f"{prefix}/im{i + 1}" if septuplets else f"{prefix}/{i:08d}" for i in range(count)]
        lq |= zip(names, sequence.lq, strict=True)
        gt |= zip(names, sequence.gt or (), strict=True)
        if septuplets or count >= _REDS:
            height, width = folder.shape(sequence.lq[0])
            clips.append(f"{prefix} {count} ({height},{width},3)")
        else:
            short.append(name)
    left_out = [sequence.name for sequence in sequences if sequence.gt is None]
    return Arranged(split, lq, gt, clips, septuplets, left_out, short)


def _check_name(name: str, root: Path) -> None:
    """Raise CSDError unless the toolbox can read it: it ends keys at the first dot, splits at spaces, writes ASCII."""
    if not re.fullmatch(r"[!-~]+", name) or any(character in name for character in "./"):
        raise CSDError(f"{root}: BasicSR cannot read the clip {name!r}: rename it, without dots, spaces and accents")


@dataclass(frozen=True)
class ToolboxStores:
    """The files of a split: the stores of lq and gt, and the list for `meta_info_file`."""

    arranged: Arranged
    stores: dict[str, Path]
    reports: dict[str, BuildReport]
    meta_info: Path

    def verify(self, root: Path, jobs: int) -> dict[Path, list[Problem]]:
        """Compare every frame with its file below `root`; the problems of each store."""
        sides = {"lq": self.arranged.lq, "gt": self.arranged.gt}
        return {path: verify_store(path, root, jobs, sides[side]) for side, path in self.stores.items()}


def build_for_toolbox(root: Path, encoding: str = "source", jobs: int = 1) -> list[ToolboxStores]:
    """Build the stores of every split next to `root`; existing ones that are the same stay. Raises CSDError."""
    if encoding not in ENCODINGS:
        raise CSDError(f"encoding {encoding!r}: BasicSR reads image files: give one of {', '.join(ENCODINGS)}")
    built = []
    for arranged in arrange(root):
        base = root.absolute().with_name(f"{root.absolute().name}_{arranged.split}")
        stores, reports = {}, {}
        for side, frames in (("lq", arranged.lq), ("gt", arranged.gt)):
            stores[side] = base.with_name(f"{base.name}_{side}.lmdb")
            reports[side] = build_store(root, stores[side], encoding, jobs, frames)
        meta_info = base.with_name(f"{base.name}_meta_info.txt")
        write_text(meta_info, "".join(f"{line}\n" for line in arranged.clips))
        built.append(ToolboxStores(arranged, stores, reports, meta_info))
    return built
