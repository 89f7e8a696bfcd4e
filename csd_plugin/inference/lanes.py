"""Threads that compute one frame each, instead of all of them sharing every layer of one frame.

Threads that share a layer wait for the slowest of them at its end, some twenty times per frame; while decoding,
encoding or other programs occupy a processor, each wait lasts as long as they do. On two busy processors that turned
the 13 ms of a network into 50 to 200 ms; frames side by side took 25 ms.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

MOST = 4
"""The most lanes: each holds a frame's activations, and adds one frame of delay."""


class Lanes:
    """Up to `MOST` threads, which share torch's threads evenly. They start with the first work, again in each process.

    A forked process has none of the threads of its parent.

    Args:
        num_threads: the number of torch's threads where the work will be done.

    Attributes:
        count: the most threads.
    """

    def __init__(self, num_threads: int) -> None:
        self.count = min(num_threads, MOST)
        self._starting: dict[int, Future[ThreadPoolExecutor]] = {}

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Run the function in the next free lane."""
        mine: Future[ThreadPoolExecutor] = Future()
        pool = self._starting.setdefault(os.getpid(), mine)  # atomic; a lock might be held by another thread at a fork
        if pool is mine:
            try:
                mine.set_result(_started(self.count))
            except BaseException as error:
                del self._starting[os.getpid()]
                mine.set_exception(error)
                raise
        return pool.result().submit(function, *args)

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count, "_starting": {}}


def there(result: Result) -> Future[Result]:
    """A future for a result that is computed already."""
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def _started(count: int) -> ThreadPoolExecutor:
    """Up to `count` threads, each with its share of torch's threads."""
    num_threads = torch.get_num_threads()
    count = min(count, num_threads)
    pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
    # Torch keeps this number per thread, but new threads get the last one that was set anywhere.
    all_started = threading.Barrier(count)
    for started in [pool.submit(_begin, num_threads // count, all_started) for _ in range(count)]:
        started.result()
    torch.set_num_threads(num_threads)
    return pool


def _begin(num_threads: int, all_started: threading.Barrier) -> None:
    torch.set_num_threads(num_threads)
    torch.get_num_threads()  # a thread takes over the last number set anywhere when it first reads it: now
    all_started.wait()
