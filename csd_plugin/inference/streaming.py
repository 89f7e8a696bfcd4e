"""Streams of windows from single frames, and work done ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from csd_plugin.data.windows import reflect_indices

Item = TypeVar("Item")


class WindowStream(Generic[Item]):
    """Centred windows of `num_frame` items, reflected at the ends of the clip like `reflect_indices`.

    The windows are those of the whole clip, but each is returned as soon as its last item is there, and no more items
    are kept than a window holds.

    Args:
        together: return this number of neighbouring windows as one, which holds the items they cover: `together` +
            num_frame - 1, fewer at the end of the clip.
        num_future: items after the centre that are used, by default num_frame // 2. Windows end with the last of them,
            so with 0 each is complete with its centre; at the clip's start, only items up to that one are reflected.
    """

    def __init__(self, num_frame: int, together: int = 1, num_future: int | None = None) -> None:
        self._num_frame, self._together = num_frame, together
        self._num_future = num_frame // 2 if num_future is None else num_future
        self._num_seen = num_frame // 2 + 1 + self._num_future
        self._items: deque[Item] = deque(maxlen=self._num_seen + together - 1)
        self._pushed = 0
        self._given = 0

    def push(self, item: Item) -> list[list[Item]]:
        """The windows that this item completes: zero or one."""
        self._items.append(item)
        self._pushed += 1
        ready = self._pushed - self._num_future - self._given
        return self._windows(self._given + self._together) if ready == self._together else []

    def flush(self) -> list[list[Item]]:
        """End the clip: return its last windows. The stream is then ready for another clip."""
        windows = self._windows(self._pushed)
        self._items.clear()
        self._pushed = self._given = 0
        return windows

    def _windows(self, until: int) -> list[list[Item]]:
        """Windows of the centres up to `until`; reflection for these must not need items that were dropped."""
        first = self._pushed - len(self._items)
        windows = []
        while self._given < until:
            centers = range(self._given, min(self._given + self._together, until))
            around = [self._around(center) for center in centers]
            indices = around[0] + [window[-1] for window in around[1:]]
            windows.append([self._items[index - first] for index in indices])
            self._given = centers.stop
        return windows

    def _around(self, center: int) -> list[int]:
        there = min(self._pushed, center + 1 + self._num_future)
        return reflect_indices(center, self._num_frame, there)[: self._num_seen]


def ahead(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """The same items, produced in a separate thread up to `depth` before they are taken.

    An error in producing an item is raised in its place.
    """
    end = object()
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1) as worker:
        pending: deque[Future[Any]] = deque(worker.submit(next, iterator, end) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(worker.submit(next, iterator, end))
                yield item
        finally:
            for future in pending:
                future.cancel()
