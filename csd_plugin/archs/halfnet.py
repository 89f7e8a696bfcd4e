"""The half-resolution family: plain 2-D convolutions on 2x2 blocks of pixels, for real time on a CPU.

The paper's students work at full resolution with 3-D convolutions. Here, the frames of the window and the four pixels
of each 2x2 block become channels, so that a convolution costs a quarter, and time only costs something in the first
layer. An optional second level works on 4x4 blocks with twice the channels. The network predicts what is added to the
rainy frame, not the frame itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.archs.fused import conv_relu
from csd_plugin.archs.padding import whole_cells
from csd_plugin.archs.presets import resolve_preset
from csd_plugin.errors import CSDError

PRESETS: dict[str, dict[str, Any]] = {
    "realtime": {"num_frame": 3, "num_feat": 32, "num_pair": 4, "num_deep": 2, "causal": False},
    "tiny": {"num_frame": 3, "num_feat": 16, "num_pair": 1, "num_deep": 3, "causal": False},
    "causal": {"num_frame": 5, "num_feat": 32, "num_pair": 4, "num_deep": 2, "causal": True},
    "wide": {"num_frame": 5, "num_feat": 64, "num_pair": 4, "num_deep": 6, "causal": False},
    "large": {"num_frame": 5, "num_feat": 96, "num_pair": 6, "num_deep": 8, "causal": False},
}
_BLOCK = 2
"""Side of a block, in pixels."""


class HalfNet(nn.Module):
    """Predicts the clean target frame of a window of rainy frames, at half resolution.

    Args:
        preset: a row of `PRESETS`; the numbers below override single entries of it.
        num_frame: frames in the window, odd, with the target in the middle.
        num_feat: channels at half resolution.
        num_pair: residual pairs of 3x3 convolutions at half resolution.
        num_deep: residual pairs at a quarter of the resolution with twice the channels, between the others.
        causal: use only the window's first half and the target, (num_frame + 1) / 2 frames, so that a camera's picture
            need not wait for later frames.
        branches: in training, add a 1x1 convolution to every 3x3 convolution of a pair; `merged` turns both into one
            3x3 convolution with the same results.

    Raises:
        CSDError: the numbers do not make a valid network.
    """

    presets = PRESETS
    feature_tap = "tail"
    """Module whose *input* is the feature that distillation compares: (B, num_feat, H/2, W/2)."""

    def __init__(
        self,
        *,
        preset: str | None = None,
        num_frame: int | None = None,
        num_feat: int | None = None,
        num_pair: int | None = None,
        num_deep: int | None = None,
        causal: bool | None = None,
        branches: bool = False,
    ) -> None:
        super().__init__()
        given = {
            "num_frame": num_frame,
            "num_feat": num_feat,
            "num_pair": num_pair,
            "num_deep": num_deep,
            "causal": causal,
        }
        numbers = _resolve(preset, given)
        self.num_frame: int = numbers["num_frame"]
        self.num_feat: int = numbers["num_feat"]
        self.num_pair: int = numbers["num_pair"]
        self.num_deep: int = numbers["num_deep"]
        self.causal: bool = bool(numbers["causal"])
        self.branches = branches
        # Frames after the target that are used.
        self.num_future = 0 if self.causal else self.num_frame // 2
        self.num_seen = self.num_frame // 2 + 1 + self.num_future
        # Pairs at half resolution before those at a quarter; the others come after them.
        self.num_before = (self.num_pair + 1) // 2 if self.num_deep else self.num_pair
        # Heights and widths should be multiples of this, and tiles begin at multiples; forward() pads others itself.
        self.size_divisor = 2 * _BLOCK if self.num_deep else _BLOCK

        width, pixels = self.num_feat, 3 * _BLOCK**2
        self.head = nn.Conv2d(pixels * self.num_seen, width, 3, padding=1)
        self.body = nn.ModuleList(_Pair(width, branches) for _ in range(self.num_pair))
        if self.num_deep:
            self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            self.deep = nn.ModuleList(_Pair(2 * width, branches) for _ in range(self.num_deep))
            self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.tail = nn.Conv2d(width, pixels, 3, padding=1)
        # the other weights do not show which frame of the head's input is the target
        self.register_buffer("target", torch.tensor(self.num_frame // 2))
        self._reset_parameters()

    @staticmethod
    def numbers_from_state(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """The constructor's numbers, inferred from a state dict; None if it does not belong to this family."""
        branches = "body.0.conv1.conv3x3.weight" in state
        if not {"head.weight", "tail.weight", "target"} <= state.keys():
            return None
        first = "conv1.conv3x3.weight" if branches else "conv1.weight"
        num_seen, target = state["head.weight"].shape[1] // (3 * _BLOCK**2), int(state["target"])
        return {
            "num_frame": 2 * target + 1,
            "num_feat": state["head.weight"].shape[0],
            "num_pair": next(i for i in count() if f"body.{i}.{first}" not in state),
            "num_deep": next(i for i in count() if f"deep.{i}.{first}" not in state),
            "causal": num_seen == target + 1 and target > 0,
            "branches": branches,
        }

    def forward(self, window: Tensor) -> Tensor:
        """(B, num_frame, 3, H, W) rainy frames in [0, 1] -> (B, 3, H, W), the clean target frame, not clamped.

        The frames that are not used may be left out: (B, num_seen, 3, H, W). A network of single frames also takes
        (B, 3, H, W). Raises CSDError for any other shape.
        """
        if self.num_frame == 1 and window.dim() == 4:
            window = window.unsqueeze(1)
        if window.dim() != 5 or window.shape[1] not in (self.num_frame, self.num_seen) or window.shape[2] != 3:
            raise CSDError(
                f"HalfNet: the input has shape {tuple(window.shape)}, expected (B, {self.num_frame}, 3, H, W); "
                f"check num_frame of the data set and the network"
            )
        height, width = window.shape[-2:]
        x = whole_cells(window[:, : self.num_seen].flatten(1, 2), self.size_divisor)
        x = F.pixel_unshuffle(x, _BLOCK)
        added = F.pixel_shuffle(self.forward_blocks(x), _BLOCK)
        return window[:, self.num_frame // 2] + added[..., :height, :width]

    def forward_blocks(self, blocks: Tensor) -> Tensor:
        """What is added to the target, from and in blocks of pixels.

        Args:
            blocks: (B, num_seen * 12, H/2, W/2), the used frames as `pixel_unshuffle` gives them; heights and widths of
                frames must be multiples of `size_divisor`.

        Returns:
            (B, 12, H/2, W/2), for `pixel_shuffle`.
        """
        x = blocks
        if x.device.type == "cpu":  # CPU kernels are slower with the default memory layout
            x = x.contiguous(memory_format=torch.channels_last)
        x = conv_relu(self.head, x)
        for pair in self.body[: self.num_before]:
            x = pair(x)
        if self.num_deep:
            deep = conv_relu(self.down, x)
            for pair in self.deep:
                deep = pair(deep)
            x = torch.relu(F.pixel_shuffle(self.up(deep), 2) + x)
            for pair in self.body[self.num_before :]:
                x = pair(x)
        return self.tail(x)

    @torch.no_grad()
    def for_pixels(self, white: float = 255) -> HalfNet:
        """A copy, without branches, whose `forward_blocks` takes pixels in memory order, in 0 .. `white`.

        The order of a block's channels, also in its result, is then row, column, colour instead of colour, row,
        column.
        """
        network = self.merged()
        colors_last = torch.arange(3 * _BLOCK**2).view(3, _BLOCK, _BLOCK).permute(1, 2, 0).flatten()
        frames = torch.arange(self.num_seen)[:, None] * len(colors_last)
        network.head.weight.copy_(self.head.weight[:, (frames + colors_last).flatten()] / white)
        network.tail.weight.copy_(self.tail.weight[colors_last] * white)
        assert network.tail.bias is not None
        network.tail.bias.copy_(network.tail.bias[colors_last] * white)
        return network

    @torch.no_grad()
    def merged(self) -> HalfNet:
        """The same function without branches, with its own weights; for inference."""
        numbers = {name: getattr(self, name) for name in PRESETS["realtime"]}
        network = HalfNet(**numbers).to(self.tail.weight)
        state = {name: value for name, value in self.state_dict().items() if ".conv1x1." not in name}
        for name, layer in self.named_modules():
            if isinstance(layer, _BranchedConv):
                weight, bias = layer.merged()
                del state[f"{name}.conv3x3.weight"], state[f"{name}.conv3x3.bias"]
                state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        network.load_state_dict(state)
        return network.train(self.training)

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        """Initialise to nearly the identity: the last layer adds almost nothing to the rainy frame."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for pair in self.modules():
            if isinstance(pair, _Pair):
                last = pair.conv2.conv3x3 if isinstance(pair.conv2, _BranchedConv) else pair.conv2
                last.weight.mul_(0.1)
        self.tail.weight.mul_(0.01)


class _Pair(nn.Module):
    """relu(conv2(relu(conv1(x))) + x)."""

    def __init__(self, channels: int, branches: bool) -> None:
        super().__init__()
        self.conv1 = _BranchedConv(channels) if branches else nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _BranchedConv(channels) if branches else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return conv_relu(self.conv2, conv_relu(self.conv1, x), x)


class _BranchedConv(nn.Module):
    """A 3x3 convolution that is trained as the sum of a 3x3 and a 1x1 convolution, and computed as one.

    The sum of kernels is cheaper than the sum of results, also in training. Source: "RepVGG: Making VGG-style ConvNets
    Great Again" (CVPR 2021), without its normalisation; the pair's own sum serves as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1x1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, *self.merged(), padding=1)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the one convolution."""
        return self.conv3x3.weight + F.pad(self.conv1x1.weight, (1, 1, 1, 1)), self.conv3x3.bias


def _resolve(preset: str | None, given: Mapping[str, int | None]) -> dict[str, int]:
    """A preset's numbers, overridden by the given ones (not None), and checked. Raises CSDError."""
    numbers = resolve_preset("HalfNet", PRESETS, preset, given, {"num_deep": 0, "causal": False})
    for name, least in {"num_feat": 1, "num_pair": 1, "num_deep": 0}.items():
        if numbers[name] < least:
            raise CSDError(f"HalfNet: {name} is {numbers[name]}, expected at least {least}")
    return numbers
