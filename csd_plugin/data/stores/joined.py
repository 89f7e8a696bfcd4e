"""Several stores as one: rain from one place, truth from another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from csd_plugin.data.stores.interface import FrameStore


class JoinedStore(FrameStore):
    """The frames of `stores`, with the name of the store before each key: `lq/000/00000001.png`."""

    def __init__(self, stores: Mapping[str, FrameStore]) -> None:
        self.stores = dict(stores)
        self.root = Path()

    def keys(self) -> list[str]:
        return sorted(f"{name}/{key}" for name, store in self.stores.items() for key in store.keys())  # noqa: SIM118

    def read(self, key: str) -> np.ndarray:
        store, inside = self._of(key)
        return store.read(inside)

    def shape(self, key: str) -> tuple[int, int]:
        store, inside = self._of(key)
        return store.shape(inside)

    def read_crop(self, key: str, top: int, left: int, height: int, width: int) -> np.ndarray:
        store, inside = self._of(key)
        return store.read_crop(inside, top, left, height, width)

    def enter_worker(self, num_workers: int) -> None:
        for store in self.stores.values():
            store.enter_worker(num_workers)

    def _of(self, key: str) -> tuple[FrameStore, str]:
        name, _, inside = key.partition("/")
        return self.stores[name], inside
