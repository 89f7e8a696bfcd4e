"""The parameters of rain: physical quantities with units, the presets, and random variations."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from csd_plugin.errors import CSDError, suggestion

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
    "veil": (0, 5),
    "splash": (0, 200),
}


@dataclass(frozen=True)
class RainParams:
    """One kind of rain, seen by one camera. Its size on the picture follows from the geometry, at any frame size.

    Attributes:
        density: streaks seen at one moment in an area of (frame height)^2 [0, 50000].
        near, far: depths in m between which drops fall [0.2, 100], [0.3, 500], near < far. Every drop has a depth of
            its own; the density of drops grows with the square of the depth, so near streaks are few, fast and large.
        drop_size: mean drop diameter in mm [0.2, 6]; diameters are exponential (Marshall and Palmer 1948) from half to
            three times the mean.
        speed: factor on the terminal velocity of a drop (Atlas et al. 1973; 4 to 9 m/s) [0.05, 5].
        wind: wind across the picture in m/s, positive to the right [-30, 30]; it gives the direction of the streaks.
        gust: amplitude in m/s of the slow drift of the wind over some seconds [0, 15].
        turbulence: standard deviation in m/s of the drops' own sideways velocities [0, 5].
        exposure: exposure time of a frame in s [0.0005, 0.2]: a streak is the drop's path within it.
        opacity: optical depth of the streak of a mean drop, in focus, at the median depth [0, 20]; larger and nearer
            drops are more opaque, blurred ones less.
        brightness: radiance of a drop relative to the ambient light [0, 20]; above 1 as drops gather the sky's light.
        focus: depth in m that is sharp [0.2, 500].
        aperture: diameter of the lens opening in m [0, 0.1]: it blurs drops that are out of focus; 0 is a pinhole.
        focal: focal length in frame heights [0.3, 20]; 1.5 is a vertical field of view of 37 degrees.
        pan: constant turn of the camera in degrees/s, positive to the right [-180, 180].
        shake: amplitude in degrees of the camera shake [0, 10].
        veil: optical depth of the far rain that merges into a drifting fog, at the top of the picture [0, 5]; 0 none.
        splash: visible splashes per second and m^2 of ground [0, 200], seen 1.5 m above it; 0 none.

    Raises:
        CSDError: a value is out of its range; names the field and the range.
    """

    density: float = 1500.0
    near: float = 1.5
    far: float = 10.0
    drop_size: float = 1.5
    speed: float = 1.0
    wind: float = 0.5
    gust: float = 0.5
    turbulence: float = 0.2
    exposure: float = 1 / 60
    opacity: float = 0.07
    brightness: float = 1.8
    focus: float = 8.0
    aperture: float = 0.01
    focal: float = 1.5
    pan: float = 0.0
    shake: float = 0.05
    veil: float = 0.0
    splash: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) <= high:
                raise CSDError(f"rain parameter {name} = {value!r}: give a number in [{low:g}, {high:g}]")
        if self.near >= self.far:
            raise CSDError(f"rain parameter near = {self.near:g}: must be less than far = {self.far:g}")


PRESETS: dict[str, RainParams] = {
    "light": RainParams(density=500, opacity=0.05, drop_size=1.2, wind=0.3, gust=0.3),
    "medium": RainParams(),
    "heavy": RainParams(density=4500, opacity=0.07, drop_size=1.8, far=14, wind=1.5, gust=1.0, veil=0.15),
    # density and opacity are what `csd rain --calibrate` finds
    "nturain": RainParams(density=650, opacity=0.085, exposure=1 / 40, near=1.2, aperture=0.004),
}


def find_preset(name: str) -> RainParams:
    """The preset of that name. Raises CSDError, which suggests the nearest name."""
    if name not in PRESETS:
        raise CSDError(f"rain preset {name!r} is unknown{suggestion(name, PRESETS)}")
    return PRESETS[name]


def override(params: RainParams, settings: Sequence[str]) -> RainParams:
    """`params` with fields replaced by settings like 'wind=3'. Raises CSDError, which names a wrong one."""
    changes = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in _RANGES:
            raise CSDError(f"rain parameter {name!r} is unknown{suggestion(name, _RANGES)}")
        try:
            changes[name] = float(value)
        except ValueError:
            raise CSDError(f"rain parameter {setting!r}: write {name}=NUMBER") from None
    return replace(params, **changes)


def random_params(preset: str | RainParams, rng: np.random.Generator) -> RainParams:
    """A rain similar to the preset, so that every clip and epoch can have its own.

    Quantities are multiplied by uniform random factors around 1 (density 0.5 to 1.5), which preserve the preset's
    brightening on average; the wind may blow either way, and the camera turns a little.
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
        "wind": base.wind * float(rng.choice([-1, 1])) + float(rng.normal(0, 1.5)),
        "gust": about(base.gust, 0.8),
        "pan": base.pan + float(rng.normal(0, 2)),
        "shake": about(base.shake, 0.8),
        "veil": about(base.veil, 0.5),
        "splash": about(base.splash, 0.5),
    }
    return replace(base, **{name: float(np.clip(value, *_RANGES[name])) for name, value in varied.items()})


assert set(_RANGES) == {field.name for field in fields(RainParams)}
