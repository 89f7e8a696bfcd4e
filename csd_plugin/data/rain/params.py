"""What a rain is: physical quantities with units, the presets, and random variations of them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace

import numpy as np

from csd_plugin.errors import CSDError

_RANGES: dict[str, tuple[float, float]] = {
    "density": (0, 50_000),
    "near": (0.2, 100),
    "far": (0.3, 500),
    "drop_size": (0.2, 6),
    "speed": (0.05, 5),
    "wind": (-30, 30),
    "gust": (0, 15),
    "turbulence": (0, 5),
    "exposure": (0.0005, 0.2),
    "opacity": (0, 20),
    "brightness": (0, 20),
    "focus": (0.2, 500),
    "aperture": (0, 0.1),
    "focal": (0.3, 20),
    "pan": (-180, 180),
    "shake": (0, 10),
}


@dataclass(frozen=True)
class RainParams:
    """One kind of rain, seen by one camera. Lengths on the picture follow from the geometry, at any frame size.

    density:    streaks seen at one moment in an area of (frame height)^2 [0, 50000].
    near, far:  depths in m between which drops fall [0.2, 100], [0.3, 500], near < far. Depth is continuous: seen
                from the camera a depth holds drops in proportion to its square, so that near streaks are few and large.
    drop_size:  mean drop diameter in mm [0.2, 6]; diameters are exponential (Marshall and Palmer 1948) from half to
                three times the mean.
    speed:      factor on the terminal velocity of a drop (Atlas et al. 1973; 4 to 9 m/s) [0.05, 5].
    wind:       wind across the picture in m/s, positive to the right [-30, 30]; it sets the direction of the streaks.
    gust:       amplitude in m/s of the slow drift of the wind over some seconds [0, 15].
    turbulence: standard deviation in m/s of the drops' own sideways velocities [0, 5].
    exposure:   exposure time of a frame in s [0.0005, 0.2]: a streak is the drop's path within it.
    opacity:    optical depth of the streak of a mean drop, in focus, at the middle depth [0, 20]; larger and nearer
                drops are more opaque.
    brightness: radiance of a drop relative to the ambient light [0, 20]; above 1 as drops gather the sky's light.
    focus:      depth in m that is sharp [0.2, 500].
    aperture:   diameter of the lens opening in m [0, 0.1]: drops away from the focus blur by it; 0 is a pinhole.
    focal:      focal length in frame heights [0.3, 20]; 1.5 is a vertical field of view of 37 degrees.
    pan:        steady turn of the camera in degrees/s, positive to the right [-180, 180].
    shake:      amplitude in degrees of the camera's trembling [0, 10].

    Raises CSDError naming the field and its range.
    """

    density: float = 800.0
    near: float = 1.5
    far: float = 10.0
    drop_size: float = 1.5
    speed: float = 1.0
    wind: float = 0.5
    gust: float = 0.5
    turbulence: float = 0.2
    exposure: float = 1 / 60
    opacity: float = 0.15
    brightness: float = 1.5
    focus: float = 8.0
    aperture: float = 0.01
    focal: float = 1.5
    pan: float = 0.0
    shake: float = 0.05

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise CSDError(f"rain: {name} = {value!r} is not a number in [{low:g}, {high:g}]")
        if self.near >= self.far:
            raise CSDError(f"rain: near = {self.near:g} m must be less than far = {self.far:g} m")


PRESETS: dict[str, RainParams] = {
    "light": RainParams(density=350, opacity=0.10, drop_size=1.2, wind=0.3, gust=0.3),
    "medium": RainParams(density=900, opacity=0.14),
    "heavy": RainParams(density=2500, opacity=0.16, drop_size=2.0, wind=1.5, gust=1.0),
    "nturain": RainParams(density=1200, opacity=0.065, exposure=1 / 50, aperture=0.004),
}


def find_preset(name: str) -> RainParams:
    """The preset of that name; CSDError naming the nearest one where there is none."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise CSDError(f"rain: there is no preset {name!r}, only {', '.join(PRESETS)}{hint}")


def random_params(preset: str | RainParams, rng: np.random.Generator) -> RainParams:
    """A rain like the preset but not the same: factors about 1 on density, opacity and the rest, a wind of its own.

    The factors average 1, so that many variations keep the preset's mean brightening roughly.
    """
    base = find_preset(preset) if isinstance(preset, str) else preset

    def about(value: float, spread: float) -> float:
        return value * float(rng.uniform(1 - spread, 1 + spread))

    varied = {
        "density": about(base.density, 0.5),
        "opacity": about(base.opacity, 0.3),
        "brightness": about(base.brightness, 0.15),
        "drop_size": about(base.drop_size, 0.2),
        "speed": about(base.speed, 0.2),
        "exposure": about(base.exposure, 0.4),
        "wind": float(rng.normal(0, 1.2)) + base.wind * float(rng.choice([-1, 1])),
        "gust": about(base.gust, 0.8),
        "pan": float(rng.normal(base.pan, 2.0)),
        "shake": about(base.shake, 0.8),
    }
    inside = {name: float(np.clip(value, *_RANGES[name])) for name, value in varied.items()}
    return replace(base, **inside)


assert set(_RANGES) == {f.name for f in fields(RainParams)}
