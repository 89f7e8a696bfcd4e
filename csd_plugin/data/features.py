"""A network's features of whole frames, computed once and stored on disk; training reads crops of them.

A folder holds one array per clip and layer, `CLIP.N.npy`, float16 (frames, h, w, C), and `features.json`: the network,
the layers, and checksums.
"""

from __future__ import annotations

import functools
import io
import json
import math
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
from csd_plugin.data.links import refuse_way_out
from csd_plugin.errors import CSDError
from csd_plugin.plain import entries, file_name, parse_json, plain_text, read_text, section, whole_number
from csd_plugin.types import PairedSequence

MANIFEST = "features.json"
_FORMAT = 1
_LARGEST = 2**31 - 1
"""The most of each length of an array; the size of its file bounds their product."""
_START = 10
"""Bytes of a file before the text of its header: magic number, version, and length of the text."""
_SHAPE = ("frames", "h", "w", "C")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StoredFeatures:
    """The features stored in a folder.

    Attributes:
        folder: the folder.
        network: SHA-256 of the file of the network that computed them.
        layers: the network's layers, as `taps` names them.
        arrays: clip -> one array (frames, h, w, C) per layer, float16, memory-mapped.
    """

    folder: Path
    network: str
    layers: tuple[str, ...]
    arrays: Mapping[str, tuple[np.ndarray, ...]] = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """For spawned worker processes: they map the files themselves, as pickled arrays would be copies."""
        shapes = {clip: [array.shape for array in arrays] for clip, arrays in self.arrays.items()}
        return _reopen, (self.folder, self.network, self.layers, shapes)

    def grid(self, sequences: Iterable[PairedSequence], sizes: Iterable[tuple[int, int]]) -> int:
        """Pixels of a frame's side per cell of the coarsest feature; crops must begin and end at multiples of it.

        Args:
            sequences, sizes: clips, and (height, width) of their frames.

        Raises:
            CSDError: a clip has no features, or features of other frames.
        """
        grid = 1
        for sequence, (height, width) in zip(sequences, sizes, strict=True):
            if sequence.name not in self.arrays:
                raise CSDError(f"{self.folder}: no features of the clip {sequence.name}; compute them with this clip")
            for array in self.arrays[sequence.name]:
                cell = -(-height // array.shape[1])
                fits = cell * array.shape[1] >= height and cell == -(-width // array.shape[2])
                if len(array) != len(sequence.lq) or not fits:
                    raise CSDError(
                        f"{self.folder}: {sequence.name} has {len(sequence.lq)} frames of {width}x{height}, but its "
                        f"features are {len(array)} of {array.shape[2]}x{array.shape[1]}: compute them again"
                    )
                grid = int(np.lcm(grid, cell))
        return grid

    def crops(self, clip: str, frames: slice, size: tuple[int, int], plan: Augmentation) -> list[Tensor]:
        """The features of a crop, float16 (L, C, h, w) per layer, mirrored and reversed like the crop.

        These are mirrored features of the frames, not features of mirrored frames.

        Args:
            frames: the L targets, by their indices in the clip.
            size: (height, width) of the clip's frames.
            plan: its region must begin at multiples of `grid`, and must not be scaled.
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
    """The features in a folder, after a comparison with their checksums. Raises CSDError."""
    content = read_manifest(folder)
    clips = content["clips"].items()
    shapes = {clip: [tuple(one["shape"]) for one in arrays] for clip, arrays in clips}
    stored = _reopen(folder, content["network"], tuple(content["layers"]), shapes)
    for clip, arrays in clips:
        for number, one in enumerate(arrays):
            path = _file(folder, clip, number)
            if _checksum(path, tuple(one["shape"])) != one["crc"]:
                raise _changed(path)
    return stored


def read_manifest(folder: Path) -> dict[str, Any]:
    """`features.json`: format, network, layers, and clips: name -> shape and checksum per array. Raises CSDError."""
    path = folder / MANIFEST
    try:
        content = parse_json(read_text(path))
    except FileNotFoundError as error:
        raise CSDError(
            f"{folder} holds no features, as there is no {MANIFEST}; `csd adapt --features` writes it"
        ) from error
    except (OSError, ValueError) as error:
        raise CSDError(f"{path}: cannot be read ({error}); compute the features again") from error
    try:
        _check_manifest(content)
    except ValueError as error:
        raise CSDError(
            f"{path}: damaged, or of another version ({error}); remove {folder}, and compute the features again"
        ) from error
    return content


def write_features(
    folder: Path, clip: str, frames: Iterable[Sequence[np.ndarray]], count: int, *, network: str, layers: Sequence[str]
) -> None:
    """Add a clip's features to a folder.

    Args:
        frames: for each of `count` frames, the feature of each layer, float16 (h, w, C).
        network: SHA-256 of the network's file.

    Raises:
        CSDError: the folder has features of another network or other layers.
        OSError: it cannot be written; the folder is unchanged.
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
    """Write the arrays; shape and checksum of each.

    They are written frame by frame: a full disk then raises an error; with a memory map, it would end the process.
    """
    shapes: list[Shape] = []
    checksums = [0] * len(drafts)
    with ExitStack() as stack:
        files = [stack.enter_context(draft.open("wb")) for draft in drafts]
        for _, features in zip(range(count), frames, strict=True):
            if not shapes:
                shapes = [(count, *feature.shape) for feature in features]
                for file, shape in zip(files, shapes, strict=True):
                    file.write(_header(shape))
            for layer, (file, feature) in enumerate(zip(files, features, strict=True)):
                if feature.shape != shapes[layer][1:]:
                    raise ValueError(f"a frame's feature of {feature.shape} after those of {shapes[layer][1:]}")
                data = np.ascontiguousarray(feature, np.float16).data
                file.write(data)
                checksums[layer] = zlib.crc32(data, checksums[layer])
    return [{"shape": list(shape), "crc": crc} for shape, crc in zip(shapes, checksums, strict=True)]


def _header(shape: Shape) -> bytes:
    """The header that numpy writes before an array of float16."""
    stream = io.BytesIO()
    kind = np.lib.format.dtype_to_descr(np.dtype(np.float16))
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _file(folder: Path, clip: str, number: int) -> Path:
    """The file of a clip's array. Raises CSDError for a name that cannot be part of a file name."""
    try:
        return folder / f"{file_name(clip, 'the name of a clip')}.{number}.npy"
    except ValueError as error:
        raise CSDError(f"{folder}: {error}; rename the clip, and compute the features again") from error


def _check_manifest(content: Any) -> None:
    """Raise ValueError if an entry that is needed is missing or invalid; `_file` checks clips' names."""
    whole_number(section(content, "it").get("format"), "format", _FORMAT, _FORMAT)
    plain_text(content.get("network"), "network")
    layers = [plain_text(layer, "layers") for layer in entries(content.get("layers"), "layers")]
    if not layers:
        raise ValueError("there are no layers")
    for clip, arrays in section(content.get("clips"), "clips").items():
        where = f"clips.{clip!r:.60}"
        if len(entries(arrays, where)) != len(layers):
            raise ValueError(f"{where} has {len(arrays)} arrays of {len(layers)} layers")
        for one in arrays:
            whole_number(section(one, where).get("crc"), f"{where}.crc", 0, 2**32 - 1)
            shape = entries(one.get("shape"), f"{where}.shape")
            if len(shape) != len(_SHAPE):
                raise ValueError(f"{where}.shape has {len(shape)} numbers, not {', '.join(_SHAPE)}")
            for length in shape:
                whole_number(length, f"{where}.shape", 1, _LARGEST)


def _reopen(
    folder: Path, network: str, layers: tuple[str, ...], shapes: Mapping[str, Sequence[Shape]]
) -> StoredFeatures:
    """The features of clips, their values unchecked. Raises CSDError for a file that is not such an array."""
    arrays = {
        clip: tuple(_map(_file(folder, clip, number), shape) for number, shape in enumerate(those))
        for clip, those in shapes.items()
    }
    return StoredFeatures(folder, network, layers, arrays)


def _map(path: Path, shape: Shape) -> np.ndarray:
    """A file's values, float16, memory-mapped.

    Its header is compared with what the writer puts there, not parsed: numpy evaluates a header as Python literals, and
    accepts pickles. The padding of the header depends on numpy's version.
    """
    try:
        size, start = refuse_way_out(path, path.parent).stat().st_size, b""
        if size > _START:  # a pipe has no size, and opening it would block
            with path.open("rb") as file:
                start = file.read(_START)
                start += file.read(min(int.from_bytes(start[-2:], "little"), size))
        expected = _header(shape)
        numbers = math.prod(shape) * np.dtype(np.float16).itemsize
        fits = start[: _START - 2] == expected[: _START - 2] and start[_START:].split() == expected[_START:].split()
        if not fits or size != len(start) + numbers:
            raise _changed(path)
        return np.memmap(path, np.float16, "r", len(start), shape)
    except OSError as error:
        raise CSDError(f"{path}: missing or damaged; remove {path.parent}, and compute the features again") from error


def _changed(path: Path) -> CSDError:
    return CSDError(f"{path}: not what was written; remove {path.parent}, and compute the features again")


def _checksum(path: Path, shape: Shape) -> int:
    """CRC-32 of an array's values, which are read once per process while the file does not change."""
    found = path.stat()
    return _checksum_of(path.resolve(), shape, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _checksum_of(path: Path, shape: Shape, *version: int) -> int:
    """Read frame by frame, as the files are large; cached, as the checks before a run and its data set both ask."""
    crc = 0
    for frame in _map(path, shape):
        crc = zlib.crc32(np.ascontiguousarray(frame).data, crc)
    return crc
