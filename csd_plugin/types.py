"""The contracts between the packages. Nothing of ours is imported here.

Shapes: B batch, N frames of the input clip, L target frames, T frames of one window, C channels,
H W height and width. Images are float RGB in [0, 1] as tensors and uint8 RGB (H, W, 3) as arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # scoring and rain need no torch
    from torch import Tensor


@dataclass(frozen=True)
class PairedSequence:
    """One rainy clip and, if there is one, its ground truth, as names only.

    Attributes:
        lq, gt: frame keys in display order: paths relative to the data root, separated by '/'. Both have the same
            length.
    """

    name: str
    lq: tuple[str, ...]
    gt: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ClipView:
    """What one network makes of a batch of clips, as a distillation objective sees it.

    Attributes:
        output: (B, L, 3, H, W), the network's frames; in super-resolution, larger than the clip by the scale.
        features: input scale -> one tensor (B, L, C, H/scale, W/scale) per tap. Scale 1 is the unscaled frames;
            scales 2 and 4, present only if the objective's `input_scales` ask for them, come from running the network
            on 2x2 and 4x4 average-pooled frames.
    """

    output: Tensor
    features: Mapping[int, tuple[Tensor, ...]]


class Terms(NamedTuple):
    """What an objective returns: raw, unweighted scalar losses, and detached scalars to log with them."""

    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor]
