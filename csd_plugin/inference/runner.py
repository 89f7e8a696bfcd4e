"""From a checkpoint to clean frames: `Derainer`.

    derainer = Derainer("net_g_latest.pth")
    for clean in derainer(rainy_frames): ...

or, for frames that come one at a time, `push` each and `flush` at the end.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from csd_plugin.archs.padding import whole_cells
from csd_plugin.data.images import no_frame
from csd_plugin.data.video.interface import FrameReader
from csd_plugin.data.video.origin import Origin
from csd_plugin.devices import half_precision_warnings
from csd_plugin.digests import file_digest
from csd_plugin.errors import CSDError, first_line, type_in_words, users_line
from csd_plugin.inference.backends import INT8, Backend, TorchBackend, open_backend, weights_of
from csd_plugin.inference.blocks import BlockPath, Seen
from csd_plugin.inference.facts import WHOLE
from csd_plugin.inference.graph import DTYPES
from csd_plugin.inference.int8 import has_int8
from csd_plugin.inference.lanes import Lanes, there
from csd_plugin.inference.precision import Precision, pick_precision
from csd_plugin.inference.streaming import WindowStream
from csd_plugin.inference.tiles import Span, check_finite, split
from csd_plugin.inference.trials import REFUSALS

logger = logging.getLogger(__name__)

Frame = TypeVar("Frame", np.ndarray, Tensor)

_LIVE_ACTIVATIONS = 4
"""The number of tensors of the widest layer's size that exist at once: a layer's input and output, the input that a
residual pair keeps, and the convolution's own copy in its memory layout."""
SEQUENCE = 24
"""Frames that a sequence network cleans together, as in the code of S2VD's authors."""

_BEYOND = 0.5
"""How far below 0 or above 1 a tensor's values may lie: resampling overshoots by less, other scales go further."""

_TRIAL_SIDE, _TRIAL_SECONDS = 128, 0.4
_LONG_SECONDS = 0.1
"""Seconds: a trial of a block that would take longer is not made."""
_BLOCKS_TRIAL_SIDE = 512


class Derainer:
    """Removes rain from frames in display order.

    Frames are RGB, either arrays (H, W, 3) of uint8 or uint16 (full range), or float tensors (3, H, W) in
    [0, 1]; the clean frames are of the same kind, one for each, of any size that does not change within a clip.
    A frame's window reaches num_frame // 2 frames to both sides and is reflected at the clip's ends, so its result
    comes that many frames later (and up to `batch` - 1 more); with a causal network, the window only reaches back, and
    the result comes at once. Memory does not grow with the clip. Frames are copied, as the caller may change them,
    except those of our readers.

    Every call has its own clip, so several can be in progress, also in threads. `push` and `flush` share one clip.

    It can be copied and pickled. In a forked process it uses a single torch thread, as loaders' workers do; torch and
    other runtimes may hang there with more (give such processes a copy instead, with `spawn`).

    Sequence networks clean `batch` frames together, and see num_frame // 2 more at both ends; as they use all frames
    that they see, a frame's result depends slightly on where in the clip that run of frames begins.

    Args:
        network: a checkpoint, an exported .onnx or .xml, or a network: (B, T, 3, H, W) in [0, 1] -> (B, 3, H, W),
            with `num_frame` = T, or of `layout` 'sequence' to the same shape. A copy in its fastest exact form is run,
            see `fold`. Attributes may state what the sides of its frames must be multiples of (`size_divisor`), and how
            many pixels to each side a result depends on (`reach`).
        backend: 'auto', 'torch', 'onnxruntime' or 'openvino'; see `open_backend`. In fp32 all give the same frames.
        precision: 'fp32' (exact also on GPUs, where torch would otherwise round to TF32), or 'bf16' (about twice as
            fast on CPUs that support it; on real rain a third of a trained student2's values change by one grey level,
            52 dB from fp32), or 'fp16' (on GPUs), or 'int8' (networks of type HalfNet on CPUs; about three times as
            fast as fp32 where bytes are multiplied natively, 51 dB or more from it). 'auto' is bf16, else int8, if
            that is fast and this network's frames stay close to those of fp32, see `pick_precision`, else fp32.
        device: 'auto' is CUDA if there is a GPU, else the CPU.
        batch: windows per forward pass; by default 1, or 2 on the CPU for networks with 3-D convolutions that cannot be
            folded, which run many times slower with a single window. For sequences, the number of frames that are
            cleaned together, by default 24.
        memory: MiB for the layers' activations; larger frames are processed in tiles, which overlap by the network's
            reach, so that the result is that of the whole frame. The reach is computed from its layers, and tried out
            for networks that are not ours. If a result depends on the whole frame, as with a mean over it, there are no
            tiles, and a warning says so if that takes more memory.

    Raises:
        CSDError: the checkpoint is unreadable, the backend is not installed, the device is not available, or the
            network does not state how it is called, has no weights, or returns no frames of its input's size.

    Attributes:
        precision: the precision used, and why.
        num_future: frames after a frame that are needed before it can be cleaned.
        made_by: the origins of clean frames: the network's file with its digest, and the precision; empty for a network
            that comes from no file.
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
        if (batch is not None and batch < 1) or memory < 1:
            raise CSDError(f"batch is {batch} and memory {memory}; give 1 or more, or leave them out")
        tried: dict[str, Backend] = {}  # opening takes seconds, so it is done once

        def try_in(precision: str) -> Derainer:
            derainer = Derainer(network, backend=backend, precision=precision, device=device)
            tried[precision] = derainer.backend
            return derainer

        self.precision = pick_precision(try_in) if precision == "auto" else Precision(precision)
        self.backend: Backend = tried.get(self.precision.name) or open_backend(
            network, backend=backend, precision=self.precision.name, device=device
        )
        self.device = self.backend.device
        if isinstance(self.backend, TorchBackend) and precision not in ("auto", "fp32"):
            slow = half_precision_warnings([self.backend.network], DTYPES[precision], self.device)
            self.precision = Precision(precision, "; ".join(slow))
        if precision == INT8 and not has_int8():
            self.precision = Precision(INT8, "this CPU has no fast int8")
        if self.backend.own_precision:
            self.precision = Precision(self.backend.own_precision)
        self._file = None if isinstance(network, nn.Module) else Path(network)
        facts = self.backend.facts
        self.num_frame, self.num_future = facts.num_frame, facts.num_future
        self._sequences = facts.interface.gives_clip
        if self._sequences:
            self.batch = batch or SEQUENCE
            computed = self.batch + self.num_frame - 1
        else:
            computed = self.batch = batch or (2 if self.backend.prefers_pairs else 1)
        self._pixels = memory * 2**20 // (_LIVE_ACTIVATIONS * 4 * facts.floats * computed)
        self._blocks = self.backend.blocks
        self._lanes = Lanes(torch.get_num_threads()) if self._blocks else None
        self._memory = memory
        self._pushed: Clip | None = None

    @cached_property
    def made_by(self) -> dict[str, Origin]:
        """The origins of clean frames; reads the network's file."""
        return _made_by(self._file, self.precision.name) if self._file else {}

    @property
    def at_once(self) -> int:
        """The number of clean frames that are computed at the same time."""
        return self._lanes.count if self._lanes else 1

    @property
    def in_real_time(self) -> bool:
        """Whether the network is one for real time."""
        return self._blocks is not None

    def __call__(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The clean frames of one clip, in order, each as soon as it can be computed.

        None for a clip of none. Raises CSDError for anything but frames, or if a frame differs in kind from the first.
        """
        if isinstance(frames, str | os.PathLike):
            raise CSDError(
                f"{os.fspath(frames)!r} is a path, not frames: give `open_reader(path)` of csd_plugin.data.video"
            )
        if isinstance(frames, np.ndarray | Tensor) and frames.ndim == 3 and not _no_frame(frames):
            raise CSDError("one frame is no clip: give a list of frames, such as [frame]")
        try:
            coming = iter(frames)
        except TypeError as error:
            raise CSDError(f"{type_in_words(frames)} holds no frames: give a list, a generator or a reader") from error
        return self._derained(coming, own=isinstance(frames, FrameReader))

    def _derained(self, frames: Iterator[Frame], *, own: bool) -> Iterator[Frame]:
        clip = self.begin()
        coming: deque[Future[Frame]] = deque()
        try:
            for frame in frames:
                coming += clip.submit(frame, own=own)
                while coming and (len(coming) > self.at_once or coming[0].done()):
                    yield coming.popleft().result()
            coming += clip.finish()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the clean frames that are now ready. Raises CSDError for another size or kind."""
        if self._pushed is None:
            self._pushed = self.begin()
        return [future.result() for future in self._pushed.submit(frame)]

    def flush(self) -> list[Any]:
        """End the clip: return its last frames, and be ready for another clip."""
        clip, self._pushed = self._pushed, None
        return [future.result() for future in clip.finish()] if clip else []

    def reset(self) -> None:
        """Discard what was pushed: the next frame begins a clip."""
        self._pushed = None

    def begin(self) -> Clip:
        """A new clip that takes frames one at a time, for callers that go on while these are computed."""
        if self._sequences:
            return Clip(self, WindowStream(self.num_frame, self.batch))
        return Clip(self, WindowStream(self.num_frame, num_future=self.num_future))

    @property
    def _windows_at_once(self) -> int:
        """Windows per forward pass."""
        return 1 if self._sequences else self.batch

    def seconds_a_frame(self, width: int, height: int, *, closely: bool = False) -> float:
        """The approximate time for a frame of this size in the network, on this machine now, from a trial on a part.

        The trial takes about a second, or as long as four parts of 128x128 if that is longer (256x256 in runtimes other
        than torch). Reading and writing, which run at the same time, are not included.

        Args:
            closely: measure real-time networks on a large part, however long it takes; for benchmarks.
        """
        if self._blocks is not None:
            return self._seconds_in_blocks(self._blocks, width, height, closely=closely)
        facts = self.backend.facts
        tiles = split(height, width, self._pixels, facts.reach, facts.divisor)
        sides = [(span.seen.stop - span.seen.start) for span in tiles[0]]
        # on small parts, other runtimes have too little work for their threads, and would seem slower than they are
        most = _TRIAL_SIDE if isinstance(self.backend, TorchBackend) else 2 * _TRIAL_SIDE
        high, wide = (min(side, most) for side in sides)
        noise = np.random.default_rng(0).integers(0, 256, (high, wide, 3), np.uint8)
        tile = torch.from_numpy(noise).to(self.device)
        frames = self.batch + self.num_frame - 1
        windows = [[tile] * frames] if self._sequences else [[tile] * facts.num_seen] * self.batch
        computed = len(tiles) * sides[0] * sides[1] / (self.batch * high * wide)
        return _usual_time(lambda: self._derain(windows, 255)) * computed

    def _seconds_in_blocks(self, blocks: BlockPath, width: int, height: int, *, closely: bool) -> float:
        """`seconds_a_frame` for networks that process several frames at the same time.

        Small parts are representative of large networks; for small ones, they would miss the cost of memory access.
        """
        for side in (_BLOCKS_TRIAL_SIDE,) if closely else (_TRIAL_SIDE, _BLOCKS_TRIAL_SIDE):
            high, wide = min(height, side), min(width, side)
            frame = np.random.default_rng(0).integers(0, 256, (high, wide, 3), np.uint8)
            window = [blocks.take(frame)] * self.backend.facts.num_seen

            def trial(window: list[Seen] = window) -> None:
                for clean in [self._start(window) for _ in range(self.at_once)]:
                    clean.result()

            seconds = _usual_time(trial) / self.at_once * (height * width) / (high * wide)
            takes_long = seconds * (_BLOCKS_TRIAL_SIDE**2 / (height * width)) > _LONG_SECONDS
            if takes_long or side >= max(height, width):
                break
        return seconds

    def _waiting(self, frame: np.ndarray | Tensor, *, own: bool) -> Any:
        """A frame in the form in which its windows keep it; copied unless it is our `own`."""
        if self._blocks is not None and isinstance(frame, np.ndarray):
            return self._blocks.take(frame if own else frame.copy())
        return to_pixels(frame, self.device, own=own)

    def _compute(self, windows: list[list[Any]], example: np.ndarray | Tensor) -> list[Future[Any]]:
        """The clean frames of windows of `_waiting` frames; of the example's kind."""
        frames: list[Future[Any]] = []
        for start in range(0, len(windows), self._windows_at_once):
            together = windows[start : start + self._windows_at_once]
            if self._blocks is not None and isinstance(example, np.ndarray):
                frames += [self._start(window) for window in together]
            else:
                frames += [there(from_pixels(out, example)) for out in self._derain(together, peak_of(example))]
        return frames

    def warn_of_memory(self, height: int, width: int) -> None:
        """Warn if frames of this size should be cut into tiles, but cannot be."""
        facts = self.backend.facts
        if facts.reach >= WHOLE and height * width > self._pixels:
            logger.warning(
                "%s: a result depends on the whole frame, as far as trials show, so frames of %dx%d are not "
                "cut into tiles and take more than %d MiB; if it depends on fewer pixels, set `reach` on the network",
                *(facts.preset, width, height, self._memory),
            )

    def _start(self, window: list[Seen]) -> Future[np.ndarray]:
        assert self._blocks is not None and self._lanes is not None
        # Each lane has its share of the memory, and values may be half as large as `_pixels` assumes.
        pixels = self._pixels * 4 // (self._blocks.itemsize * self._lanes.count)
        return self._lanes.submit(self._blocks.clean, window, pixels)

    def _derain(self, windows: list[list[Tensor]], peak: float) -> Tensor:
        """B windows of T frames (H, W, 3), values 0 .. peak -> their clean frames (B, H, W, 3), of the same type.

        T is `facts.num_seen`; exported networks accept no other number. For sequences, one of N frames -> the
        N - num_frame + 1 that count. Frames keep their type, except the tile that is being processed.
        """
        first, facts = windows[0][0], self.backend.facts
        height, width = first.shape[:2]
        count = len(windows[0]) - self.num_frame + 1 if self._sequences else len(windows)
        output = first.new_empty(count, height, width, 3)  # outside inference mode, so that others can train with it
        with torch.inference_mode():
            for y, x in split(height, width, self._pixels, facts.reach, facts.divisor):
                self._derain_tile(windows, y, x, peak, output)
        return output

    def _derain_tile(self, windows: list[list[Tensor]], y: Span, x: Span, peak: float, output: Tensor) -> None:
        """One tile of `_derain`, written to its place in the output."""
        facts = self.backend.facts
        tiles = [torch.stack([frame[y.seen, x.seen] for frame in window], dim=2) for window in windows]
        seen = torch.stack(tiles).permute(0, 3, 4, 1, 2)  # (B, h, w, T, 3) in memory: a pixel's channels are contiguous
        window = whole_cells(seen.float() / peak, facts.divisor)
        expected = window.shape if self._sequences else (len(window), *window.shape[2:])
        clean = facts.interface.checked(self._run(window), expected)
        if self._sequences:
            clean = clean[0].narrow(0, self.num_frame // 2, len(output))
        check_finite(clean)
        clean = clean[..., y.inner, x.inner].permute(0, 2, 3, 1).clamp(0, 1)
        output[:, y.kept, x.kept] = clean if peak == 1 else (clean * peak).round_()

    def _run(self, window: Tensor) -> Tensor:
        """The network's output. Raises CSDError for frames that it refuses."""
        try:
            return self.backend(window)
        except REFUSALS as error:
            if users_line(error):
                raise
            height, width = window.shape[-2:]
            raise CSDError(
                f"{self.backend.facts.preset} does not process frames of {width}x{height} ({first_line(error)}); give "
                f"frames of another size, or another network"
            ) from error


class Clip:
    """A clip that a `Derainer` is processing; others may be in progress at the same time.

    Args:
        windows: a stream of the derainer's length, still without frames.
    """

    def __init__(self, derainer: Derainer, windows: WindowStream[Any]) -> None:
        self._derainer, self._windows = derainer, windows
        self._ready: list[list[Any]] = []
        self._example: np.ndarray | Tensor | None = None
        self._count = 0

    def submit(self, frame: Frame, *, own: bool = False) -> list[Future[Frame]]:
        """Take the next frame; return futures of the clean frames whose computation this starts, in order.

        Args:
            own: the frame's memory does not change while the clip lasts, so no copy is needed.

        Raises:
            CSDError: not a frame, or one that differs in shape or type from the clip's earlier ones.
        """
        self._check(frame)
        self._ready += self._windows.push(self._derainer._waiting(frame, own=own))
        together = self._derainer._windows_at_once
        return self._compute(len(self._ready) // together * together)

    def finish(self) -> list[Future[Any]]:
        """End the clip: return its last frames."""
        self._ready += self._windows.flush()
        return self._compute(len(self._ready))

    def _compute(self, count: int) -> list[Future[Any]]:
        """The clean frames of the first `count` windows that are ready."""
        windows, self._ready = self._ready[:count], self._ready[count:]
        return self._derainer._compute(windows, self._example) if self._example is not None else []

    def _check(self, frame: np.ndarray | Tensor) -> None:
        peak_of(frame)
        if self._example is None:
            self._example = frame
            self._derainer.warn_of_memory(*(frame.shape[1:] if isinstance(frame, Tensor) else frame.shape[:2]))
        elif frame.shape != self._example.shape or frame.dtype != self._example.dtype:
            raise CSDError(
                f"a frame of shape {tuple(frame.shape)}, {frame.dtype}, after frames of shape "
                f"{tuple(self._example.shape)}, {self._example.dtype}: a clip needs frames of one kind"
            )
        if isinstance(frame, Tensor):
            self._check_values(frame)
        self._count += 1

    def _check_values(self, frame: Tensor) -> None:
        low, high = torch.stack(frame.detach().aminmax()).tolist()  # NaN if a value is
        if low >= -_BEYOND and high <= 1 + _BEYOND:
            return
        held = f"values from {low:.4g} to {high:.4g}" if math.isfinite(low + high) else "NaN or infinity"
        raise CSDError(f"frame {self._count} of the clip, counted from 0, holds {held}: give values in [0, 1]")


def _made_by(path: Path, precision: str) -> dict[str, Origin]:
    weights = weights_of(path)
    files = [path, weights] if path.suffix.lower() == ".xml" and weights.is_file() else [path]
    network = Origin(path.name, "".join(file_digest(file)[:12] for file in files))
    return {"network": network, "precision": Origin(precision, precision)}


def _usual_time(action: Callable[[], object]) -> float:
    """The typical duration of the action in seconds, from some tenths of a second of trials."""
    times: list[float] = []
    while len(times) < 4 or sum(times) < _TRIAL_SECONDS:
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    # The first trial is slower (memory, kernels), and so is one that another program interrupts.
    return statistics.median(times[1:])


def peak_of(frame: np.ndarray | Tensor) -> float:
    """The value of white. Raises CSDError for anything but a frame."""
    if reason := _no_frame(frame):
        raise CSDError(reason)
    return 1.0 if isinstance(frame, Tensor) else float(np.iinfo(frame.dtype).max)


def _no_frame(frame: object) -> str:
    """Why an object is not a frame, an array or a tensor; empty if it is one."""
    if not isinstance(frame, Tensor):
        return no_frame(frame)
    shape = tuple(frame.shape)
    if frame.dim() != 3 or frame.shape[0] != 3 or not frame.is_floating_point():
        how = _conversion(frame)
        return f"a tensor of shape {shape}, {frame.dtype}, is not a frame: expected float (3, H, W){how}"
    if not frame.numel() or frame.is_meta:
        return f"a tensor of shape {shape} on {frame.device} is not a frame: it has no pixels"
    return ""


def _conversion(tensor: Tensor) -> str:
    """The end of a message that says how to make a frame of a tensor; empty for a tensor that cannot be one."""
    steps = []
    if tensor.dtype == torch.uint8:
        steps.append("frame.float() / 255")
    if tensor.dim() == 2 or (tensor.dim() == 3 and tensor.shape[0] == 1):
        steps.append("frame.expand(3, -1, -1)")
    elif tensor.dim() == 3 and tensor.shape[0] != 3 == tensor.shape[2]:
        steps.append("frame.permute(2, 0, 1)")
    elif tensor.dim() == 4:
        steps.append("taking its frames one by one")
    return f"; convert it by {', then '.join(steps)}" if steps and tensor.numel() else ""


def to_pixels(frame: np.ndarray | Tensor, device: torch.device, *, own: bool = False) -> Tensor:
    """A frame -> (H, W, 3) on the device: uint8, int32 for uint16 (which torch hardly supports), or float.

    Args:
        own: the frame's memory may be shared; otherwise it is copied.
    """
    if isinstance(frame, Tensor):
        return frame.detach().permute(1, 2, 0).to(device, copy=not own)
    wanted = np.uint8 if frame.dtype == np.uint8 else np.int32
    if not own:
        return torch.from_numpy(np.array(frame, wanted, order="C")).to(device)
    return torch.from_numpy(np.require(frame, wanted, ["C", "W"])).to(device)  # torch has no read-only tensors


def from_pixels(pixels: Tensor, example: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """(H, W, 3) as made by `to_pixels` -> a frame of the example's kind."""
    if isinstance(example, Tensor):
        return pixels.permute(2, 0, 1).to(example)
    return pixels.cpu().numpy().astype(example.dtype, copy=False)
