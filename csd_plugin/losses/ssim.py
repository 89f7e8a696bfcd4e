"""The reconstruction loss of the paper's Equation 7."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from csd_plugin.devices import exact_float32
from csd_plugin.errors import CSDError

WINDOW, SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def zero_padded_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM per image: 11x11 Gaussian, sigma 1.5, data range 1, borders padded by zeros.

    Filters are products with banded matrices: libraries filter each channel with a convolution of its own, which takes
    CPUs four to eight times as long (and longer than a small network).

    Args:
        x, y: (B, C, H, W) float32 in [0, 1].

    Returns:
        (B,): the mean over channels and pixels.
    """
    return _SSIMMap.apply(x.contiguous(), y.contiguous()).mean(dim=(1, 2, 3))


class _SSIMMap(torch.autograd.Function):
    """SSIM of every pixel and channel, with its gradient written out: a third of what autograd would keep and do.

    With the means m, the moments e2 = E[x^2 + y^2] and exy = E[xy] under the window, and p = mx my, s = mx^2 + my^2:
    SSIM = (2p + C1) (2(exy - p) + C2) / ((s + C1) (e2 - s + C2)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        mx, my, e2, exy = _smooth(torch.stack([x, y, x.square().addcmul_(y, y), x * y]))
        p, s = mx * my, mx.square().addcmul_(my, my)
        a1, a2 = 2 * p + _C1, 2 * (exy - p) + _C2
        b1, b2 = s + _C1, e2 - s + _C2
        ctx.save_for_backward(x, y, mx, my, a1, a2, b1, b2)
        return a1 * a2 / (b1 * b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y, mx, my, a1, a2, b1, b2 = ctx.saved_tensors
        scaled = grad / (b1 * b2)
        by_a2 = scaled * a1
        ssim = scaled * (a1 * a2)
        by_e2 = -ssim / b2
        by_p, by_s = 2 * (scaled * a2 - by_a2), by_e2.neg() - ssim / b1
        moments = [by_e2, 2 * by_a2]
        wanted = [(mx, my, x, y), (my, mx, y, x)]
        means = [
            other * by_p + 2 * mean * by_s
            for (mean, other, _, _), needed in zip(wanted, ctx.needs_input_grad, strict=True)
            if needed
        ]
        by_square, by_product, *by_means = _smooth(torch.stack(moments + means))
        gradients: list[Tensor | None] = []
        for (_, _, image, partner), needed in zip(wanted, ctx.needs_input_grad, strict=True):
            gradients.append(by_means.pop(0) + 2 * image * by_square + partner * by_product if needed else None)
        return gradients[0], gradients[1]


def _smooth(images: Tensor) -> Tensor:
    """(..., H, W) under the Gaussian window, zeros beyond the borders. It is its own transpose.

    Variances are small differences of what comes out, so that rounded products would make them negative.
    """
    height, width = images.shape[-2:]
    with exact_float32():
        return _band(height, images.dtype, images.device) @ (images @ _band(width, images.dtype, images.device))


@lru_cache(maxsize=64)
def _band(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The symmetric matrix (length, length) that filters rows of this length."""
    places = torch.arange(length, dtype=torch.float64)
    distance = (places[:, None] - places[None]).abs()
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    total = torch.exp(-offsets.square() / (2 * SIGMA**2)).sum()
    window = torch.exp(-distance.square() / (2 * SIGMA**2)) / total
    return window.where(distance <= WINDOW // 2, 0).to(device, dtype)


class PyramidSSIMLoss(nn.Module):
    """L_recon = sum over p of lambda_p (1 - SSIM(output^p, gt^p)), the paper's Equation 7.

    Scale p+1 is scale p after 2x2 average pooling. Computed in float32, under any autocast.

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
            raise CSDError("PyramidSSIMLoss: scale_weights is empty and l1_weight 0, nothing is left to learn from")
        self.scale_weights = tuple(scale_weights)
        self.loss_weight = loss_weight
        self.l1_weight = l1_weight

    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        """(B, 3, H, W) twice, or (B, L, 3, H, W) twice, in [0, 1] -> scalar. Raises CSDError where shapes differ."""
        if output.shape != gt.shape or output.dim() < 4:
            raise CSDError(
                f"PyramidSSIMLoss compares (B, 3, H, W) or (B, L, 3, H, W) of one shape, not {tuple(output.shape)} and "
                f"{tuple(gt.shape)}; check num_target of the data set and what the network gives"
            )
        output, gt = output.flatten(0, -4), gt.flatten(0, -4)
        with torch.autocast(output.device.type, enabled=False):
            # networks may give channels_last, which other kernels, of other roundings, would take than those of `gt`
            output, gt = output.float().contiguous(), gt.float().contiguous()
            loss = self.l1_weight * F.l1_loss(output, gt) if self.l1_weight else output.new_zeros(())
            for scale, weight in enumerate(self.scale_weights):
                if scale:
                    output, gt = F.avg_pool2d(output, 2), F.avg_pool2d(gt, 2)
                loss = loss + weight * (1 - zero_padded_ssim(output, gt).mean())
            return self.loss_weight * loss
