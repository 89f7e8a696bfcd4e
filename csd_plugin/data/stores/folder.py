"""Image files in folders below a root."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from csd_plugin.data.images import header_shape
from csd_plugin.data.layout import LMDB_SUFFIXES, holds_store, is_clip_name, is_frame_name
from csd_plugin.data.links import refuse_way_out
from csd_plugin.data.stores.interface import DecodingStore
from csd_plugin.errors import CSDError

logger = logging.getLogger(__name__)

_MAX_DEPTH = 5
"""Most levels of folders: parent / root / split / clip / nested clip. The limit also ends circles of links."""


class FolderStore(DecodingStore):
    """Image files in folders below `root`. Raises CSDError if `root` is not a folder, or an LMDB store."""

    def __init__(self, root: str | Path, cache_mb: float = 0) -> None:
        super().__init__(cache_mb)
        self.root = Path(root)
        if not self.root.is_dir():
            what = "is not a folder" if self.root.exists() else "does not exist"
            raise CSDError(f"data root {self.root} {what}: give the folder that holds the data set")
        if holds_store(self.root):
            raise CSDError(f"data root {self.root} is an LMDB store: give the folder of images that it was made of")
        self._shapes: dict[str, tuple[int, int]] = {}
        self._sizes: dict[str, int] = {}  # in bytes, by which a file that is replaced meanwhile is known

    def keys(self) -> list[str]:
        """All image files, down to five levels of folders; one warning names the files that are ignored.

        Raises CSDError if there are LMDB stores in their place, as in the cache of `csd adapt`.
        """
        frames: list[str] = []
        strays: Counter[str] = Counter()
        empty: list[str] = []
        for folder, files in _walk(self.root):
            found = [folder + name for name in files if is_frame_name(name)]
            frames += found
            strays.update(name for name in files if not is_frame_name(name))
            if not found and is_clip_name(Path(folder).name):
                empty.append(folder.rstrip("/"))
        if not frames and (stores := sorted(filter(holds_store, self.root.glob("*.lmdb")))):
            raise CSDError(f"{self.root}: no images, but an LMDB store in it: give {' or '.join(map(str, stores))}")
        if strays:
            names = ", ".join(f"{name} ({n}x)" if n > 1 else name for name, n in strays.most_common(3))
            logger.warning(
                "%s: files that are not images, ignored: %d (%s)", self.root, strays.total(), _shorten(names)
            )
        if empty:
            logger.warning("%s: clips without images: %d (%s)", self.root, len(empty), _shorten(", ".join(empty)))
        return sorted(frames)

    def shape(self, key: str) -> tuple[int, int]:
        if key not in self._shapes:
            try:
                with (self.root / key).open("rb") as file:
                    shape = header_shape(file)
                    self._sizes.setdefault(key, os.fstat(file.fileno()).st_size)
            except OSError as error:
                raise self._unreadable(key, error) from error
            if shape is None:
                self.read(key)
            else:
                self._shapes[key] = shape
        return self._shapes[key]

    def encoded(self, key: str) -> bytes:
        try:
            data = (self.root / key).read_bytes()
        except OSError as error:
            raise self._unreadable(key, error) from error
        if len(data) != (known := self._sizes.setdefault(key, len(data))):
            raise CSDError(
                f"{self.where(key)}: the file has been replaced while it was in use ({len(data)} bytes, {known} "
                f"before): restore it, or start again"
            )
        return data

    def where(self, key: str) -> str:
        return str(self.root / key)

    def _known_shape(self, key: str, decoded: tuple[int, int]) -> tuple[int, int]:
        return self._shapes.setdefault(key, decoded)

    def _unreadable(self, key: str, error: OSError) -> CSDError:
        return CSDError(f"{self.where(key)}: cannot be read ({error.strerror or error}): {self.remedy}")


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder relative to root, '' or ending in '/', its files), without hidden folders and LMDB stores.

    Raises CSDError for links that lead out of the root, see `data.links`.
    """
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
                    elif entry.is_file():  # reading a pipe or device might never end
                        files.append(entry.name)
                    if entry.is_symlink() and (is_frame_name(entry.name) or entry.name in subfolders[-1:]):
                        refuse_way_out(root / folder / entry.name, root)
        except OSError as error:
            raise CSDError(f"{root / folder}: cannot be listed ({error.strerror}): fix its permissions") from error
        yield folder, files
        if depth < _MAX_DEPTH:
            waiting += [(f"{folder}{name}/", depth + 1) for name in subfolders]


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
