"""Logs and TensorBoard's files: where they cannot be written, a run goes on without them, and says so once."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from csd_plugin.errors import refused_by_disk


@contextmanager
def optional_records() -> Iterator[None]:
    """Inside, log files that cannot be written are said once, and so is what TensorBoard's thread meets."""
    handle_error, hook = logging.Handler.handleError, threading.excepthook
    told: set[logging.Handler] = set()

    def say_lost_lines(handler: logging.Handler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
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


class Board:
    """A TensorBoard writer, or nothing from the moment on at which it cannot write."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._writer: Any = None
        self._broken = False
        self._attempt(lambda: setattr(self, "_writer", start()))

    def add_scalar(self, *arguments: Any, **keywords: Any) -> None:
        self._attempt(lambda: self._writer.add_scalar(*arguments, **keywords))

    def close(self) -> None:
        self._attempt(lambda: self._writer.close())

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            action()
        except OSError as error:
            self._broken = True
            _tell("tensorboard", error)


def _tell(what: str, error: OSError) -> None:
    """To standard error itself: the log may be what cannot be written."""
    reason = refused_by_disk(error).partition(";")[0] or str(error)
    print(f"warning: {what}: {reason}; the run goes on without it", file=sys.stderr, flush=True)
