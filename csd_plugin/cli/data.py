"""Say what a data set holds, clip by clip, and what is wrong with it.

PATH is a folder in NTURain's layout, another folder of clips, or an LMDB store. Told of every clip: frames, sizes,
mean brightness, what the rain changes against the truth, and the PSNR of the rainy frames; of all of it: whatever the
data sets for training and test refuse or pass over. The exit status is 0 also where there are problems.

examples:
  csd data data/NTURain
  csd data data/NTURain --decode --html report.html        decodes every frame, to find damaged ones
  csd data data/NTURain_raw.lmdb --json facts.json
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs = min(os.cpu_count() or 1, 8)
    parser.add_argument("path", metavar="PATH", type=Path, help="folder or LMDB store")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with thumbnails of every clip")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the facts for programs")
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="frames of a clip to measure (default 16)")
    parser.add_argument("--decode", action="store_true", help="decode all frames, to find damaged ones")
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help=f"processes (default {jobs})")


def run(args: argparse.Namespace) -> None:
    from csd_plugin.atomic import refuse_inputs
    from csd_plugin.data.layout import is_frame_name
    from csd_plugin.errors import CSDError
    from csd_plugin.report.dataset import as_json, as_text, examine
    from csd_plugin.report.dataset_page import as_html

    written = [path for path in (args.html, args.json) if path]
    if len({path.resolve() for path in written}) < len(written):
        raise CSDError(f"--html and --json are both {args.html}: give each a file of its own")
    for path in written:  # an image, or the store, may lie beside what is written
        is_store = args.path.is_file() or (args.path / "data.mdb").exists()
        refuse_inputs([path], [args.path] if is_store else [])
        if path.exists() and is_frame_name(path.name):
            raise CSDError(f"{path} is an image that is there already; give the report another name")
    facts = examine(args.path, args.samples, args.decode, args.jobs)
    print(as_text(facts), end="")
    if args.html:
        _write(args.html, as_html(facts))
    if args.json:
        _write(args.json, as_json(facts))


def _write(path: Path, text: str) -> None:
    from csd_plugin.atomic import write_text
    from csd_plugin.errors import CSDError

    try:
        write_text(path, text)
    except OSError as error:
        raise CSDError(f"{path}: cannot be written ({error.strerror}): give another file") from error
