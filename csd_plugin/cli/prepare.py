"""Convert NTURain's archives, or any paired clips, to one folder to train on, and to an LMDB store.

IN is any mix of archives (RAR 4 and 5, ZIP, TAR), video files, and folders of them or of extracted frames. NTURain's
folders are made in OUT. Frames keep their bytes; those of videos become PNG files:
  Dataset_Training_Synthetic/t1_GT, t1_Rain_01 ..    Dataset_Testing_Synthetic/a1_GT, a1_Rain ..
  Dataset_Testing_RealRain/ra1_Rain ..
IN is only read. Frames from folders are hard-linked if the disk can do that, else copied. Clips that exist already are
kept, so the same command completes an interrupted run. RAR files need the extra 'archives'.

A clip is a folder, archive or video named NAME_GT, NAME_Rain or NAME_Rain_NN. The split of NTURain's own clips is known
by their names; for others give --split. For other layouts, --pattern "RAIN GT" describes how the paths of rainy and of
clean frames end: {clip} is the clip's name, {frame} the frame's, with a number in it, {version} the number of a rainy
version, * anything within one folder's name. A video counts as a folder of frames. Without GT, clips are real rain.

examples:
  csd prepare downloads/ data/NTURain --jobs 4
  csd prepare downloads/ data/NTURain --lmdb raw --verify        and the store data/NTURain_raw.lmdb
  csd prepare t1_GT.rar t1_Rain_01.rar data/NTURain
  csd prepare data/NTURain data/NTURain --lmdb source            only the store, from a prepared folder
  csd prepare data/NTURain data/NTURain --lmdb png --for basicsr   stores for BasicSR's own data sets
  csd prepare other/ data/other --pattern "rain/{clip}/{frame} gt/{clip}/{frame}"
  csd prepare REDS/ data/REDS --pattern "train_blur/{clip}/{frame} train_sharp/{clip}/{frame}"
  csd prepare flat/ data/flat --pattern "rain/{clip}_{frame} norain/{clip}_{frame}" --split test
  csd prepare many/ data/many --pattern "{clip}/rain{version}/{frame} {clip}/gt/{frame}"
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csd_plugin.cli.flags import jobs, path_given
from csd_plugin.data.layout import SPLITS

if TYPE_CHECKING:
    from csd_plugin.data.prepare import Prepared
    from csd_plugin.data.stores.build import BuildReport
    from csd_plugin.data.stores.verify import Problem

ENCODINGS = ("source", "png", "raw")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    processes = min(os.cpu_count() or 1, 8)
    parser.add_argument("inputs", metavar="IN", type=path_given, nargs="+", help="archives, folders, video files")
    parser.add_argument("out", metavar="OUT", type=path_given, help="the folder of the data set")
    parser.add_argument("--pattern", metavar="'RAIN GT'", help="where the frames of other data sets are, see above")
    parser.add_argument("--split", choices=tuple(SPLITS), help="split of clips whose name or folder does not show it")
    parser.add_argument(
        "--lmdb",
        choices=ENCODINGS,
        help="also build the store OUT_ENCODING.lmdb, of the files' own bytes, of PNG files, or of decoded pixels "
        "(raw, the fastest to read)",
    )
    parser.add_argument(
        "--for",
        dest="reader",
        choices=("csd", "basicsr"),
        default="csd",
        help="which data sets read the store: ours (csd, the default), or BasicSR's own (basicsr): then each split is "
        "two stores, OUT_SPLIT_lq.lmdb and OUT_SPLIT_gt.lmdb, and a list of its clips",
    )
    parser.add_argument("--verify", action="store_true", help="compare every frame of the store with OUT")
    parser.add_argument("--keep-going", action="store_true", help="skip what cannot be read in a damaged video")
    parser.add_argument("--jobs", type=jobs, default=processes, metavar="N", help=f"processes (default {processes})")


def outputs(args: argparse.Namespace) -> list[Path]:
    return [args.out]


def run(args: argparse.Namespace) -> int:
    from csd_plugin.data.naming import by_name, by_pattern
    from csd_plugin.data.prepare import prepare
    from csd_plugin.errors import CSDError

    if args.verify and not args.lmdb:
        raise CSDError("--verify: say which store to verify: --lmdb source, png or raw")
    if args.reader == "basicsr" and args.lmdb in (None, "raw"):
        raise CSDError("--for basicsr: BasicSR reads stores of image files: give --lmdb source or png")
    naming = by_pattern(args.pattern, args.split) if args.pattern else by_name(args.split)
    prepared = prepare(args.inputs, args.out, naming, args.jobs, keep_going=args.keep_going)
    problems = _report(prepared, args.out)
    if args.lmdb and not problems:
        build = _stores_for_basicsr if args.reader == "basicsr" else _store
        problems = build(args.out, args.lmdb, args.jobs, args.verify)
    elif args.lmdb:
        print("no store was built: fix what failed, and run again", file=sys.stderr)
    return 2 if problems else 0


def _report(prepared: Prepared, out: Path) -> bool:
    """Print what was done; return whether anything failed."""
    from csd_plugin.data.census import take_census
    from csd_plugin.data.naming import PUBLISHED
    from csd_plugin.data.stores import open_store

    for split in SPLITS:
        clips = [clip for clip in prepared.clips if clip.split == split]
        if clips:
            print(f"{split:<6}{len(clips):>4} folders: {_first([clip.folder for clip in clips])}")
    if prepared.clips:
        there = "" if prepared.failed or prepared.new == len(prepared.clips) else "; the others are there already"
        print(f"folders written below {out}: {prepared.new} of {len(prepared.clips)}{there}")
    for split, names in prepared.missing.items():
        everything = len(names) == len(PUBLISHED[split])
        print(f"missing of NTURain, {split}: {f'all {len(names)} folders' if everything else _first(names)}")
    for note in prepared.notes:
        print(f"note: {note}")
    if any(out.glob("Dataset_*")):
        for problem in take_census(open_store(out), out).problems:
            print(f"note: {problem}")
    for error in prepared.failed:
        print(f"csd prepare: error: {error}", file=sys.stderr)
    return bool(prepared.failed)


def _first(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and the number of the others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _store(out: Path, encoding: str, jobs: int, verify: bool) -> bool:
    """Build the store, and verify it if asked to; return whether it has problems."""
    from csd_plugin.data.stores.build import build_store
    from csd_plugin.data.stores.verify import verify_store

    store = out.absolute().with_name(f"{out.absolute().name}_{encoding}.lmdb")
    _print_built(store, build_store(out, store, encoding=encoding, jobs=jobs))
    return _verdict({store: verify_store(store, out, jobs=jobs)}) if verify else False


def _stores_for_basicsr(out: Path, encoding: str, jobs: int, verify: bool) -> bool:
    """The same, as pairs of stores that BasicSR's own data sets read."""
    from csd_plugin.data.toolbox import build_for_toolbox

    problems = False
    for built in build_for_toolbox(out, encoding, jobs):
        for side, store in built.stores.items():
            _print_built(store, built.reports[side])
        print(f"{built.meta_info}: {len(built.arranged.clips)} clips, for meta_info_file")
        for note in built.arranged.notes():
            print(f"note: {note}")
        if verify:
            problems |= _verdict(built.verify(out, jobs))
    return problems


def _print_built(store: Path, report: BuildReport) -> None:
    print(
        f"{store}: {report.frames} frames ({report.new} new), {report.store_bytes / 2**20:.1f} MB, "
        f"{report.store_bytes / max(report.source_bytes, 1):.2f} times the files"
    )


def _verdict(found: Mapping[Path, Sequence[Problem]]) -> bool:
    """Print the problems of each store; return whether there are any."""
    for store, problems in found.items():
        for problem in problems:
            print(f"csd prepare: error: {store}: {problem}", file=sys.stderr)
    total = sum(map(len, found.values()))
    print(f"verified: {total} problems" if total else "verified: every frame is identical")
    return total > 0
