"""The two scoring protocols, and the conversion of a network's output to the 8-bit frame that is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import Image, luma_8bit, psnr, ssim

if TYPE_CHECKING:  # scoring folders of frames needs no torch
    from torch import Tensor


class Quality(NamedTuple):
    """How close an image is to the truth.

    Attributes:
        psnr: in dB, `inf` for identical images.
        ssim: at most 1.
    """

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Protocol:
    """A way to compare: `view` converts an 8-bit RGB frame to the uint8 image for PSNR and SSIM."""

    title: str
    view: Callable[[Image], Image]


PROTOCOLS: dict[str, Protocol] = {
    # what the published NTURain tables use: MATLAB's luma, rounded to 8 bits before it is compared
    "nturain_y": Protocol("Y (8-bit luma, as in the published NTURain tables)", luma_8bit),
    "rgb": Protocol("RGB (8-bit)", lambda rgb: rgb),
}

FrameScore = dict[str, Quality]


def score_frame(result: Image, truth: Image) -> FrameScore:
    """Score one frame in every protocol: two (H, W, 3) uint8 RGB images -> protocol -> Quality.

    Raises CSDError unless both are 8-bit RGB images of equal size, at least 11x11.
    """
    for name, image in (("result", result), ("truth", truth)):
        if image.ndim != 3 or image.shape[2] != 3:
            raise CSDError(f"the {name} is not an RGB image: its shape is {image.shape}, not (H, W, 3)")
    score = {}
    for name, protocol in PROTOCOLS.items():
        a, b = protocol.view(result), protocol.view(truth)
        score[name] = Quality(psnr(a, b), ssim(a, b))
    return score


def to_uint8(frames: Tensor) -> Image:
    """(..., 3, H, W) float RGB, nominally 0 .. 1 -> (..., H, W, 3) uint8 RGB on the CPU: clamped, then rounded.

    Raises CSDError for NaN, which no 8-bit value can represent.
    """
    frames = frames.detach().float()
    if frames.isnan().any():
        raise CSDError("the network's output holds NaN: its weights are broken, or its training diverged")
    pixels = frames.clamp(0, 1).mul(255).round().byte()
    return pixels.movedim(-3, -1).contiguous().cpu().numpy()
