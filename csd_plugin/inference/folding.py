"""Turns a trained network into the form that computes the same frames fastest: `fold`.

A window has few frames, so a 3-D convolution over T frames of C channels is one 2-D convolution over T * C
channels. Its weight is a band of blocks: output frame o sees input frame i through the temporal tap i - o + pad,
if there is one. Taps that only ever see the zero padding have no block and cost nothing: at T = 2 two
of the six products of a plain 3-D convolution are left out, at T = 1 two of three.

The blocks off the band are zeros, which are multiplied all the same. If there are too many of them, as for long windows
(19 of 49 blocks are filled at T = 7), the layer stays 3-D and goes to oneDNN directly: torch's own
dispatch sends small batches to a path that is many times slower. oneDNN's 3-D kernel also skips the padding in time, so
in torch only layers without zero blocks are folded, those of one or two frames; other runtimes need 2-D layers wherever
possible. Folding groups of two or three frames together was measured, too, and was slower than both.

On the CPU, the sum and the ReLU after a layer are fused with it, see `fusing`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csd_plugin.archs.checkpoint import check_finite
from csd_plugin.archs.interface import KINDS, interface_of, kind_of
from csd_plugin.errors import CSDError, type_in_words
from csd_plugin.inference.facts import conv_calls, without_branches
from csd_plugin.inference.fusing import Waiting, can_wait, computed, convolve
from csd_plugin.inference.trials import as_it_is, zeros_for

logger = logging.getLogger(__name__)

# Folding pays if at least this share of the weight's blocks is filled. Measured per useful product, relative to the
# machine's matrix products, the 2-D form and oneDNN's 3-D one reach with 64 channels 0.39 and 0.88 at 19/49 (T = 7),
# 0.64 and 1.00 at 10/16 (T = 4), 0.82 and 1.09 at 7/9 (T = 3), 0.93 and 0.89 at 1 (T = 2); with 16 channels 0.56 and
# 0.83 at 10/16, 0.84 and 0.86 at 7/9, 0.68 and 0.93 at 2/3, 1.00 and 0.86 at 1.
MIN_FILLED, ALL_FILLED = 2 / 3, 1.0
"""The limits for graphs, and for torch."""


def fold(network: nn.Module, least: float = MIN_FILLED) -> nn.Module:
    """A copy of the network for inference, with every convolution in its fastest exact form.

    Args:
        network: (B, T, 3, H, W) -> (B, 3, H, W), with `num_frame` = T, or one of sequences, of which no layer can be
            folded. It is not changed. Convolutions that are dilated, grouped or not zero-padded, and strided 3-D ones,
            stay as they are; branches (`HalfNet`) are merged.
        least: fold layers if at least this share of their blocks is filled.

    Returns:
        A copy in eval mode without gradients: same call, same frames up to rounding. This is verified on noise, as a
        network may change in place what a layer has not read yet; if frames differ, slower forms are used, with a
        warning.

    Raises CSDError for weights that are not finite, as a ReLU in the fast forms would hide them, and for no frame.
    """
    network = without_branches(network)
    check_finite(network, "the network is broken")
    plain = copy.deepcopy(network).eval().requires_grad_(False)
    try:
        side, calls = conv_calls(network)
    except CSDError:  # it may still accept frames of its real size
        _say_slower(type(network).__name__)
        return plain
    depths: dict[str, set[int]] = {}
    for call in calls:
        if isinstance(call.layer, nn.Conv3d):
            depths.setdefault(call.name, set()).add(call.input_shape[2])
    trial = _Trial(plain, side)
    for waits in (True, False):
        folded = _in_forms(plain, depths, least, trial, waits=waits)
        if trial.passes(folded):
            return folded
        _say_slower(type(network).__name__)
    return plain


class _Trial:
    """Noise, and a network's output for it, in each memory order in which frames may come.

    Some layers copy one order, and share the other with what follows.
    """

    def __init__(self, network: nn.Module, side: int) -> None:
        shape = (1, cast(int, network.num_frame), 3, side, side)
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(zeros_for(network))
        together = noise.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)  # a pixel's channels are contiguous
        self._windows = (noise, together)
        with as_it_is():
            self._expected = [network(window.clone()) for window in self._windows]
        if not isinstance(self._expected[0], Tensor):
            raise CSDError(f"{type(network).__name__} gives {type_in_words(self._expected[0])} instead of a frame")
        interface = interface_of(network)
        interface.checked(self._expected[0], shape if interface.gives_clip else (1, *shape[2:]))

    def passes(self, network: nn.Module) -> bool:
        """Whether the network gives the same output, up to rounding."""
        return all(map(partial(_gives, network), self._windows, self._expected))


_slower: set[str] = set()
"""Networks that were warned about already."""


def _say_slower(name: str) -> None:
    if name not in _slower:
        _slower.add(name)
        logger.warning(
            "%s runs in a slower form: it changes tensors in place, looks into its layers, or refuses small frames",
            name,
        )


def _in_forms(
    network: nn.Module, depths: Mapping[str, set[int]], least: float, trial: _Trial, *, waits: bool
) -> nn.Module:
    """A copy with every convolution in its fast form.

    Args:
        depths: name of a 3-D convolution -> the numbers of frames that it is called with.
        waits: whether results may be computed lazily, with what follows, see `fusing`.
    """
    one_length = KINDS[kind_of(network)].one_length
    folded = copy.deepcopy(network)
    forms: list[nn.Module] = []
    for name, lengths in depths.items():
        parent, _, child = name.rpartition(".")
        convolution = folded.get_submodule(name)
        if not isinstance(convolution, nn.Conv3d) or not _is_plain(convolution):
            continue
        form: nn.Module
        if one_length and len(lengths) == 1 and filled(convolution, *lengths) >= least:
            form = FoldedConv3d(convolution, *lengths, waits=waits)
        else:
            form = DirectConv(convolution, waits=waits)
        forms.append(form)
        setattr(folded.get_submodule(parent), child, form)
    if forms and len(forms) == len(depths) and all(isinstance(form, FoldedConv3d) for form in forms):
        _stay_flat(folded, cast("list[FoldedConv3d]", forms), trial)
    for name, layer in list(folded.named_modules()):
        if isinstance(layer, nn.Conv2d) and _is_plain(layer):
            parent, _, child = name.rpartition(".")
            setattr(folded.get_submodule(parent), child, DirectConv(layer, waits=waits))
        elif isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return folded


def _gives(network: nn.Module, window: Tensor, expected: Tensor) -> bool:
    """Whether the network's output for the window is the expected one, up to rounding."""
    try:
        with as_it_is():
            result = network(window.clone())
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # it may access layers' attributes
        return False
    if result.shape != expected.shape:
        return False
    return bool((result - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6)


def filled(convolution: nn.Conv3d, num_frame: int) -> float:
    """The share of the folded weight's blocks that are on the band, for an input of `num_frame` frames."""
    kernel, padding = convolution.kernel_size[0], convolution.padding[0]
    after = num_frame + 2 * int(padding) - kernel + 1
    blocks = sum(0 <= i - o + int(padding) < kernel for o in range(after) for i in range(num_frame))
    return blocks / (after * num_frame)


class FoldedConv3d(nn.Module):
    """A 3-D convolution for inputs of `num_frame` frames, computed as one 2-D convolution.

    (B, C, T, H, W) -> (B, C', T', H, W), like the layer it replaces. In memory, the channels of all frames of a pixel
    are contiguous, which suits 2-D convolutions; folding and unfolding move no bytes.

    Attributes:
        flat: return (B, T' C', H, W) instead; layers accept such an input unchanged.
    """

    weight: Tensor
    bias: Tensor | None
    flat: bool = False

    def __init__(self, convolution: nn.Conv3d, num_frame: int, *, waits: bool = True) -> None:
        super().__init__()
        self.waits = waits
        weight = convolution.weight.detach()  # (C', C, k, 3, 3)
        kernel, padding = weight.shape[2], int(convolution.padding[0])
        self.after = num_frame + 2 * padding - kernel + 1
        band = weight.new_zeros(self.after, weight.shape[0], num_frame, *weight[:, :, 0].shape[1:])
        for o in range(self.after):
            for i in range(max(o - padding, 0), min(o - padding + kernel, num_frame)):
                band[o, :, i] = weight[:, :, i - o + padding]
        bias = None if convolution.bias is None else convolution.bias.detach().repeat(self.after)
        flat = band.flatten(2, 3).flatten(0, 1)  # (T' C', T C, 3, 3)
        self.register_buffer("weight", flat.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.padding = tuple(int(p) for p in convolution.padding[1:])

    def forward(self, x: Tensor | Waiting) -> Tensor | Waiting:
        x = cast(Tensor, computed(x))
        if self.waits and can_wait(x):
            x = fold_time(x)
            height, width = result_size(x, self.weight, self.padding)
            if self.flat:
                return Waiting(partial(self._compute, x), (len(x), len(self.weight), height, width))
            channels = len(self.weight) // self.after
            return Waiting(partial(self._compute, x), (len(x), channels, self.after, height, width))
        if x.dim() == 5:
            x = x.transpose(1, 2).flatten(1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        return self._unfolded(F.conv2d(x, self.weight, self.bias, padding=self.padding))

    def _compute(self, x: Tensor, other: Tensor | None, relu: bool) -> Tensor:
        other = None if other is None else fold_time(other)
        return self._unfolded(convolve(x, self.weight, self.bias, self.padding, other, relu))

    def _unfolded(self, x: Tensor) -> Tensor:
        return x if self.flat else x.unflatten(1, (self.after, -1)).transpose(1, 2)


class DirectConv(nn.Module):
    """A 2-D or 3-D convolution that runs in oneDNN on the CPU whatever the batch size, channels last in memory."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d | nn.Conv3d, *, waits: bool = True) -> None:
        super().__init__()
        self.waits = waits
        flat = isinstance(convolution, nn.Conv2d)
        self._format = torch.channels_last if flat else torch.channels_last_3d
        self._plain = F.conv2d if flat else F.conv3d
        self.register_buffer("weight", convolution.weight.detach().contiguous(memory_format=self._format))
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach().clone())
        self.padding = tuple(int(p) for p in convolution.padding)
        self.stride = tuple(convolution.stride)

    def forward(self, x: Tensor | Waiting) -> Tensor | Waiting:
        x = cast(Tensor, computed(x)).contiguous(memory_format=self._format)
        if self.waits and can_wait(x):
            size = result_size(x, self.weight, self.padding, self.stride)
            return Waiting(partial(self._compute, x), (len(x), len(self.weight), *size))
        return self._plain(x, self.weight, self.bias, padding=self.padding, stride=self.stride)

    def _compute(self, x: Tensor, other: Tensor | None, relu: bool) -> Tensor:
        other = None if other is None else other.contiguous(memory_format=self._format)
        return convolve(x, self.weight, self.bias, self.padding, other, relu, self.stride)


def fold_time(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B, T C, H, W), a pixel's channels contiguous in memory; four dimensions stay as they are.

    The output of a folded layer has this order already, so no byte is moved.
    """
    if x.dim() == 5:
        x = x.permute(0, 3, 4, 2, 1).flatten(3).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def result_size(
    x: Tensor, weight: Tensor, padding: tuple[int, ...], stride: tuple[int, ...] | None = None
) -> list[int]:
    """([T], H, W) of a convolution's result, by default at stride 1."""
    steps = stride or (1,) * len(padding)
    sides = zip(x.shape[2:], weight.shape[2:], padding, steps, strict=True)
    return [(n + 2 * p - k) // s + 1 for n, k, p, s in sides]


def _is_plain(convolution: nn.Conv2d | nn.Conv3d) -> bool:
    return (
        (isinstance(convolution, nn.Conv2d) or convolution.stride == (1, 1, 1))
        and set(convolution.dilation) == {1}
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )


def _stay_flat(folded: nn.Module, layers: list[FoldedConv3d], trial: _Trial) -> None:
    """Keep time folded from the first layer to the last, if nothing between them depends on it.

    In torch, unfolding takes no time; but graph runtimes then see only convolutions, activations and sums, which they
    fuse. Between layers there usually are activations and sums, which work on folded tensors; whether this holds for
    the network is tried out.
    """
    for layer in layers[:-1]:
        layer.flat = True
    if not trial.passes(folded):
        for layer in layers:
            layer.flat = False
