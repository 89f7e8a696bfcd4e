"""Logs and TensorBoard files: if they cannot be written, a run continues without them, and says so once."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from csd_plugin.errors import refused_by_disk


@contextmanager
def optional_records() -> Iterator[None]:
    """Inside, a log file or a TensorBoard file that cannot be written causes one warning and no traceback.

    Bytes of file names that are not valid UTF-8 are written as \\udcff.
    """
    handle_error, hook = logging.Handler.handleError, threading.excepthook
    told: set[logging.Handler] = set()

    def say_lost_lines(handler: logging.Handler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, UnicodeEncodeError) and isinstance(handler, logging.StreamHandler):
            stream = handler.stream
            if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")
                handler.emit(record)
                return
        if isinstance(handler, logging.FileHandler) and isinstance(error, OSError) and handler not in told:
            told.add(handler)
            _tell(handler.baseFilename, error)

    def say_or_pass_on(arguments: Any) -> None:
        if not (isinstance(arguments.exc_value, OSError) and refused_by_disk(arguments.exc_value)):
            hook(arguments)

    logging.Handler.handleError = say_lost_lines  # type: ignore[assignment, method-assign]
    threading.excepthook = say_or_pass_on
    try:
        yield
    finally:
        logging.Handler.handleError = handle_error  # type: ignore[method-assign]
        threading.excepthook = hook


class _Optional:
    """An output that is dropped, with a warning, after its first write error."""

    def __init__(self, what: object) -> None:
        self._what = what
        self._broken = False

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            action()
        except OSError as error:
            self._broken = True
            _tell(str(self._what), error)


class Board(_Optional):
    """A TensorBoard writer that stops writing after its first write error."""

    def __init__(self, start: Callable[[], Any]) -> None:
        super().__init__("tensorboard")
        self._writer: Any = None
        self._attempt(lambda: setattr(self, "_writer", start()))

    def add_scalar(self, *arguments: Any, **keywords: Any) -> None:
        self._attempt(lambda: self._writer.add_scalar(*arguments, **keywords))

    def close(self) -> None:
        self._attempt(lambda: self._writer.close())


class Log(_Optional):
    """A file that lines are appended to, until a write fails; from then on lines are dropped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file: TextIO | None = None
        self._attempt(partial(self._open, path))

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def write(self, line: str) -> None:
        if self._file is not None:
            self._attempt(partial(self._file.write, line))

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # the buffered lines do not fit on a full disk
                self._file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tell(what: str, error: OSError) -> None:
    """Warn on standard error itself, as it may be the log that cannot be written."""
    if str(error.filename) == what:
        error = OSError(error.errno, error.strerror)  # the line already begins with the name
    reason = refused_by_disk(error).partition(";")[0] or str(error)
    print(f"warning: {what}: {reason}; the run goes on without it", file=sys.stderr, flush=True)
