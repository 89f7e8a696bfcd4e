"""Report what a data set holds, clip by clip, and any problems.

PATH is a folder in NTURain's layout, another folder of clips, or an LMDB store. For every clip, the report shows its
frames, their size and mean brightness, how the rain differs from the truth, and the PSNR of the rainy frames. Then it
lists what training and testing would refuse or skip. The exit status is 0 even if there are problems.

examples:
  csd data data/NTURain
  csd data data/NTURain --decode --html report.html        decodes every frame, to find damaged ones
  csd data data/NTURain_raw.lmdb --json facts.json
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from csd_plugin.cli.flags import jobs, path_given, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    processes = min(os.cpu_count() or 1, 8)
    parser.add_argument("path", metavar="PATH", type=path_given, help="folder or LMDB store")
    parser.add_argument(
        "--html", type=path_given, metavar="FILE", help="write a web page with thumbnails of every clip"
    )
    parser.add_argument("--json", type=path_given, metavar="FILE", help="write the report in machine-readable form")
    parser.add_argument(
        "--samples", type=whole(1), default=16, metavar="N", help="frames to measure per clip (default 16)"
    )
    parser.add_argument("--decode", action="store_true", help="decode every frame, to find damaged ones")
    parser.add_argument("--jobs", type=jobs, default=processes, metavar="N", help=f"processes (default {processes})")


def run(args: argparse.Namespace) -> None:
    from csd_plugin.atomic import refuse_inputs, refuse_strangers, refuse_unwritable
    from csd_plugin.errors import CSDError
    from csd_plugin.report import dataset, dataset_page

    written = [path for path in (args.html, args.json) if path]
    if len({path.resolve() for path in written}) < len(written):
        raise CSDError(f"--html and --json are both {args.html}: give two different files")
    signs = {args.html: dataset_page.SIGN, args.json: dataset.SIGN}
    for path in written:  # an image or the store may be in the folder of the output
        is_store = args.path.is_file() or (args.path / "data.mdb").exists()
        refuse_inputs([path], [args.path] if is_store else [])
        refuse_strangers(path, signs[path])
        if not path.parent.is_dir():
            raise CSDError(f"{path}: the folder {path.parent} does not exist; make it first")
        refuse_unwritable(path)
    facts = dataset.examine(args.path, args.samples, args.decode, args.jobs)
    print(dataset.as_text(facts), end="")
    if args.html:
        _write(args.html, dataset_page.as_html(facts))
    if args.json:
        _write(args.json, dataset.as_json(facts))


def _write(path: Path, text: str) -> None:
    from csd_plugin.atomic import write_text
    from csd_plugin.errors import cannot_write

    try:
        write_text(path, text)
    except OSError as error:
        raise cannot_write(path, error) from error
