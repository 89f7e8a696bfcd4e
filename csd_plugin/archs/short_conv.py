"""3-D convolutions over few frames, without products with the padding in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.archs.bf16_conv3d import conv_forward


class ShortConv3d(nn.Conv3d):
    """nn.Conv3d that trains faster on one or two frames on a CPU; same results, and the same weights.

    If every output frame sees every input frame, it is one 2-D convolution over the channels of all frames, whose
    weight consists of the taps that see frames. oneDNN's gradient of the 3-D weight also multiplies with the padding:
    measured in float32, forward and backward take 0.5 to 0.6 of the time for two frames, and 0.35 to 0.45 for one; from
    three frames on, where zeros would fill the weight, 1.2 to 1.4. In bf16 there is no difference, and on a GPU the
    launches that make the weight would cost more.
    """

    _conv_forward = conv_forward  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_flat(input):
            return super().forward(input)
        before, kernel, padding = input.shape[2], self.kernel_size[0], int(self.padding[0])
        after = before + 2 * padding - kernel + 1
        taps = [self.weight[:, :, padding - frame : padding - frame + before] for frame in range(after)]
        weight = (torch.cat(taps) if after > 1 else taps[0]).transpose(1, 2).flatten(1, 2)
        bias = None if self.bias is None else self.bias.repeat(after)
        x = input.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, weight, bias, self.stride[1:], self.padding[1:])
        return x.unflatten(1, (after, -1)).transpose(1, 2)

    def _is_flat(self, x: Tensor) -> bool:
        padding = self.padding[0]
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or x.dim() != 5:
            return False
        if not torch.is_grad_enabled() or isinstance(padding, str):
            return False
        before, kernel = x.shape[2], self.kernel_size[0]
        last = before + 2 * padding - kernel  # index of the last output frame
        # up to `padding` it sees the first input frame, and the first output frame sees the last input frame
        return 0 <= last <= padding and not torch.compiler.is_compiling()
