"""Metrics beside PSNR and SSIM, by name: what each needs, and how it is written in tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import Image


class View(NamedTuple):
    """What a metric may look at: images (H, W, 3) uint8 RGB of one frame.

    truth: None where there is none. guide: what moves as the result should: the truth, the rainy input, or the result
    itself. previous, previous_guide: of the frame before; None in the first of a clip, and where no metric needs them.
    """

    result: Image
    truth: Image | None
    guide: Image
    previous: Image | None = None
    previous_guide: Image | None = None


Compute = Callable[[View], float | None]


@dataclass(frozen=True)
class Measure:
    """decimals: in tables. open: weights -> what computes it, None for a frame that has no value; raises CSDError."""

    title: str
    decimals: int
    open: Callable[[Path | None], Compute]
    needs_truth: bool = False
    temporal: bool = False


def _open_niqe(weights: Path | None) -> Compute:
    from csd_plugin.metrics.niqe import load_niqe, niqe

    load_niqe()
    return lambda view: niqe(view.result)


def _open_lpips(weights: Path | None) -> Compute:
    from csd_plugin.metrics.perceptual import LPIPS

    distance = LPIPS(weights)
    return lambda view: None if view.truth is None else distance(view.result, view.truth)


def _open_warping(weights: Path | None) -> Compute:
    from csd_plugin.metrics.warping import warping_error

    def compute(view: View) -> float | None:
        if view.previous is None or view.previous_guide is None:
            return None
        return warping_error(view.result, view.previous, view.guide, view.previous_guide)

    return compute


# All of these are better when lower.
MEASURES: dict[str, Measure] = {
    "niqe": Measure("NIQE", 3, _open_niqe),
    "lpips": Measure("LPIPS", 4, _open_lpips, needs_truth=True),
    "warping": Measure("warping error", 3, _open_warping, temporal=True),
}
WITHOUT_TRUTH = ("niqe", "warping")
"""What is measured where there is no truth, unless others are asked for."""


def open_measures(names: Iterable[str], *, has_truth: bool, lpips_weights: Path | None = None) -> dict[str, Compute]:
    """name -> what computes it.

    Raises CSDError for an unknown name, a package or weights that are missing, or a truth that one needs.
    """
    opened = {}
    for name in names:
        if name not in MEASURES:
            raise CSDError(f"there is no metric {name!r}; choose from {', '.join(MEASURES)}")
        if MEASURES[name].needs_truth and not has_truth:
            raise CSDError(f"{MEASURES[name].title} compares with the truth: give --truth, or leave {name} out")
        opened[name] = MEASURES[name].open(lpips_weights)
    return opened
