"""Commands whose output is not read to its end (`csd .. | head`) or cannot be written (`csd .. > FILE`).

Also commands whose terminal is closed while they run.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csd_plugin.errors import announce, at, refused_by_disk

STATUS = 141
"""As after SIGPIPE."""
OUTPUT = Path("standard output")
"""The name of standard output in errors."""
_REFUSED = 2


def ending_quietly(command: Callable[[], int]) -> int:
    """Run a command and return its status; `STATUS`, silently, if the reader of standard output has closed it.

    If standard output cannot be written, the status is at least 2, and one line says so unless the command has failed
    with a line of its own.
    """
    outlast_terminal()
    status = 0
    with _named_output() as faults:
        try:
            try:
                status = command()
            finally:
                print(end="", flush=True)  # a closed pipe or full disk is noticed here, not as the interpreter ends
        except BrokenPipeError:
            if not _reader_is_gone():
                raise  # another pipe broke
            _drop_output()
            return STATUS
        except OSError as error:
            if error not in faults:
                raise
        except SystemExit as end:  # from argparse, which ignores errors of printing a help text
            if end.code or not faults:
                raise
    if not faults:
        return status
    _drop_output()
    if status < _REFUSED:
        announce(refused_by_disk(faults[0]))
    return max(status, _REFUSED)


def outlast_terminal() -> None:
    """From now on, writing to a terminal that has been closed is no error: the text is lost and the command goes on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.isatty() and not isinstance(_raw(stream), _Terminal):
            stream.flush()
            raw = _Terminal(stream.fileno(), "w", closefd=False)
            lasting = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)
            setattr(sys, name, lasting)


class _Terminal(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENXIO):
                raise
            return memoryview(data).nbytes


def _raw(stream: io.TextIOWrapper) -> object:
    return getattr(stream.buffer, "raw", None)


@contextmanager
def _named_output() -> Iterator[list[OSError]]:
    """Inside, errors of standard output, other than a closed pipe, carry its name; the list collects them."""
    faults: list[OSError] = []
    stream: Any = sys.stdout
    # stdout is closed, takes no attributes, or is wrapped by another command of this process
    if stream is None or "write" in getattr(stream, "__dict__", "write"):
        yield faults
        return

    def named(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except BrokenPipeError:
                raise
            except OSError as error:
                faults.append(at(OUTPUT, error))
                raise faults[-1] from error

        return call

    stream.write, stream.flush = named(stream.write), named(stream.flush)
    try:
        yield faults
    finally:
        del stream.write, stream.flush


def _drop_output() -> None:
    """Send the rest to nowhere: buffered text would fail again as the interpreter ends."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it stays open until the end


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more; a flush shows it only if something is buffered."""
    try:
        print(end="", flush=True)
        events = select.poll()
        events.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in events.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):  # no poll on Windows; no file behind standard output
        return False
