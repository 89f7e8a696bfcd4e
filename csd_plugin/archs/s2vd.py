"""The deraining network of S2VD, which processes a whole clip at once.

Source: "Semi-Supervised Video Deraining with Dynamical Rain Generator" (CVPR 2021). Its rain generator, which is only
needed for its training, is not included.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.errors import CSDError


class S2VD(nn.Module):
    """Maps a sequence of rainy frames to the same number of clean frames.

    At half resolution, with 2x2 blocks of pixels as channels, a residual network estimates the rain; at full
    resolution, three convolutions refine the frames without it. Every convolution is 3x3x3, padded in time by repeating
    the end frames and in space by zeros. Layers have the names of the authors' checkpoints, which can be loaded
    directly.

    Args:
        num_frame: frames from which one result is computed. At both ends of the target frames, the network gets
            (num_frame - 1) / 2 more. In longer clips it sees up to 22 frames to each side.
        num_feat: channels of the inner layers.
        num_block: residual blocks.

    Raises:
        CSDError: the numbers do not make a valid network.
    """

    layout = "sequence"
    """forward() returns all frames of its input, not only their centre."""
    feature_tap = "tail.4"
    """Module whose *input* is the feature: (B, num_feat, T, H, W)."""
    size_divisor = 2
    """Heights and widths should be multiples of this, and tiles begin at multiples; forward() pads others itself."""

    def __init__(self, *, num_frame: int = 5, num_feat: int = 32, num_block: int = 8) -> None:
        super().__init__()
        if num_frame % 2 == 0 or num_frame < 1:
            raise CSDError(f"S2VD: num_frame is {num_frame}, expected an odd number")
        if num_feat < 1 or num_block < 1:
            raise CSDError(f"S2VD: num_feat is {num_feat} and num_block {num_block}, expected at least 1")
        self.num_frame = num_frame
        self.head = nn.Sequential(_Conv(12, num_feat), nn.ReLU(), _Conv(num_feat, num_feat))
        blocks = [_Block(num_feat) for _ in range(num_block)]
        self.body = nn.Sequential(*blocks, nn.BatchNorm3d(num_feat), nn.ReLU(), _Conv(num_feat, 12))
        self.tail = nn.Sequential(
            _Conv(3, num_feat, bias=False),
            nn.ReLU(),
            _Conv(num_feat, num_feat, bias=False),
            nn.ReLU(),
            _Conv(num_feat, 3, bias=False),
        )

    @staticmethod
    def numbers_from_state(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """The constructor's numbers, as far as a state dict shows them; None if it does not belong to this family."""
        if not {"head.0.conv.weight", "body.0.res.2.conv.weight", "tail.4.conv.weight"} <= state.keys():
            return None
        num_block = next(i for i in count() if f"body.{i}.res.2.conv.weight" not in state)
        return {"num_feat": state["head.0.conv.weight"].shape[0], "num_block": num_block}

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, T, 3, H, W) rainy frames in [0, 1], T >= 1 -> (B, T, 3, H, W), the clean frames, not clamped.

        Raises CSDError for any other shape.
        """
        if sequence.dim() != 5 or sequence.shape[2] != 3:
            raise CSDError(f"S2VD: the input has shape {tuple(sequence.shape)}, expected (B, T, 3, H, W)")
        rainy = sequence.transpose(1, 2)
        halves = F.pixel_unshuffle(_even(sequence), 2).transpose(1, 2)
        if sequence.device.type == "cpu":  # CPU kernels are slower with the default memory layout
            rainy = rainy.contiguous(memory_format=torch.channels_last_3d)
            halves = halves.contiguous(memory_format=torch.channels_last_3d)
        rain = F.pixel_shuffle(self.body(self.head(halves)).transpose(1, 2), 2).transpose(1, 2)
        return self.tail(rainy - rain[..., : rainy.shape[3], : rainy.shape[4]]).transpose(1, 2)


class _Conv(nn.Module):
    """A convolution that is padded in time by repeating the end frames."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, padding=(0, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2))


class _Block(nn.Module):
    """A residual block with its activations before its convolutions."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        layers = (layer for _ in range(2) for layer in (nn.BatchNorm3d(num_feat), nn.ReLU(), _Conv(num_feat, num_feat)))
        self.res = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res(x)


def _even(frames: Tensor) -> Tensor:
    """(B, T, 3, H, W) with the last row or column repeated if their number is odd."""
    if frames.shape[-2] % 2:
        frames = torch.cat([frames, frames[..., -1:, :]], dim=-2)
    if frames.shape[-1] % 2:
        frames = torch.cat([frames, frames[..., -1:]], dim=-1)
    return frames
