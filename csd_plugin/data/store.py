"""Where frames come from: one interface, and folders of image files behind it; `lmdb_store` has the other kind."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from csd_plugin.data.layout import is_clip_name, is_frame_name
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)

# The deepest tree that is walked: parent / root / split / clip / nested clip. It also ends circles of links.
_MAX_DEPTH = 5
LMDB_SUFFIXES = (".lmdb", ".lmdb.partial")
_EXIF_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)
_JPEG_START, _JPEG_END, _JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA


class FrameStore(ABC):
    """Frames by key. Keys are paths relative to the data root, '/' separated.

    A store can be pickled, and serves in forked and spawned loader workers. It is not to be shared by threads.
    root: what the keys are relative to, for layouts; of a store that is one file, where they were once.
    """

    root: Path

    @abstractmethod
    def keys(self) -> list[str]:
        """All frames, sorted as strings."""

    @abstractmethod
    def read(self, key: str) -> np.ndarray:
        """The frame, uint8 RGB (H, W, 3); not to be written to. Raises CSDError where it cannot be decoded."""

    @abstractmethod
    def shape(self, key: str) -> tuple[int, int]:
        """(height, width) of the frame, without decoding it where that can be avoided."""

    def read_crop(self, key: str, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A part of the frame, uint8 RGB (height, width, 3); the part must lie inside the frame."""
        return self.read(key)[top : top + height, left : left + width]

    def enter_worker(self, num_workers: int) -> None:
        """Called in each of `num_workers` loader workers before its first frame."""
        del num_workers


def open_store(path: str | Path | FrameStore, cache_mb: float = 0) -> FrameStore:
    """The store at `path`, a folder of image files or an LMDB store, which is told by its name NAME.lmdb or contents.

    A store that is open already is returned as it is.
    cache_mb limits the memory for decoded frames, of all loader workers together; raw stores need none.
    Raises CSDError where there is no store, or one that is half built or damaged.
    """
    if isinstance(path, FrameStore):
        return path
    path = Path(path)
    if path.name.endswith(LMDB_SUFFIXES) or (path / "data.mdb").exists():
        from csd_plugin.data.lmdb_store import open_lmdb

        return open_lmdb(path, cache_mb)
    return FolderStore(path, cache_mb)


class DecodingStore(FrameStore):
    """A store of image files' bytes, wherever they are.

    With `cache_mb`, the last used decoded frames are kept, in at most so many MB (2^20 bytes). The workers of a
    loader have an equal share each, and keep it as long as they live: without `persistent_workers` that is one epoch.
    """

    def __init__(self, cache_mb: float = 0) -> None:
        self._cache = FrameCache(int(cache_mb * 2**20))

    @abstractmethod
    def encoded(self, key: str) -> bytes:
        """The image file's bytes."""

    @abstractmethod
    def where(self, key: str) -> str:
        """The frame's place, to begin messages with."""

    def read(self, key: str) -> np.ndarray:
        frame = self._cache.get(key)
        if frame is None:
            frame = decode_image(self.encoded(key), self.where(key))
            frame.flags.writeable = False
            self._check_shape(key, frame)
            self._cache.put(key, frame)
        return frame

    def enter_worker(self, num_workers: int) -> None:
        self._cache = FrameCache(self._cache.limit // num_workers)

    def _known_shape(self, key: str, decoded: tuple[int, int]) -> tuple[int, int]:
        """What `shape` has said or will say of a frame that was decoded to this."""
        del decoded
        return self.shape(key)

    def _check_shape(self, key: str, frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        known = self._known_shape(key, (height, width))
        if known != (height, width):
            raise CSDError(
                f"{self.where(key)}: {width}x{height} pixels, but its header or an earlier look said "
                f"{known[1]}x{known[0]}: restore the file and start again"
            )


class FolderStore(DecodingStore):
    """Image files in folders below `root`. Raises CSDError where `root` is no folder."""

    def __init__(self, root: str | Path, cache_mb: float = 0) -> None:
        super().__init__(cache_mb)
        self.root = Path(root)
        if not self.root.is_dir():
            what = "is not a folder" if self.root.exists() else "does not exist"
            raise CSDError(f"data root {self.root} {what}: give the folder that holds the data set")
        self._shapes: dict[str, tuple[int, int]] = {}

    def keys(self) -> list[str]:
        """All image files, to a depth of five folders; what else there is, is ignored and said in one warning."""
        frames: list[str] = []
        strays: Counter[str] = Counter()
        empty: list[str] = []
        for folder, files in _walk(self.root):
            found = [folder + name for name in files if is_frame_name(name)]
            frames += found
            strays.update(name for name in files if not is_frame_name(name))
            if not found and is_clip_name(Path(folder).name):
                empty.append(folder.rstrip("/"))
        if strays:
            names = ", ".join(f"{name} ({n}x)" if n > 1 else name for name, n in strays.most_common(3))
            logger.warning("%s: files that are no images, ignored: %d (%s)", self.root, strays.total(), _shorten(names))
        if empty:
            logger.warning("%s: clips without images: %d (%s)", self.root, len(empty), _shorten(", ".join(empty)))
        return sorted(frames)

    def shape(self, key: str) -> tuple[int, int]:
        if key not in self._shapes:
            try:
                with (self.root / key).open("rb") as file:
                    shape = header_shape(file)
            except OSError as error:
                raise self._unreadable(key, error) from error
            if shape is None:
                self.read(key)
            else:
                self._shapes[key] = shape
        return self._shapes[key]

    def encoded(self, key: str) -> bytes:
        try:
            return (self.root / key).read_bytes()
        except OSError as error:
            raise self._unreadable(key, error) from error

    def where(self, key: str) -> str:
        return str(self.root / key)

    def _known_shape(self, key: str, decoded: tuple[int, int]) -> tuple[int, int]:
        return self._shapes.setdefault(key, decoded)

    def _unreadable(self, key: str, error: OSError) -> CSDError:
        return CSDError(f"{self.where(key)}: cannot be read ({error.strerror or error}): restore the file")


class FrameCache:
    """The last used frames, in at most `limit` bytes. Copies that are sent to another process start empty."""

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
        """Keep `frame`, dropping the longest unused; one that is larger than the limit is not kept."""
        if frame.nbytes > self.limit or key in self._frames:
            return
        while self.size + frame.nbytes > self.limit:
            self.size -= self._frames.popitem(last=False)[1].nbytes
        self._frames[key] = frame
        self.size += frame.nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "size": 0, "_frames": OrderedDict()}


def decode_image(data: bytes, where: str, *, deep: bool = False) -> np.ndarray:
    """An image file's bytes -> uint8 RGB (H, W, 3).

    Grey becomes three equal channels, alpha is dropped, EXIF orientation is applied. 16 bits are rounded to 8, or,
    if `deep`, kept as uint16.
    Raises CSDError, beginning with `where`, for what is no image, is cut short, or has other pixel types.
    """
    if data.startswith(_JPEG_START) and not _jpeg_is_whole(data):
        raise CSDError(f"{where}: the JPEG ends early ({len(data)} bytes): restore the file")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # what OpenCV asserts: that there are bytes at all, and sizes within its limits
        image = None
    if image is None:
        raise CSDError(f"{where}: no readable image ({len(data)} bytes, damaged or cut short): restore the file")
    if image.dtype == np.uint16 and not deep:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype not in (np.uint8, np.uint16):
        raise CSDError(f"{where}: pixels of type {image.dtype}: convert the frames to 8 or 16 bits a channel")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def header_shape(file: BinaryIO) -> tuple[int, int] | None:
    """(height, width) as `decode_image` will give them, from an image file's header; None where only decoding tells."""
    try:
        with Image.open(file) as image:
            # Pillow would decode a whole PNG to look for orientation behind its pixels.
            exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
            if exif.get(_EXIF_ORIENTATION) in _LYING:
                return None  # lying on its side: formats differ in which of the two sizes they report
            return image.height, image.width
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether the end marker follows the first scan; decoders fill what is missing with grey and only warn."""
    if data.endswith(_JPEG_END):
        return True
    # Some writers add bytes behind the end, and embedded thumbnails have ends of their own: walk to the scan.
    at = len(_JPEG_START)
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == _JPEG_SCAN:
            return _JPEG_END in data[at:]
        fill = data[at + 1] == 0xFF
        at += 1 if fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder relative to root, '' or ending in '/', its files), without hidden folders and LMDB stores."""
    waiting = [("", 0)]
    while waiting:
        folder, depth = waiting.pop()
        subfolders, files = [], []
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        if not entry.name.startswith((".", "__MACOSX")) and not entry.name.endswith(LMDB_SUFFIXES):
                            subfolders.append(entry.name)
                    else:
                        files.append(entry.name)
        except OSError as error:
            raise CSDError(f"{root / folder}: cannot be listed ({error.strerror}): mend its permissions") from error
        yield folder, files
        if depth < _MAX_DEPTH:
            waiting += [(f"{folder}{name}/", depth + 1) for name in subfolders]


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
