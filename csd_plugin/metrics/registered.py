"""The metrics as the toolbox calls them: `val.metrics` of an option file names these functions as `type`.

    metrics:
      niqe: {type: calculate_niqe, crop_border: 0, better: lower}     # the toolbox's own
      lpips: {type: calculate_lpips, weights: weights/alexnet-owt-7be5be79.pth, better: lower}
      warping: {type: calculate_warping_error, better: lower}

Images are (H, W, 3) uint8 BGR, as the toolbox has them. Our validation hands a metric what its signature names: `img`,
`img2` (the truth), `previous` (the result before), `guide` and `previous_guide` (the truth, or without one the rainy
input); a frame that lacks one of them has no value. A metric's attribute `check`, where it has one, is called with its
options before a run begins.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import Image
from csd_plugin.metrics.perceptual import LPIPS
from csd_plugin.metrics.warping import warping_error


def calculate_lpips(img: Image, img2: Image, weights: str | None = None, **_: Any) -> float:
    """LPIPS of a result and its truth; `weights` as `LPIPS` takes them. Raises CSDError."""
    return _lpips(weights)(_rgb(img), _rgb(img2))


def calculate_warping_error(
    img: Image,
    previous: Image | None = None,
    guide: Image | None = None,
    previous_guide: Image | None = None,
    **_: Any,
) -> float | None:
    """The warping error of a result and the one before it; see `warping_error`. Raises CSDError."""
    if previous is None or guide is None or previous_guide is None:
        raise CSDError("calculate_warping_error compares neighbouring frames: name it in val.metrics of our models")
    return warping_error(*map(_rgb, (img, previous, guide, previous_guide)))


@lru_cache(maxsize=1)
def _lpips(weights: str | None) -> LPIPS:
    return LPIPS(Path(weights) if weights else None)


def _rgb(bgr: Image) -> Image:
    return np.ascontiguousarray(bgr[..., ::-1])


calculate_lpips.check = lambda weights=None, **_: _lpips(weights)  # type: ignore[attr-defined]
