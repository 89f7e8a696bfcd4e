"""Features of any network, by module path, through forward hooks: the network is called as usual."""

from __future__ import annotations

import difflib
import enum
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.archs.interface import Captured, Interface
from csd_plugin.errors import CSDError

KINDS = ("input", "output")
LISTED = 5
"""The most layers that a message names, the nearest first."""
_VOLUMETRIC = (
    nn.Conv3d,
    nn.ConvTranspose3d,
    nn.BatchNorm3d,
    nn.InstanceNorm3d,
    nn.Dropout3d,
    nn.MaxPool3d,
    nn.AvgPool3d,
    nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool3d,
)
"""Layers whose input and output have the axes (B, C, T, H, W), according to torch."""
WRAPPED = ("module", "_orig_mod")
"""Attributes in which wrappers (data parallel, averaging, compiled) hold the network."""


class Runs(enum.Enum):
    """The order of a layer's runs in one pass, if there is one for each frame that the network sees."""

    FORWARD = "from the first frame to the last"
    BACKWARD = "from the last frame to the first"
    UNCLEAR = "changing single frames does not show which run is of which"
    UNTRIED = "the network cannot be tried to see which run is of which (it cannot be copied, or refuses other frames)"

    @property
    def doubt(self) -> str:
        """Why the order is not known, in words; empty if it is."""
        return self.value if self in (Runs.UNCLEAR, Runs.UNTRIED) else ""


class FeatureTap:
    """Captures the input or output of one module at each forward pass of a network.

    `take()` returns the tensors of the last pass; `remove()`, or leaving a `with` block, detaches the tap. While
    `listens` is false, nothing is captured, as in passes that nobody compares. `learns` says whether the last pass kept
    a graph at the layer: a checkpoint that runs the layer again in the backward pass may keep none in the forward pass.
    `runs` is the order that `run_order` finds; without one, runs are taken to be in the order of the frames.

    Args:
        network: any module, or a wrapper that holds it as `.module`.
        path: the module's name in `named_modules`, such as `conv22` or `body.7`.
        kind: `input` or `output`; the first of several inputs.

    Raises:
        CSDError: there is no such module; the message names the nearest ones.
    """

    def __init__(self, network: nn.Module, path: str, kind: str = "input") -> None:
        if kind not in KINDS:
            raise CSDError(f"feature tap {path!r}: kind must be one of {', '.join(KINDS)}, not {kind!r}")
        self.path, self.kind, self.listens = path, kind, True
        self.learns = True
        self.runs: Runs | None = None
        self._captured: list[Any] = []
        self._versions: list[int | None] = []
        module = _find(network, path)
        self._volumetric = isinstance(module, _VOLUMETRIC)
        # An in-place activation would change the tensor after it was captured.
        self._copies = any(getattr(layer, "inplace", False) for layer in network.modules())
        if kind == "input":
            self._handle = module.register_forward_pre_hook(self._capture_input, with_kwargs=True)
        else:
            self._handle = module.register_forward_hook(self._capture_output)
        _forget_compiled()

    @property
    def layer(self) -> str:
        """The tapped layer as named in options, see `tap_layers`."""
        return self.path if self.kind == "input" else f"{self.path}:{self.kind}"

    @property
    def ran(self) -> bool:
        """Whether there is something to take."""
        return bool(self._captured)

    def take(self) -> Captured:
        """Return and forget the tensors since the last call, with their graph, one for each run of the module.

        Runs that are known to go backward in time are returned in the order of the frames.

        Raises CSDError if the module was not run, or if the value is not a tensor, or was changed in place.
        """
        captured, versions = self._captured, self._versions
        self.forget()
        if not captured:
            raise CSDError(f"feature tap {self.path!r}: the module did not run in this forward pass; tap one that does")
        for value, version in zip(captured, versions, strict=True):
            if not isinstance(value, Tensor):
                raise CSDError(
                    f"feature tap {self.path!r}: its {self.kind} is a {type(value).__name__}, not a tensor; tap another"
                )
            if version is not None and value._version != version:
                raise CSDError(
                    f"feature tap {self.path!r}: a later layer changes its {self.kind} in place; tap that layer's "
                    f"output"
                )
        ordered = captured[::-1] if self.runs is Runs.BACKWARD else captured
        doubt = self.runs.doubt if self.runs else ""
        return Captured(tuple(ordered), self._volumetric, clear=self.runs is not Runs.UNCLEAR, doubt=doubt)

    def forget(self) -> None:
        """Discard what was captured, and so its graph, if nobody takes it."""
        self._captured, self._versions = [], []

    def remove(self) -> None:
        self._handle.remove()
        self.forget()
        _forget_compiled()

    def __enter__(self) -> FeatureTap:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def _capture_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._capture(next(iter((*args, *kwargs.values())), None))

    def _capture_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._capture(output)

    def _capture(self, value: Any) -> None:
        if not self.listens:
            return
        version, self.learns = None, torch.is_grad_enabled()
        if isinstance(value, Tensor):
            # compiled code and inference mode do not count in-place changes, so `take` could not detect them
            if torch.compiler.is_compiling() or value.is_inference():
                value = value.clone()
            else:
                value = value.clone() if self._copies else value
                version = value._version
        self._captured.append(value)
        self._versions.append(version)


@contextmanager
def listening(taps: list[FeatureTap]) -> Iterator[None]:
    """Inside, these taps capture; before and after, they do not and hold nothing, so that passes cannot be mixed up."""
    for tap in taps:
        tap.listens = True
    try:
        yield
    finally:
        quiet(taps)


def quiet(taps: list[FeatureTap]) -> list[FeatureTap]:
    """The same taps, which capture nothing until they listen again."""
    for tap in taps:
        tap.listens = False
        tap.forget()
    return taps


def tap_compared(network: nn.Module, interface: Interface, layers: list[str] | None) -> list[FeatureTap]:
    """Taps of these layers of a network, by default of its own feature. Raises CSDError."""
    if layers is None and interface.feature is None:
        raise CSDError(
            f"{type(network).__name__} names no layer for distillation to compare; give its `feature`, or "
            f"train.distill_opt.taps"
        )
    return tap_layers(network, [str(interface.feature)] if layers is None else layers)


def tap_layers(network: nn.Module, layers: Iterable[str]) -> list[FeatureTap]:
    """A tap for each layer: `conv7` taps the input of that module, `conv7:output` its output. Raises CSDError."""
    if isinstance(layers, str):
        raise CSDError(f"layers is {layers!r}; give a list of layers, such as [{layers!r}]")
    taps, known = [], tappable(network)
    for layer in layers:
        # a layer's own name may have a colon, in a ModuleDict
        path, _, kind = (layer, "", "") if layer in known or ":" not in layer else layer.rpartition(":")
        taps.append(FeatureTap(network, path, kind or "input"))
    return taps


def tappable(network: nn.Module) -> dict[str, nn.Module]:
    """Every module of the network, without wrappers, by the path that taps it."""
    modules = dict(network.named_modules())
    modules.pop("", None)
    for attribute in WRAPPED:
        inner = getattr(network, attribute, None)
        if isinstance(inner, nn.Module):
            return {**tappable(inner), **modules}
    return modules


def uncompiled(network: nn.Module) -> nn.Module:
    """The network in the wrapper of torch.compile; other networks unchanged."""
    inner: nn.Module = getattr(network, "_orig_mod", network)
    return inner


def _forget_compiled() -> None:
    """Make torch.compile notice the hooks: compiled code keeps the hooks that existed when it was compiled.

    A network does not know whether it is compiled somewhere, so everything is compiled again at its next call.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _find(network: nn.Module, path: str) -> nn.Module:
    modules = tappable(network)
    if path not in modules:
        names = [name for name in modules if name.split(".")[0] not in WRAPPED]
        near = difflib.get_close_matches(path, names, n=LISTED, cutoff=0)
        others = f"; with one of these there, csd inspect FILE --layers lists all {len(names)}"
        raise CSDError(
            f"feature tap {path!r}: {type(network).__name__} has no such layer; nearest: {', '.join(near)}"
            f"{others if len(names) > len(near) else ''}"
        )
    if isinstance(modules[path], torch.jit.ScriptModule):
        raise CSDError(f"feature tap {path!r}: torch.jit has compiled this layer, which keeps taps out; tap another")
    return modules[path]
