"""Many tasks in this process or in several, with a progress bar."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from csd_plugin.errors import CSDError


def run_all(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    jobs: int,
    title: str,
    unit: str,
    weights: Sequence[int] | None = None,
) -> Iterator[tuple[int, Any]]:
    """(index of the task, its result or CSDError), in the order in which they are done, with a progress bar.

    function: called with a task's values and `tick`, which it calls as often as the task's weight says.
    """
    weights = weights or [1] * len(tasks)
    with tqdm(total=sum(weights), desc=title, unit=unit, disable=None, leave=False) as progress:
        if jobs <= 1 or len(tasks) <= 1:
            for index, task in enumerate(tasks):
                yield index, _or_error(function, *task, tick=progress.update)
            return
        ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # what a worker has begun, it may finish
        with ProcessPoolExecutor(min(jobs, len(tasks)), get_context("spawn"), ignore) as pool:
            futures = {pool.submit(_or_error, function, *task, tick=_no_tick): i for i, task in enumerate(tasks)}
            try:
                for future in as_completed(futures):
                    index = futures[future]
                    yield index, future.result()
                    progress.update(weights[index])
            except BrokenProcessPool as error:
                raise CSDError(
                    "a process ended while it read or wrote (no memory, or an archive that breaks its reader): "
                    "run again with --jobs 1 to see which"
                ) from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _or_error(function: Callable[..., Any], *task: Any, tick: Callable[[], object]) -> Any:
    try:
        return function(*task, tick)
    except CSDError as error:
        return error


def _no_tick() -> None:
    pass
