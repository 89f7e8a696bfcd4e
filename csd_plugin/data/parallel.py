"""Tasks, each of which may fail alone, in this process or in several, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from csd_plugin.data.workers import Processes
from csd_plugin.errors import CSDError


def run_all(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    jobs: int,
    title: str,
    unit: str,
    weights: Sequence[int] | None = None,
) -> Generator[Any, None, None]:
    """The result of each task, or the CSDError that ended it, in the order of the tasks.

    Args:
        function: called with a task's values and `tick`, which it calls as many times as the task's weight.

    Raises:
        CSDError: a process died.
    """
    weights = weights or [1] * len(tasks)
    with tqdm(total=sum(weights), desc=title, unit=unit, disable=None, leave=False) as progress:
        if jobs <= 1 or len(tasks) <= 1:
            for task in tasks:
                yield _or_error(function, *task, progress.update)
            return
        try:
            with Processes(min(jobs, len(tasks))) as processes:
                results = processes.map(_or_error, [(function, *task, _no_tick) for task in tasks])
                for result, weight in zip(results, weights, strict=True):
                    yield result
                    progress.update(weight)
        except BrokenProcessPool as error:
            raise CSDError(
                "a process ended while reading or writing (out of memory, or a file that crashes its reader): "
                "run again with --jobs 1 to see which one"
            ) from error


def _or_error(function: Callable[..., Any], *task: Any) -> Any:
    try:
        return function(*task)
    except CSDError as error:
        return error


def _no_tick() -> None:
    pass
