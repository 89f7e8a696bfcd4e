"""Networks of the half-resolution family in 8-bit integers, for CPUs that multiply bytes natively (VNNI).

After each ReLU, a channel's values are stored as bytes, in steps of 1/255 of its largest value. That value is measured
when the network is opened, on synthetic rainy frames. Weights have 8 bits and one scale per output channel, products
are summed in 32 bits, and a sum or a ReLU after a convolution is computed with it, so every layer moves a quarter of
the bytes. Rainy frames are bytes already. What the network adds to them is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from csd_plugin.archs.checkpoint import check_finite
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.errors import NOT_SERVED
from csd_plugin.inference import tiles
from csd_plugin.inference.blocks import WHITE, to_blocks
from csd_plugin.inference.trials import as_it_is

_LARGEST_WEIGHT = 127
_HEADROOM = 1.6
"""Larger values than on synthetic frames occur. If they are cut off, single streaks stay; with larger steps, all frames
lose a little. At 1.25, 1.6 and 2.0, `realtime` lost 0.18, 0.13 and 0.11 dB on a clip of heavy rain before bright edges,
and 0.04, 0.06 and 0.08 dB on a usual one."""
_FLOOR = 0.02
"""The least range of a channel, relative to the largest of its layer: some channels are 0 on all synthetic frames."""
_SCENES, _SIDE = 4, 128


def has_int8() -> bool:
    """Whether this processor multiplies bytes natively (AVX512-VNNI or AVX-VNNI), as far as torch knows."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    avx512 = getattr(torch.cpu, "_is_vnni_supported", bool)()
    return computes_int8() and bool(avx512 or capabilities.get("avx_vnni"))


@cache
def computes_int8() -> bool:
    """Whether torch's convolutions of bytes exist here, and are right for the largest sums.

    On CPUs without VNNI, sums of two products may be cut off at 16 bits.
    """
    with as_it_is(), torch.device("cpu"):
        layer = nn.Conv2d(32, 16, 3, padding=1, bias=False).requires_grad_(False)
        layer.weight.fill_(1)
        white = torch.full((1, 32, 4, 4), WHITE, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        ones = torch.ones(32)
        try:
            inner = _Conv(layer, ones, None)(white)[0, :, 1:3, 1:3]
            added = _Conv(layer, ones, torch.full((16,), 32.0 * 9 * 2))(white, white[:, :16].clone())[0, :, 1:3, 1:3]
        except NOT_SERVED:
            return False
        return bool((inner == 32 * 9 * WHITE).all()) and bool((added == WHITE).all())


class Int8HalfNet:
    """A `HalfNet` whose layers compute in 8-bit integers. It can be copied and pickled, and used by several threads.

    Args:
        network: as trained; it is not changed.

    Raises:
        CSDError: its weights, or what its layers make of a frame, hold NaN or infinity.
    """

    def __init__(self, network: HalfNet) -> None:
        check_finite(network, "the network is broken")
        with as_it_is(), torch.device("cpu"):  # whatever is set outside
            self._convert(network)

    def _convert(self, network: HalfNet) -> None:
        exact = network.for_pixels(WHITE).float().cpu().eval().requires_grad_(False)
        self.num_frame = exact.num_frame
        largest = _largest_inputs(exact)
        stream, deep = (_steps(*[largest[name] for name in names]) for names in _streams(exact))
        width = exact.num_feat

        def pair(name: str, steps: Tensor) -> tuple[_Conv, _Conv]:
            convs: Any = exact.get_submodule(name)
            inner = _steps(largest[f"{name}.conv2"])
            return _Conv(convs.conv1, steps, inner), _Conv(convs.conv2, inner, steps)

        self._head = _Conv(exact.head, torch.ones(exact.head.in_channels), stream)
        body = [pair(f"body.{i}", stream) for i in range(exact.num_pair)]
        self._body, self._body_after = body[: exact.num_before], body[exact.num_before :]
        self._deep = [pair(f"deep.{i}", deep) for i in range(exact.num_deep)]
        if exact.num_deep:
            self._down = _Conv(exact.down, stream, deep)
            # the four pixels of a block one after the other, each with its channels, as `_to_cells` orders them
            order = torch.arange(4 * width).view(width, 4).t().flatten()
            self._up = _Conv(exact.up, deep, stream.repeat_interleave(4), order)
        self._tail = _Conv(exact.tail, stream, None)

    def forward_blocks(self, blocks: Tensor) -> Tensor:
        """As that of `HalfNet.for_pixels`: (1, num_seen * 12, H/2, W/2) of bytes, channels last -> float32."""
        x = self._head(blocks)
        x = _through(self._body, x)
        if self._deep:
            deep = _through(self._deep, self._down(x))
            x = _from_cells(self._up(deep, _to_cells(x)))
            x = _through(self._body_after, x)
        return self._tail(x)

    def __call__(self, window: Tensor) -> Tensor:
        """(B, num_seen, 3, H, W) in [0, 1] -> (B, 3, H, W); the network sees the window rounded to 8 bits."""
        pixels = (window * WHITE).round_().clamp_(0, WHITE).to(torch.uint8)
        pixels = pixels.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
        blocks = pixels.permute(0, 3, 5, 1, 4, 6, 2).flatten(3)  # (B, H/2, W/2, frames, row, column, colour)
        added = self.forward_blocks(blocks.contiguous().permute(0, 3, 1, 2)).unflatten(1, (2, 2, 3)) / WHITE
        return window[:, self.num_frame // 2] + added.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)


class _Conv:
    """A convolution of bytes, with the sum and the ReLU after it.

    Args:
        layer: the convolution of real numbers.
        seen: (C_in,), the value of one step of each input channel.
        made: (C_out,), that of each output channel; None for a result in real numbers, without a ReLU.
        order: the order of the output channels.
    """

    def __init__(self, layer: nn.Conv2d, seen: Tensor, made: Tensor | None, order: Tensor | None = None) -> None:
        weight = layer.weight.double() * seen[:, None, None]
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.double()
        if made is not None:
            weight, bias = weight / made[:, None, None, None], bias / made
        if order is not None:
            weight, bias = weight[order], bias[order]
        scale = weight.abs().amax((1, 2, 3)).clamp_min(1e-30) / _LARGEST_WEIGHT
        self._weight = (weight / scale[:, None, None, None]).round().to(torch.int8)
        self._numbers: dict[str, Any] = {
            "w_scale": scale.float(),
            "w_zero_point": torch.zeros(len(scale), dtype=torch.int32),
            "bias": bias.float(),
            "stride": list(layer.stride),
            "padding": list(layer.padding),
            "dilation": [1, 1],
            "groups": 1,
            "output_scale": 1.0,
            "output_zero_point": 0,
            "output_dtype": torch.float32 if made is None else torch.uint8,
        }
        self._relu = made is not None
        self._packed: Tensor | None = None

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The convolution of `x`, plus `other`, which the result overwrites. Both are channels last in memory."""
        how = {"qx": x, "x_scale": 1.0, "x_zero_point": 0, "qw": self._for_onednn(), **self._numbers}
        if other is None:
            attr = "relu" if self._relu else "none"
            return torch.ops.onednn.qconv2d_pointwise(**how, attr=attr, scalars=[], algorithm="")
        summed = {"qaccum": other, "accum_scale": 1.0, "accum_zero_point": 0, "binary_attr": "sum", "alpha": 1.0}
        return torch.ops.onednn.qconv2d_pointwise.binary(
            **how, **summed, unary_attr="relu", unary_scalars=[], unary_algorithm=""
        )

    def _for_onednn(self) -> Tensor:
        """The weight in oneDNN's own order, which cannot be pickled, so that copies make it anew."""
        if self._packed is None:
            places = [self._numbers[name] for name in ("stride", "padding", "dilation", "groups")]
            self._packed = torch.ops.onednn.qconv_prepack(self._weight, self._numbers["w_scale"], 1.0, 0, *places, None)
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


def _through(pairs: list[tuple[_Conv, _Conv]], x: Tensor) -> Tensor:
    for first, second in pairs:
        x = second(first(x), x)
    return x


def _to_cells(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4 C, H/2, W/2): the four pixels of each block, row by row; channels last in memory."""
    words = _in_words(x.permute(0, 2, 3, 1)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return words.transpose(2, 3).contiguous().view(torch.uint8).flatten(3).permute(0, 3, 1, 2)


def _from_cells(x: Tensor) -> Tensor:
    """The reverse of `_to_cells`."""
    words = _in_words(x.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1)))
    return words.transpose(2, 3).contiguous().view(torch.uint8).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _in_words(x: Tensor) -> Tensor:
    """The channels of pixels, the last dimension, as numbers of 8 bytes if possible: fewer of them to move."""
    return x.view(torch.int64) if x.shape[-1] % 8 == 0 else x


def _steps(*largest: Tensor) -> Tensor:
    """(C,): the value of one step of each channel, from its largest values in several places."""
    most = torch.stack(largest).amax(0)
    # Values may be of any size, which the last layers make up for; where all are 0, any step will do.
    return most.clamp_min(_FLOOR * float(most.max()) or 1.0) * (_HEADROOM / WHITE)


def _streams(network: HalfNet) -> tuple[list[str], list[str]]:
    """The layers that read what residual pairs pass on, which all have the same steps: at half, and at a quarter."""
    stream = [f"body.{i}.conv1" for i in range(network.num_pair)] + ["tail"]
    if not network.num_deep:
        return stream, stream
    return [*stream, "down"], [*(f"deep.{i}.conv1" for i in range(network.num_deep)), "up"]


def _largest_inputs(network: HalfNet) -> dict[str, Tensor]:
    """For each convolution by name, the largest value of each input channel (C,) on the synthetic scenes.

    Raises CSDError if a value is not finite.
    """
    largest: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def see(_: nn.Module, inputs: tuple[Tensor]) -> None:
            most = inputs[0].amax((0, 2, 3))
            largest[name] = torch.maximum(largest.get(name, most), most)

        return layer.register_forward_pre_hook(see)

    hooks = [watch(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    for seed in range(_SCENES):
        frames = dead_leaves(seed, network.num_seen)
        blocks = torch.from_numpy(np.concatenate([to_blocks(frame) for frame in frames], axis=2))
        network.forward_blocks(blocks.float().permute(2, 0, 1)[None])
    for hook in hooks:
        hook.remove()
    for most in largest.values():  # in bytes, it would not be seen in the frames
        tiles.check_finite(most)
    return largest


def dead_leaves(seed: int, length: int, side: int = _SIDE) -> Iterator[np.ndarray]:
    """Rainy uint8 frames (side, side, 3) of a scene that moves: shapes that hide one another, in all sizes.

    Their edges and contrasts are distributed as in photographs (Lee, Mumford and Huang, "Occlusion models for natural
    images", IJCV 2001), so the largest values in a network are about those of real frames.
    """
    random = np.random.default_rng(seed)
    wide, high = side + 2 * length, side + length
    scene: Any = np.full((high, wide, 3), random.uniform(60, 200, 3), np.float32)
    shares, (least, most) = random.uniform(0, 1, wide * high // 50), (1.5, side / 1.5)
    for radius in 1 / np.sqrt(1 / most**2 + shares * (1 / least**2 - 1 / most**2)):
        color = np.clip(random.normal(128, 70) + random.normal(0, 25, 3), 0, 255).tolist()
        middle = (float(random.integers(0, wide)), float(random.integers(0, high)))
        box = (middle, (2 * radius, 2 * radius * random.uniform(0.1, 1)), random.uniform(0, 180))
        if random.integers(2):
            cv2.ellipse(scene, box, color, -1)
        else:
            cv2.fillPoly(scene, [cv2.boxPoints(box).astype(np.int32)], color)
    grain = np.kron(random.uniform(0, 20, (high // 32 + 1, wide // 32 + 1)), np.ones((32, 32)))[:high, :wide]
    scene += (random.normal(0, 1, (high, wide)) * grain)[..., None].astype(np.float32)
    scene = cv2.GaussianBlur(scene, (0, 0), 0.5)
    for number in range(length):
        streaks = np.zeros((side, side), np.float32)
        for x, y in random.integers(0, side, (side * side // 256, 2)).tolist():
            down = int(random.integers(4, 26))
            end = (x + int(random.integers(-down // 2, down // 2 + 1)), y + down)
            cv2.line(streaks, (x, y), end, random.uniform(12, 60), int(random.integers(1, 3)), cv2.LINE_AA)
        rain = cv2.GaussianBlur(streaks, (3, 3), 0)[..., None]
        yield (scene[number : number + side, 2 * number : 2 * number + side] + rain).clip(0, 255).astype(np.uint8)
