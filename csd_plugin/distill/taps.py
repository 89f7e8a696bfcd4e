"""Features of any network, by module path, through forward hooks: the network itself is called as ever."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.archs.interface import Interface
from csd_plugin.errors import CSDError

KINDS = ("input", "output")
LISTED = 30
"""Layers that a message names, the nearest first: all of a small network."""
WRAPPED = ("module", "_orig_mod")
"""Attributes under which wrappers (data parallel, averaging, compiled) keep the network."""


class FeatureTap:
    """Captures the input or output of one module at each forward pass of a network.

    `take()` gives the tensor of the last pass; `remove()`, or leaving a `with` block, detaches the tap. While `listens`
    is false nothing is captured, as of passes that nobody compares.

    Args:
        network: any module, or a wrapper that holds it as `.module`.
        path: the module's name as `named_modules` gives it, such as `conv22` or `body.7`.
        kind: `input` or `output`; of several inputs, the first.

    Raises:
        CSDError: no such module; the message names the nearest ones.
    """

    def __init__(self, network: nn.Module, path: str, kind: str = "input") -> None:
        if kind not in KINDS:
            raise CSDError(f"feature tap {path!r}: kind must be one of {', '.join(KINDS)}, not {kind!r}")
        self.path, self.kind, self.listens = path, kind, True
        self._captured: Any = None
        self._version = 0
        module = _find(network, path)
        # An activation that works in place would change what is captured after it was.
        self._copies = any(getattr(layer, "inplace", False) for layer in network.modules())
        if kind == "input":
            self._handle = module.register_forward_pre_hook(self._capture_input, with_kwargs=True)
        else:
            self._handle = module.register_forward_hook(self._capture_output)
        _forget_compiled()

    @property
    def layer(self) -> str:
        """What is tapped as options name it, see `tap_layers`."""
        return self.path if self.kind == "input" else f"{self.path}:{self.kind}"

    def take(self) -> Tensor:
        """The feature of the last forward pass, graph and all, and forget it; a time axis of length 1 is squeezed.

        (B, C, 1, H, W) -> (B, C, H, W); other shapes as they are. Raises CSDError if the module was not run since
        the last call, or what it was given is no tensor.
        """
        captured, self._captured = self._captured, None
        if captured is None:
            raise CSDError(f"feature tap {self.path!r}: the module did not run in this forward pass; tap one that does")
        if not isinstance(captured, Tensor):
            raise CSDError(
                f"feature tap {self.path!r}: its {self.kind} is a {type(captured).__name__}, not a tensor; tap another"
            )
        if not captured.is_inference() and captured._version != self._version:
            raise CSDError(
                f"feature tap {self.path!r}: a later layer changes its {self.kind} in place; tap that layer's output"
            )
        return captured.squeeze(2) if captured.ndim == 5 else captured

    def forget(self) -> None:
        """Let go of what was captured, and so of its graph, where nobody takes it."""
        self._captured = None

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
        if isinstance(value, Tensor):
            # compiled code and inference mode do not count changes in place, by which `take` would know of them
            if self._copies or torch.compiler.is_compiling() or value.is_inference():
                value = value.clone()
            if torch.compiler.is_compiling() or not value.is_inference():
                self._version = value._version
        self._captured = value


@contextmanager
def listening(taps: list[FeatureTap]) -> Iterator[None]:
    """Inside, these taps capture; before and after it they do not, and hold nothing: no pass is kept or mixed up."""
    for tap in taps:
        tap.listens = True
    try:
        yield
    finally:
        quiet(taps)


def quiet(taps: list[FeatureTap]) -> list[FeatureTap]:
    """These taps, which capture nothing until they listen again."""
    for tap in taps:
        tap.listens = False
        tap.forget()
    return taps


def tap_compared(network: nn.Module, interface: Interface, layers: list[str] | None) -> list[FeatureTap]:
    """Taps of these layers of a network, by default of its one feature. Raises CSDError."""
    if layers is None and interface.feature is None:
        raise CSDError(
            f"{type(network).__name__} names no layer for distillation to compare; give its `feature`, or "
            f"train.distill_opt.taps"
        )
    return tap_layers(network, [str(interface.feature)] if layers is None else layers)


def tap_layers(network: nn.Module, layers: Iterable[str]) -> list[FeatureTap]:
    """A tap for each layer: `conv7` taps the input of that module, `conv7:output` its output. Raises CSDError."""
    taps = []
    for layer in layers:
        path, _, kind = layer.partition(":")
        taps.append(FeatureTap(network, path, kind or "input"))
    return taps


def tappable(network: nn.Module) -> dict[str, nn.Module]:
    """Every module of the network by the path that taps it, wrappers looked through."""
    modules = dict(network.named_modules())
    modules.pop("", None)
    for attribute in WRAPPED:
        inner = getattr(network, attribute, None)
        if isinstance(inner, nn.Module):
            return {**tappable(inner), **modules}
    return modules


def _forget_compiled() -> None:
    """Let torch.compile see which hooks there are: code that it has compiled keeps to those that there were.

    A network does not know whether somebody holds it compiled, so all is compiled anew, at the next call of each.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _find(network: nn.Module, path: str) -> nn.Module:
    modules = tappable(network)
    if path not in modules:
        names = [name for name in modules if name.split(".")[0] not in WRAPPED]
        near = difflib.get_close_matches(path, names, n=LISTED, cutoff=0)
        rest = len(names) - len(near)
        others = f" and {rest} more, which `csd inspect --layers` lists without `taps`" if rest else ""
        raise CSDError(
            f"feature tap {path!r}: {type(network).__name__} has no such layer; nearest: {', '.join(near)}{others}"
        )
    return modules[path]
