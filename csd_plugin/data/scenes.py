"""Clean moving scenes from still photographs: enough of a video to try everything on, with nothing to download."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np


def moving_scene(photo: np.ndarray, num_frame: int, size: tuple[int, int], seed: int) -> Iterator[np.ndarray]:
    """The frames of a camera that pans, zooms and turns over a photograph, while an object in it moves on its own.

    Args:
        photo: (H, W, 3) uint8, at least as large as the frames.
        num_frame: frames to make.
        size: (height, width) of the frames.
        seed: of the random paths.

    Yields:
        (height, width, 3) uint8, in the channel order of the photograph.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    largest = min(photo.shape[0] / height, photo.shape[1] / width)
    # Zoom: photograph pixels per frame pixel, never beyond the photograph's edge.
    zooms = _path(rng.uniform(0.6 * largest, 0.8 * largest, 2), num_frame)
    angles = _path(rng.uniform(-3, 3, 2), num_frame)
    centers = _path(rng.uniform(0.4, 0.6, (2, 2)) * photo.shape[1::-1], num_frame)

    side = int(0.4 * min(height, width))
    object_path = _path(rng.uniform(0, 1, (2, 2)) * (width - side, height - side), num_frame)
    y, x = rng.integers(0, photo.shape[0] - side), rng.integers(0, photo.shape[1] - side)
    patch = photo[y : y + side, x : x + side].astype(np.float32)
    grid = np.linspace(-1, 1, side)
    alpha = np.clip(4 * (1 - np.hypot(*np.meshgrid(grid, grid))), 0, 1)[..., None].astype(np.float32)

    for zoom, angle, center, (left, top) in zip(zooms, angles, centers, object_path, strict=True):
        frame = _view(photo, center, zoom, angle, size)
        # sub-pixel motion of the object: shift it together with its mask
        shift = np.array([[1, 0, left % 1], [0, 1, top % 1]], np.float32)
        moved = cv2.warpAffine(patch, shift, (side, side), borderMode=cv2.BORDER_REPLICATE)
        mask = cv2.warpAffine(alpha, shift, (side, side))[..., None]
        region = frame[int(top) : int(top) + side, int(left) : int(left) + side]
        region[:] = np.rint(mask * moved + (1 - mask) * region).astype(np.uint8)
        yield frame


def _path(ends: np.ndarray, num_frame: int) -> np.ndarray:
    """(2, ...) -> (num_frame, ...): linearly from the first to the second."""
    return np.linspace(ends[0], ends[1], num_frame)


def _view(photo: np.ndarray, center: np.ndarray, zoom: float, angle: float, size: tuple[int, int]) -> np.ndarray:
    """The view of a camera over `center`: pixels are averaged over `zoom` first, so that nothing flickers."""
    height, width = size
    turn = cv2.getRotationMatrix2D((0, 0), angle, zoom)[:, :2]
    offset = center - turn @ np.array([width / 2, height / 2])
    matrix = np.hstack([turn, offset[:, None]])
    blurred = cv2.GaussianBlur(photo, (0, 0), max(0.4 * zoom, 0.3))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(blurred, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
