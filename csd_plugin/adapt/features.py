"""The teacher's features of a cache's frames, for trainings that compare features: computed once, clip by clip."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from csd_plugin.adapt.cache import Cache
from csd_plugin.adapt.shots import Shot
from csd_plugin.adapt.teacher import Named
from csd_plugin.archs.interface import Interface, interface_of, run_network
from csd_plugin.atomic import remove_drafts
from csd_plugin.data.batches import as_float
from csd_plugin.data.features import MANIFEST, open_features, read_manifest, write_features
from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.interface import FrameStore
from csd_plugin.data.windows import reflect_indices
from csd_plugin.distill.run_order import find_run_orders
from csd_plugin.distill.taps import FeatureTap, tap_compared
from csd_plugin.errors import CSDError, cannot_write
from csd_plugin.inference.precision import computes_bf16
from csd_plugin.locks import alone
from csd_plugin.report.text import counted

_warn_once = functools.cache(logging.getLogger(__name__).warning)

_AT_ONCE = 4
"""Targets that a sequence network computes together, as they share frames."""


def store_features(
    cache: Cache, network: nn.Module, named: Named, *, device: torch.device, say: Callable[[str], object]
) -> Path:
    """Compute the missing features of the training frames. Returns their folder.

    The feature is the one that the network names for distillation. Raises CSDError if it names none, if the folder has
    features of another network, or damaged ones, or if it cannot be written.
    """
    interface = interface_of(network)
    taps = tap_compared(network, interface, None)
    layers = [tap.layer for tap in taps]
    folder = cache.folder / "features"
    try:
        if _missing(cache, folder):
            with alone(folder):  # another command's unfinished file must not count as abandoned
                remove_drafts(folder)
                _compute(cache, folder, network.to(device).eval(), interface, taps, named.sha256, device)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        for tap in taps:
            tap.remove()
    stored = open_features(folder)
    size = sum(array.nbytes for arrays in stored.arrays.values() for array in arrays)
    frames = sum(len(arrays[0]) for arrays in stored.arrays.values())
    say(f"features of {counted(frames, 'frame')} by {named.name} ({', '.join(layers)}): {folder}, {size / 1e9:.2g} GB")
    return folder


def _missing(cache: Cache, folder: Path) -> list[Shot]:
    """The shots whose features are not in the folder yet. Raises CSDError."""
    there = read_manifest(folder)["clips"] if (folder / MANIFEST).exists() else {}
    return [shot for shot in cache.shots if shot.name not in there]


def _compute(
    cache: Cache,
    folder: Path,
    network: nn.Module,
    interface: Interface,
    taps: Sequence[FeatureTap],
    sha256: str,
    device: torch.device,
) -> None:
    """Compute the missing features, clip by clip. Raises CSDError and OSError."""
    missing = _missing(cache, folder)
    store = open_store(cache.store)
    if missing:
        step = _AT_ONCE if interface.gives_clip else 1
        find_run_orders(network, interface, taps, step, store.shape(missing[0].keys("Rain")[0]))
    layers = [tap.layer for tap in taps]
    count = sum(shot.length - shot.held for shot in missing)
    with tqdm(total=count, unit=" frames", desc="features", disable=None) as bar:
        for shot in missing:
            computed = _counted(_features(network, interface, taps, store, shot, device), bar)
            write_features(folder, shot.name, computed, shot.length - shot.held, network=sha256, layers=layers)


def _features(
    network: nn.Module,
    interface: Interface,
    taps: Sequence[FeatureTap],
    store: FrameStore,
    shot: Shot,
    device: torch.device,
) -> Iterator[list[np.ndarray]]:
    """The feature at each tap for each training frame, float16 (h, w, C).

    The windows are those with which the teacher cleaned: at the shot's ends they include the frames around it.
    """
    keys, learned = shot.keys("Rain"), shot.length - shot.held
    step = _AT_ONCE if interface.gives_clip else 1
    bf16 = computes_bf16(device)
    radius = interface.num_frame // 2
    before, after = shot.around(radius)
    lead, seen = len(before), len(before) + shot.length + len(after)

    def read(index: int) -> np.ndarray:
        if index < lead:
            return before[index]
        return store.read(keys[index - lead]) if index < lead + shot.length else after[index - lead - shot.length]

    for first in range(0, learned, step):
        count = min(step, learned - first)
        begin, end = lead + first, lead + first + count
        left = reflect_indices(begin, interface.num_frame, seen)[:radius]
        right = reflect_indices(end - 1, interface.num_frame, seen)[radius + 1 :]
        frames = np.stack([read(index) for index in (*left, *range(begin, end), *right)])
        clip = as_float(torch.from_numpy(frames).permute(0, 3, 1, 2)[None].to(device))
        with torch.no_grad():  # taps need the version counters that inference mode lacks
            run_network(network, clip, count, interface, autocast=torch.bfloat16 if bf16 else None)
            size = (clip.shape[3], clip.shape[4])
            stored = [interface.features(tap.take(), 1, count, tap.path, _warn_once, size=size) for tap in taps]
            views = [feature[0].permute(0, 2, 3, 1) for feature in stored]
        arrays = [view.half().cpu().numpy() for view in views]
        if not all(np.isfinite(array).all() for array in arrays):
            raise CSDError(f"{shot.name}: features of frame {first + 1} do not fit into 16 bits: compare another layer")
        yield from ([array[number] for array in arrays] for number in range(count))


def _counted(frames: Iterator[list[np.ndarray]], bar: tqdm) -> Iterator[list[np.ndarray]]:
    for frame in frames:
        yield frame
        bar.update()
