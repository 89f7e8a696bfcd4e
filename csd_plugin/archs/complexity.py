"""The cost of a network: parameters, multiply-adds and bias additions, as in the paper's Table 2."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from csd_plugin.errors import CSDError, first_line
from csd_plugin.extras import needed_by

FRAME_SIZE = (640, 480)
"""Width and height of the frames for which times and operations are stated: NTURain's."""


class UntracedError(CSDError):
    """torch cannot trace a network, so its operations are not known."""


@dataclass(frozen=True)
class Complexity:
    """The cost of a network.

    Attributes:
        parameters: of the whole network.
        multiply_adds, bias_adds: of one forward pass on one input.
    """

    parameters: int
    multiply_adds: int
    bias_adds: int

    @property
    def operations(self) -> int:
        """The FLOPs of the paper's Table 2: a multiply-add counts as one, and so does a bias addition."""
        return self.multiply_adds + self.bias_adds


def complexity(network: nn.Module, input_shape: tuple[int, ...]) -> Complexity:
    """Count the cost of one forward pass, by mmengine's analysis of the traced network.

    The analysis counts a convolution's multiply-adds but not its bias, one addition per output element: these are
    counted here. Activations and additions of whole tensors are left out, as usual.

    Args:
        network: called with one tensor; a copy runs on the CPU in eval mode, the network itself is unchanged.
        input_shape: of one input without the batch, e.g. (num_frame, 3, H, W).

    Raises:
        UntracedError: torch cannot trace the network.
        CSDError: mmengine is not installed.
    """
    with needed_by("counting a network's operations"):
        from mmengine.analysis import FlopAnalyzer

    network = copy.deepcopy(network).cpu().eval()
    bias_adds = 0

    def count_bias(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal bias_adds
        bias_adds += int(output.numel())  # a tensor while it is traced

    for layer in network.modules():
        if isinstance(layer, _ConvNd | nn.Linear) and layer.bias is not None:
            layer.register_forward_hook(count_bias)

    with torch.no_grad():
        analysis = FlopAnalyzer(network, (torch.zeros(1, *input_shape),))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        try:
            multiply_adds = int(analysis.total())
        except Exception as error:  # of torch's tracer, for code of other packages
            raise UntracedError(
                f"torch cannot trace {type(network).__name__} to count its multiply-adds ({first_line(error)})"
            ) from error
    return Complexity(sum(parameter.numel() for parameter in network.parameters()), multiply_adds, bias_adds)
