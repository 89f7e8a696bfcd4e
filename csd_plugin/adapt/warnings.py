"""Warnings about the inputs, each given once: frames are read several times, and their reader warns each time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Once(logging.Filter):
    """Lets a message through the first time. Each handler needs a filter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text in self._said:
            return False
        self._said.add(text)
        return True


@contextmanager
def each_once() -> Iterator[None]:
    """Inside, no line that is logged is shown a second time."""
    # not a filter of a logger: those do not see what its children log
    handlers = [*logging.getLogger().handlers, *([logging.lastResort] if logging.lastResort else [])]
    filters = [(handler, _Once()) for handler in handlers]
    for handler, once in filters:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in filters:
            handler.removeFilter(once)
