"""Runs a network on a batch of clips without computing anything: shapes of layers and features, and memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)

from csd_plugin.archs.interface import Interface
from csd_plugin.devices import forked_random
from csd_plugin.distill.taps import tap_compared
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView

GIB = 2**30
_OF_TORCH = vars(nn.Module()).keys()
"""The attributes of every module: its parameters, buffers, modules and hooks."""


class DryRunError(CSDError):
    """The network cannot be run without computing, or cannot be copied; it may be fine otherwise."""


@dataclass(frozen=True)
class Clips:
    """A batch as the model gets it: B clips of N frames, crops of size x size, with L targets in the middle."""

    batch: int
    num_frame: int
    num_target: int
    size: int


@dataclass
class Dry:
    """The dry run of one network on a batch.

    Attributes:
        layers: module path -> shape of its output, in the order in which they ran.
        features: tapped layer -> (B, L, C, h, w).
        runs: tapped layer -> how often it ran, for those that ran several times.
        warnings: what training says of layers of which only the last run is compared.
        kept: bytes of all layers' outputs, which training keeps for gradients.
        largest: bytes of the largest of them.
    """

    layers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    features: dict[str, tuple[int, ...]] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    kept: int = 0
    largest: int = 0

    def of_batch(self, batch: int) -> Dry:
        """The dry run of that many clips, from the one of a single clip."""
        return replace(
            self,
            layers={path: (shape[0] * batch, *shape[1:]) for path, shape in self.layers.items() if shape},
            features={layer: (batch, *shape[1:]) for layer, shape in self.features.items()},
            kept=self.kept * batch,
            largest=self.largest * batch,
        )

    def view(self) -> ClipView:
        """Its features, without values, as an objective sees them."""
        return ClipView(torch.empty(0), {1: tuple(torch.empty(()).expand(shape) for shape in self.features.values())})


def clips_of(opt: Mapping[str, Any], size: int | None = None) -> Clips:
    """What goes through the networks at once: the training set's batches, or their largest parts (`accumulate`), or
    single frames of the first test set. `size`: of the rainy crops, to use instead of the set's."""
    datasets = opt["datasets"]
    content = datasets.get("train") or next(iter(datasets.values()))
    parts = (opt.get("train") or {}).get("accumulate", 1)
    return Clips(
        batch=-(-int(content.get("batch_size_per_gpu", 1)) // parts),
        num_frame=int(content.get("num_frame", 1)),
        num_target=int(content.get("num_target", 1)),
        size=size or int(content.get("gt_size", 128)) // int(opt.get("scale", 1)),
    )


@contextmanager
def without_values() -> Iterator[None]:
    """Inside, new tensors have shapes and no values. torch does not log what it raises then, which others report."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        log.disabled = before


def dry_run(
    network: nn.Module,
    interface: Interface,
    clips: Clips,
    layers: list[str] | None,
    *,
    tapped: bool,
    may_compute: bool = False,
) -> Dry:
    """Run a copy of a network on a batch without computing anything; a copy, as networks may keep state between passes.

    Args:
        layers: the layers to tap if `tapped`; by default the interface's feature.
        may_compute: run networks whose control flow depends on values on a clip of random frames, which takes longer.

    Raises:
        DryRunError: the network's control flow depends on values, or the network cannot be copied.
        CSDError: windows or layers do not fit.
    """
    apart = copied(network)
    try:
        with without_values():
            return _recorded(apart, interface, clips, layers, tapped=tapped)
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException) as error:
        if not may_compute:
            raise DryRunError(
                f"{type(network).__name__} has a control flow that depends on values, and cannot be dry-run"
            ) from error
    apart = copied(network)  # as the first one may have kept tensors without values
    with forked_random(), torch.no_grad():
        one = _recorded(apart, interface, replace(clips, batch=1), layers, tapped=tapped)
    return one.of_batch(clips.batch)


def _recorded(network: nn.Module, interface: Interface, clips: Clips, layers: list[str] | None, *, tapped: bool) -> Dry:
    """What a network does with a batch; it keeps hooks."""
    dry = Dry()

    def record(path: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            dry.layers[path] = tuple(output.shape)
            size = output.numel() * 4
            dry.kept += 0 if any(True for _ in module.children()) else size
            dry.largest = max(dry.largest, size)

    for path, module in network.named_modules():
        if path and not isinstance(module, torch.jit.ScriptModule):  # which take no hooks
            module.register_forward_hook(lambda module, _, output, path=path: record(path, module, output))
    taps = tap_compared(network, interface, layers) if tapped else []
    try:
        device = next(network.parameters()).device
        batch = torch.rand(clips.batch, clips.num_frame, 3, clips.size, clips.size, device=device)
        interface.run(network, batch, clips.num_target)
        for tap in taps:
            size, captured = (clips.size, clips.size), tap.take()
            feature = interface.features(
                captured, clips.batch, clips.num_target, tap.path, dry.warnings.append, size=size
            )
            dry.features[tap.layer] = tuple(feature.shape)
            if len(captured.calls) > 1:
                dry.runs[tap.layer] = len(captured.calls)
    finally:
        for tap in taps:
            tap.remove()
    return dry


def copied(network: nn.Module) -> nn.Module:
    """A copy, even if modules hold objects that cannot be copied. Raises DryRunError.

    Tensors that a pass has left in modules, such as the weights of the old `weight_norm`, are detached from their
    graph; containers of such tensors, such as caches, are copied. Objects like locks are shared, and so are tensors
    that an earlier dry run has left.
    """
    kept = [value for module in network.modules() for name, value in vars(module).items() if name not in _OF_TORCH]
    known: dict[int, Any] = {}
    for value in (*kept, *network.buffers()):
        if isinstance(value, FakeTensor):
            known[id(value)] = value
        elif isinstance(value, Tensor) and not value.is_leaf:
            known[id(value)] = value.detach().clone()
    for value in kept:
        if id(value) not in known and _copy(copy.deepcopy, value, dict(known)) is None:
            apart = _copy(copy.copy, value)
            known[id(value)] = value if apart is None else apart
    apart = _copy(copy.deepcopy, network, known)
    if apart is None:
        raise DryRunError(f"{type(network).__name__} cannot be copied, and so cannot be dry-run: mend its __deepcopy__")
    return apart


def _copy(how: Callable[..., Any], *arguments: Any) -> Any:
    """A copy; None if it fails, for whatever reason the classes of other packages have."""
    try:
        return how(*arguments)
    except Exception:
        return None
