"""The reconstruction loss of the paper's Equation 7."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.devices import constant, exact_float32
from csd_plugin.errors import CSDError
from csd_plugin.versions import under_transforms

WINDOW, SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2

Shape = tuple[int, ...]
"""(C, h, w) of one scale."""


def zero_padded_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM per image: 11x11 Gaussian, sigma 1.5, data range 1, zero padding at the borders.

    Filters are products with banded matrices: libraries filter each channel with a separate convolution, which takes
    four to eight times as long on CPUs (and longer than a small network).

    Args:
        x, y: (B, C, H, W) float32 in [0, 1].

    Returns:
        (B,): the mean over channels and pixels.
    """
    return _ssim([x], [y])[:, 0]


def _ssim(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """`zero_padded_ssim` of pairs of images of several sizes, (B, C, h, w) each -> (B, number of sizes).

    All scales of an image are in one row, so that only filters and means need one launch per scale.
    """
    shapes = [tuple(image.shape[1:]) for image in xs]
    x, y = (torch.cat([image.flatten(1) for image in images], dim=1) for images in (xs, ys))
    means: Tensor = _means(x, y, shapes) if under_transforms() else _SSIM.apply(x, y, shapes)
    return means


def _means(x: Tensor, y: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """SSIM by image and scale, for rows (B, pixels of all scales); supports derivatives of any order.

    With the means m, the moments e2 = E[x^2 + y^2] and exy = E[xy] under the window, and p = mx my, s = mx^2 + my^2:
    SSIM = (2p + C1) (2(exy - p) + C2) / ((s + C1) (e2 - s + C2)).
    """
    mx, my, e2, exy = _smooth(torch.stack([x, y, x * x + y * y, x * y]), shapes)
    p, s = mx * my, mx * mx + my * my
    ssim = (2 * p + _C1) * (2 * (exy - p) + _C2) / ((s + _C1) * (e2 - s + _C2))
    return _by_size(ssim, shapes)


class _SSIM(torch.autograd.Function):
    """`_means` with an explicit gradient: a third of autograd's memory and work."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, shapes: Sequence[Shape]) -> Tensor:
        mx, my, e2, exy = _smooth(torch.stack([x, y, x.square().addcmul_(y, y), x * y]), shapes)
        p, s = mx * my, mx.square().addcmul_(my, my)
        a1, a2 = torch.add(torch.tensor(_C1), p, alpha=2), torch.add(torch.tensor(_C2), exy.sub_(p), alpha=2)
        b1, b2 = s + _C1, e2.sub_(s).add_(_C2)
        ssim = (a1 * a2).div_(b1 * b2)
        ctx.save_for_backward(x, y, mx, my, a1, a2, b1, b2)
        ctx.shapes = shapes
        return _by_size(ssim, shapes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mx, my, a1, a2, b1, b2 = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
            wanted = [row for row, needs in zip((x, y), needed, strict=True) if needs]
            found = iter(torch.autograd.grad(_means(x, y, ctx.shapes), wanted, grad, create_graph=True))
            return *(next(found) if needs else None for needs in needed), None
        sizes = _sizes(ctx.shapes)
        # with the factor 2 that the gradient of either image has
        by_pixel = [2 / size * grad[:, k, None].expand(-1, size) for k, size in enumerate(sizes)]
        scaled = torch.cat(by_pixel, dim=1).div_(b1 * b2)
        by_a2 = scaled * a1
        ssim = by_a2 * a2
        by_e2 = ssim / b2  # with opposite sign
        by_s = torch.addcdiv(by_e2, ssim, b1, value=-1)
        by_p = (scaled * a2).sub_(by_a2)
        pairs = [pair for pair, needs in zip(((mx, my), (my, mx)), needed, strict=True) if needs]
        means = [(other * by_p).addcmul_(mean, by_s) for mean, other in pairs]
        by_square, by_product, *by_means = _smooth(torch.stack([by_e2, by_a2, *means]), ctx.shapes)
        gradients: list[Tensor | None] = [None, None, None]
        for k, (row, partner) in enumerate(((x, y), (y, x))):
            if needed[k]:
                gradients[k] = by_means.pop(0).addcmul_(row, by_square, value=-1).addcmul_(partner, by_product)
        return tuple(gradients)


def _by_size(pixels: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """Means (B, number of scales) of rows (B, pixels of all scales)."""
    return torch.stack([part.mean(dim=1) for part in pixels.split(_sizes(shapes), dim=1)], dim=1)


def _sizes(shapes: Sequence[Shape]) -> list[int]:
    return [math.prod(shape) for shape in shapes]


def _smooth(rows: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """Images (k, B, pixels), their scales (C, h, w) one after the other, filtered by the Gaussian with zero padding.

    The filter is its own transpose. Variances are small differences of its results, so rounded products would make
    them negative.
    """
    lengths = {length for _, *size in shapes for length in size}
    bands = {length: _band(length, rows.dtype, rows.device) for length in lengths}
    smooth = []
    with exact_float32():
        for images, (_, height, width) in zip(rows.split(_sizes(shapes), dim=2), shapes, strict=True):
            lines = images.unflatten(2, (-1, width)).flatten(0, 1)  # a view: (k * B, C * h, w)
            columns = torch.bmm(lines, bands[width].expand(len(lines), -1, -1)).view(-1, height, width)
            smooth.append(torch.bmm(bands[height].expand(len(columns), -1, -1), columns).view(*rows.shape[:2], -1))
    return torch.cat(smooth, dim=2)


@constant
def _band(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The symmetric matrix (length, length) that filters rows of this length."""
    places = torch.arange(length, dtype=torch.float64)
    distance = (places[:, None] - places[None]).abs()
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    total = torch.exp(-offsets.square() / (2 * SIGMA**2)).sum()
    window = torch.exp(-distance.square() / (2 * SIGMA**2)) / total
    return window.where(distance <= WINDOW // 2, 0).to(device, dtype)


@constant
def _vector(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


class PyramidSSIMLoss(nn.Module):
    """L_recon = sum over p of lambda_p (1 - SSIM(output^p, gt^p)), the paper's Equation 7.

    Scale p+1 is scale p after 2x2 average pooling. Computed in float32, under any autocast. It has derivatives of any
    order.

    Args:
        scale_weights: the weight of 1 - SSIM at each scale, from full size on; the default is the paper's.
        loss_weight: factor on the sum.
        l1_weight: weight of the mean absolute error at full size; the paper has none. It keeps the brightness right, to
            which SSIM hardly reacts: at mid grey, an error of two of 255 levels changes SSIM by 1e-4, and PSNR from 40
            to 38 dB.
    """

    def __init__(
        self, scale_weights: Sequence[float] = (0.6, 0.2, 0.2), loss_weight: float = 1.0, l1_weight: float = 0.0
    ) -> None:
        super().__init__()
        if not scale_weights and not l1_weight:
            raise CSDError(
                "PyramidSSIMLoss: scale_weights is empty and l1_weight 0, so there is no loss; set one of them"
            )
        self.scale_weights = tuple(scale_weights)
        self.loss_weight = loss_weight
        self.l1_weight = l1_weight

    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        """(B, 3, H, W) twice, or (B, L, 3, H, W) twice, in [0, 1] -> scalar. Raises CSDError if the shapes differ."""
        if output.shape != gt.shape or output.dim() < 4:
            raise CSDError(
                f"PyramidSSIMLoss compares (B, 3, H, W) or (B, L, 3, H, W) of one shape, not {tuple(output.shape)} and "
                f"{tuple(gt.shape)}; check num_target of the data set and the network's output"
            )
        output, gt = output.flatten(0, -4), gt.flatten(0, -4)
        with torch.autocast(output.device.type, enabled=False):
            # a network's output may be channels_last, for which other kernels, with other rounding, would be used
            output, gt = output.float().contiguous(), gt.float().contiguous()
            loss = self.l1_weight * F.l1_loss(output, gt) if self.l1_weight else output.new_zeros(())
            if self.scale_weights:
                outputs, truths = [output], [gt]
                for _ in self.scale_weights[1:]:
                    outputs.append(F.avg_pool2d(outputs[-1], 2))
                    truths.append(F.avg_pool2d(truths[-1], 2))
                weights = _vector(self.scale_weights, output.dtype, output.device)
                loss = loss + weights.dot(1 - _ssim(outputs, truths).mean(dim=0))
            return self.loss_weight * loss
