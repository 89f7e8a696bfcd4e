"""Renders rain on video frames, composited in linear light."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csd_plugin.data.rain.params import RainParams, random_params
from csd_plugin.data.rain.particles import Drops, Splashes, Veil
from csd_plugin.data.rain.streaks import draw_streaks
from csd_plugin.digests import text_digest
from csd_plugin.errors import CSDError

_SRGB = np.arange(256) / 255
_TO_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4).astype(np.float32)
_LINEAR = np.arange(65536) / 65535
_TO_SRGB = np.where(_LINEAR <= 0.0031308, _LINEAR * 12.92, 1.055 * _LINEAR ** (1 / 2.4) - 0.055)
_TO_SRGB = np.round(_TO_SRGB * 255).astype(np.uint8)

_OVERCAST = (0.30, 0.31, 0.33)
"""The ambient light, linear RGB, if none is given."""


def ambient_light(frame: np.ndarray) -> tuple[float, float, float]:
    """The light that drops gather, linear RGB in [0, 1], from a whole frame (H, W, 3) uint8.

    A drop shows nearly all its surroundings, in which bright areas weigh most: hence the mean of the linear image,
    weighted by itself. Half of the colour is removed, as much of what a drop shows is grey sky outside the picture.
    Call it once per clip, for example on the first frame: the light of crops would differ between them.

    Raises:
        CSDError: not such a frame, or an empty one.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise CSDError(f"ambient light: a frame of shape {frame.shape}, {frame.dtype}; give (H, W, 3) uint8")
    linear = _TO_LINEAR[frame[::4, ::4]].reshape(-1, 3).astype(np.float64)
    weight = linear.sum(1) + 1e-6
    colour = (linear * weight[:, None]).sum(0) / weight.sum()
    red, green, blue = (colour + colour.mean()) / 2
    return float(red), float(green), float(blue)


class RainRenderer:
    """The rain of one clip: a function only of (params, seed, frame size, fps, ambient) and of the frame number.

    It has no state: frames can be rendered in any order, and any crop rendered alone equals that crop of the whole
    frame bit for bit, at a cost proportional to its area.

    Args:
        params: the kind of rain.
        seed: any integer.
        height, width: size of the *whole* frames in pixels.
        fps: frames per second of the clip, in (0, 1000].
        ambient: linear RGB >= 0 of the ambient light, see `ambient_light`; by default a grey sky.

    Raises:
        CSDError: a size, rate or light is impossible.
    """

    def __init__(
        self,
        params: RainParams,
        seed: int,
        height: int,
        width: int,
        fps: float = 25.0,
        ambient: Sequence[float] | None = None,
    ) -> None:
        if height < 1 or width < 1:
            raise CSDError(f"rain on frames of {width}x{height} pixels: give the height and width of whole frames")
        if not 0 < fps <= 1000:
            raise CSDError(f"rain at fps = {fps:g}: give a rate in (0, 1000]")
        light = np.asarray(_OVERCAST if ambient is None else ambient, np.float32)
        if light.shape != (3,) or not (np.isfinite(light) & (light >= 0)).all():
            raise CSDError(f"rain in ambient light {ambient!r}: give linear RGB, three numbers >= 0")
        self.params, self.seed, self.height, self.width, self.fps = params, int(seed), height, width, float(fps)
        self._fog_light, self._drop_light = light, light * np.float32(params.brightness)
        # separate streams, so that adding splashes or a veil does not move the drops
        streams = [np.random.default_rng(s) for s in np.random.SeedSequence(self.seed % 2**64).spawn(3)]
        self._drops = Drops(params, height, width, streams[0])
        self._splashes = Splashes(params, height, width, streams[1]) if params.splash else None
        self._veil = Veil(params, height, width, streams[2]) if params.veil else None

    def optical_depth(self, t: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """The optical depth of streaks and splashes alone: (height, width) float64 >= 0, for a window of frame `t`."""
        streaks = self._drops.at(t / self.fps)
        if self._splashes:
            streaks = streaks.join(self._splashes.at(t / self.fps))
        return draw_streaks(streaks, top, left, height, width)

    def render(self, frame: np.ndarray, t: int, top: int = 0, left: int = 0) -> np.ndarray:
        """`frame` with the rain of frame number `t`.

        Args:
            frame: (h, w, 3) uint8 RGB, the window of the whole frame whose upper left pixel is (top, left).
            t: the frame's number in the clip, from 0.

        Returns:
            A new array of the same shape and type.

        Raises:
            CSDError: the window does not lie in the frame, or is not uint8 (h, w, 3).
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise CSDError(f"rain on a frame {frame.dtype} {frame.shape}: give uint8 (h, w, 3)")
        height, width = frame.shape[:2]
        if top < 0 or left < 0 or top + height > self.height or left + width > self.width:
            raise CSDError(
                f"rain on a window {width}x{height} at x = {left}, y = {top}: it must lie within the frames of "
                f"{self.width}x{self.height}"
            )
        linear = _TO_LINEAR[frame]
        if self._veil:
            fog = self._veil.at(t / self.fps, slice(top, top + height), slice(left, left + width))
            _cover(linear, fog, self._fog_light)
        _cover(linear, self.optical_depth(t, top, left, height, width), self._drop_light)
        np.clip(linear, 0, 1, out=linear)
        linear *= 65535
        linear += 0.5
        return _TO_SRGB[linear.astype(np.uint16)]


def _cover(linear: np.ndarray, depth: np.ndarray, light: np.ndarray) -> None:
    """Put a medium of optical depth (h, w) that shines with `light` (3,) before the picture (h, w, 3), in place."""
    # close to 1 - exp(-depth), but only with operations that IEEE arithmetic rounds alike in a crop and in the whole
    alpha = (depth / (1 + depth)).astype(np.float32)[..., None]
    linear += alpha * (light - linear)


def clip_renderer(
    params: RainParams, seed: int, clip: str, variant: int, first: np.ndarray, *, fps: float = 25.0, vary: bool = True
) -> RainRenderer:
    """The rain of one version of a clip, independent of which other clips are rendered.

    Args:
        seed: shared by all clips.
        clip, variant: the clip's name and the version's number; each pair has its own rain.
        first: the clip's first whole frame (H, W, 3) uint8, for its size and light.
        fps: frames per second.
        vary: draw the rain around `params` instead of using them exactly.
    """
    digest = bytes.fromhex(text_digest(f"{seed}/{clip}/{variant}"))
    own_seed = int.from_bytes(digest[:8], "little")
    if vary:
        params = random_params(params, np.random.default_rng(own_seed))
    height, width = first.shape[:2]
    return RainRenderer(params, own_seed, height, width, fps, ambient_light(first))
