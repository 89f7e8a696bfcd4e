"""A frame's pixels as feature vectors, all of which are compared with all others, for FAKD and CRD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from csd_plugin.errors import CSDError

_GIB = 2**30
_RELATIVE_EPS, _FLOOR = 1e-5, 1e-12
"""Added to a vector's length: a fraction of the mean vector's, above rounding errors of equal ones; and a minimum."""


class Pixels(NamedTuple):
    """How to prepare a feature's pixels for matrices of all pairs of them in a frame.

    Attributes:
        method, matrices: the objective and the name of its matrices, for messages.
        pool: features are average-pooled by this factor first.
        max_gib: refuse to compute matrices that take more memory in all.
    """

    method: str
    matrices: str
    pool: int
    max_gib: float

    def checked(self) -> Pixels:
        """Itself. Raises CSDError for invalid numbers."""
        if self.pool < 1 or self.max_gib <= 0:
            raise CSDError(
                f"{self.method}: pool is {self.pool} and max_gib {self.max_gib}, expected at least 1 and more than 0"
            )
        return self

    def columns(self, feature: Tensor, *, centred: bool = False) -> Tensor:
        """(B, L, C, h, w) -> (B * L, C, n), n = (h // pool) (w // pool): vectors of unit length, float32.

        Args:
            centred: first subtract their mean over the frame's pixels; vectors equal to it become nearly 0.
        """
        columns = F.avg_pool2d(feature.flatten(0, 1).float(), self.pool).flatten(2)
        if not centred:
            return F.normalize(columns, dim=1)
        mean = columns.mean(dim=2, keepdim=True)
        columns = columns - mean
        rounding = _RELATIVE_EPS * mean.detach().norm(dim=1, keepdim=True) + _FLOOR
        # from squares, as a norm has no gradient at 0
        return columns / (columns.square().sum(dim=1, keepdim=True) + rounding.square()).sqrt()

    def count(self, feature: Tensor) -> int:
        """Pixels of a frame."""
        return (feature.shape[3] // self.pool) * (feature.shape[4] // self.pool)

    def check(self, features: Sequence[Tensor]) -> None:
        """Raise CSDError if the matrices of these features, (B, L, C, h, w), take too much memory, or have no pixel."""
        needed = self.gib([feature.shape for feature in features])
        if needed > self.max_gib:
            height, width = features[0].shape[3:]
            raise CSDError(
                f"{self.method}: {self.matrices} of features of {height}x{width}, pooled by {self.pool}, take "
                f"{needed:.1f} GiB, more than max_gib {self.max_gib:g}; raise pool, or use smaller crops or batches"
            )
        if min(min(feature.shape[3:]) for feature in features) < self.pool:
            raise CSDError(f"{self.method}: features are smaller than pool {self.pool}; lower it")

    def warnings(self, features: Sequence[Sequence[int]]) -> list[str]:
        """A warning if the matrices take long and much memory."""
        needed = self.gib(features)
        return [f"{self.method}'s {self.matrices} take {needed:.1f} GiB with pool {self.pool}; raise it"] * (needed > 1)

    def gib(self, features: Sequence[Sequence[int]]) -> float:
        """Memory for pairs of features (B, L, C, h, w): two matrices per frame, and the gradient of one."""
        floats = 3 * sum(
            batch * frames * ((height // self.pool) * (width // self.pool)) ** 2
            for batch, frames, _, height, width in features
        )
        return 4 * floats / _GIB
