"""Everything in the air at a moment: falling drops, splashes on the ground, and the fog of distant rain.

Each of a fixed number of slots holds one drop, or one splash, after the other. Everything that differs between them is
drawn from a hash of (slot, number of the drop), so the state at any time is computed without the states before.
"""

from __future__ import annotations

import numpy as np

from csd_plugin.data.rain.motion import Drift, hash_uniform
from csd_plugin.data.rain.params import RainParams
from csd_plugin.data.rain.streaks import SHARPEST, Streaks

_GRAVITY = 9.8
"""In m/s^2."""
_CAMERA_HEIGHT, _GROUND_SEEN = 1.5, 15.0
"""In m: the camera's height above flat ground, with the horizon in the middle; how far the ground is seen."""
_SPLASH_TIME, _DROPLETS = 0.2, 4
"""Seconds that a splash lasts; its number of droplets."""


class Drops:
    """Drops that fall through the picture, each with its own depth, size and velocity."""

    def __init__(self, params: RainParams, height: int, width: int, rng: np.random.Generator) -> None:
        p = params
        self._exposure = p.exposure
        degree = np.pi / 180 * p.focal * height  # px
        self._wind = Drift.draw(p.wind, p.gust, (2.0, 9.0), rng)
        tremble = p.shake * degree * 2 * np.pi / 0.7  # the velocity of that amplitude at a period of 0.7 s
        self._pan = Drift.draw(p.pan * degree, tremble, (0.4, 1.2), rng)
        self._tilt = Drift.draw(0.0, tremble, (0.4, 1.2), rng)

        count = round(p.density * width / height)
        depth = np.cbrt(rng.uniform(p.near**3, p.far**3, count))
        diameter = -p.drop_size * np.log(rng.uniform(np.exp(-3.0), np.exp(-0.5), count))
        self._scale = p.focal * height / depth  # px per m
        self._fall = p.speed * np.maximum(9.65 - 10.3 * np.exp(-0.6 * diameter), 0.5) * self._scale  # px/s
        self._side = rng.normal(0, p.turbulence, count) * self._scale  # px/s

        defocus = p.aperture * np.abs(depth - p.focus) / p.focus * self._scale  # px, circle of confusion
        self._radius = np.sqrt(SHARPEST**2 + (0.5 * diameter / 1000 * self._scale) ** 2 + (0.5 * defocus) ** 2)
        median = np.cbrt((p.near**3 + p.far**3) / 2)
        self._depth = p.opacity * (diameter / p.drop_size) * (median / depth) * (SHARPEST / self._radius)

        # a slot covers the picture plus a margin, in which one drop can replace another unseen, except for less than a
        # hundredth of a slanted one in the corner: a wider margin would change the rain of every seed
        fastest_x = np.abs(self._side) + self._wind.fastest * self._scale + self._pan.fastest
        self._margin_x = fastest_x * p.exposure + 2 * self._radius
        self._margin_y = (self._fall + self._tilt.fastest) * p.exposure + 2 * self._radius
        self._period_x = width + 2 * self._margin_x
        self._period_y = height + 2 * self._margin_y
        self._start = rng.uniform(0, 1, count) * self._period_y
        self._key = rng.integers(0, 2**63, count, dtype=np.uint64)

    def at(self, time: float) -> Streaks:
        """The streaks of an exposure that begins at `time`, in s; some lie outside the picture."""
        end = time + self._exposure
        wind, pan, tilt = (drift.position(time) for drift in (self._wind, self._pan, self._tilt))
        wind_on, pan_on, tilt_on = (
            d.position(end) - p for d, p in ((self._wind, wind), (self._pan, pan), (self._tilt, tilt))
        )

        path_y = self._start + self._fall * time - tilt
        fallen = np.floor(path_y / self._period_y)
        y = path_y - fallen * self._period_y - self._margin_y

        entry, strength = hash_uniform(self._key, fallen)
        path_x = entry * self._period_x + self._side * time + wind * self._scale - pan
        x = path_x - np.floor(path_x / self._period_x) * self._period_x - self._margin_x
        return Streaks(
            x0=x,
            y0=y,
            x1=x + self._side * self._exposure + wind_on * self._scale - pan_on,
            y1=y + self._fall * self._exposure - tilt_on,
            radius=self._radius,
            depth=self._depth * (0.4 + 1.2 * strength),
        )


class Splashes:
    """Small crowns of droplets thrown up from flat ground, at a fixed place in the picture."""

    def __init__(self, params: RainParams, height: int, width: int, rng: np.random.Generator) -> None:
        self._exposure = params.exposure
        self._focal = params.focal * height  # px
        self._height, self._width = height, width
        self._nearest = min(2 * params.focal * _CAMERA_HEIGHT, _GROUND_SEEN / 2)  # m, at the lower edge
        area = width / self._focal * (_GROUND_SEEN**2 - self._nearest**2) / 2  # m^2
        count = round(params.splash * area * _SPLASH_TIME)
        self._phase = rng.uniform(0, 1, (count, 1))
        self._key = rng.integers(0, 2**63, (count, 1), dtype=np.uint64)
        self._up = rng.uniform(0.4, 0.95, (count, _DROPLETS))  # m/s; back on the ground within _SPLASH_TIME
        self._side = rng.normal(0, 0.3, (count, _DROPLETS))  # m/s
        self._depth = 2 * params.opacity * rng.uniform(0.5, 1.5, (count, _DROPLETS))

    def at(self, time: float) -> Streaks:
        """The droplets' streaks in an exposure that begins at `time`, in s."""
        cycles = time / _SPLASH_TIME + self._phase
        cycle = np.floor(cycles)
        u, v = hash_uniform(self._key, cycle)
        depth = np.sqrt(self._nearest**2 + u * (_GROUND_SEEN**2 - self._nearest**2))
        scale = self._focal / depth
        x, y = v * self._width, self._height / 2 + _CAMERA_HEIGHT * scale

        landing = 2 * self._up / _GRAVITY
        begin = (cycles - cycle) * _SPLASH_TIME
        end = np.minimum(begin + self._exposure, landing)

        def rise(age: np.ndarray) -> np.ndarray:
            return (self._up - _GRAVITY / 2 * age) * age

        flying = np.flatnonzero(begin < landing)
        every = Streaks(
            x0=x + self._side * begin * scale,
            y0=y - rise(begin) * scale,
            x1=x + self._side * end * scale,
            y1=y - rise(end) * scale,
            radius=np.full(landing.shape, SHARPEST),
            depth=self._depth * self._nearest / depth,
        )
        return Streaks(*(field.ravel()[flying] for field in every))


class Veil:
    """Fog of rain too far to be seen as drops: thicker toward the top, where scenes are farther away, and patchy."""

    def __init__(self, params: RainParams, height: int, width: int, rng: np.random.Generator) -> None:
        nearness = np.clip((np.arange(height) / height - 0.3) / 0.7, 0, 1)
        self._rows = params.veil * (1 - 0.7 * nearness * nearness * (3 - 2 * nearness))
        angle, length = rng.uniform(0, np.pi, 3), rng.uniform(0.6, 1.6, 3) * height
        self._in_x = np.outer(2 * np.pi / length * np.cos(angle), np.arange(width))
        self._in_y = np.outer(2 * np.pi / length * np.sin(angle), np.arange(height))
        self._phase = rng.uniform(0, 2 * np.pi, (3, 1))
        self._omega = rng.uniform(0.3, 1.2, (3, 1))  # 1/s

    def at(self, time: float, rows: slice, columns: slice) -> np.ndarray:
        """Optical depth (rows, columns), float64. Sines cover whole rows and columns, so crops equal the whole."""
        along = self._in_x + self._phase + self._omega * time
        patches = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
        for x, y in zip(along, self._in_y, strict=True):
            patches += np.outer(np.cos(y)[rows], np.cos(x)[columns])
            patches -= np.outer(np.sin(y)[rows], np.sin(x)[columns])
        return self._rows[rows, None] * (1 + 0.07 * patches)
