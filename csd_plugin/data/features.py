"""A network's features of whole frames, computed once and kept on disk; training reads crops of them.

A folder holds one array for each clip and layer, `CLIP.N.npy`, float16 (frames, h, w, C), and `features.json`: whose
features they are, of which layers, and checksums.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csd_plugin.atomic import replacing, write_text
from csd_plugin.data.augment import Augmentation
from csd_plugin.errors import CSDError
from csd_plugin.plain import parse_json, read_text
from csd_plugin.types import PairedSequence

MANIFEST = "features.json"
_FORMAT = 1


@dataclass(frozen=True)
class StoredFeatures:
    """The features in a folder.

    Attributes:
        folder: where they are.
        network: SHA-256 of the file of the network that gave them.
        layers: of the network, as `taps` name them.
        arrays: clip -> one array (frames, h, w, C) per layer, float16, read from the disk where it is used.
    """

    folder: Path
    network: str
    layers: tuple[str, ...]
    arrays: Mapping[str, tuple[np.ndarray, ...]] = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """For worker processes that are spawned: they map the files themselves; pickled arrays would be copies."""
        return _reopen, (self.folder, self.network, self.layers, tuple(self.arrays))

    def grid(self, sequences: Iterable[PairedSequence], sizes: Iterable[tuple[int, int]]) -> int:
        """Pixels of a frame's side for one cell of the coarsest feature; crops have to begin and end at multiples.

        Args:
            sequences, sizes: clips, and (height, width) of their frames.

        Raises:
            CSDError: a clip without features, or with those of other frames.
        """
        grid = 1
        for sequence, (height, width) in zip(sequences, sizes, strict=True):
            if sequence.name not in self.arrays:
                raise CSDError(f"{self.folder}: no features of the clip {sequence.name}; compute them with its frames")
            for array in self.arrays[sequence.name]:
                cell = -(-height // array.shape[1])
                fits = cell * array.shape[1] >= height and cell == -(-width // array.shape[2])
                if len(array) != len(sequence.lq) or not fits:
                    raise CSDError(
                        f"{self.folder}: {sequence.name} has {len(sequence.lq)} frames of {width}x{height}, its "
                        f"features are {len(array)} of {array.shape[2]}x{array.shape[1]}: compute them again"
                    )
                grid = int(np.lcm(grid, cell))
        return grid

    def crops(self, clip: str, frames: slice, size: tuple[int, int], plan: Augmentation) -> list[Tensor]:
        """The features of a crop, float16 (L, C, h, w) of each layer, mirrored and reversed as the crop is.

        They are the mirrored features of the frames, not features of mirrored frames.

        Args:
            frames: the L targets, by their numbers in the clip.
            size: (height, width) of the clip's frames.
            plan: its region begins at multiples of `grid`, and is not scaled.
        """
        return [self._crop(array[frames], -(-size[0] // array.shape[1]), plan) for array in self.arrays[clip]]

    @staticmethod
    def _crop(array: np.ndarray, cell: int, plan: Augmentation) -> Tensor:
        top, left, side = (length // cell for length in (plan.top, plan.left, plan.side))
        region = array[:, top : top + side, left : left + side]
        region = region.transpose(0, 2, 1, 3) if plan.rot else region
        turned = tuple(axis for axis, turns in ((0, plan.reverse), (1, plan.vflip), (2, plan.hflip)) if turns)
        return torch.from_numpy(np.ascontiguousarray(np.flip(region, turned).transpose(0, 3, 1, 2)))


def open_features(folder: Path) -> StoredFeatures:
    """The features in a folder, after their checksums were compared. Raises CSDError."""
    content = read_manifest(folder)
    stored = _reopen(folder, content["network"], tuple(content["layers"]), tuple(content["clips"]))
    for clip, entries in content["clips"].items():
        for number, (array, entry) in enumerate(zip(stored.arrays[clip], entries, strict=True)):
            known = array.dtype == np.float16 and array.ndim == 4 and list(array.shape) == entry["shape"]
            path = _file(folder, clip, number)
            if not known or _checksum(path) != entry["crc"]:
                raise CSDError(f"{path}: not what was written; remove {folder}, and compute the features again")
    return stored


def read_manifest(folder: Path) -> dict[str, Any]:
    """`features.json`: format, network, layers, and clips: name -> crc and shape of each array. Raises CSDError."""
    path = folder / MANIFEST
    try:
        content = parse_json(read_text(path))
    except FileNotFoundError as error:
        raise CSDError(
            f"{folder} holds no features: there is no {MANIFEST}; `csd adapt --features` writes it"
        ) from error
    except (OSError, ValueError) as error:
        raise CSDError(f"{path}: cannot be read ({error}); compute the features again") from error
    if not _is_manifest(content):
        raise CSDError(f"{path}: damaged, or of another version; remove {folder}, and compute the features again")
    return content


def write_features(
    folder: Path, clip: str, frames: Iterable[Sequence[np.ndarray]], count: int, *, network: str, layers: Sequence[str]
) -> None:
    """Add a clip's features to a folder.

    Args:
        frames: of each of `count` frames the feature of each layer, float16 (h, w, C).
        network: SHA-256 of the network's file.

    Raises:
        CSDError: the folder has features of another network or other layers.
        OSError: it cannot be written; what was there is there still.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"format": _FORMAT, "network": network, "layers": list(layers), "clips": {}}
    if (folder / MANIFEST).exists():
        there = read_manifest(folder)
        if (there["network"], there["layers"]) != (network, list(layers)):
            raise CSDError(f"{folder} holds features of another network or of other layers; remove it")
        content = there
    with ExitStack() as stack:
        drafts = [stack.enter_context(replacing(_file(folder, clip, n), synced=True)) for n in range(len(layers))]
        content["clips"][clip] = _write_arrays(drafts, frames, count)
    write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def _write_arrays(drafts: Sequence[Path], frames: Iterable[Sequence[np.ndarray]], count: int) -> list[dict[str, Any]]:
    """Shape and checksum of each array.

    Frame by frame, by ordinary calls: a disk that is full is an error then, where a map would end the process.
    """
    shapes: list[tuple[int, ...]] = []
    checksums = [0] * len(drafts)
    with ExitStack() as stack:
        files = [stack.enter_context(draft.open("wb")) for draft in drafts]
        for _, features in zip(range(count), frames, strict=True):
            if not shapes:
                shapes = [(count, *feature.shape) for feature in features]
                for file, shape in zip(files, shapes, strict=True):
                    np.lib.format.write_array_header_1_0(file, _header(shape))
            for layer, (file, feature) in enumerate(zip(files, features, strict=True)):
                if feature.shape != shapes[layer][1:]:
                    raise ValueError(f"a frame's feature of {feature.shape} after those of {shapes[layer][1:]}")
                data = np.ascontiguousarray(feature, np.float16).data
                file.write(data)
                checksums[layer] = zlib.crc32(data, checksums[layer])
    return [{"shape": list(shape), "crc": crc} for shape, crc in zip(shapes, checksums, strict=True)]


def _header(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}


def _file(folder: Path, clip: str, number: int) -> Path:
    return folder / f"{clip}.{number}.npy"


def _is_manifest(content: Any) -> bool:
    """Whether it has all that is read, and clips' names that are no paths."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not isinstance(content.get("clips"), dict):
        return False
    layers = content.get("layers")
    if not isinstance(content.get("network"), str) or not isinstance(layers, list) or not layers:
        return False
    return all(
        name == Path(name).name
        and "\\" not in name
        and isinstance(arrays, list)
        and len(arrays) == len(layers)
        and all(isinstance(one, dict) and {"shape", "crc"} <= one.keys() for one in arrays)
        for name, arrays in content["clips"].items()
    ) and all(isinstance(layer, str) for layer in layers)


def _reopen(folder: Path, network: str, layers: tuple[str, ...], clips: Iterable[str]) -> StoredFeatures:
    """The features of clips, without a look at their numbers. Raises CSDError for a file that is no array."""
    arrays = {clip: tuple(_map(_file(folder, clip, number)) for number in range(len(layers))) for clip in clips}
    return StoredFeatures(folder, network, layers, arrays)


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CSDError(f"{path}: missing or damaged; remove {path.parent}, and compute the features again") from error


def _checksum(path: Path) -> int:
    """CRC-32 of an array's numbers. Of a file that stays as it is, they are read once in a process."""
    found = path.stat()
    return _checksum_of(path.resolve(), found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _checksum_of(path: Path, *version: int) -> int:
    """Frame by frame; the checks before a run ask, and then its data set, and the files are large."""
    crc = 0
    for frame in _map(path):
        crc = zlib.crc32(np.ascontiguousarray(frame).data, crc)
    return crc
