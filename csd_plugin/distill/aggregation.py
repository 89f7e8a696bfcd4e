"""A feature of many channels as one map per frame, so that networks of different widths compare."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

#: Added to the teacher's deviation, so that a constant map divides by something. Far below real ones (> 1e-4).
EPS = 1e-6


def mean_squared(feature: Tensor) -> Tensor:
    """(mean over channels)^2, as SRKD (ACCV 2018) has it: (B, L, C, H, W) -> (B, L, 1, H, W), float32."""
    return feature.mean(dim=2, keepdim=True, dtype=torch.float32).square()


def sum_squared(feature: Tensor) -> Tensor:
    """(sum over channels)^2, as the authors' released code has it: (B, L, C, H, W) -> (B, L, 1, H, W), float32."""
    return feature.sum(dim=2, keepdim=True, dtype=torch.float32).square()


def _each(one: Callable[[Tensor], Tensor], student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return one(student), one(teacher)


def mean_squared_standardized(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both networks' `mean_squared`, less the teacher's mean over a frame's pixels, over the teacher's deviation.

    It is one affine map per frame for both, so equal features stay equal and a difference in scale stays seen, while
    the alignment cells get inputs of order one whatever the teacher's scale is.
    """
    student, teacher = mean_squared(student), mean_squared(teacher)
    with torch.no_grad():
        deviation, mean = torch.std_mean(teacher, dim=(3, 4), keepdim=True, correction=0)
    return (student - mean) / (deviation + EPS), (teacher - mean) / (deviation + EPS)


#: name -> (student's feature, teacher's feature), each (B, L, C, H, W), to their maps, each (B, L, 1, H, W).
AGGREGATIONS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "mean_squared": partial(_each, mean_squared),
    "sum_squared": partial(_each, sum_squared),
    "mean_squared_standardized": mean_squared_standardized,
}
