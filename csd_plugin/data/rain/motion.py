"""The motion of wind and camera over time, and random numbers from hashes, so that the renderer can start anywhere."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Drift(NamedTuple):
    """A steady velocity plus three slow waves, integrated exactly: `position` needs no history."""

    steady: float
    amplitude: np.ndarray
    omega: np.ndarray
    phase: np.ndarray

    @classmethod
    def draw(cls, steady: float, amplitude: float, periods: tuple[float, float], rng: np.random.Generator) -> Drift:
        """Waves of random periods in s between the two given, whose velocities add to at most `amplitude`."""
        omega = 2 * np.pi / rng.uniform(*periods, 3)
        return cls(steady, amplitude * rng.dirichlet(np.ones(3)), omega, rng.uniform(0, 2 * np.pi, 3))

    @property
    def fastest(self) -> float:
        """An upper bound of the speed, in either direction."""
        return abs(self.steady) + float(self.amplitude.sum())

    def position(self, t: float) -> float:
        """The displacement from time 0 to `t`, in s."""
        waves = self.amplitude / self.omega * (np.cos(self.phase) - np.cos(self.omega * t + self.phase))
        return float(self.steady * t + waves.sum())


def hash_uniform(key: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers in [0, 1) per (uint64 key, whole count): the halves of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = key + count.astype(np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(32)) * 2.0**-32, (z & np.uint64(0xFFFFFFFF)) * 2.0**-32
