"""From a checkpoint to clean frames: `Derainer`.

    derainer = Derainer("net_g_latest.pth")
    for clean in derainer(rainy_frames): ...

or, for frames that come one at a time, `push` each and `flush` at the end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csd_plugin.errors import CSDError
from csd_plugin.inference.backends import open_backend
from csd_plugin.inference.streaming import WindowStream

Frame = TypeVar("Frame", np.ndarray, Tensor)

# How many tensors of the widest layer's size are alive at once: a layer's input and output, the input that a
# residual pair keeps, and the convolution's own copy in the layout it computes in.
_LIVE_ACTIVATIONS = 4
SEQUENCE = 24
"""Frames that a network of sequences cleans together, as S2VD's authors have it."""

_TRIAL_SIDE, _TRIAL_SECONDS = 128, 0.4


class Derainer:
    """Removes rain from frames that come in display order.

    Frames are RGB, either arrays (H, W, 3) of uint8 or uint16 (full range), or float tensors (3, H, W) in
    [0, 1]; they come back as the same kind, one for one, of any size that does not change within a clip.
    A frame's window reaches num_frame // 2 frames to both sides and is reflected at the clip's ends, so its
    result comes that many frames late (and up to `batch` - 1 more). Memory does not grow with the clip.

    Networks of sequences clean `batch` frames together and see num_frame // 2 more at both ends; as they look
    further where they can, a frame's result depends a little on where in the clip that run of frames begins.

    Args:
        network: a checkpoint, an exported .onnx or .xml, or a network: (B, T, 3, H, W) in [0, 1] -> (B, 3, H, W),
            with `num_frame` = T, or of `layout` 'sequence' to as many frames. What runs is a copy in its fastest
            exact form, see `fold`.
        backend: 'auto', 'torch', 'onnxruntime' or 'openvino'; see `open_backend`. In fp32 all give the same frames.
        precision: 'fp32', or 'bf16' (about twice as fast on CPUs that have it; on real rain a third of the
            values of a trained student2 move by a grey level, 52 dB from fp32), or 'fp16' (on GPUs).
        device: 'auto' is CUDA where there is one, else the CPU.
        batch: windows in one forward; by default 1, or 2 on the CPU for networks with 3-D convolutions that
            could not be folded, which run many times slower one window at a time. Of sequences, the frames that
            are cleaned together, by default 24.
        memory: MiB that the layers' activations may take; larger frames go through in tiles, which overlap
            by what the network sees, so that the result is that of the whole frame.

    Raises:
        CSDError: an unreadable checkpoint, a backend that is not installed, or a device that is not there.
    """

    def __init__(
        self,
        network: str | Path | nn.Module,
        *,
        backend: str = "auto",
        precision: str = "fp32",
        device: str | torch.device = "auto",
        batch: int | None = None,
        memory: int = 512,
    ) -> None:
        self.backend = open_backend(network, backend=backend, precision=precision, device=device)
        self.device = self.backend.device
        facts = self.backend.facts
        self.num_frame = facts.num_frame
        self._sequences = facts.layout == "sequence"
        if self._sequences:
            self.batch = batch or SEQUENCE
            self._windows: WindowStream[Tensor] = WindowStream(self.num_frame, self.batch)
            computed = self.batch + self.num_frame - 1
        else:
            computed = self.batch = batch or (2 if self.backend.prefers_pairs else 1)
            self._windows = WindowStream(self.num_frame)
        self._pixels = memory * 2**20 // (_LIVE_ACTIVATIONS * 4 * facts.floats * computed)
        self._ready: list[list[Tensor]] = []
        self._example: np.ndarray | Tensor | None = None

    def __call__(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The clean frames of one clip, in order, each as soon as it can be computed."""
        self.reset()
        for frame in frames:
            yield from self.push(frame)
        yield from self.flush()

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; give the clean frames that are now ready. Raises CSDError for another size or kind."""
        if self._example is None:
            peak_of(frame)
            self._example = frame
        elif frame.shape != self._example.shape or frame.dtype != self._example.dtype:
            raise CSDError(
                f"a frame of shape {tuple(frame.shape)}, {frame.dtype}, after frames of shape "
                f"{tuple(self._example.shape)}, {self._example.dtype}: a clip has frames of one kind"
            )
        self._ready += self._windows.push(to_pixels(frame, self.device))
        return self._finish(len(self._ready) // self._at_once * self._at_once, frame)

    def flush(self) -> list[Any]:
        """The clip has ended: give its last frames, and be ready for another clip."""
        example = self._example
        self._ready += self._windows.flush()
        frames = self._finish(len(self._ready), example) if example is not None else []
        self.reset()
        return frames

    def reset(self) -> None:
        """Forget what was pushed: the next frame begins a clip."""
        self._windows.flush()
        self._ready, self._example = [], None

    @property
    def _at_once(self) -> int:
        """Windows in one forward."""
        return 1 if self._sequences else self.batch

    def seconds_a_frame(self, width: int, height: int) -> float:
        """About how long a frame of this size takes in the network, here and now, from a trial on a small part of one.

        The trial takes some tenths of a second, or what four parts of 128x128 take if that is longer. Reading and
        writing, which go on beside, are not in it.
        """
        facts = self.backend.facts
        tiles = split(height, width, self._pixels, facts.reach, facts.divisor)
        sides = [(span.seen.stop - span.seen.start) for span in tiles[0]]
        tile = torch.randint(256, (*(min(side, _TRIAL_SIDE) for side in sides), 3), device=self.device).byte()
        frames = self.batch + self.num_frame - 1
        windows = [[tile] * frames] if self._sequences else [[tile] * self.num_frame] * self.batch
        times: list[float] = []
        while len(times) < 4 or sum(times) < _TRIAL_SECONDS:
            began = time.perf_counter()
            self._derain(windows, 255)
            times.append(time.perf_counter() - began)
        computed = len(tiles) * sides[0] * sides[1] / (self.batch * tile.shape[0] * tile.shape[1])
        # The first one is slower (memory, kernels), and so is one that another program interrupts.
        return statistics.median(times[1:]) * computed

    def _finish(self, count: int, example: np.ndarray | Tensor) -> list[Any]:
        """Compute the first `count` of the windows that are ready."""
        frames = []
        for start in range(0, count, self._at_once):
            outputs = self._derain(self._ready[start : min(start + self._at_once, count)], peak_of(example))
            frames += [from_pixels(output, example) for output in outputs]
        del self._ready[:count]
        return frames

    @torch.inference_mode()
    def _derain(self, windows: list[list[Tensor]], peak: float) -> Tensor:
        """B windows of T frames (H, W, 3), values 0 .. peak -> their clean frames (B, H, W, 3), of the same type.

        Of sequences, one of N frames -> the N - num_frame + 1 that count. Frames stay in the type they came in but
        for the tile that is at work.
        """
        first, facts = windows[0][0], self.backend.facts
        height, width = first.shape[:2]
        count = len(windows[0]) - self.num_frame + 1 if self._sequences else len(windows)
        output = first.new_empty(count, height, width, 3)
        for y, x in split(height, width, self._pixels, facts.reach, facts.divisor):
            tiles = [torch.stack([frame[y.seen, x.seen] for frame in window], dim=2) for window in windows]
            seen = torch.stack(tiles).permute(0, 3, 4, 1, 2)  # (B, h, w, T, 3) in memory: channels of a pixel together
            clean = self.backend(whole_cells(seen.float() / peak, facts.divisor))
            if self._sequences:
                clean = clean[0].narrow(0, self.num_frame // 2, count)
            if not bool(clean.isfinite().all()):
                raise CSDError(
                    "the network's output holds NaN or infinity: its weights are broken; use another checkpoint"
                )
            clean = clean[..., y.inner, x.inner].permute(0, 2, 3, 1).clamp(0, 1)
            output[:, y.kept, x.kept] = clean if peak == 1 else (clean * peak).round_()
        return output


def peak_of(frame: np.ndarray | Tensor) -> float:
    """The value of white. Raises CSDError for what is no frame."""
    if isinstance(frame, Tensor):
        if frame.dim() != 3 or frame.shape[0] != 3 or not frame.is_floating_point():
            raise CSDError(
                f"a tensor of shape {tuple(frame.shape)}, {frame.dtype}, is no frame: expected float (3, H, W)"
            )
        return 1.0
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype not in (np.uint8, np.uint16):
        raise CSDError(
            f"an array of shape {frame.shape}, {frame.dtype}, is no frame: expected uint8 or uint16 (H, W, 3)"
        )
    return float(np.iinfo(frame.dtype).max)


def to_pixels(frame: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A frame -> (H, W, 3) on the device: uint8, int32 for uint16 (of which torch knows little), or float."""
    if isinstance(frame, Tensor):
        return frame.permute(1, 2, 0).to(device)
    wanted = np.uint8 if frame.dtype == np.uint8 else np.int32
    return torch.from_numpy(np.require(frame, wanted, ["C", "W"])).to(device)  # torch has no read-only tensors


def from_pixels(pixels: Tensor, example: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """(H, W, 3) as `to_pixels` makes it -> a frame of the example's kind."""
    if isinstance(example, Tensor):
        return pixels.permute(2, 0, 1).to(example)
    return pixels.cpu().numpy().astype(example.dtype, copy=False)


class Span(NamedTuple):
    """A tile in one direction: what the network sees of the frame, what is kept, and where that is in the former."""

    seen: slice
    kept: slice
    inner: slice


def whole_cells(window: Tensor, divisor: int) -> Tensor:
    """(B, T, 3, H, W) with the last row and column repeated up to multiples of `divisor`."""
    below, beside = -window.shape[-2] % divisor, -window.shape[-1] % divisor
    return F.pad(window, (0, beside, 0, below, 0, 0), mode="replicate") if below or beside else window


def split(height: int, width: int, pixels: int, reach: int, divisor: int = 1) -> list[tuple[Span, Span]]:
    """Tiles of a frame, (rows, columns) each, that see at most `pixels` pixels and `reach` beyond what they keep.

    All begin at multiples of `divisor`. All see parts of one size, so that memory is used again. Of all such grids
    this is the one with the least to compute; where none is small enough, the finest.
    """
    rows, columns = (
        [_spans(length, count, reach, divisor) for count in range(1, min(-(-length // divisor), 64) + 1)]
        for length in (height, width)
    )
    grids = [(y, x, _seen(y) * _seen(x)) for y in rows for x in columns]
    fitting = [grid for grid in grids if grid[2] <= pixels] or [min(grids, key=lambda grid: grid[2])]
    best_rows, best_columns, _ = min(fitting, key=lambda grid: len(grid[0]) * len(grid[1]) * grid[2])
    return [(y, x) for y in best_rows for x in best_columns]


def _spans(length: int, count: int, reach: int, divisor: int) -> list[Span]:
    edges = [length * i // count // divisor * divisor for i in range(count)] + [length]
    reach = -(-reach // divisor) * divisor
    size = max(end - begin for begin, end in pairwise(edges)) + 2 * reach
    size = min(length, size + (length - size) % divisor)  # the last tile ends where the frame does
    spans = []
    for begin, end in pairwise(edges):
        first = min(max(begin - reach, 0), length - size)
        spans.append(Span(slice(first, first + size), slice(begin, end), slice(begin - first, end - first)))
    return spans


def _seen(spans: list[Span]) -> int:
    return spans[0].seen.stop - spans[0].seen.start
