"""How networks are called, on single images, a window for each target, or a sequence: the one place that knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.archs.bf16_conv3d import computes_in_bf16, repair_bf16_conv3d
from csd_plugin.archs.casting import CastWeights
from csd_plugin.data.windows import join_windows, slice_windows, target_slice, window_slice
from csd_plugin.errors import CSDError, suggestion


class Kind:
    """How the networks of one kind are called; here and in `KINDS` is all that depends on it.

    Attributes:
        has_time: what goes in has an axis of frames.
        gives_clip: every frame that goes in comes out; else one.
        one_length: clips of `num_frame` frames go in, and none of another length.
    """

    has_time = True
    gives_clip = False
    one_length = False

    def run(self, network: nn.Module, clips: Tensor, num_target: int, num_frame: int) -> Tensor:
        """As `Interface.run`, not checked."""
        raise NotImplementedError

    def features(self, captured: Tensor, batch: int, num_target: int, num_frame: int) -> Tensor | None:
        """As `Interface.features`; None for any other shape."""
        count = captured.shape[0]
        if captured.ndim not in (4, 5) or not count or count % (batch * num_target):
            return None
        if captured.ndim == 5:  # (.., C, T, H, W), or (.., T, C, H, W), of which frames are the fewer
            time_first = captured.shape[1] == num_frame < captured.shape[2]
            captured = captured.mean(dim=1 if time_first else 2)
        features = captured.unflatten(0, (batch, num_target, -1))
        return features.squeeze(2) if features.shape[2] == 1 else features.mean(dim=2)


class Image(Kind):
    """(B, 3, H, W) to the same."""

    has_time = False

    def run(self, network: nn.Module, clips: Tensor, num_target: int, num_frame: int) -> Tensor:
        return network(_copied(clips[:, target_slice(clips.shape[1], num_target)]).flatten(0, 1))


class Window(Kind):
    """(B, T, 3, H, W) to the centre (B, 3, H, W)."""

    one_length = True

    def run(self, network: nn.Module, clips: Tensor, num_target: int, num_frame: int) -> Tensor:
        return network(_copied(slice_windows(clips, num_target, num_frame)))


class Sequence(Kind):
    """(B, L + T - 1, 3, H, W) to the same, of which the middle L frames count."""

    gives_clip = True

    def run(self, network: nn.Module, clips: Tensor, num_target: int, num_frame: int) -> Tensor:
        seen = clips[:, window_slice(clips.shape[1], num_target, num_frame)]
        return _middle(network(_copied(seen)), num_frame).flatten(0, 1)

    def features(self, captured: Tensor, batch: int, num_target: int, num_frame: int) -> Tensor | None:
        shape, seen = captured.shape, num_target + num_frame - 1
        if captured.ndim == 4 and shape[0] == batch * seen:
            return _middle(captured.unflatten(0, (batch, seen)), num_frame)
        if captured.ndim == 5 and shape[0] == batch and seen in shape[1:3]:
            return _middle(captured.transpose(1, 2) if shape[2] == seen else captured, num_frame)
        return None


def _copied(frames: Tensor) -> Tensor:
    """Frames that a network may change in place: others get the same clips after it."""
    return frames.clone(memory_format=torch.contiguous_format)


def _middle(frames: Tensor, num_frame: int) -> Tensor:
    """(B, L + T - 1, ...) of a sequence -> (B, L, ...)."""
    radius = num_frame // 2
    return frames[:, radius : frames.shape[1] - radius]


KINDS: dict[str, Kind] = {"image": Image(), "window": Window(), "sequence": Sequence()}
"""By the names that options and networks have for them (`layout`)."""
DERAINED = tuple(name for name, kind in KINDS.items() if kind.has_time)
"""The kinds by which `csd derain` and its like run a network."""


@dataclass(frozen=True)
class Interface:
    """What a network takes and gives, and which of its layers is compared in distillation.

    Attributes:
        num_frame: frames T that it computes a target from, centred on it.
        kind: one of `KINDS`.
        feature: module whose input is the feature, or `module:output`; None where nobody has named one.

    Raises:
        CSDError: for a kind that is unknown.
    """

    num_frame: int
    kind: str
    feature: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CSDError(f"layout {self.kind!r} is unknown{suggestion(self.kind, KINDS)}")

    @property
    def has_time(self) -> bool:
        """See `Kind`; so are the next two."""
        return KINDS[self.kind].has_time

    @property
    def gives_clip(self) -> bool:
        return KINDS[self.kind].gives_clip

    @property
    def one_length(self) -> bool:
        return KINDS[self.kind].one_length

    @property
    def num_made(self) -> int:
        """Frames that come out for each window of `num_frame` frames: all of a sequence, else 1."""
        return self.num_frame if self.gives_clip else 1

    def input_shape(self, height: int, width: int) -> tuple[int, ...]:
        """What the network takes for one target, without the batch: (T, 3, H, W), or (3, H, W) of single images."""
        return (*((self.num_frame,) if self.has_time else ()), 3, height, width)

    def as_clips(self, windows: Tensor) -> tuple[Tensor, int]:
        """Windows of consecutive frames, (B, T, 3, H, W), as `run` takes them: the clips, and targets in each."""
        return (join_windows(windows), len(windows)) if self.gives_clip else (windows, 1)

    def run(self, network: nn.Module, clips: Tensor, num_target: int) -> Tensor:
        """The `num_target` middle frames of each clip (B, N, 3, H, W) -> (B*L, 3, H, W), clip after clip.

        Args:
            network: one that is called like this, or a wrapper of it.

        Raises:
            CSDError: where a clip is too short, or the network does not give frames of the size that it is given.
        """
        if computes_in_bf16(clips) and not torch.compiler.is_compiling():
            repair_bf16_conv3d()
        frames = KINDS[self.kind].run(network, clips, num_target, self.num_frame)
        expected = (clips.shape[0] * num_target, *clips.shape[2:])
        if frames.shape != expected:
            raise CSDError(
                f"the network gives {tuple(frames.shape)} where frames {expected} are needed; check its layout "
                f"({self.kind}, num_frame {self.num_frame}), and that its scale is 1"
            )
        return frames

    def features(self, captured: Tensor, batch: int, num_target: int, layer: str) -> Tensor:
        """What a tap of `layer` captured while `run` ran on `batch` clips -> (B, L, C, h, w).

        Args:
            captured: of images and windows (B*L, C, h, w), (B*L, C, T', h, w) or (B*L*T', C, h, w), averaged over time;
                of a sequence of T frames (B, C, T, h, w), (B, T, C, h, w) or (B*T, C, h, w).

        Raises:
            CSDError: any other shape.
        """
        features = KINDS[self.kind].features(captured, batch, num_target, self.num_frame)
        if features is None:
            raise CSDError(
                f"feature tap {layer!r}: a tensor of shape {tuple(captured.shape)} holds no feature for each of "
                f"{batch} x {num_target} targets; tap another layer"
            )
        return features


def run_network(
    network: nn.Module, clips: Tensor, num_target: int, interface: Interface, *, autocast: torch.dtype | None = None
) -> Tensor:
    """`Interface.run`, with frames in float32 whatever the network computes in.

    Args:
        autocast: the precision of the network; None leaves it to the autocast, or none, that this is called under.

    Raises:
        CSDError: as `Interface.run`.
    """
    with nullcontext() if autocast is None else in_precision(network, autocast, clips.device):
        return interface.run(network, clips, num_target).float()


@contextmanager
def in_precision(network: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Inside, the network computes in 16 bits on this device, as it does in training."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype))
        if device.type == "cuda" and not _is_compiled(network):  # a compiler fuses casts with what follows
            stack.enter_context(CastWeights(network, dtype))
        yield


def _is_compiled(network: nn.Module) -> bool:
    compiled = (hasattr(layer, "_orig_mod") or layer._compiled_call_impl is not None for layer in network.modules())
    return torch.compiler.is_compiling() or any(compiled)


def interface_of(network: nn.Module, declared: Mapping[str, Any] | None = None) -> Interface:
    """What a network, not wrapped, says about itself, or options say of it, which come first.

    Args:
        declared: `num_frame`, `layout`, `feature`.

    Raises:
        CSDError: where nobody says how many frames it takes.
    """
    given = {key: value for key, value in (declared or {}).items() if value is not None}
    kind = given.get("layout") or getattr(network, "layout", "window")
    feature = given.get("feature") or getattr(network, "feature_tap", None)
    single = Interface(1, str(kind), feature)
    num_frame = given.get("num_frame") or (getattr(network, "num_frame", None) if single.has_time else 1)
    if not isinstance(num_frame, int):
        raise CSDError(
            f"{type(network).__name__} does not say how it is called; give `layout` ({', '.join(KINDS)}) and "
            f"`num_frame` for it"
        )
    return replace(single, num_frame=num_frame)


def kind_of(network: object) -> str:
    """One of `DERAINED`: what the network says about itself, else 'window'. Raises CSDError for any other."""
    kind = getattr(network, "layout", "window")
    if kind not in DERAINED:
        raise CSDError(
            f"{type(network).__name__} has the layout {kind!r}; frames are derained by networks of the layouts "
            f"{' and '.join(DERAINED)}: one of single images takes windows of one frame, (B, 1, 3, H, W)"
        )
    return kind
