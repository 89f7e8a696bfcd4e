"""The reconstruction loss of the paper's Equation 7."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_msssim import ssim
from torch import Tensor, nn
from torch.nn import functional as F

from csd_plugin.errors import CSDError

WINDOW = 11


def zero_padded_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM per image and channel group: 11x11 Gaussian, sigma 1.5, data range 1, borders padded by zeros.

    Args:
        x, y: (B, C, H, W) in [0, 1].

    Returns:
        (B,): the mean over channels and pixels.
    """
    # Filtering a padded image without padding is filtering the image with zero padding, for every moment
    # that SSIM uses; so the library's "valid" SSIM serves, small images included.
    pad = [WINDOW // 2] * 4
    return ssim(
        F.pad(x, pad), F.pad(y, pad), data_range=1.0, size_average=False, win_size=WINDOW, win_sigma=1.5, K=(0.01, 0.03)
    )


class PyramidSSIMLoss(nn.Module):
    """L_recon = sum over p of lambda_p (1 - SSIM(output^p, gt^p)), the paper's Equation 7.

    Scale p+1 is scale p after 2x2 average pooling. Computed in float32, under any autocast.

    Args:
        scale_weights: lambda_p, from full size on; the paper's are 0.6, 0.2, 0.2.
        loss_weight: factor on the sum.
        l1_weight: of mean |output - gt| at full size, in the sum; the paper has none. SSIM hardly sees a frame that is
            a little too bright all over: at mid grey, two of 255 levels change it by 1e-4, and PSNR from 40 to 38 dB.
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
        """(B, 3, H, W) twice, in [0, 1] -> scalar."""
        with torch.autocast(output.device.type, enabled=False):
            output, gt = output.float(), gt.float()
            loss = self.l1_weight * F.l1_loss(output, gt) if self.l1_weight else output.new_zeros(())
            for scale, weight in enumerate(self.scale_weights):
                if scale:
                    output, gt = F.avg_pool2d(output, 2), F.avg_pool2d(gt, 2)
                loss = loss + weight * (1 - zero_padded_ssim(output, gt).mean())
            return self.loss_weight * loss
