"""How networks are called: on a window for each target, or on a whole sequence. The one place that knows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from csd_plugin.data.windows import slice_windows, window_slice
from csd_plugin.errors import CSDError


@dataclass(frozen=True)
class Layout:
    """What a network declares.

    num_frame: frames T that it computes a target from, centred on it.
    sequence: it maps (B, L + T - 1, 3, H, W) to as many frames, of which the middle L count (`layout = "sequence"`);
        otherwise (B, T, 3, H, W) to the centre (B, 3, H, W).
    """

    num_frame: int
    sequence: bool

    def run(self, network: nn.Module, clips: Tensor, num_target: int) -> Tensor:
        """The `num_target` middle frames of each clip (B, N, 3, H, W) -> (B*L, 3, H, W), clip after clip.

        network: of this layout, or a wrapper of it. Raises CSDError where a clip is too short.
        """
        if not self.sequence:
            return network(slice_windows(clips, num_target, self.num_frame))
        seen = clips[:, window_slice(clips.shape[1], num_target, self.num_frame)]
        return self.targets(network(seen)).flatten(0, 1)

    def features(self, captured: Tensor, num_target: int, layer: str) -> Tensor:
        """What a tap of `layer` captured while `run` ran -> (B, L, C, h, w).

        captured: (B*L, C, [T',] h, w), averaged over time, or of a sequence (B, C, L + T - 1, h, w). Raises CSDError.
        """
        if captured.ndim not in (4, 5):
            raise CSDError(f"feature tap {layer!r}: a tensor of {captured.ndim} dimensions is no feature; tap another")
        if not self.sequence:
            captured = captured.mean(dim=2) if captured.ndim == 5 else captured
            return captured.unflatten(0, (-1, num_target))
        captured = captured.unsqueeze(2) if captured.ndim == 4 else captured  # a tap drops a time axis of length 1
        seen = num_target + self.num_frame - 1
        if captured.shape[2] != seen:
            raise CSDError(
                f"feature tap {layer!r}: {captured.shape[2]} frames of a sequence of {seen}; tap a layer that has all"
            )
        return self.targets(captured.transpose(1, 2))

    def targets(self, frames: Tensor) -> Tensor:
        """(B, L + T - 1, ...) of a sequence -> (B, L, ...)."""
        radius = self.num_frame // 2
        return frames[:, radius : frames.shape[1] - radius]


def layout_of(network: nn.Module) -> Layout:
    """What a network, not wrapped, declares by its `num_frame` and `layout`."""
    return Layout(int(network.num_frame), getattr(network, "layout", "window") == "sequence")  # type: ignore[arg-type]
