"""Processes that share the work on many frames."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import Lock, connection, get_context, parent_process
from typing import Any, TypeVar

from csd_plugin.errors import CSDError
from csd_plugin.lifeline import ignore_hangups

T = TypeVar("T")

_AHEAD = 4
"""Tasks per process, waiting or running: enough to keep all busy, few enough to hold their results in memory."""


def check_shared_memory(cure: str) -> None:
    """Raise CSDError, with advice, if processes cannot share memory on this machine.

    Args:
        cure: another way out, for the message.
    """
    try:
        Lock()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        place = "the shared memory of this machine" + (" (/dev/shm)" if sys.platform == "linux" else "")
        raise CSDError(f"{place} cannot be used ({error.strerror or error}); make it usable, or {cure}") from error


class Processes:
    """`jobs` spawned processes that run functions, as a context manager.

    They end when the caller ends, however it ends. Raises CSDError if this machine has no shared memory.
    """

    def __init__(self, jobs: int) -> None:
        check_shared_memory("use --jobs 1")
        self.jobs = jobs
        self._pool = ProcessPoolExecutor(jobs, get_context("spawn"), _prepare_worker)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """`function(*task)` for all tasks, in their order, with only a few in memory at a time.

        Raises what `function` raises, and BrokenProcessPool if a process dies.
        """
        waiting: deque[Future[T]] = deque()
        remaining = iter(tasks)
        waiting.extend(self._pool.submit(function, *task) for task in islice(remaining, _AHEAD * self.jobs))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(self._pool.submit(function, *task) for task in islice(remaining, 1))


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles it, like the end of a terminal
    ignore_hangups()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
