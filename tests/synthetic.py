"""Small data sets in NTURain's layout, for tests that need files rather than real frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

TRAIN, TEST, REAL = "Dataset_Training_Synthetic", "Dataset_Testing_Synthetic", "Dataset_Testing_RealRain"
NTU_RAIN = {
    f"{TRAIN}/t1": ("GT", "Rain_01", "Rain_02"),
    f"{TRAIN}/t2": ("GT", "Rain_01"),
    f"{TEST}/a1": ("GT", "Rain"),
    f"{REAL}/ra1": ("Rain",),
}


def write_image(path: Path, image: np.ndarray) -> None:
    """RGB (or grey, or RGBA) to the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if image.ndim == 3:
        image = cv2.cvtColor(image, codes[image.shape[2]])
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def moving_scene(frames: int, height: int, width: int, seed: int) -> list[np.ndarray]:
    """Smooth random colours that move one pixel a frame: uint8 RGB (height, width, 3) each."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width + frames, 3)).astype(np.float32)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 20, 220, cv2.NORM_MINMAX).astype(np.uint8)
    return [smooth[:, i : i + width].copy() for i in range(frames)]


def rain_on(scene: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Bright vertical streaks, new ones in every frame."""
    rng = np.random.default_rng(seed)
    rainy = []
    for frame in scene:
        height, width = frame.shape[:2]
        frame = frame.copy()
        for _ in range(max(width // 8, 1)):
            top, left = rng.integers(height), rng.integers(width)
            streak = frame[top : top + 6, left]
            streak[:] = np.minimum(streak.astype(int) + 60, 255)
        rainy.append(frame)
    return rainy


def write_ntu_rain(
    root: Path,
    frames: int = 13,
    height: int = 40,
    width: int = 52,
    suffix: str = ".png",
    clips: Mapping[str, tuple[str, ...]] = NTU_RAIN,
) -> Path:
    """Write `clips`, 'split folder/scene' -> its folders' endings, below `root`; return `root`.

    Every scene has its own pictures; frames are named 00001 and on, as NTURain's are.
    """
    for seed, (path, endings) in enumerate(clips.items()):
        scene = moving_scene(frames, height, width, seed)
        for number, ending in enumerate(endings):
            images = scene if ending == "GT" else rain_on(scene, 100 * seed + number)
            for i, image in enumerate(images, start=1):
                write_image(root / f"{path}_{ending}" / f"{i:05d}{suffix}", image)
    return root
