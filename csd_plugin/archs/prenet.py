"""PReNet: cleans one image at a time, in stages that share their weights.

Source: "Progressive Image Deraining Networks: A Better and Simpler Baseline" (CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.errors import CSDError

_NUM_BLOCK = 5


class PReNet(nn.Module):
    """Removes rain from a single frame: a video network whose window is one frame.

    In each stage, a convolution takes the rainy frame and the previous stage's result, a convolutional LSTM carries a
    state from stage to stage, and residual blocks compute what is added to the rainy frame. Layers have the names of
    the authors' checkpoints, which can be loaded directly.

    Args:
        num_stage: how many times the same layers are applied; the weights do not show it.
        num_feat: channels of all layers except the first and last.

    Raises:
        CSDError: a number is below 1.
    """

    num_frame = 1
    feature_tap = "conv.0"
    """Module whose *input*, in the last stage, is the feature: (B, num_feat, H, W)."""
    size_divisor = 1
    """Heights and widths must be multiples of this: any are allowed."""

    def __init__(self, *, num_stage: int = 6, num_feat: int = 32) -> None:
        super().__init__()
        if num_stage < 1 or num_feat < 1:
            raise CSDError(f"PReNet: num_stage is {num_stage} and num_feat {num_feat}, expected at least 1")
        self.num_stage, self.num_feat = num_stage, num_feat
        self.conv0 = nn.Sequential(_conv(6, num_feat), nn.ReLU())
        self.conv_i = nn.Sequential(_conv(2 * num_feat, num_feat), nn.Sigmoid())
        self.conv_f = nn.Sequential(_conv(2 * num_feat, num_feat), nn.Sigmoid())
        self.conv_g = nn.Sequential(_conv(2 * num_feat, num_feat), nn.Tanh())
        self.conv_o = nn.Sequential(_conv(2 * num_feat, num_feat), nn.Sigmoid())
        for number in range(1, _NUM_BLOCK + 1):
            block = nn.Sequential(_conv(num_feat, num_feat), nn.ReLU(), _conv(num_feat, num_feat), nn.ReLU())
            self.add_module(f"res_conv{number}", block)
        self.conv = nn.Sequential(_conv(num_feat, 3))

    @staticmethod
    def numbers_from_state(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """The constructor's numbers, as far as a state dict shows them; None if it does not belong to this family."""
        if not {"conv0.0.weight", "conv_i.0.weight", f"res_conv{_NUM_BLOCK}.2.weight"} <= state.keys():
            return None
        return {"num_feat": state["conv0.0.weight"].shape[0]}

    @property
    def reach(self) -> int:
        """The most pixels to each side that a result depends on: thirteen layers in each stage."""
        return self.num_stage * (3 + 2 * _NUM_BLOCK)

    def forward(self, window: Tensor) -> Tensor:
        """(B, 1, 3, H, W) or (B, 3, H, W) rainy frames in [0, 1] -> (B, 3, H, W), the clean frames, not clamped.

        Raises CSDError for any other shape.
        """
        window = window.unsqueeze(1) if window.dim() == 4 else window
        if window.dim() != 5 or window.shape[1:3] != (1, 3):
            raise CSDError(
                f"PReNet: the input has shape {tuple(window.shape)}, expected (B, 1, 3, H, W): single frames"
            )
        rainy = window.squeeze(1)
        if rainy.device.type == "cpu":  # CPU kernels are slower with the default memory layout
            rainy = rainy.contiguous(memory_format=torch.channels_last)
        output = rainy
        hidden = cell = torch.zeros_like(rainy[:, :1]).expand(-1, self.num_feat, -1, -1)
        for _ in range(self.num_stage):
            x = torch.cat([self.conv0(torch.cat([rainy, output], dim=1)), hidden], dim=1)
            cell = self.conv_f(x) * cell + self.conv_i(x) * self.conv_g(x)
            hidden = x = self.conv_o(x) * torch.tanh(cell)
            for number in range(1, _NUM_BLOCK + 1):
                x = torch.relu(self.get_submodule(f"res_conv{number}")(x) + x)
            output = self.conv(x) + rainy
        return output


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)
