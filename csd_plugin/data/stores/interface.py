"""The interface of all stores of frames, and what stores of image files share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from csd_plugin.data.images import decode_image
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)


class FrameStore(ABC):
    """Frames by key. Keys are paths relative to the data root, separated by '/'.

    A store can be pickled, and works in forked and spawned loader workers. Threads must not share it.

    Attributes:
        root: the folder that the keys are relative to, for layouts; for an LMDB store, where the source's folder was.
    """

    root: Path

    @abstractmethod
    def keys(self) -> list[str]:
        """The keys of all frames, sorted as strings."""

    @abstractmethod
    def read(self, key: str) -> np.ndarray:
        """The frame, uint8 RGB (H, W, 3); do not write to it. Raises CSDError if it cannot be decoded."""

    @abstractmethod
    def shape(self, key: str) -> tuple[int, int]:
        """(height, width) of the frame; it is decoded only if there is no other way."""

    def read_crop(self, key: str, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A part of the frame, uint8 RGB (height, width, 3); the part must lie inside the frame."""
        return self.read(key)[top : top + height, left : left + width]

    def enter_worker(self, num_workers: int) -> None:
        """Called in each of `num_workers` loader workers before its first frame."""
        del num_workers


class DecodingStore(FrameStore):
    """A store of image files' bytes, wherever they are.

    With `cache_mb`, the most recently used decoded frames are kept, in at most that many MB (2^20 bytes). The workers
    of a loader get equal shares, and keep their frames while they live: without `persistent_workers`, for one epoch.
    """

    remedy = "restore the file"
    """What to do about damaged frames, to end messages with."""

    def __init__(self, cache_mb: float = 0) -> None:
        self._cache = FrameCache(int(cache_mb * 2**20))

    @abstractmethod
    def encoded(self, key: str) -> bytes:
        """The image file's bytes."""

    @abstractmethod
    def where(self, key: str) -> str:
        """The frame's location, to begin messages with."""

    def read(self, key: str) -> np.ndarray:
        frame = self._cache.get(key)
        if frame is None:
            frame = decode_image(self.encoded(key), self.where(key), remedy=self.remedy)
            frame.flags.writeable = False
            self._check_shape(key, frame)
            self._cache.put(key, frame)
        return frame

    def enter_worker(self, num_workers: int) -> None:
        self._cache = FrameCache(self._cache.limit // num_workers)

    def _known_shape(self, key: str, decoded: tuple[int, int]) -> tuple[int, int]:
        """The shape that `shape` gives for a frame, which was decoded to this one."""
        del decoded
        return self.shape(key)

    def _check_shape(self, key: str, frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        known = self._known_shape(key, (height, width))
        if known != (height, width):
            raise CSDError(
                f"{self.where(key)}: {width}x{height} pixels, but its header or an earlier read said "
                f"{known[1]}x{known[0]}: {self.remedy}, then start again"
            )


class FrameCache:
    """The most recently used frames, in at most `limit` bytes. Copies for other processes start empty."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._frames: OrderedDict[str, np.ndarray] = OrderedDict()

    def get(self, key: str) -> np.ndarray | None:
        frame = self._frames.get(key)
        if frame is not None:
            self._frames.move_to_end(key)
        return frame

    def put(self, key: str, frame: np.ndarray) -> None:
        """Keep `frame`, dropping the least recently used ones; a frame larger than the limit is not kept."""
        if frame.nbytes > self.limit or key in self._frames:
            return
        while self.size + frame.nbytes > self.limit:
            self.size -= self._frames.popitem(last=False)[1].nbytes
        self._frames[key] = frame
        self.size += frame.nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "size": 0, "_frames": OrderedDict()}
