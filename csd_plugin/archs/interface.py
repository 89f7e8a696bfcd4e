"""How to call networks of single images, of a window per target, or of a sequence; only this module knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.archs.bf16_conv3d import computes_in_bf16, repair_bf16_conv3d
from csd_plugin.archs.casting import CastWeights
from csd_plugin.archs.padding import multiple, whole_cells, without_padding
from csd_plugin.data.windows import check_odd, join_windows, slice_windows, target_slice, window_slice
from csd_plugin.errors import CSDError, suggestion, type_in_words


@dataclass(frozen=True)
class Captured:
    """The inputs or outputs of a layer in one pass of its network.

    Attributes:
        calls: one tensor for each time that the layer ran, in order; at least one.
        clear: whether as many calls as frames are known, or taken, to be one for each frame, in their order.
        doubt: why that is not known, in words for a warning; empty if it is.
        volumetric: the layer is one of torch's 3-D layers, so of five axes the second is channels and the third is
            frames.
    """

    calls: tuple[Tensor, ...]
    volumetric: bool = False
    clear: bool = True
    doubt: str = ""


class Kind:
    """How to call the networks of one kind; everything that depends on it is here and in `KINDS`.

    Attributes:
        has_time: the input has an axis of frames.
        gives_clip: the output has all frames of the input; else it is one frame.
        one_length: the input must have exactly `num_frame` frames.
    """

    has_time = True
    gives_clip = False
    one_length = False

    def run(self, network: nn.Module, clips: Tensor, num_target: int, num_frame: int) -> Tensor:
        """`Interface.run`, without checks."""
        raise NotImplementedError

    def num_seen(self, num_target: int, num_frame: int) -> int:
        """Frames that a network sees at once: the window of one target, or the sequence for all targets."""
        return num_frame

    def joined(self, calls: tuple[Tensor, ...], batch: int, num_target: int, num_frame: int) -> Tensor | None:
        """The feature of all frames, from calls of a layer frame by frame; None if the calls are something else."""
        return torch.stack(calls).mean(dim=0) if _are_frames(calls, num_frame, batch * num_target) else None

    def features(
        self, captured: Tensor, batch: int, num_target: int, num_frame: int, *, volumetric: bool = False
    ) -> Tensor | None:
        """`Interface.features`, of four or five axes; None for any other shape."""
        if captured.ndim == 5:
            axis = 2 if volumetric else _time_axis(captured, range(1, num_frame + 1))
            if axis is None:
                return None
            captured = captured.mean(dim=axis) if captured.shape[axis] > 1 else captured.squeeze(axis)
        frames, rest = divmod(captured.shape[0], batch * num_target)
        if rest or not 1 <= frames <= num_frame:
            return None
        features = captured.unflatten(0, (batch, num_target, frames))
        return features.squeeze(2) if frames == 1 else features.mean(dim=2)


class Image(Kind):
    """(B, 3, H, W) to the same shape."""

    has_time = False

    def run(self, network: nn.Module, clips: Tensor, num_target: int, num_frame: int) -> Tensor:
        return _made(network, _copied(clips[:, target_slice(clips.shape[1], num_target)]).flatten(0, 1))


class Window(Kind):
    """(B, T, 3, H, W) to the centre frame (B, 3, H, W)."""

    one_length = True

    def run(self, network: nn.Module, clips: Tensor, num_target: int, num_frame: int) -> Tensor:
        return _made(network, slice_windows(clips, num_target, num_frame))


class Sequence(Kind):
    """(B, L + T - 1, 3, H, W) to the same shape, of which the middle L frames count."""

    gives_clip = True

    def run(self, network: nn.Module, clips: Tensor, num_target: int, num_frame: int) -> Tensor:
        seen = clips[:, window_slice(clips.shape[1], num_target, num_frame)]
        return _middle(_made(network, _copied(seen)), num_frame).flatten(0, 1)

    def num_seen(self, num_target: int, num_frame: int) -> int:
        return num_target + num_frame - 1

    def joined(self, calls: tuple[Tensor, ...], batch: int, num_target: int, num_frame: int) -> Tensor | None:
        fit = _are_frames(calls, self.num_seen(num_target, num_frame), batch)
        return torch.stack(calls, dim=1).flatten(0, 1) if fit else None

    def features(
        self, captured: Tensor, batch: int, num_target: int, num_frame: int, *, volumetric: bool = False
    ) -> Tensor | None:
        count, seen = captured.shape[0], self.num_seen(num_target, num_frame)
        if captured.ndim == 5:
            length = seen if count == batch else 1
            axis = 2 if volumetric else _time_axis(captured, range(length, length + 1))
            if axis is None or captured.shape[axis] != length:
                return None
            captured = captured.movedim(axis, 1).flatten(0, 1)
        return _middle(captured.unflatten(0, (batch, seen)), num_frame) if len(captured) == batch * seen else None


def _in_precision_of(network: nn.Module, clips: Tensor) -> Tensor:
    """Clips as the network's weights: a teacher may be kept in 16 bits, for which an autocast casts by itself."""
    if torch.is_autocast_enabled(clips.device.type) or not isinstance(network, nn.Module):  # or a plain function
        return clips
    return clips.to(next((weight.dtype for weight in network.parameters() if weight.is_floating_point()), clips.dtype))


def _made(network: nn.Module, given: Tensor) -> Tensor:
    """What a network makes of frames. Raises CSDError where that is no tensor."""
    made = network(given)
    if not isinstance(made, Tensor):
        mode = "in training" if getattr(network, "training", False) else "in evaluation"
        raise CSDError(
            f"{type(network).__name__} gives {type_in_words(made)} {mode}, and frames alone are needed: let the "
            f"forward of a subclass pick them (docs/toolboxes.md)"
        )
    return made


def _are_frames(calls: tuple[Tensor, ...], num_seen: int, count: int) -> bool:
    """Whether a layer ran once for each frame of the network's `count` windows or sequences."""
    return len(calls) == num_seen > 1 and all(
        call.ndim == 4 and call.shape == calls[0].shape and call.shape[0] == count for call in calls
    )


def _time_axis(captured: Tensor, lengths: range) -> int | None:
    """The axis of frames, which has one of these lengths, in (.., C, T, h, w) or (.., T, C, h, w); None if unclear."""
    one, other = (length in lengths for length in captured.shape[1:3])
    if captured.shape[1] == captured.shape[2] == 1:
        return 2 if other else None  # with one frame, both orders are the same
    return None if one == other else 1 if one else 2


def _copied(frames: Tensor) -> Tensor:
    """A copy of frames that a network may change in place, as others get the same clips afterwards."""
    return frames.clone(memory_format=torch.contiguous_format)


def _middle(frames: Tensor, num_frame: int) -> Tensor:
    """(B, L + T - 1, ...) of a sequence -> (B, L, ...)."""
    radius = num_frame // 2
    return frames[:, radius : frames.shape[1] - radius]


KINDS: dict[str, Kind] = {"image": Image(), "window": Window(), "sequence": Sequence()}
"""Kinds by the name that options and networks use for them (`layout`)."""
DERAINED = tuple(name for name, kind in KINDS.items() if kind.has_time)
"""The kinds of networks that `csd derain` and similar commands can run."""


@dataclass(frozen=True)
class Interface:
    """The input and output of a network, and the layer that distillation compares.

    Attributes:
        num_frame: frames T from which a target, in their centre, is computed.
        kind: a name in `KINDS`.
        feature: module whose input is the feature, or `module:output`; None if none was named.
        scale: how many times as high and wide as its input the output is; above 1 for super-resolution.
        size_divisor: what the heights and widths that it can process are multiples of. Other frames are padded for it
            by repeating the last row and column, and the results are cut.

    Raises:
        CSDError: the kind is unknown, frames, scale or divisor are no whole number above 0, or frames are even.
    """

    num_frame: int
    kind: str
    feature: str | None = None
    scale: int = 1
    size_divisor: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CSDError(f"layout {self.kind!r} is unknown{suggestion(self.kind, KINDS)}")
        for name in ("num_frame", "scale", "size_divisor"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise CSDError(f"{name} is {value!r}; give a whole number, 1 or more")
        check_odd(self.num_frame)

    @property
    def has_time(self) -> bool:
        """See `Kind`, as for the next two."""
        return KINDS[self.kind].has_time

    @property
    def gives_clip(self) -> bool:
        return KINDS[self.kind].gives_clip

    @property
    def one_length(self) -> bool:
        return KINDS[self.kind].one_length

    @property
    def num_made(self) -> int:
        """Frames returned for each window of `num_frame` frames: all for a sequence, else 1."""
        return self.num_frame if self.gives_clip else 1

    def input_shape(self, height: int, width: int) -> tuple[int, ...]:
        """The input for one target, without the batch: (T, 3, H, W), or (3, H, W) for single images.

        Height and width are raised to what the network can process.
        """
        sides = (multiple(side, self.size_divisor) for side in (height, width))
        return (*((self.num_frame,) if self.has_time else ()), 3, *sides)

    def as_clips(self, windows: Tensor) -> tuple[Tensor, int]:
        """Windows of consecutive frames, (B, T, 3, H, W), in the form for `run`: the clips, and targets per clip."""
        return (join_windows(windows), len(windows)) if self.gives_clip else (windows, 1)

    def run(self, network: nn.Module, clips: Tensor, num_target: int) -> Tensor:
        """What becomes of the `num_target` middle frames of each clip, clip after clip.

        Args:
            network: one that is called like this, or a wrapper of it.
            clips: (B, N, 3, H, W); without an autocast, the network gets them in the precision of its weights.

        Returns:
            (B*L, 3, H * scale, W * scale).

        Raises:
            CSDError: a clip is too short, or the network's output does not have this size.
        """
        whole = _in_precision_of(network, whole_cells(clips, self.size_divisor))
        if computes_in_bf16(whole) and not torch.compiler.is_compiling():
            repair_bf16_conv3d()
        frames = KINDS[self.kind].run(network, whole, num_target, self.num_frame)
        (height, width), (made_height, made_width) = (
            (side * self.scale for side in sides.shape[3:]) for sides in (clips, whole)
        )
        self.checked(frames, (clips.shape[0] * num_target, clips.shape[2], made_height, made_width))
        return frames[..., :height, :width]

    def checked(self, frames: Tensor, expected: tuple[int, ...]) -> Tensor:
        """The output of a network. Raises CSDError if it does not have the expected shape."""
        if frames.shape != expected:
            raise CSDError(
                f"the network returns {tuple(frames.shape)} where frames {expected} are needed; check its layout "
                f"({self.kind}, num_frame {self.num_frame}), and that its scale is {self.scale}"
            )
        return frames

    def features(
        self,
        captured: Captured,
        batch: int,
        num_target: int,
        layer: str,
        warn: Callable[[str], object] = lambda line: None,
        *,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """What a tap of `layer` captured while `run` processed `batch` clips -> (B, L, C, h, w).

        Args:
            captured: of images and windows (B*L, C, h, w), (B*L, C, T', h, w), (B*L, T', C, h, w) or (B*L*T', C, h, w),
                averaged over time, with T' up to T; of a sequence of T frames (B, C, T, h, w), (B, T, C, h, w) or
                (B*T, C, h, w). Calls for consecutive frames, T of (B*L, C, h, w) or (B, C, h, w), are joined. Of any
                other calls, such as stages, the last one counts.
            warn: called with a line if only the last of several calls counts, or if their order is in doubt.
            size: height and width of the clips, so that what lies in the padding of their frames is cut off; None if
                they were not padded.

        Raises:
            CSDError: the shape is another one, or C and T', or T, cannot be told apart.
        """
        kind, calls = KINDS[self.kind], captured.calls
        seen = kind.num_seen(num_target, self.num_frame)
        joined = None
        if len(calls) > 1 and (captured.clear or self.gives_clip):  # a sequence's last call is no feature of its frames
            joined = kind.joined(calls, batch, num_target, self.num_frame)
        tensor = calls[-1] if joined is None else joined
        features = None
        if tensor.ndim in (4, 5):
            features = kind.features(tensor, batch, num_target, self.num_frame, volumetric=captured.volumetric)
        runs = ""
        if len(calls) > 1 and joined is None:
            runs = f"ran {len(calls)} times in one pass of {seen} frame{'s' if seen > 1 else ''}"
        if features is None:
            last = f", the last of a layer that {runs}," if runs else ""
            unclear = f", or not clearly: which axis has frames, of which there are {seen}?" * (tensor.ndim == 5)
            raise CSDError(
                f"feature tap {layer!r}: a tensor of shape {tuple(tensor.shape)}{last} holds no feature for each of "
                f"{batch} x {num_target} targets{unclear}; tap another layer"
            )
        if runs:
            sizes = list(dict.fromkeys("x".join(map(str, call.shape[-2:])) for call in calls))
            on = f", on {' and '.join(sizes)} pixels" if len(sizes) > 1 else ""
            warn(
                f"feature tap {layer!r}: the layer {runs}{on}, and only the last of them is compared; if they are "
                f"not stages of one result, tap a layer that runs once, or once for each frame"
            )
        if joined is not None and captured.doubt:
            taken, unless = "compared as if they were in the order of the frames", "if they are not, or are stages"
            if not self.gives_clip:
                taken, unless = "averaged as if they were one for each frame", "if they are stages"
            warn(
                f"feature tap {layer!r}: the layer runs {seen} times in a pass of {seen} frames, and "
                f"{captured.doubt}: they are {taken}; {unless}, tap another layer"
            )
        return features if size is None else without_padding(features, size, self.size_divisor)


def run_network(
    network: nn.Module, clips: Tensor, num_target: int, interface: Interface, *, autocast: torch.dtype | None = None
) -> Tensor:
    """`Interface.run`, which returns frames in float32 whatever the precision of the network.

    Args:
        autocast: the precision of the network; None keeps the autocast, or none, that is active at the call.

    Raises:
        CSDError: as for `Interface.run`.
    """
    with nullcontext() if autocast is None else in_precision(network, autocast, clips.device):
        return interface.run(network, clips, num_target).float()


@contextmanager
def in_precision(network: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Inside, the network computes in 16 bits on this device, as in training."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype))
        if device.type == "cuda" and not _is_compiled(network):  # a compiler fuses casts with what follows
            stack.enter_context(CastWeights(network, dtype))
        yield


def _is_compiled(network: nn.Module) -> bool:
    compiled = (hasattr(layer, "_orig_mod") or layer._compiled_call_impl is not None for layer in network.modules())
    return torch.compiler.is_compiling() or any(compiled)


def interface_section(name: str) -> str:
    """The section of options with a network's interface, by the network's section: `interface_t` of `network_t`."""
    return f"interface_{name.removeprefix('network_')}"


def declared_interface(opt: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What an option file says of how a network's section is called: its interface section, and the run's scale."""
    return {**(opt.get(interface_section(name)) or {}), "scale": opt.get("scale", 1)}


_DECLARED = ("num_frame", "layout", "feature", "scale", "size_divisor")


def interface_of(network: nn.Module, declared: Mapping[str, Any] | None = None) -> Interface:
    """The interface that a network, without wrappers, states, or that options give, which take precedence.

    Args:
        declared: `num_frame`, `layout`, `feature`, `scale` and `size_divisor` of the options.

    Raises:
        CSDError: neither states the number of frames, or the options have another key.
    """
    for key in declared or ():
        if key not in _DECLARED:
            raise CSDError(f"{key} is unknown in an interface{suggestion(str(key), _DECLARED)}")
    given = {key: value for key, value in (declared or {}).items() if value is not None}
    kind = given.get("layout") or getattr(network, "layout", "window")
    feature = given.get("feature") or getattr(network, "feature_tap", None)
    divisor = given.get("size_divisor", getattr(network, "size_divisor", 1))
    single = Interface(1, str(kind), feature, given.get("scale", 1), divisor)
    num_frame = given.get("num_frame", getattr(network, "num_frame", None) if single.has_time else 1)
    if num_frame is None and (stated := given.get("layout") or getattr(network, "layout", None)):
        raise CSDError(
            f"{type(network).__name__} has the layout {stated}, but nobody says of how many frames; give `num_frame` "
            f"for it"
        )
    if num_frame is None:
        raise CSDError(
            f"{type(network).__name__} does not state how it is called; give `layout` ({', '.join(KINDS)}) and "
            f"`num_frame` for it"
        )
    return replace(single, num_frame=num_frame)


def kind_of(network: object) -> str:
    """A network's own layout, else 'window'; one of `DERAINED`. Raises CSDError for any other."""
    kind = getattr(network, "layout", "window")
    if kind not in DERAINED:
        raise CSDError(
            f"{type(network).__name__} has the layout {kind!r}; frames are derained by networks of the layouts "
            f"{' and '.join(DERAINED)}: one of single images takes windows of one frame, (B, 1, 3, H, W)"
        )
    return kind
