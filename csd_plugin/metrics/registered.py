"""The metrics as the toolbox calls them: `val.metrics` of an option file names these functions as `type`.

    metrics:
      niqe: {type: calculate_niqe, crop_border: 0, better: lower}     # the toolbox's own
      lpips: {type: calculate_lpips, weights: weights/alexnet-owt-7be5be79.pth, better: lower}
      warping: {type: calculate_warping_error, better: lower}

Images are (H, W, 3) uint8 BGR, as in the toolbox. Our validation passes a metric the images in its signature: `img`,
`img2` (the truth), `previous` (the previous result), `guide` and `previous_guide` (the truth, or without one the rainy
input); a frame that lacks one of them has no value. If a metric has an attribute `check`, it is called with the
metric's options before a run begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import Image
from csd_plugin.metrics.metric import Metric, View

_functions: dict[type[Metric], Callable[..., float | None]] = {}


def as_function(metric: type[Metric]) -> Callable[..., float | None]:
    """The function `metric.function`, the same object at every call; only for a metric that has one.

    It takes the images that the metric needs, and the keywords of its constructor; others, such as the toolbox's
    `better`, are ignored. Raises CSDError, also if an image is missing.
    """
    if metric not in _functions:
        _functions[metric] = _function_of(metric)
    return _functions[metric]


def _function_of(metric: type[Metric]) -> Callable[..., float | None]:
    before = ("previous", "guide", "previous_guide") if metric.temporal else ()
    images = ("img", *(("img2",) if metric.needs_truth else ()), *before)

    @lru_cache(maxsize=1)
    def opened(options: tuple[tuple[str, Any], ...]) -> Metric:
        return metric(**dict(options))

    def calculate(**given: Any) -> float | None:
        shown = {name: _rgb(given[name]) for name in images if given.get(name) is not None}
        if len(shown) < len(images):
            why = "compares neighbouring frames" if metric.temporal else f"needs {' and '.join(images)}"
            raise CSDError(f"{metric.function} {why}: name it in val.metrics of our models")
        result, truth = shown["img"], shown.get("img2")
        guide, previous, previous_guide = shown.get("guide", result), shown.get("previous"), shown.get("previous_guide")
        return opened(_options(metric, given))(View(result, truth, guide, previous, previous_guide))

    calculate.__name__ = calculate.__qualname__ = str(metric.function)
    calculate.__module__ = metric.__module__
    calculate.__doc__ = metric.__doc__
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in images]
    calculate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    calculate.check = lambda **given: opened(_options(metric, given))  # type: ignore[attr-defined]
    return calculate


def _options(metric: type[Metric], given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The given keywords that the metric's constructor takes, hashable."""
    known = {name: given[name] for name in inspect.signature(metric).parameters if name in given}
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in sorted(known.items()))


def _rgb(bgr: Image) -> Image:
    return np.ascontiguousarray(bgr[..., ::-1])
