"""Runs integer frames through a network that computes on 2x2 blocks of pixels, with few passes over memory.

A frame is reordered into blocks once, when it arrives, as bytes. A window is then a concatenation of such frames, with
one conversion to the layers' precision, in the order and range that frames have in memory; the network's first and last
layers are adapted to these (`HalfNet.for_pixels`). The network's output is added to the frame itself, so the precision
of the layers only affects what is added.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from csd_plugin.inference.facts import Facts
from csd_plugin.inference.tiles import check_finite, split

_BLOCK = 2
_OUTPUT = 3 * _BLOCK**2
"""Values per block."""
WHITE = 255


class BlockNetwork(Protocol):
    """What `HalfNet.for_pixels` returns, as far as it is used here."""

    def forward_blocks(self, blocks: Tensor) -> Tensor: ...


class Seen(NamedTuple):
    """A frame (H, W, 3), and its blocks (H'/2, W'/2, 12), with rows and columns repeated up to whole cells."""

    frame: np.ndarray
    blocks: np.ndarray


class BlockPath:
    """uint8 or uint16 frames through a `BlockNetwork` on the CPU.

    Args:
        network: it takes values in 0 .. 255.
        dtype: of what it takes, which may be bytes.

    Attributes:
        itemsize: bytes per value in the layers.
    """

    def __init__(self, network: BlockNetwork, facts: Facts, dtype: torch.dtype) -> None:
        self._network, self._facts, self._dtype = network, facts, dtype
        self.itemsize = dtype.itemsize

    def take(self, frame: np.ndarray) -> Seen:
        """A frame in the form in which its windows keep it."""
        height, width = frame.shape[:2]
        below, right = -height % self._facts.divisor, -width % self._facts.divisor
        whole = np.pad(frame, ((0, below), (0, right), (0, 0)), mode="edge") if below or right else frame
        return Seen(frame, to_blocks(whole))

    @torch.inference_mode()
    def clean(self, window: list[Seen], pixels: int) -> np.ndarray:
        """The clean frame of a window of `num_seen` frames, computed in tiles of up to `pixels` pixels.

        Raises CSDError if the result is not finite.
        """
        facts, frame = self._facts, window[self._facts.num_frame // 2].frame
        height, width = (_BLOCK * length for length in window[0].blocks.shape[:2])
        clean = np.empty_like(frame)
        for y, x in split(height, width, pixels, facts.reach, facts.divisor):
            rows, columns = (slice(s.start // _BLOCK, s.stop // _BLOCK) for s in (y.seen, x.seen))
            seen = self._input(window, rows, columns)
            made = self._network.forward_blocks(seen)
            added = from_blocks(facts.interface.checked(made, (1, _OUTPUT, *seen.shape[2:])))
            rainy = frame[y.kept, x.kept]
            rows, columns = (slice(s.start, s.start + n) for s, n in zip((y.inner, x.inner), rainy.shape, strict=False))
            clean[y.kept, x.kept] = _add(rainy, added[rows, columns])
        return clean

    def _input(self, window: list[Seen], rows: slice, columns: slice) -> Tensor:
        """(1, num_seen * 12, h, w) in 0 .. 255, with the values of a block contiguous in memory."""
        # Moved as 32-bit words, of which there are fewer.
        joined = cv2.merge([seen.blocks[rows, columns].view(np.int32) for seen in window])
        values = joined.view(window[0].blocks.dtype)
        if values.dtype == np.uint8:
            blocks = torch.from_numpy(values).to(self._dtype)
        else:
            blocks = torch.from_numpy(values.astype(np.float32)).mul_(_scale(values.dtype))
            blocks = (blocks.round_() if self._dtype == torch.uint8 else blocks).to(self._dtype)
        return blocks.permute(2, 0, 1)[None]


def to_blocks(frame: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (H/2, W/2, 4 C): for each block, its rows, their pixels, their channels; both sides must be even."""
    height, width, channels = frame.shape
    # Two neighbours as one item, as numpy moves few large items faster.
    pair = np.dtype((np.void, _BLOCK * channels * frame.itemsize))
    pairs = np.ascontiguousarray(frame).reshape(height // _BLOCK, _BLOCK, -1).view(pair)
    blocks = np.ascontiguousarray(pairs.transpose(0, 2, 1))
    return blocks.view(frame.dtype).reshape(height // _BLOCK, width // _BLOCK, -1)


def from_blocks(blocks: Tensor) -> np.ndarray:
    """(1, 4 C, H/2, W/2), channels last in memory -> float32 (H, W, C). Raises CSDError if it is not finite."""
    _, channels, height, width = blocks.shape
    bits = {2: torch.int16, 4: torch.int32}[blocks.element_size()]
    pair = np.dtype((np.void, channels // _BLOCK * blocks.element_size()))
    pairs = blocks.permute(0, 2, 3, 1).contiguous().view(bits).numpy().view(pair).reshape(height, width, _BLOCK)
    rows = np.ascontiguousarray(pairs.transpose(0, 2, 1)).view(np.int16 if bits == torch.int16 else np.int32)
    frame = torch.from_numpy(rows).view(blocks.dtype).view(_BLOCK * height, _BLOCK * width, -1)
    frame = frame.float()
    check_finite(frame)
    return frame.numpy()


def _add(rainy: np.ndarray, added: np.ndarray) -> np.ndarray:
    """The rainy frame plus what is added, in grey levels of 255, rounded and clipped to its range, in one pass."""
    if rainy.dtype == np.uint8:
        return cv2.add(rainy, added, dtype=cv2.CV_8U)
    return cv2.add(rainy, added / np.float32(_scale(rainy.dtype)), dtype=cv2.CV_16U)


def _scale(dtype: np.dtype) -> float:
    return WHITE / np.iinfo(dtype).max
