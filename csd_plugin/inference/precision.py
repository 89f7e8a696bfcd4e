"""Decides whether a network may compute in bf16 or int8: `pick_precision`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch

from csd_plugin.devices import gpu_has_bf16
from csd_plugin.errors import first_line
from csd_plugin.inference.int8 import has_int8
from csd_plugin.inference.trials import REFUSALS

LEAST = 45.0
"""The least PSNR in dB against frames in fp32: far above that of rainy or derained frames against the truth."""

_SIZE, _LARGER, _FRAMES = (64, 64), (256, 256), 5
"""Sizes of the trial's frames; the second one for networks that refuse the first."""


class Precision(NamedTuple):
    """The precision of the layers, and the reason for it, for people; empty if the user has chosen it."""

    name: str
    why: str = ""


class Derains(Protocol):
    """A network under trial."""

    backend: Any

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]: ...


def pick_precision(open_in: Callable[[str], Derains]) -> Precision:
    """The number format in which this processor is fast, if the network computes in it within `LEAST` dB of fp32.

    It is 'bf16' where that is multiplied natively; else, for the half-resolution family, 'int8' where bytes are; and
    'fp32' otherwise.

    They are compared on a small synthetic rainy clip, always the same one, so that a network has the same precision for
    all videos. On real rain the figure is about the same.

    Args:
        open_in: returns the network in a given precision.
    """
    bf16, int8 = has_bf16(), has_int8()
    if not (bf16 or int8):
        return Precision("fp32", "this CPU has no fast bf16 or int8")
    exact = open_in("fp32")
    if exact.backend.name != "torch" or exact.backend.device.type != "cpu":
        return Precision("fp32")
    if not bf16 and exact.backend.blocks is None:
        return Precision("fp32", "this CPU has no fast bf16")
    faster = "bf16" if bf16 else "int8"
    try:
        clip = rainy_clip()
        expected = list(exact(clip))
    except REFUSALS:  # wide windows or padding
        clip = rainy_clip(size=_LARGER)
        expected = list(exact(clip))
    try:
        psnr = psnr_between(expected, open_in(faster)(clip))
    except REFUSALS as error:  # layers that mix types, such as attention whose softmax is float32
        cause = error.__cause__ if isinstance(error.__cause__, REFUSALS) else error
        return Precision("fp32", f"the network does not compute in {faster}: {first_line(cause)}")
    if psnr < LEAST:
        return Precision("fp32", f"{faster} would change the frames too much: PSNR {psnr:.1f} dB, less than {LEAST:g}")
    same = "the same frames as in fp32"
    return Precision(faster, same if math.isinf(psnr) else f"nearly {same}: PSNR {psnr:.1f} dB")


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 natively (AVX512-BF16 or AMX), as far as torch knows."""
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test is not None and test() for test in tests)


def computes_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 natively."""
    return has_bf16() if device.type == "cpu" else gpu_has_bf16(device)


def rainy_clip(length: int = _FRAMES, size: tuple[int, int] = _SIZE) -> list[np.ndarray]:
    """Synthetic uint8 frames of (width, height): a drifting scene, grain, and different streaks in each frame."""
    random = np.random.default_rng(0)
    width, height = size
    wide, high = width + 2 * length, height + length
    scene = np.full((high, wide, 3), 120, np.float32)
    for cells, contrast in ((6, 80), (24, 30), (96, 15)):
        noise = random.uniform(-contrast, contrast, (cells * high // wide + 2, cells, 3)).astype(np.float32)
        scene += cv2.resize(noise, (wide, high), interpolation=cv2.INTER_CUBIC)
    frames = []
    for number in range(length):
        frame = scene[number : number + height, 2 * number : 2 * number + width]
        streaks = np.zeros((height, width), np.float32)
        for x, y in random.integers(0, size, (width * height // 256, 2)):
            cv2.line(streaks, (int(x), int(y)), (int(x) + 2, int(y) + 12), 50.0, 1, cv2.LINE_AA)
        grain = random.normal(0, 2, (height, width, 1)).astype(np.float32)
        bright = cv2.GaussianBlur(streaks, (3, 3), 0)[..., None]
        frames.append((frame + bright + grain).clip(0, 255).astype(np.uint8))
    return frames


def psnr_between(frames: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> float:
    """PSNR in dB of uint8 frames against others, over all of them; infinite if they are equal."""
    errors = [np.square(a.astype(np.float64) - b).mean() for a, b in zip(frames, others, strict=True)]
    error = float(np.mean(errors))
    return 10 * math.log10(255**2 / error) if error else math.inf
