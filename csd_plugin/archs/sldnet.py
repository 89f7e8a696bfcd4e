"""The SLDNet family: one class, and a table of the networks of the paper's Table 2.

Source: the prediction network of "Self-learning video rain streak removal" (CVPR 2020), as used by
"Collaborative Spatial-Temporal Distillation for Efficient Video Deraining" (ICME 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.archs.fused import conv_relu
from csd_plugin.archs.presets import resolve_preset
from csd_plugin.archs.short_conv import ShortConv3d
from csd_plugin.errors import CSDError

PRESETS: dict[str, dict[str, Any]] = {
    "teacher": {"num_frame": 7, "num_feat": 64, "num_pair": 7, "num_transition": 6, "reducing": (4, 7, 10, 13, 16, 19)},
    "student1": {"num_frame": 3, "num_feat": 16, "num_pair": 7, "num_transition": 6, "reducing": (16, 19)},
    "student2": {"num_frame": 3, "num_feat": 16, "num_pair": 4, "num_transition": 4, "reducing": (7, 10)},
    "student3": {"num_frame": 1, "num_feat": 32, "num_pair": 7, "num_transition": 6, "reducing": ()},
}
TAIL = "conv22"
"""The authors' name for the last layer, whatever the depth."""


class SLDNet(nn.Module):
    """Predicts the clean centre frame of a window of rainy frames.

    Layers are numbered as in the authors' checkpoints: conv1 is the head; pair i (from 0) is
    conv(3i+2), conv(3i+3); the transition after it is conv(3i+4); the tail is always conv22. Every
    convolution is 3x3 in space with padding 1; in time it has kernel 3 with zero padding 1, except
    *reducing* transitions, which have kernel 2 without padding and so shorten time by one. Networks of
    one frame are the same layers in 2-D.

    Args:
        preset: a row of `PRESETS`; the numbers below override single entries of it.
        num_frame: frames in the window, odd.
        num_feat: channels between head and tail, at least 3.
        num_pair: residual pairs, 1 to 7.
        num_transition: transitions, num_pair - 1 or num_pair (then the network ends on one), at most 6.
        reducing: layer numbers of the transitions that shorten time, num_frame - 1 of them.
        init_type: 'identity', so that the untrained network returns its centre frame to within about 2 grey levels, or
            'kaiming'.

    Raises:
        CSDError: the numbers do not make a valid network.
    """

    presets = PRESETS
    feature_tap = TAIL
    """Module whose *input*, time squeezed out, is the feature that distillation compares: (B, num_feat, H, W)."""
    size_divisor = 1
    """Heights and widths must be multiples of this: any are allowed."""

    def __init__(
        self,
        *,
        preset: str | None = None,
        num_frame: int | None = None,
        num_feat: int | None = None,
        num_pair: int | None = None,
        num_transition: int | None = None,
        reducing: Sequence[int] | None = None,
        init_type: str = "identity",
    ) -> None:
        super().__init__()
        given = {
            "num_frame": num_frame,
            "num_feat": num_feat,
            "num_pair": num_pair,
            "num_transition": num_transition,
            "reducing": None if reducing is None else tuple(reducing),
        }
        numbers = resolve_numbers(preset, given)
        self.num_frame: int = numbers["num_frame"]
        self.num_feat: int = numbers["num_feat"]
        self.num_pair: int = numbers["num_pair"]
        self.num_transition: int = numbers["num_transition"]
        self.reducing: tuple[int, ...] = numbers["reducing"]

        self.conv1 = self._conv(3, self.num_feat)
        for pair in range(self.num_pair):
            first = 3 * pair + 2
            self.add_module(f"conv{first}", self._conv(self.num_feat, self.num_feat))
            self.add_module(f"conv{first + 1}", self._conv(self.num_feat, self.num_feat))
            if pair < self.num_transition:
                shortens = first + 2 in self.reducing
                self.add_module(f"conv{first + 2}", self._conv(self.num_feat, self.num_feat, shortens))
        self.add_module(TAIL, self._conv(self.num_feat, 3))
        self.reset_parameters(init_type)

    @staticmethod
    def numbers_from_state(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """The constructor's numbers, inferred from a state dict; None if it does not belong to this family."""
        layers = {name.removesuffix(".weight"): weight for name, weight in state.items() if name.endswith(".weight")}
        numbers = {int(name.removeprefix("conv")) for name in layers if name.removeprefix("conv").isdigit()}
        if len(numbers) != len(layers) or not {"conv1", "conv2", "conv3", TAIL} <= set(layers):
            return None
        last = max(numbers - {22}, default=0)
        num_pair, num_transition = (last // 3, (last - 1) // 3)
        flat = layers["conv1"].dim() == 4
        reducing = () if flat else tuple(n for n in sorted(numbers) if layers[f"conv{n}"].shape[2] == 2)
        return {
            "num_frame": 1 + len(reducing),
            "num_feat": layers["conv1"].shape[0],
            "num_pair": num_pair,
            "num_transition": num_transition,
            "reducing": reducing,
        }

    def _conv(self, in_channels: int, out_channels: int, shortens: bool = False) -> nn.Module:
        if self.num_frame == 1:
            return nn.Conv2d(in_channels, out_channels, 3, padding=1)
        kernel, padding = ((2, 3, 3), (0, 1, 1)) if shortens else ((3, 3, 3), (1, 1, 1))
        return ShortConv3d(in_channels, out_channels, kernel, padding=padding)

    def forward(self, window: Tensor) -> Tensor:
        """(B, num_frame, 3, H, W) rainy frames in [0, 1] -> (B, 3, H, W), the clean centre frame, not clamped.

        A network of single frames also takes (B, 3, H, W). Raises CSDError for any other shape.
        """
        if self.num_frame == 1 and window.dim() == 4:
            window = window.unsqueeze(1)
        if window.dim() != 5 or window.shape[1] != self.num_frame or window.shape[2] != 3:
            raise CSDError(
                f"SLDNet: the input has shape {tuple(window.shape)}, expected (B, {self.num_frame}, 3, H, W); "
                f"check num_frame of the data set and the network"
            )
        layers = self._modules
        x = window.squeeze(1) if self.num_frame == 1 else window.transpose(1, 2)
        # With the default layout, a CPU takes 1.1 to 1.8 times as long; tensor cores would transpose every layer.
        if x.device.type == "cpu" or (x.is_cuda and torch.is_autocast_enabled("cuda")):
            x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
        x = conv_relu(self.conv1, x)
        for pair in range(self.num_pair):
            first = 3 * pair + 2
            x = conv_relu(layers[f"conv{first + 1}"], conv_relu(layers[f"conv{first}"], x), x)  # type: ignore[arg-type]
            if pair < self.num_transition:
                x = conv_relu(layers[f"conv{first + 2}"], x)  # type: ignore[arg-type]
        x = layers[TAIL](x)  # type: ignore[misc]
        return x if self.num_frame == 1 else x.squeeze(2)

    @torch.no_grad()
    def reset_parameters(self, init_type: str) -> None:
        """Initialise all weights, from torch's global random state.

        'identity': channels 0-2 carry RGB unchanged from the head to the tail (frames are >= 0, so every ReLU lets them
        pass), and all other weights are small. The tail's other columns add a little: depending on preset and seed, at
        most 0.2 to 2 grey levels of 255, and 0.1 to 0.4 on average. Without it, short trainings of networks that
        predict the frame itself end below their rainy input. 'kaiming': He's initialisation for ReLU.

        Raises:
            CSDError: the name is another one.
        """
        if init_type not in ("identity", "kaiming"):
            raise CSDError(f"SLDNet: init_type is {init_type!r}, expected 'identity' or 'kaiming'")
        for layer in self.children():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        if init_type == "kaiming":
            return

        numbers_seen = 0
        for name, layer in self.named_children():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            number = int(name.removeprefix("conv"))
            if name != TAIL and number % 3 == 0:  # the second convolution of a pair adds nothing to RGB
                weight.mul_(0.1)
                weight[:3] = 0
                continue
            weight.mul_(0.01 if name == TAIL else 0.5)
            if name != TAIL and number % 3 == 2:  # the first convolution of a pair is free
                continue
            # The temporal tap must keep the centre frame on the path: reductions alternate, 1 0 1 0 ..
            tap: tuple[int, ...] = (1, 1)
            if weight.dim() == 5:
                tap = ((numbers_seen + 1) % 2, 1, 1) if number in self.reducing else (1, 1, 1)
                numbers_seen += number in self.reducing
            weight[:3, : 3 if name == TAIL else None] = 0
            for k in range(3):
                weight[(k, k, *tap)] = 1


def resolve_numbers(preset: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's numbers, overridden by the given ones (not None), and checked. Raises CSDError."""
    numbers = resolve_preset("SLDNet", PRESETS, preset, given)
    if numbers["num_feat"] < 3:
        raise CSDError(f"SLDNet: num_feat is {numbers['num_feat']}, expected at least 3")
    if not 1 <= numbers["num_pair"] <= 7 or numbers["num_transition"] > 6:  # the tail is conv22
        raise CSDError(
            f"SLDNet: num_pair is {numbers['num_pair']} and num_transition {numbers['num_transition']}, "
            f"expected 1 to 7 pairs and at most 6 transitions, which are the layers before {TAIL}"
        )
    if numbers["num_transition"] not in (numbers["num_pair"] - 1, numbers["num_pair"]):
        raise CSDError(
            f"SLDNet: num_transition is {numbers['num_transition']}, expected num_pair - 1 or num_pair "
            f"({numbers['num_pair'] - 1} or {numbers['num_pair']})"
        )
    transitions = [3 * pair + 4 for pair in range(numbers["num_transition"])]
    if not set(numbers["reducing"]) <= set(transitions) or len(set(numbers["reducing"])) != numbers["num_frame"] - 1:
        raise CSDError(
            f"SLDNet: reducing is {list(numbers['reducing'])}, expected num_frame - 1 = {numbers['num_frame'] - 1} "
            f"of the transitions {transitions}"
        )
    return numbers
