"""Where frames come from: folders of image files and LMDB stores, behind one interface."""

from __future__ import annotations

from pathlib import Path

from csd_plugin.data.layout import is_store
from csd_plugin.data.stores.folder import FolderStore
from csd_plugin.data.stores.interface import FrameStore
from csd_plugin.data.stores.lmdb import open_lmdb


def open_store(path: str | Path | FrameStore, cache_mb: float = 0) -> FrameStore:
    """The store at `path`: a folder of image files, or an LMDB store, recognised by its name NAME.lmdb or its contents.

    A store that is open already is returned as it is.
    cache_mb limits the memory for decoded frames, of all loader workers together; raw stores need none.
    Raises CSDError if there is no store, or one that is incomplete or damaged.
    """
    if isinstance(path, FrameStore):
        return path
    path = Path(path)
    if is_store(path):
        return open_lmdb(path, cache_mb)
    return FolderStore(path, cache_mb)
