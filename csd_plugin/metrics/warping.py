"""The warping error, which measures flicker: the difference between a frame and the one before, along the optical flow.

After Lai et al., "Learning blind video temporal consistency", ECCV 2018. With frames V in [0, 1], the flow F from frame
t to frame t - 1 and B back, both computed on a *guide* (the truth, or without one the rainy input), the error of frame
t is

    E_t = 1000 * sum_x M(x) |V_t(x) - V_{t-1}(x + F(x))|^2 / (3 * sum_x M(x)),

over RGB, where M(x) = 1 if x + F(x) lies in the frame and the flows agree there (Sundaram et al., ECCV 2010):

    |F(x) + B(x + F(x))|^2 <= 0.01 (|F(x)|^2 + |B(x + F(x))|^2) + 0.5.

A clip's error is the mean over its frames but the first. Lower is steadier, but a blurred video is steady too, and the
truth's own error is not zero, as flow and interpolation are not exact: compare it with the truth's, and read it
together with PSNR.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import Image, enlarged, luma_8bit
from csd_plugin.metrics.metric import Metric, View

SCALE = 1000.0
LEAST_SHARE = 0.25
"""The least share of corresponding pixels; below it there is a scene cut, and no error. Real clips have 0.55 (a
motocross jump) to 0.99, cuts between them at most 0.09."""

_LEAST_SIDE = 12

Flow = NDArray[np.float32]


class WarpingError(Metric):
    """The warping error of a result and the one before it; see `warping_error`."""

    title, decimals = "warping error", 3
    temporal = True
    function = "calculate_warping_error"

    def __call__(self, view: View) -> float | None:
        assert view.previous is not None and view.previous_guide is not None
        return warping_error(view.result, view.previous, view.guide, view.previous_guide)


def warping_error(result: Image, previous: Image, guide: Image, previous_guide: Image) -> float | None:
    """E_t of a frame. All images are (H, W, 3) uint8 RGB.

    Args:
        result, previous: the frame and the one before it.
        guide, previous_guide: frames with the same motion, such as the truth; or smaller by a whole factor, such as the
            input of super-resolution, and then enlarged (bicubic).

    Returns:
        The error, or None if the two guides show different scenes.

    Raises:
        CSDError: the sizes differ, or are below 12x12.
    """
    guide, previous_guide = enlarged(guide, result.shape), enlarged(previous_guide, previous.shape)
    sizes = {image.shape for image in (result, previous, guide, previous_guide)}
    if len(sizes) > 1 or min(result.shape[:2]) < _LEAST_SIDE:
        shown = ", ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (result, previous, guide, previous_guide))
        raise CSDError(f"the warping error needs frames of equal size, at least 12x12; these are {shown}")
    flow, valid = correspondence(guide, previous_guide)
    if valid.mean() < LEAST_SHARE:
        return None
    difference = result.astype(np.float32) - warp(previous.astype(np.float32), flow)
    return float(SCALE * np.square(difference[valid] / 255, dtype=np.float64).mean())


def correspondence(guide: Image, previous_guide: Image) -> tuple[Flow, NDArray[np.bool_]]:
    """Flow (H, W, 2), x first, in pixels, from a frame to the one before; and where it is reliable, (H, W)."""
    now, before = luma_8bit(guide), luma_8bit(previous_guide)
    flow, back = _optical_flow(now, before), _optical_flow(before, now)
    returned = warp(back, flow)
    apart = np.square(flow + returned).sum(axis=2)
    lengths = np.square(flow).sum(axis=2) + np.square(returned).sum(axis=2)
    height, width = now.shape
    x, y = _positions(flow)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return flow, inside & (apart <= 0.01 * lengths + 0.5)


def warp(image: NDArray[np.float32], flow: Flow) -> NDArray[np.float32]:
    """The image (H, W, C) sampled at x + flow(x), bilinear, with its border repeated: (H, W, C)."""
    x, y = _positions(flow)
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)


def _positions(flow: Flow) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return flow[..., 0] + x, flow[..., 1] + y


def _optical_flow(a: Image, b: Image) -> Flow:
    """Dense inverse search: the displacement in b of each pixel of a, both (H, W)."""
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(method.calc(a, b, None), np.float32)  # type: ignore[call-overload]
