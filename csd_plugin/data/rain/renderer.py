"""Rain on video frames: falling drops with depth, wind, exposure and focus, composited in linear light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from csd_plugin.data.rain.params import RainParams
from csd_plugin.data.rain.streaks import Streaks, draw_streaks
from csd_plugin.errors import CSDError

_SRGB = np.arange(256) / 255
_TO_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4).astype(np.float32)
_LINEAR = np.arange(65536) / 65535
_TO_SRGB = np.where(_LINEAR <= 0.0031308, _LINEAR * 12.92, 1.055 * _LINEAR ** (1 / 2.4) - 0.055)
_TO_SRGB = np.round(_TO_SRGB * 255).astype(np.uint8)

_SHARPEST = 1.5  # px; narrower profiles flicker as they move across the pixel grid
_OVERCAST = (0.30, 0.31, 0.33)  # linear RGB, where no ambient light is given


def ambient_light(frame: np.ndarray) -> tuple[float, float, float]:
    """The light that drops gather, linear RGB in [0, 1], from a whole frame (H, W, 3) uint8.

    A drop shows nearly the whole surroundings, in which bright areas weigh most: the mean of the linear image weighted
    by itself. Take it once per clip (say from its first frame): taken from crops it would differ between them.
    """
    linear = _TO_LINEAR[frame[::4, ::4]].reshape(-1, 3).astype(np.float64)
    weight = linear.sum(1) + 1e-6
    red, green, blue = (linear * weight[:, None]).sum(0) / weight.sum()
    return float(red), float(green), float(blue)


class _Drift(NamedTuple):
    """A steady motion and some slow waves, with the exact integral over time: position(t) = integral of velocity."""

    steady: float
    amplitude: np.ndarray
    omega: np.ndarray
    phase: np.ndarray

    @classmethod
    def of_velocity(cls, steady: float, amplitude: float, periods: tuple[float, float], rng: np.random.Generator):
        """Three waves with periods in s between the two given; `amplitude` is of the velocity."""
        omega = 2 * np.pi / rng.uniform(*periods, 3)
        return cls(steady, amplitude * rng.dirichlet(np.ones(3)), omega, rng.uniform(0, 2 * np.pi, 3))

    def position(self, t: float) -> float:
        waves = self.amplitude / self.omega * (np.cos(self.phase) - np.cos(self.omega * t + self.phase))
        return float(self.steady * t + waves.sum())


class RainRenderer:
    """The rain of one clip: a function of (params, seed, frame size, fps, ambient) and of the frame number alone.

    There is no state: frames come in any order, and any crop rendered alone equals that crop of the whole frame bit
    for bit. Each of a fixed number of slots holds a drop that falls through the view at its own depth, size and
    velocity; when it has left at one edge the slot's next drop enters at the other, at a place drawn from a hash of
    (slot, number of the fall).

    params:        what rain. seed: any integer. height, width: size of the *whole* frames.
    fps:           frames per second of the clip, in (0, 1000].
    ambient:       linear RGB of the light around, see `ambient_light`; a grey sky where not given.
    Raises CSDError for sizes or rates that cannot be.
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
            raise CSDError(f"rain: frames of {width}x{height} pixels cannot be rendered")
        if not 0 < fps <= 1000:
            raise CSDError(f"rain: fps = {fps:g} is not in (0, 1000]")
        self.params, self.height, self.width, self.fps = params, height, width, fps
        self.seed = int(seed)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed % 2**64)))
        light = np.asarray(_OVERCAST if ambient is None else ambient, np.float64)
        if light.shape != (3,) or not (np.isfinite(light) & (light >= 0)).all():
            raise CSDError(f"rain: ambient = {ambient!r} is not a linear RGB triple of numbers >= 0")
        self._radiance = (params.brightness * light).astype(np.float32)
        self._move_camera(rng)
        self._drop_slots(rng)

    def _move_camera(self, rng: np.random.Generator) -> None:
        p = self.params
        self._wind = _Drift.of_velocity(p.wind, p.gust, (2.0, 9.0), rng)
        degrees = np.pi / 180 * p.focal * self.height  # px per degree
        tremble = p.shake * degrees * 2 * np.pi / 0.7  # velocity of a tremble of this amplitude, period about 0.7 s
        self._turn_x = _Drift.of_velocity(p.pan * degrees, tremble, (0.4, 1.2), rng)
        self._turn_y = _Drift.of_velocity(0.0, tremble, (0.4, 1.2), rng)

    def _drop_slots(self, rng: np.random.Generator) -> None:
        """What does not change from one fall of a slot to the next; every array (slots,)."""
        p, height, width = self.params, self.height, self.width
        count = round(p.density * width / height)
        depth = np.cbrt(rng.uniform(p.near**3, p.far**3, count))
        low, high = np.exp(-0.5), np.exp(-3.0)
        diameter = -p.drop_size * np.log(rng.uniform(high, low, count))
        fall = p.speed * np.maximum(9.65 - 10.3 * np.exp(-0.6 * diameter), 0.5)
        self._scale = p.focal * height / depth  # px per m
        self._fall = fall * self._scale  # px/s
        self._side = rng.normal(0, p.turbulence, count) * self._scale

        blur = p.aperture * np.abs(depth - p.focus) / p.focus * self._scale  # px, circle of confusion
        self._radius = np.sqrt(_SHARPEST**2 + (0.5 * diameter / 1000 * self._scale) ** 2 + (0.5 * blur) ** 2)
        middle = np.cbrt((p.near**3 + p.far**3) / 2)
        self._optical_depth = p.opacity * (diameter / p.drop_size) * (middle / depth) * (_SHARPEST / self._radius)

        # a slot's world is the frame and a margin that hides the jump from one fall to the next
        fastest = (
            abs(p.pan) * np.pi / 180 * p.focal * height + 2 * np.pi / 0.4 * p.shake * np.pi / 180 * p.focal * height
        )
        sideways = np.abs(self._side) + (abs(p.wind) + p.gust) * self._scale + fastest
        self._margin_y = (self._fall + fastest) * p.exposure + 3 * self._radius
        self._margin_x = sideways * p.exposure + 3 * self._radius
        self._period_y = height + 2 * self._margin_y
        self._period_x = width + 2 * self._margin_x
        self._start = rng.uniform(0, 1, count) * self._period_y
        self._key = rng.integers(0, 2**63, count, dtype=np.uint64)

    def streaks(self, t: int) -> Streaks:
        """The streaks of frame `t`, in pixels of the whole frame; some lie outside it."""
        begin = t / self.fps
        span = self.params.exposure
        wind, wind_end = self._wind.position(begin), self._wind.position(begin + span)
        pan, pan_end = self._turn_x.position(begin), self._turn_x.position(begin + span)
        tilt, tilt_end = self._turn_y.position(begin), self._turn_y.position(begin + span)

        path_y = self._start + self._fall * begin - tilt
        falls = np.floor(path_y / self._period_y)
        y0 = path_y - falls * self._period_y - self._margin_y
        y1 = y0 + self._fall * span - (tilt_end - tilt)

        entry, strength = _hash_uniform(self._key, falls.astype(np.int64))
        path_x = entry * self._period_x + self._side * begin + wind * self._scale - pan
        x0 = path_x - np.floor(path_x / self._period_x) * self._period_x - self._margin_x
        x1 = x0 + self._side * span + (wind_end - wind) * self._scale - (pan_end - pan)
        return Streaks(x0, y0, x1, y1, self._radius, self._optical_depth * (0.4 + 1.2 * strength))

    def optical_depth(self, t: int, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None):
        """The rain alone: (height, width) float64 >= 0, for a window of frame `t` (all of it by default)."""
        return draw_streaks(self.streaks(t), top, left, height or self.height, width or self.width)

    def render(self, frame: np.ndarray, t: int, top: int = 0, left: int = 0) -> np.ndarray:
        """`frame` with the rain of time `t` on it.

        frame: (h, w, 3) uint8 RGB, the window of the whole frame whose upper left pixel is (top, left).
        Returns a new array like it. Raises CSDError where the window does not lie in the frame.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise CSDError(f"rain: a frame must be uint8 (h, w, 3), not {frame.dtype} {frame.shape}")
        height, width = frame.shape[:2]
        if top < 0 or left < 0 or top + height > self.height or left + width > self.width:
            raise CSDError(
                f"rain: window {width}x{height} at ({left}, {top}) does not lie in {self.width}x{self.height}"
            )
        depth = self.optical_depth(t, top, left, height, width)
        # nearly 1 - exp(-depth) without a transcendental function, see streaks.py
        alpha = (depth / (1 + depth)).astype(np.float32)[..., None]
        linear = _TO_LINEAR[frame]
        linear += alpha * (self._radiance - linear)
        np.clip(linear, 0, 1, out=linear)
        linear *= 65535
        linear += 0.5
        return _TO_SRGB[linear.astype(np.uint16)]


def _hash_uniform(key: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two uniform numbers in [0, 1) from each (key, count): splitmix64 (Steele et al. 2014), split in halves."""
    with np.errstate(over="ignore"):
        z = key + count.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(32)) * 2.0**-32, (z & np.uint64(0xFFFFFFFF)) * 2.0**-32
