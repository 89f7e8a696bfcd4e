"""Losses and metrics of the toolbox, or of others, under our models: tried once on small pictures before a run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csd_plugin.errors import CSDError, first_line, out_of_memory

_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
"""What others' code raises that was made for something else."""
_METRIC_SIZE = 192  # pixels: NIQE needs two blocks of 96


def check_loss(loss: nn.Module, size: int) -> None:
    """Whether a loss compares an output (1, 3, size, size) with the truth, as `train.pixel_opt` is asked to.

    Grey has to be worse than noise where the truth is that noise, and worse than where the truth is grey.
    Raises CSDError.
    """
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    grey = torch.full_like(noise, 0.5).requires_grad_()
    try:
        value, others = loss(grey, noise), (loss(noise, noise), loss(grey, grey.detach()))
    except _FAILURES as error:
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
    images = np.random.default_rng(0).integers(0, 256, (2, _METRIC_SIZE, _METRIC_SIZE, 3), np.uint8)
    given = dict(zip(("img", "img2"), images, strict=True))
    named = given.keys() & inspect.signature(metric).parameters.keys()
    try:
        value = float(metric(**{name: given[name] for name in named or given}, **keywords))
    except _FAILURES as error:
        raise CSDError(f"it cannot be computed ({first_line(error)}); check its keys, or take another") from error
    if math.isnan(value):
        raise CSDError("it gives no number (nan); check its keys, or take another")
