"""From a checkpoint to clean frames: `Derainer`.

    derainer = Derainer("net_g_latest.pth")
    for clean in derainer(rainy_frames): ...

or, for frames that come one at a time, `push` each and `flush` at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.errors import CSDError
from csd_plugin.inference.folding import fold
from csd_plugin.inference.streaming import WindowStream

Frame = TypeVar("Frame", np.ndarray, Tensor)

# How many tensors of the widest layer's size are alive at once: a layer's input and output, the input that a
# residual pair keeps, and the convolution's own copy in the layout it computes in.
_LIVE_ACTIVATIONS = 4


class Derainer:
    """Removes rain from frames that come in display order.

    Frames are RGB, either arrays (H, W, 3) of uint8 or uint16 (full range), or float tensors (3, H, W) in
    [0, 1]; they come back as the same kind, one for one, of any size that does not change within a clip.
    A frame's window reaches num_frame // 2 frames to both sides and is reflected at the clip's ends, so its
    result comes that many frames late (and up to `batch` - 1 more). Memory does not grow with the clip.

    Args:
        network: a checkpoint, or a network: (B, T, 3, H, W) in [0, 1] -> (B, 3, H, W), with `num_frame` = T.
            What runs is a copy in its fastest exact form, see `fold`.
        device: 'auto' is CUDA where there is one, else the CPU.
        batch: windows in one forward; by default 1, or 2 on the CPU for networks with 3-D convolutions that
            could not be folded, which run many times slower one window at a time.
        memory: MiB that the layers' activations may take; larger frames go through in tiles, which overlap
            by what the network sees, so that the result is that of the whole frame.

    Raises:
        CSDError: an unreadable checkpoint, or a device that is not there.
    """

    def __init__(
        self,
        network: str | Path | nn.Module,
        *,
        device: str | torch.device = "auto",
        batch: int | None = None,
        memory: int = 1024,
    ) -> None:
        self.device = pick_device(device)
        module = network if isinstance(network, nn.Module) else load_network(network)
        self.network = fold(module).to(self.device)
        self.num_frame = int(module.num_frame)  # type: ignore[arg-type]
        convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]
        still_plain = any(isinstance(layer, nn.Conv3d) for layer in self.network.modules())
        slow_alone = self.device.type == "cpu" and still_plain
        self.batch = batch or (2 if slow_alone else 1)
        self._reach = sum(layer.dilation[-1] * (layer.kernel_size[-1] // 2) for layer in convolutions)
        widest = max((layer.out_channels for layer in convolutions), default=3)
        bytes_per_pixel = _LIVE_ACTIVATIONS * 4 * widest * self.num_frame * self.batch
        self._pixels = max(memory * 2**20 // bytes_per_pixel, 64**2)
        self._windows: WindowStream[Tensor] = WindowStream(self.num_frame)
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
            self._example = frame
        elif frame.shape != self._example.shape or frame.dtype != self._example.dtype:
            raise CSDError(
                f"a frame of shape {tuple(frame.shape)}, {frame.dtype}, after frames of shape "
                f"{tuple(self._example.shape)}, {self._example.dtype}: a clip has frames of one kind"
            )
        self._ready += self._windows.push(to_tensor(frame, self.device))
        return self._finish(len(self._ready) // self.batch * self.batch, frame)

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

    def _finish(self, count: int, example: np.ndarray | Tensor) -> list[Any]:
        """Compute the first `count` of the windows that are ready."""
        frames = []
        for start in range(0, count, self.batch):
            windows = torch.stack(
                [torch.stack(window) for window in self._ready[start : min(start + self.batch, count)]]
            )
            frames += [from_tensor(output, example) for output in self.derain(windows)]
        del self._ready[:count]
        return frames

    @torch.inference_mode()
    def derain(self, windows: Tensor) -> Tensor:
        """(B, T, 3, H, W) in [0, 1] -> (B, 3, H, W), not clamped; in tiles if it is too large to be done at once."""
        height, width = windows.shape[-2:]
        if height * width <= self._pixels:
            return self.network(windows)
        side = max(math.isqrt(self._pixels) - 2 * self._reach, 32)
        output = windows.new_empty(windows.shape[0], 3, height, width)
        for top, bottom in _spans(height, side):
            for left, right in _spans(width, side):
                # The tile and what its edge pixels see; where the frame ends, the network pads as it always does.
                y, x = max(top - self._reach, 0), max(left - self._reach, 0)
                seen = windows[..., y : bottom + self._reach, x : right + self._reach]
                clean = self.network(seen)
                output[..., top:bottom, left:right] = clean[..., top - y : bottom - y, left - x : right - x]
        return output


def pick_device(device: str | torch.device) -> torch.device:
    """'auto' -> CUDA where there is one, else the CPU. Raises CSDError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CSDError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); try 'cpu'") from error
    return chosen


def to_tensor(frame: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 or uint16, or (3, H, W) float in [0, 1] -> (3, H, W) float32 in [0, 1] on the device."""
    if isinstance(frame, Tensor):
        if frame.dim() != 3 or frame.shape[0] != 3 or not frame.is_floating_point():
            raise CSDError(
                f"a tensor of shape {tuple(frame.shape)}, {frame.dtype}, is no frame: expected float (3, H, W)"
            )
        return frame.to(device, torch.float32)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype not in (np.uint8, np.uint16):
        raise CSDError(
            f"an array of shape {frame.shape}, {frame.dtype}, is no frame: expected uint8 or uint16 (H, W, 3)"
        )
    pixels = np.ascontiguousarray(frame if frame.dtype == np.uint8 else frame.astype(np.float32))
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1).float() / float(np.iinfo(frame.dtype).max)


def from_tensor(output: Tensor, example: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """(3, H, W) float -> a frame of the example's kind, clamped to its range. Raises CSDError if it holds NaN."""
    if not bool(output.isfinite().all()):
        raise CSDError("the network's output holds NaN or infinity: its weights are broken; use another checkpoint")
    if isinstance(example, Tensor):
        return output.clamp(0, 1).to(example)
    full = float(np.iinfo(example.dtype).max)
    pixels = output.clamp(0, 1).mul(full).round().permute(1, 2, 0)
    # torch computes little in uint16, numpy converts it.
    return (pixels.byte() if full == 255 else pixels).contiguous().cpu().numpy().astype(example.dtype, copy=False)


def _spans(length: int, side: int) -> list[tuple[int, int]]:
    """Equal parts of at most `side`, as (begin, end)."""
    count = math.ceil(length / side)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))
