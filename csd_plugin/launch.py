"""What `csd_plugin.train` and `csd_plugin.test` share: the toolbox's pipeline, with mistakes reported in one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from csd_plugin import compat, peers, registration
from csd_plugin.activation import output_of, parse_checked
from csd_plugin.errors import CSDError, lost_loader, odd_name, users_line
from csd_plugin.inference.memory import keep_freed_memory
from csd_plugin.lifeline import end_with_starter
from csd_plugin.locks import alone
from csd_plugin.options.problems import FILE_ERRORS, reading_error
from csd_plugin.records import optional_records
from csd_plugin.stopping import REQUEST, Stopped
from csd_plugin.unread import ending_quietly


def run(pipeline: Callable[[str], None], module: ModuleType, began: float | None = None) -> int:
    """Run the toolbox's pipeline in the current folder, options checked before anything is written.

    Args:
        pipeline: `train_pipeline` or `test_pipeline`.
        module: where the pipeline looks `parse_options` up.
        began: when the run began, by `time.monotonic()`, if that was before its model was built.

    Returns:
        The exit status: 0; 2 after one line on stderr; 130 when interrupted; 128 + the signal's number for a training
        that a signal has stopped.
    """
    end_with_starter()
    keep_freed_memory()
    locks = ExitStack()
    locks.push(peers.report)
    parse_options = module.parse_options
    plain = getattr(parse_options, "__wrapped__", parse_options)  # `activate` may have been there before

    def parse_and_check(root_path: str, is_train: bool = True) -> Any:
        for name in (root_path, *sys.argv):
            _check_name(name)
        registration.extend()
        parsed = parse_checked(plain, root_path, is_train)
        locks.enter_context(alone(output_of(parsed[0])))
        if parsed[0].get("train", {}).get("max_seconds"):
            parsed[0]["began"] = began
        return parsed

    module.parse_options = parse_and_check  # type: ignore[attr-defined]
    try:
        with locks, optional_records():
            return ending_quietly(lambda: _run(pipeline))
    finally:
        module.parse_options = parse_options  # type: ignore[attr-defined]


def _check_name(name: str) -> None:
    """Raise CSDError for a name that the toolbox, TensorBoard and others could not write into their files."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise CSDError(odd_name(error)) from error


def _run(pipeline: Callable[[str], None]) -> int:
    trains = pipeline.__name__ == "train_pipeline"
    try:
        listening = REQUEST.listening() if trains else nullcontext()
        with compat.named_downloads(), listening, peers.explained():
            pipeline(str(Path.cwd()))
    except BrokenPipeError:
        raise
    except (CSDError, *FILE_ERRORS, OSError) as error:
        return _fail(_of_loader(error, trains) or reading_error(error))
    except (MemoryError, RuntimeError) as error:
        if not users_line(error):
            raise
        return _fail(_of_loader(error, trains) or users_line(error))
    except Stopped as stopped:
        return peers.stopped(stopped)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


def _of_loader(error: Exception, trains: bool) -> str:
    """The message if a loader process has ended; empty for other errors."""
    line = lost_loader(error)
    if line:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise it again, anywhere
    return f"{line}; --auto_resume continues the training" if line and trains else line


def _fail(message: str, status: int = 2) -> int:
    peers.fail(message)
    return status
