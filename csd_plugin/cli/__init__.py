"""`csd <job>`: one file per job, imported only when it is called.

A job's module holds `add_arguments(parser)` and `run(args) -> int | None`; its docstring is the help text. It may also
hold `interrupted(args) -> str`, which says what to do after Ctrl-C, and `outputs(args) -> list[Path]`: paths that no
other command may write to at the same time.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from csd_plugin import __version__
from csd_plugin.errors import CSDError, suggestion, users_line
from csd_plugin.extras import needed_by
from csd_plugin.lifeline import ending, endings_interrupt
from csd_plugin.locks import alone
from csd_plugin.unread import ending_quietly
from csd_plugin.versions import check_versions

JOBS = {
    "prepare": "convert archives, folders or videos to the data set's layout, and to LMDB",
    "data": "report what a data set holds, and any problems",
    "rain": "add rendered rain to clean clips",
    "derain": "remove rain from a video or a folder of frames",
    "adapt": "fit a small network to a camera, without clean frames",
    "models": "list the networks: size, speed and scores of those shipped, presets to train",
    "inspect": "dry-run an option file: networks, layers, windows, memory, warnings",
    "score": "score a folder of results against the truth",
    "table": "train and test the rows of a results table, and write it",
    "figure": "draw pictures for papers: crops, error maps, features, slices through time, videos",
    "reproduce": "retrain the shipped networks, or train your own the same way, from clean clips",
    "export": "write a network as ONNX, OpenVINO or torch.export",
    "link": "register our models in BasicSR or Real-ESRGAN without changing its train.py",
    "bench": "measure inference, training and data loading on this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job and return its exit status.

    0 on success; 2, with one line on stderr, where the user has to fix something or the output cannot be written;
    130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP. 141, as after SIGPIPE, and silently, where the reader of the
    output has closed it: `csd .. | head`.
    """
    try:
        return ending_quietly(lambda: _run_job(argv))
    except KeyboardInterrupt:  # before the job runs: its imports alone take seconds
        print("csd: interrupted", file=sys.stderr)
        return 130


def _run_job(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if sys.stderr is None:  # closed: progress bars need one, and `print` would put its lines among raw frames
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it stays open until the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may have what a terminal cannot show
    overview = _Parser(
        prog="csd",
        description="Video deraining and distillation of video restoration networks.",
        epilog="jobs:\n"
        + "\n".join(f"  {name:<10}{text}" for name, text in JOBS.items())
        + "\n\n`csd JOB --help` explains each, with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    overview.add_argument("--version", action="version", version=f"csd {__version__}")
    overview.add_argument("job", type=_job, metavar="JOB")
    if not argv:
        overview.print_help(sys.stderr)
        return 2
    job = overview.parse_args(argv[:1]).job
    try:
        check_versions(f"csd {job}")
        with needed_by(f"csd {job}"):
            module = importlib.import_module(f"csd_plugin.cli.{job}")
    except CSDError as error:
        return _fail(job, str(error))

    parser = _Parser(
        prog=f"csd {job}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    try:
        args = parser.parse_args(argv[1:])
    except SystemExit as ended:
        if ended.code and (name := _dashed_name(argv[1:])):
            print(f"csd {job}: {name} was read as a flag: for a file of that name, write ./{name}", file=sys.stderr)
        raise
    try:
        with needed_by(f"csd {job}"), endings_interrupt(), ExitStack() as locks:
            for output in module.outputs(args) if hasattr(module, "outputs") else ():
                locks.enter_context(alone(output))
            return module.run(args) or 0
    except (CSDError, OSError, MemoryError, RuntimeError, UnicodeEncodeError) as error:
        if not users_line(error):
            raise
        return _fail(job, users_line(error))
    except KeyboardInterrupt as interrupt:
        where = f" in {interrupt}" if str(interrupt) else ""
        hint = f"; {module.interrupted(args)}" if hasattr(module, "interrupted") else ""
        number, how = ending(interrupt)
        print(f"csd {job}: {how}{where}{hint}", file=sys.stderr)
        return 128 + number


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong: argparse would print all flags before it."""

    def error(self, message: str) -> NoReturn:
        link = " " if message.endswith("?") else "; "
        self.exit(2, f"{self.prog}: error: {message}{link}see {self.prog} --help\n")


def _dashed_name(argv: Sequence[str]) -> str:
    """The first argument that begins with a dash, but is or looks like a file's name; empty if there is none."""
    dashed = (word for word in argv if word.startswith("-") and "=" not in word)
    return next((word for word in dashed if re.search(r"\.[A-Za-z]\w*$", word) or Path(word).is_file()), "")


def _job(name: str) -> str:
    if name not in JOBS:
        raise argparse.ArgumentTypeError(f"{name!r} is unknown{suggestion(name, JOBS)}")
    return name


def _fail(job: str, problem: str) -> int:
    print(f"csd {job}: error: {problem}", file=sys.stderr)
    return 2
