"""Losses and metrics of the toolbox, or of others, under our models: tried once on small pictures before a run."""

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

FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, cv2.error)
"""What other packages' code raises when it is used for something that it was not made for."""
IMAGES = ("img", "img2", "previous", "guide", "previous_guide")
"""What a metric may be handed: result and truth, as the toolbox does, and what `metrics.registered` describes."""
_METRIC_SIZE = 192
"""Pixels of a side, on which metrics are tried: NIQE needs two blocks of 96."""


def keywords_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords in a section of the option file, for the class or function that its `type` names."""
    return {key: value for key, value in section.items() if key != "type"}


def check_loss(loss: nn.Module, size: int) -> None:
    """Whether a loss compares an output (1, 3, size, size) with the truth, as `train.pixel_opt` is asked to.

    Grey has to be worse than noise where the truth is that noise, and worse than where the truth is grey.
    Raises CSDError.
    """
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    grey = torch.full_like(noise, 0.5).requires_grad_()
    try:
        value, others = loss(grey, noise), (loss(noise, noise), loss(grey, grey.detach()))
    except FAILURES as error:
        if out_of_memory(error):
            raise
        raise CSDError(
            f"it cannot compare an output with the truth ({first_line(error)}); take another loss"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise CSDError(f"it gives {what}, not one number; take another loss, or reduction: mean")
    if not value.requires_grad or not all(value.item() > other.item() for other in others):
        raise CSDError("it does not compare the output with the truth; take another loss, such as L1Loss")


def check_metric(metric: Callable[..., Any], **keywords: Any) -> None:
    """Whether a metric takes images as our validation hands them over, and gives a number. Raises CSDError."""
    try:
        value = float(_tried(metric, (_METRIC_SIZE, _METRIC_SIZE), keywords))
    except FAILURES as error:
        raise CSDError(f"it cannot be computed ({first_line(error)}); check its keys, or take another") from error
    if math.isnan(value):
        raise CSDError("it gives no number (nan); check its keys, or take another")


def check_metric_size(
    metric: Callable[..., Any], size: tuple[int, int], keywords: Mapping[str, Any], where: str
) -> None:
    """Whether a metric that passes `check_metric` takes frames of this size.

    Args:
        size: (height, width).
        keywords: of the metric, in addition to its images.
        where: the frames are.

    Raises:
        CSDError: it does not.
    """
    height, width = size
    try:
        value = _tried(metric, (min(height, _METRIC_SIZE), min(width, _METRIC_SIZE)), keywords)
        reason = "" if value is None or not math.isnan(value) else "nan"
    except FAILURES as error:
        reason = first_line(error)
    if reason:
        raise CSDError(
            f"it cannot be computed on frames of {width}x{height} ({where}): {reason}; leave it out, or take larger "
            f"frames"
        )


def _tried(metric: Callable[..., Any], size: tuple[int, int], keywords: Mapping[str, Any]) -> Any:
    """The value of a metric on noise; the images that it names in its signature, or else the toolbox's two."""
    noise = np.random.default_rng(0).integers(0, 256, (len(IMAGES), *size, 3), np.uint8)
    given = dict(zip(IMAGES, noise, strict=True))
    named = given.keys() & inspect.signature(metric).parameters.keys()
    return metric(**{name: given[name] for name in named or IMAGES[:2]}, **keywords)
