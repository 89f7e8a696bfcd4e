"""A step's losses and gradients in one launch on a GPU: recorded once as a CUDA graph, then replayed.

A step launches some hundred operations, and for networks of a few channels a GPU computes faster than Python launches:
measured on an H200, the step of `realtime` (4 clips of 5 targets, 128 pixels, bf16) kept it busy for 3.7 of 15.2 ms.
What is outside the graph, such as the optimizer's step, is launched as usual.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.errors import NOT_SERVED, first_line

Batch = dict[str, Tensor]
Computed = tuple[dict[str, Tensor], Tensor]
"""Losses and scalars by name, and whether all losses are finite."""
Compute = Callable[[Batch], Computed]

USUAL_STEPS = 3
"""Equal steps before one is recorded: libraries choose their algorithms in them, and allocate their memory. The last
one shows whether the step waits for the GPU, which cannot be recorded."""
_WAITS = "synchronizing CUDA operation"
"""Part of torch's warning about an operation that waits."""
_OF_THE_MODE = "debug mode"
"""Part of torch's one-time warning about the search for them."""


@dataclass(frozen=True)
class _Recorded:
    """A graph, where it reads its batch, and where it leaves its results."""

    graph: Any
    batch: Batch
    computed: Computed
    gradients: list[Tensor | None]


class StepGraph:
    """Computes steps on a GPU; steps that repeat earlier ones with other values are replayed.

    Args:
        parameters: get their gradients in every step.
        warn: called with a line if steps cannot be recorded; they are then launched as usual.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], warn: Callable[[str], object]) -> None:
        self._parameters, self._warn = parameters, warn
        self._key: Hashable = None
        self._alike = 0
        self._recorded: _Recorded | None = None
        self._refused = self._waited = False
        self._stream: torch.cuda.Stream | None = None

    def run(self, compute: Compute, batch: Batch, key: Hashable) -> Computed:
        """The result of `compute` for the batch; also sets the parameters' gradients.

        Args:
            compute: losses and backward pass; the parameters have no gradients before it.
            key: everything the step depends on besides values in permanent tensors; None: it is like no other step.

        Returns:
            Tensors that the next step may overwrite.
        """
        if key is None or self._refused:
            return compute(batch)
        device = self._parameters[0].device
        # streams and graphs belong to the thread's current GPU, which may be another one
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return self._run(compute, batch, key)

    @property
    def records(self) -> bool:
        """Whether the latest step was replayed."""
        return self._recorded is not None

    def _run(self, compute: Compute, batch: Batch, key: Hashable) -> Computed:
        key = (key, *((name, value.shape, value.dtype) for name, value in batch.items()))
        if key != self._key:
            self._key, self._alike, self._recorded = key, 0, None
        if self._recorded is None and self._alike == USUAL_STEPS:
            self._recorded = self._record(compute, batch)
        if self._recorded is not None:
            return self._replay(self._recorded, batch)
        if self._refused:
            return compute(batch)
        self._alike += 1
        if self._alike < USUAL_STEPS:
            return self._beside(lambda: compute(batch))
        with _waits_seen() as waits:
            done = self._beside(lambda: compute(batch))
        if waits and self._waited:
            self._refuse(waits[0])
        elif waits:  # perhaps another thread waited, which is allowed: try again
            self._waited, self._alike = True, USUAL_STEPS - 1
        return done

    def _replay(self, recorded: _Recorded, batch: Mapping[str, Tensor]) -> Computed:
        for name, value in batch.items():
            recorded.batch[name].copy_(value)
        recorded.graph.replay()
        for parameter, gradient in zip(self._parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        return dict(recorded.computed[0]), recorded.computed[1]

    def _beside(self, action: Callable[[], Computed]) -> Computed:
        """Run in a separate stream, like recordings: gradients are accumulated in the stream that created them."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        usual = torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            done = action()
        usual.wait_stream(self._stream)
        return done

    def _record(self, compute: Compute, batch: Batch) -> _Recorded | None:
        """Record a graph, without computing anything; None, with one warning, if that is impossible."""
        batch = {name: value.clone() for name, value in batch.items()}
        for parameter in self._parameters:
            parameter.grad = None
        usual = torch.cuda.current_stream()
        try:
            graph = torch.cuda.CUDAGraph()
            # other threads, such as data loaders, may use the GPU meanwhile
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                computed = compute(batch)
        except NOT_SERVED as error:
            torch.cuda.set_stream(usual)  # torch leaves its own stream set if the recording cannot be ended
            cause = error.__context__  # ending a broken recording fails, too
            self._refuse(first_line(cause if isinstance(cause, Exception) else error))
            for parameter in self._parameters:
                parameter.grad = None
            return None
        return _Recorded(graph, batch, computed, [parameter.grad for parameter in self._parameters])

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self._warn(f"the step cannot be recorded as a CUDA graph, and is launched as usual: {reason}")


@contextmanager
def _waits_seen() -> Iterator[list[str]]:
    """Inside, collect torch's warnings about operations that wait for the GPU.

    A recording that such an operation breaks off can leave torch's allocator and random generator unusable.
    """
    waits: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if _WAITS in str(warning.message):
            place = f"{warning.filename}:{warning.lineno}"
            waits.append(f"it waits for the GPU at {place}")
        elif _OF_THE_MODE not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
