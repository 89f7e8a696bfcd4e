"""Threads that each compute frames of their own, in place of all of them together on every layer of one frame.

Threads that share a layer wait for the slowest of them at its end, some twenty times for each frame, and where
decoding, encoding or other programs take a processor meanwhile, each wait lasts as long as those have it. On two busy
processors that made 50 to 200 ms of a network's 13; frames side by side took 25.
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
"""Lanes at most: each holds a frame's activations, and adds one frame of delay."""


class Lanes:
    """Up to `MOST` threads, which share torch's evenly. They start with the first work, in each process anew.

    A process that is forked has none of the threads of its parent.

    Args:
        num_threads: of torch's, where the work is expected to be done.

    Attributes:
        count: how many there are, at most.
    """

    def __init__(self, num_threads: int) -> None:
        self.count = min(num_threads, MOST)
        self._starting: dict[int, Future[ThreadPoolExecutor]] = {}

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Compute it in the next lane that is free."""
        mine: Future[ThreadPoolExecutor] = Future()
        pool = self._starting.setdefault(os.getpid(), mine)  # atomic: a lock may be held by another thread at a fork
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
    """What is computed already, for those who wait for it."""
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def _started(count: int) -> ThreadPoolExecutor:
    """Up to `count` threads that have their part of the threads that torch has here."""
    num_threads = torch.get_num_threads()
    count = min(count, num_threads)
    pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
    # torch's number is each thread's own, but the last one set is that of threads to come.
    all_started = threading.Barrier(count)
    for started in [pool.submit(_begin, num_threads // count, all_started) for _ in range(count)]:
        started.result()
    torch.set_num_threads(num_threads)
    return pool


def _begin(num_threads: int, all_started: threading.Barrier) -> None:
    torch.set_num_threads(num_threads)
    torch.get_num_threads()  # a thread takes the last number that was set anywhere when it first needs one: now
    all_started.wait()
