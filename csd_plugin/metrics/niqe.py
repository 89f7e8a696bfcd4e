"""NIQE, which rates how natural an image looks without a reference; computed by mmeval, an optional package.

Mittal et al., "Making a completely blind image quality analyzer", 2013. Lower is better. mmeval's version is BasicSR's
`calculate_niqe` (which option files can name in `val.metrics`) in double precision, with the official parameters in its
wheel; the two differ by some thousandths.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any

import numpy as np

from csd_plugin.errors import CSDError
from csd_plugin.extras import needed_by
from csd_plugin.metrics.image_quality import Image, luma_8bit
from csd_plugin.metrics.metric import Metric, View

BLOCK = 96
"""Side, in pixels, of the blocks that NIQE analyses; the remainder at the right and bottom is ignored."""


class NIQE(Metric):
    """NIQE of a result; see `niqe`."""

    title, decimals = "NIQE", 3

    def __init__(self) -> None:
        load_niqe()

    def check_size(self, height: int, width: int) -> None:
        _blocks_of(height, width)

    def __call__(self, view: View) -> float | None:
        return niqe(view.result)


def niqe(rgb: Image) -> float | None:
    """NIQE of the luma of one image (H, W, 3) uint8 RGB; about 2 to 10, lower is better.

    None if fewer than two blocks have any structure (a black frame). Raises CSDError if mmeval is missing, and for an
    image of fewer than two blocks.
    """
    rows, columns = _blocks_of(*rgb.shape[:2])
    evaluator = load_niqe()
    blocks = luma_8bit(rgb)[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    if np.count_nonzero(np.ptp(blocks, axis=(1, 3))) < 2:
        return None
    official = (evaluator.mu_pris_param, evaluator.cov_pris_param, evaluator.gaussian_window)
    with np.errstate(all="ignore"):  # warnings for blocks without structure, which it leaves out
        value = float(evaluator.compute_niqe(rgb, "rgb", *official))
    return value if math.isfinite(value) else None


def _blocks_of(height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of whole blocks in a frame of this size. Raises CSDError for fewer than two blocks."""
    rows, columns = height // BLOCK, width // BLOCK
    if rows * columns < 2:
        raise CSDError(
            f"frames of {width}x{height} are too small for NIQE, which needs two blocks of {BLOCK}x{BLOCK}; leave niqe "
            f"out, or score larger frames"
        )
    return rows, columns


@lru_cache(maxsize=1)
def load_niqe() -> Any:
    """mmeval's evaluator, whose `compute_niqe` keeps no state. Raises CSDError if mmeval is missing."""
    with needed_by("NIQE"):
        from mmeval import NaturalImageQualityEvaluator
    warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # see above
    return NaturalImageQualityEvaluator(input_order="HWC", convert_to="y")
