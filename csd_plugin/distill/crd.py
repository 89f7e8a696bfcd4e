"""CRD: "Contrastive Representation Distillation" (Tian et al., ICLR 2020), for pixels of a frame instead of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from csd_plugin.distill.interface import Objective, feature_pairs
from csd_plugin.distill.pixels import Pixels
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms


class CRD(Objective):
    """The student's feature of a pixel must identify this pixel among all pixels of the teacher's feature of the frame.

    The feature vectors of the pixels, minus their mean over the frame, are scaled to unit length. Term `contrast`:
    InfoNCE, the cross entropy of a softmax of cosine / temperature over the teacher's pixels, in which the same pixel
    is the right class; a mean over batch, frames and pixels, summed over taps. It is log n for features that carry no
    information about n pixels, and not 0 for equal ones, as neighbours are similar. The numbers of channels must agree:
    `adapters: [conv1x1]` in `taps` learns a projection, as in the paper.

    Args:
        temperature: of the softmax; the lower, the more weight the most similar pixels have.
        pool: features are average-pooled by this factor first; the matrix of an unpooled 128x128 frame takes 1 GiB.
        max_gib: refuse to compute matrices that take more memory in all.

    Raises:
        CSDError: an option is out of range, or, in `forward`, channels differ or matrices are too large.
    """

    def __init__(self, *, temperature: float = 0.1, pool: int = 4, max_gib: float = 8.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise CSDError(f"CRD: temperature is {temperature}, expected more than 0")
        self.temperature = temperature
        self.pixels = Pixels("CRD", "similarities", pool, max_gib).checked()

    @property
    def terms(self) -> tuple[str, ...]:
        return ("contrast",)

    def check(self, student: ClipView, teacher: ClipView) -> None:
        pairs = feature_pairs("CRD", student, teacher)
        self.pixels.check([ours for ours, _ in pairs])
        for ours, theirs in pairs:
            if self.pixels.count(ours) < 2:
                raise CSDError(f"CRD: after pooling by {self.pixels.pool}, a feature has a single pixel; lower pool")
            if ours.shape[2] != theirs.shape[2]:
                raise CSDError(
                    f"CRD: the student's feature has {ours.shape[2]} channels, the teacher's has {theirs.shape[2]}; "
                    f"give `adapters: [conv1x1]` in `taps`"
                )

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The term in the class docstring; `target` is not used."""
        with torch.autocast(target.device.type, enabled=False):
            self.check(student, teacher)
            pairs = feature_pairs("CRD", student, teacher)
            return Terms({"contrast": torch.stack([self._contrast(*pair) for pair in pairs]).sum()}, {})

    def warnings(self, features: Sequence[Sequence[int]]) -> list[str]:
        return self.pixels.warnings(features)

    def _contrast(self, ours: Tensor, theirs: Tensor) -> Tensor:
        ours, theirs = (self.pixels.columns(feature, centred=True) for feature in (ours, theirs))
        similarities = ours.transpose(1, 2) @ theirs / self.temperature
        own = (ours * theirs).sum(
            dim=1
        ) / self.temperature  # the matrix's diagonal, without a gradient of the matrix's size
        return (similarities.logsumexp(dim=2) - own).mean()
