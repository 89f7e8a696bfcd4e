"""Frames of whole numbers through a network that computes on 2x2 blocks of pixels, in few passes over memory.

A frame is put in order of blocks once, when it comes, as the bytes that it is. A window is then a join of such frames
and one conversion to what the layers compute in: in the order and range that the frames have in memory, which the
network's first and last layer take over (`HalfNet.for_pixels`). What comes out is added to the frame itself, so that
the precision of the layers touches what is added only.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from csd_plugin.inference.facts import Facts
from csd_plugin.inference.folding import ALL_FILLED, fold
from csd_plugin.inference.tiles import check_finite, split

_BLOCK = 2
_OUTPUT = 3 * _BLOCK**2
"""Numbers of a block."""
_WHITE = 255


class BlockNetwork(Protocol):
    """What `HalfNet` offers."""

    def for_pixels(self, white: float) -> nn.Module: ...

    def forward_blocks(self, blocks: Tensor) -> Tensor: ...


class Seen(NamedTuple):
    """A frame (H, W, 3), and its blocks (H'/2, W'/2, 12), rows and columns repeated up to whole cells."""

    frame: np.ndarray
    blocks: np.ndarray


class BlockPath:
    """uint8 or uint16 frames through a `BlockNetwork` on the CPU.

    Args:
        network: as trained; what runs is a copy.
        dtype: what the layers compute in.

    Attributes:
        itemsize: bytes of a number in the layers.
    """

    def __init__(self, network: BlockNetwork, facts: Facts, dtype: torch.dtype) -> None:
        self._network: Any = fold(network.for_pixels(_WHITE), ALL_FILLED).to(dtype)
        self._facts, self._dtype = facts, dtype
        self.itemsize = dtype.itemsize

    def take(self, frame: np.ndarray) -> Seen:
        """A frame as it waits in its windows."""
        height, width = frame.shape[:2]
        below, right = -height % self._facts.divisor, -width % self._facts.divisor
        whole = np.pad(frame, ((0, below), (0, right), (0, 0)), mode="edge") if below or right else frame
        return Seen(frame, to_blocks(whole))

    @torch.inference_mode()
    def clean(self, window: list[Seen], pixels: int) -> np.ndarray:
        """The clean frame of a window of `num_seen` frames, computed in tiles of up to this many pixels.

        Raises CSDError where the result is not finite.
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
        """(1, num_seen * 12, h, w) in 0 .. 255, a block's numbers together in memory."""
        # As 32-bit words, of which there are fewer; they are only moved.
        joined = cv2.merge([seen.blocks[rows, columns].view(np.int32) for seen in window])
        values = joined.view(window[0].blocks.dtype)
        if values.dtype == np.uint8:
            blocks = torch.from_numpy(values).to(self._dtype)
        else:
            blocks = torch.from_numpy(values.astype(np.float32)).mul_(_scale(values.dtype)).to(self._dtype)
        return blocks.permute(2, 0, 1)[None]


def to_blocks(frame: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (H/2, W/2, 4 C): a block's rows, their pixels, their channels; both sides even."""
    height, width, channels = frame.shape
    # A pair of neighbours is one item to numpy, which moves those faster than numbers.
    pair = np.dtype((np.void, _BLOCK * channels * frame.itemsize))
    pairs = np.ascontiguousarray(frame).reshape(height // _BLOCK, _BLOCK, -1).view(pair)
    blocks = np.ascontiguousarray(pairs.transpose(0, 2, 1))
    return blocks.view(frame.dtype).reshape(height // _BLOCK, width // _BLOCK, -1)


def from_blocks(blocks: Tensor) -> np.ndarray:
    """(1, 4 C, H/2, W/2), channels last in memory -> float32 (H, W, C). Raises CSDError where it is not finite."""
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
    """The rainy frame and what is added to it in grey levels of 255, rounded and kept to its range, in one pass."""
    if rainy.dtype == np.uint8:
        return cv2.add(rainy, added, dtype=cv2.CV_8U)
    return cv2.add(rainy, added / np.float32(_scale(rainy.dtype)), dtype=cv2.CV_16U)


def _scale(dtype: np.dtype) -> float:
    return _WHITE / np.iinfo(dtype).max
