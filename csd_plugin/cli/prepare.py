"""Bring NTURain's archives, or any paired clips, into one folder to train on, and on to LMDB.

IN is, in any mix, archives (RAR 4 and 5, ZIP, TAR), video files, and folders of them or of extracted frames. Below OUT
appear NTURain's folders, with the frames' own bytes (those of videos as PNG):
  Dataset_Training_Synthetic/t1_GT, t1_Rain_01 ..    Dataset_Testing_Synthetic/a1_GT, a1_Rain ..
  Dataset_Testing_RealRain/ra1_Rain ..
IN is only read; frames from folders are linked (hard links) where the disk can, else copied. What is there already is
left alone, so an interrupted run is completed by the same command. RAR needs the extra 'archives'.

A clip is a folder, archive or video named NAME_GT, NAME_Rain or NAME_Rain_NN. NTURain's names tell the split; for
others say --split. Data of other kinds is described by --pattern "RAIN GT", how the ends of the paths of rainy and of
clean frames look: {clip} the clip's name, {frame} the frame's, with a number in it, {version} the number of a rainy
version, * anything in one folder's name. Videos are folders of frames here; without GT the clips are real rain.

examples:
  csd prepare downloads/ data/NTURain --jobs 4
  csd prepare downloads/ data/NTURain --lmdb raw --verify        and the store data/NTURain_raw.lmdb
  csd prepare t1_GT.rar t1_Rain_01.rar data/NTURain
  csd prepare data/NTURain data/NTURain --lmdb source            only the store, of what is prepared already
  csd prepare other/ data/other --pattern "rain/{clip}/{frame} gt/{clip}/{frame}"
  csd prepare REDS/ data/REDS --pattern "train_blur/{clip}/{frame} train_sharp/{clip}/{frame}"
  csd prepare flat/ data/flat --pattern "rain/{clip}_{frame} norain/{clip}_{frame}" --split test
  csd prepare many/ data/many --pattern "{clip}/rain{version}/{frame} {clip}/gt/{frame}"
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csd_plugin.cli.flags import jobs
from csd_plugin.data.layout import SPLITS

if TYPE_CHECKING:
    from csd_plugin.data.prepare import Prepared

ENCODINGS = ("source", "png", "raw")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    processes = min(os.cpu_count() or 1, 8)
    parser.add_argument("inputs", metavar="IN", type=Path, nargs="+", help="archives, folders, video files")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder of the data set")
    parser.add_argument("--pattern", metavar="'RAIN GT'", help="where frames of other data sets are, see above")
    parser.add_argument("--split", choices=tuple(SPLITS), help="of clips whose name or folder does not tell it")
    parser.add_argument(
        "--lmdb",
        choices=ENCODINGS,
        help="build the store OUT_ENCODING.lmdb too: of the files' own bytes, as PNG, or of decoded pixels (fastest)",
    )
    parser.add_argument("--verify", action="store_true", help="compare the store, frame for frame, with OUT")
    parser.add_argument("--keep-going", action="store_true", help="leave out what cannot be read in a damaged video")
    parser.add_argument("--jobs", type=jobs, default=processes, metavar="N", help=f"processes (default {processes})")


def run(args: argparse.Namespace) -> int:
    from csd_plugin.data.naming import by_name, by_pattern
    from csd_plugin.data.prepare import prepare
    from csd_plugin.errors import CSDError

    if args.verify and not args.lmdb:
        raise CSDError("--verify: say which store to verify: --lmdb source, png or raw")
    naming = by_pattern(args.pattern, args.split) if args.pattern else by_name(args.split)
    prepared = prepare(args.inputs, args.out, naming, args.jobs, keep_going=args.keep_going)
    problems = _report(prepared, args.out)
    if args.lmdb and not problems:
        problems = _store(args.out, args.lmdb, args.jobs, args.verify)
    elif args.lmdb:
        print("no store was built: mend what failed, and run again", file=sys.stderr)
    return 2 if problems else 0


def _report(prepared: Prepared, out: Path) -> bool:
    """Print what was done; whether something failed."""
    from csd_plugin.data.census import find_clips
    from csd_plugin.data.naming import PUBLISHED
    from csd_plugin.data.stores import open_store

    for split in SPLITS:
        clips = [clip for clip in prepared.clips if clip.split == split]
        if clips:
            print(f"{split:<6}{len(clips):>4} folders: {_first([clip.folder for clip in clips])}")
    print(f"folders written below {out}: {prepared.new} of {len(prepared.clips)}")
    for split, names in prepared.missing.items():
        everything = len(names) == len(PUBLISHED[split])
        print(f"missing of NTURain, {split}: {f'all {len(names)} folders' if everything else _first(names)}")
    for note in prepared.notes:
        print(f"note: {note}")
    if any(out.glob("Dataset_*")):
        for problem in find_clips(open_store(out), out).problems:
            print(f"note: {problem}")
    for error in prepared.failed:
        print(f"csd prepare: error: {error}", file=sys.stderr)
    return bool(prepared.failed)


def _first(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _store(out: Path, encoding: str, jobs: int, verify: bool) -> bool:
    """Build the store, and verify it where asked to; whether it is wrong."""
    from csd_plugin.data.stores.build import build_store
    from csd_plugin.data.stores.verify import verify_store

    store = out.absolute().with_name(f"{out.absolute().name}_{encoding}.lmdb")
    report = build_store(out, store, encoding=encoding, jobs=jobs)
    print(
        f"{store}: {report.frames} frames ({report.new} new), {report.store_bytes / 2**20:.1f} MB, "
        f"{report.store_bytes / max(report.source_bytes, 1):.2f} times the files"
    )
    if not verify:
        return False
    problems = verify_store(store, out, jobs=jobs)
    for problem in problems:
        print(f"csd prepare: error: {store}: {problem}", file=sys.stderr)
    print(f"verified: {len(problems)} problems" if problems else "verified: every frame is as it was")
    return bool(problems)
