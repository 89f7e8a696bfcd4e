"""Commands whose output nobody reads to its end, `csd .. | head`, or cannot be written, `csd .. > FILE`.

And those whose terminal is closed while they work.
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
"""Its name in errors."""
_REFUSED = 2


def ending_quietly(command: Callable[[], int]) -> int:
    """The command's status; `STATUS`, silently, where the reader of standard output has closed it.

    Where standard output cannot be written, at least 2, after a line; a command that has failed has given its own.
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
        except SystemExit as end:  # of argparse, which drops the errors of a help text
            if end.code or not faults:
                raise
    if not faults:
        return status
    _drop_output()
    if status < _REFUSED:
        announce(refused_by_disk(faults[0]))
    return max(status, _REFUSED)


def outlast_terminal() -> None:
    """From now on, what is said to a terminal that has been closed is lost, and nothing else: writing is no error."""
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
    """Inside, errors of standard output bear its name, but for those of a closed pipe; they are also in the list."""
    faults: list[OSError] = []
    stream: Any = sys.stdout
    # closed; one that takes no attributes; or another command of this process names them
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
    """What is buffered would fail again at the end."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it stays open until the end


def _reader_is_gone() -> bool:
    """Whether nobody reads standard output any more, which need not hold anything that a flush would show it by."""
    try:
        print(end="", flush=True)
        events = select.poll()
        events.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in events.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):  # no poll on Windows; no file behind standard output
        return False
