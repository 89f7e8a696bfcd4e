"""Random crop, scale, flips and time reversal: drawn once from an explicit generator, applied alike to rain and truth.

The scale is never applied to whole frames: the region of the source that becomes the crop is cut out first, then
resized, so the cost of a sample depends only on its area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csd_plugin.errors import CSDError


@dataclass(frozen=True)
class AugmentOptions:
    """What is drawn at random.

    Attributes:
        crop: side of the square crop, in pixels; any number.
        scale: (low, high), the factor by which frames are enlarged, drawn uniformly.
        hflip: mirror left and right, with probability 1/2, like vflip, rot and reverse.
        vflip: mirror top and bottom.
        rot: transpose (with the flips: all rotations by multiples of 90 degrees).
        reverse: run the clip backwards.
        grid: regions begin at multiples of this many pixels.
        truth: how many times as high and wide the truth's frames are, see `Augmentation.enlarged`.
    """

    crop: int
    scale: tuple[float, float] = (1.0, 1.0)
    hflip: bool = True
    vflip: bool = False
    rot: bool = False
    reverse: bool = False
    grid: int = 1
    truth: int = 1

    def __post_init__(self) -> None:
        if self.crop < 1:
            raise CSDError(f"gt_size: {self.crop} is not a crop size in pixels: give 1 or more")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise CSDError(f"scale_range: [{self.scale[0]}, {self.scale[1]}] must be positive and ascending")


@dataclass(frozen=True)
class Augmentation:
    """One draw: the square region (top, left, side) of the source, and how it becomes a crop."""

    top: int
    left: int
    side: int
    crop: int
    hflip: bool
    vflip: bool
    rot: bool
    reverse: bool

    def enlarged(self, factor: int) -> Augmentation:
        """The same draw for frames that show the same on `factor` times as many rows and columns."""
        sides = {name: getattr(self, name) * factor for name in ("top", "left", "side", "crop")}
        return replace(self, **sides)


def draw(rng: np.random.Generator, height: int, width: int, options: AugmentOptions, clip: str) -> Augmentation:
    """Draw the augmentation of one sample; always takes the same number of draws.

    If the smallest scales need a larger region than the frame has, the range is limited to what fits.

    Args:
        height, width: of the frames.
        clip: its name, for messages.

    Raises:
        CSDError: nothing in the range fits.
    """
    low, high = options.scale
    fits = options.crop / min(height, width)
    if fits > high:
        rule, most = f" and scale {options.truth}" * (options.truth > 1), int(min(height, width) * high)
        raise CSDError(
            f"{clip}: frames of {width}x{height} are too small for gt_size {options.crop * options.truth} at "
            f"scale_range [{low:g}, {high:g}]{rule}: set gt_size to {most * options.truth} or less, or leave the clip "
            f"out"
        )
    scale = rng.uniform(max(low, fits), high)
    side = min(max(round(options.crop / scale), 1), height, width)
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    hflip, vflip, rot, reverse = (rng.random(4) < 0.5).tolist()
    return Augmentation(
        top=top // options.grid * options.grid,
        left=left // options.grid * options.grid,
        side=side,
        crop=options.crop,
        hflip=options.hflip and hflip,
        vflip=options.vflip and vflip,
        rot=options.rot and rot,
        reverse=options.reverse and reverse,
    )


def apply(plan: Augmentation, regions: Sequence[np.ndarray]) -> np.ndarray:
    """Turn consecutive frames' regions, each uint8 (side, side, 3), into uint8 crops (frames, crop, crop, 3)."""
    resized = regions if plan.side == plan.crop else list(_resize(np.stack(regions), plan.crop))
    crops = np.empty((len(regions), plan.crop, plan.crop, 3), np.uint8)
    for crop, region in zip(crops, resized[::-1] if plan.reverse else resized, strict=True):
        turned = cv2.transpose(region) if plan.rot else region
        if plan.vflip or plan.hflip:
            cv2.flip(turned, {(True, False): 0, (False, True): 1, (True, True): -1}[plan.vflip, plan.hflip], dst=crop)
        else:
            crop[:] = turned
    return crops


def apply_to_tensor(plan: Augmentation, regions: Tensor) -> Tensor:
    """`apply` on any device: uint8 (n, side, side, 3) -> float32 (n, 3, crop, crop) in [0, 1].

    Scaled crops are rounded to grey levels, and differ from those of `apply` by at most one of them.
    """
    region = regions.permute(0, 3, 1, 2).float()
    if plan.side != plan.crop:
        # bytes are scaled along rows, then along columns, and lie between black and white after the first, too
        wide = _scaled(region, (plan.side, plan.crop)).clamp_(0, 255)
        region = _scaled(wide, (plan.crop, plan.crop)).round_().clamp_(0, 255)
    if plan.rot:
        region = region.transpose(2, 3)
    turned = [axis for axis, turns in ((0, plan.reverse), (2, plan.vflip), (3, plan.hflip)) if turns]
    return (region.flip(turned) if turned else region.contiguous()).div_(255)


def _resize(frames: np.ndarray, size: int) -> np.ndarray:
    """(frames, h, w, 3) to (frames, size, size, 3)."""
    return _scaled(torch.from_numpy(frames).permute(0, 3, 1, 2), (size, size)).permute(0, 2, 3, 1).numpy()


def _scaled(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, 3, h, w) to (n, 3, *size), bicubic; with antialiasing when shrinking, as in MATLAB."""
    return F.interpolate(planes, size=size, mode="bicubic", antialias=True)
