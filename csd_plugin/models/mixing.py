"""Tries losses and metrics of the toolbox, or of others, once on small images before a run of our models."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from csd_plugin.errors import CSDError, first_line, out_of_memory
from csd_plugin.losses.several import one_number

FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, cv2.error)
"""The errors of other packages' code when it is used for something that it was not made for."""
IMAGES = ("img", "img2", "previous", "guide", "previous_guide")
"""The images that a metric may get: result and truth, like in the toolbox, and those in `metrics.registered`."""
_METRIC_SIZE = 192
"""Side, in pixels, of the images on which metrics are tried: NIQE needs two blocks of 96."""


def keywords_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords in a section of the option file, for the class or function that its `type` names."""
    return {key: value for key, value in section.items() if key != "type"}


def check_loss(loss: nn.Module, size: int) -> None:
    """Check that a loss compares an output (1, 3, size, size) with the truth, as `train.pixel_opt` and others must.

    A grey output must be worse than noise if the truth is that noise, and worse than if the truth is grey.
    Raises CSDError.
    """
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    grey = torch.full_like(noise, 0.5).requires_grad_()
    try:
        compared = ((grey, noise), (noise, noise), (grey, grey.detach()))
        value, *others = (one_number(loss(output, truth)) for output, truth in compared)
    except FAILURES as error:
        if out_of_memory(error):
            raise
        raise CSDError(f"it cannot compare an output with the truth ({first_line(error)}); use another loss") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise CSDError(f"it returns {what}, not one number; use another loss, or reduction: mean")
    if not value.requires_grad or not all(value.item() > other.item() for other in others):
        raise CSDError("it does not compare the output with the truth; use another loss, such as L1Loss")


def check_metric(metric: Callable[..., Any], **keywords: Any) -> None:
    """Check that a metric takes images as our validation passes them, and returns a number. Raises CSDError."""
    try:
        value = float(_tried(metric, (_METRIC_SIZE, _METRIC_SIZE), keywords))
    except FAILURES as error:
        raise CSDError(f"it cannot be computed ({first_line(error)}); check its keys, or use another") from error
    if math.isnan(value):
        raise CSDError("it returns no number (nan); check its keys, or use another")


def check_metric_size(
    metric: Callable[..., Any], size: tuple[int, int], keywords: Mapping[str, Any], where: str
) -> None:
    """Check that a metric that passes `check_metric` can be computed on frames of this size.

    Args:
        size: (height, width).
        keywords: the metric's, in addition to its images.
        where: where the frames are, for the message.

    Raises:
        CSDError: it cannot.
    """
    height, width = size
    try:
        value = _tried(metric, (min(height, _METRIC_SIZE), min(width, _METRIC_SIZE)), keywords)
        reason = "" if value is None or not math.isnan(value) else "nan"
    except FAILURES as error:
        reason = first_line(error)
    if reason:
        raise CSDError(
            f"it cannot be computed on frames of {width}x{height} ({where}): {reason}; leave it out, or use larger "
            f"frames"
        )


def _tried(metric: Callable[..., Any], size: tuple[int, int], keywords: Mapping[str, Any]) -> Any:
    """A metric's value on noise, for the images that its signature names, or else the toolbox's two."""
    noise = np.random.default_rng(0).integers(0, 256, (len(IMAGES), *size, 3), np.uint8)
    given = dict(zip(IMAGES, noise, strict=True))
    named = given.keys() & inspect.signature(metric).parameters.keys()
    return metric(**{name: given[name] for name in named or IMAGES[:2]}, **keywords)
