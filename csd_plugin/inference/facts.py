"""Facts about a network that are needed to run it, determined by running it once: `study`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from csd_plugin import archs
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.interface import DERAINED, KINDS, Interface, interface_of, kind_of
from csd_plugin.errors import CSDError, first_line
from csd_plugin.inference.trials import REFUSALS, as_it_is, tried_reach, zeros_for

_SIDES, _MANY = (16, 64, 256), 24
"""Sides, in pixels, of the frames that a network is studied on; the first that it accepts is used, as the windows or
padding of some are larger than the smallest. And the frames of a sequence in addition to num_frame."""
_ALL = -1


class ConvCall(NamedTuple):
    """One call of a convolution: shapes are (B, C, H, W) or (B, C, T, H, W)."""

    name: str
    layer: nn.Conv2d | nn.Conv3d
    input_shape: torch.Size
    output_shape: torch.Size


WHOLE = 4096
"""A reach with which frames are not cut into tiles."""
_MOST = {"num_frame": 999, "reach": WHOLE, "divisor": 4096, "floats": 99_999}
"""Upper bounds for a network in an exported file, as the file's own statements determine its share of memory."""


@dataclass(frozen=True)
class Facts:
    """The facts about a network that a runner needs.

    Attributes:
        num_frame: frames of the window, whose centre is the clean frame.
        num_future: frames after the centre that the network uses; by default num_frame // 2, all of them. The others
            are not passed to it.
        reach: the most pixels to each side that a result depends on; `WHOLE` if unknown.
        floats: values of the largest activation per pixel of a window, or of a frame of a sequence.
        layout: 'window', (B, num_frame, 3, H, W) in [0, 1] -> (B, 3, H, W); or 'sequence', (B, N, 3, H, W) ->
            (B, N, 3, H, W), of which all but num_frame // 2 frames at both ends count.
        divisor: heights and widths must be multiples of it, and tiles begin at multiples.
        preset: the network's preset, or the name of its class.
        license: of the weights, as stated by their author.
        adapted: the clips that the network was adapted to by `csd adapt`; empty for other networks.
    """

    num_frame: int
    reach: int
    floats: int
    layout: str = "window"
    divisor: int = 1
    preset: str = ""
    license: str = "not stated"
    num_future: int = _ALL
    adapted: str = ""

    def __post_init__(self) -> None:
        if self.num_future == _ALL:
            object.__setattr__(self, "num_future", self.num_frame // 2)

    @property
    def interface(self) -> Interface:
        """The network's interface: how it is called."""
        return Interface(self.num_frame, self.layout)

    @property
    def num_seen(self) -> int:
        """Frames of a window that the network uses: up to the centre, plus `num_future`."""
        return self.num_frame // 2 + 1 + self.num_future

    def to_metadata(self) -> dict[str, str]:
        """Strings to store in an exported file: the facts, and how to prepare the input."""
        facts = {name: str(value) for name, value in dataclasses.asdict(self).items() if name != "adapted" or value}
        # names of clips may not be valid UTF-8, which these files require
        facts = {name: value.encode(errors="backslashreplace").decode() for name, value in facts.items()}
        size = "none, any size will do" if self.divisor == 1 else f"repeat the ends to multiples of {self.divisor}"
        padding = {"padding": f"time: reflect the clip at its ends without repeating them; space: {size}"}
        if self.interface.gives_clip:
            return (
                facts
                | padding
                | {
                    "input": "window: float32 RGB in [0, 1], (batch, frames, 3, height, width), frames >= num_frame",
                    "output": "frame: float32 RGB, as many frames, of which num_frame // 2 at both ends do not count; "
                    "clamp it to [0, 1]",
                }
            )
        frames = "num_frame" if self.num_seen == self.num_frame else f"{self.num_seen} frames that end with the target"
        frames += f" and {self.num_future} after it" if self.num_seen != self.num_frame and self.num_future else ""
        return (
            facts
            | padding
            | {
                "input": f"window: float32 RGB in [0, 1], (batch, {frames}, 3, height, width)",
                "output": "frame: float32 RGB, (batch, 3, height, width), the clean centre frame; clamp it to [0, 1]",
            }
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> Facts:
        """The facts in an exported file. Raises CSDError if `source` does not hold them."""
        values: dict[str, int | str] = {}
        for field in dataclasses.fields(cls):
            text = metadata.get(field.name)
            number = field.type == "int"
            if text is None and field.default is not dataclasses.MISSING:
                continue
            if text is None or (number and not (text.isdecimal() and len(text) < 7)):
                raise CSDError(
                    f"{source} does not state its {field.name}: it was not written by `csd export`; export it again"
                )
            values[field.name] = int(text) if number else text
        facts = cls(**values)  # type: ignore[arg-type]
        impossible = facts.num_frame % 2 == 0 or facts.num_future > facts.num_frame // 2
        impossible |= any(getattr(facts, name) > most for name, most in _MOST.items())
        if impossible or min(facts.floats, facts.divisor) < 1 or facts.layout not in DERAINED:
            raise CSDError(f"{source}: its metadata is not valid ({facts}); export it again")
        return facts


def study(network: nn.Module, license: str = "not stated") -> Facts:
    """The facts about a network, from tiny frames. Raises CSDError for one that is called in an unknown way.

    A network may state its `reach`. Otherwise it is computed from the layers and, for networks not ours, by trials.
    """
    check_network(network)
    network = without_branches(network)
    layout, divisor = kind_of(network), int(getattr(network, "size_divisor", 1))
    frames = cast(int, network.num_frame) + (_MANY if KINDS[layout].gives_clip else 0)
    side, calls = conv_calls(network, frames)
    reach = getattr(network, "reach", None)
    if reach is None:
        reach = _counted_reach(calls, side, divisor)
        if not _is_ours(network):  # for ours, tests compare tiles with whole frames
            tried = tried_reach(network, reach, side=side, num_frame=frames, divisor=divisor)
            reach = WHOLE if tried is None else tried
    floats = max((max(call.input_shape.numel(), call.output_shape.numel()) for call in calls), default=3 * side**2)
    return Facts(
        num_frame=cast(int, network.num_frame),
        reach=int(cast(int, reach)),
        floats=-(-floats // (side**2 * (frames if KINDS[layout].gives_clip else 1))),
        layout=layout,
        divisor=divisor,
        preset=archs.preset_of(network),
        license=license,
        num_future=int(getattr(network, "num_future", _ALL)),
    )


def _counted_reach(calls: list[ConvCall], side: int, divisor: int) -> int:
    """The reach computed from the layers: at stride 1, every layer adds to it, and twice as much at half the size."""
    reach = divisor - 1
    for call in calls:
        pixels = side // min(call.input_shape[-1], side)
        reach += pixels * call.layer.dilation[-1] * (call.layer.kernel_size[-1] // 2)
    return reach


def _is_ours(network: nn.Module) -> bool:
    return type(network).__module__.startswith(f"{archs.__name__}.")


def check_network(network: nn.Module) -> None:
    """Raise CSDError for a network that does not state how it is called, has no weights, or cannot be copied."""
    kind_of(network)
    interface_of(network)
    for name, layer in network.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):  # a copy's weights would be results, not weights
            raise CSDError(
                f"{type(network).__name__}: torch.jit has compiled {name or 'it'}, and frames are computed by a copy, "
                f"which it does not allow; leave torch.jit.script out"
            )
    for name, weight in network.state_dict(keep_vars=True).items():
        if isinstance(weight, Tensor) and weight.is_meta:
            raise CSDError(f"{type(network).__name__} has no weights: {name} is on the device meta; load a checkpoint")


def without_branches(network: nn.Module) -> nn.Module:
    """The form in which the network is run: `merged()` for a HalfNet with branches, else itself."""
    return network.merged() if isinstance(network, HalfNet) and network.branches else network


def conv_calls(network: nn.Module, num_frame: int | None = None) -> tuple[int, list[ConvCall]]:
    """Every call of a convolution in one forward pass of a small window, in order.

    Args:
        num_frame: by default the network's; any number for a sequence.

    Returns:
        The side of the window's square frames, and the calls.

    Raises CSDError for a network that accepts none of these sizes.
    """
    network = without_branches(network)
    refusals = []
    for side in _SIDES:
        try:
            return side, _conv_calls(network, num_frame or cast(int, network.num_frame), side)
        except REFUSALS as error:
            refusals.append(error)
    raise CSDError(
        f"{type(network).__name__} runs on no frames of {' or '.join(f'{side}x{side}' for side in _SIDES)}: "
        f"{first_line(refusals[0])}"
    ) from refusals[0]


def _conv_calls(network: nn.Module, num_frame: int, side: int) -> list[ConvCall]:
    calls: list[ConvCall] = []
    network = copy.deepcopy(network).eval()  # the original might keep inference tensors, which cannot be trained with

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(ConvCall(name, cast("nn.Conv2d | nn.Conv3d", layer), inputs[0].shape, output.shape))

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            layer.register_forward_hook(lambda layer, inputs, output, name=name: note(name, layer, inputs, output))
    with as_it_is():
        network(zeros_for(network, 1, num_frame, 3, side, side))
    return calls
