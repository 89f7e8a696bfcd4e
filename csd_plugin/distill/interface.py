"""The interface of distillation objectives: frames and features of two networks in, named raw losses out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms


class Objective(nn.Module):
    """A distillation method. It owns the modules that learn with the student, and only those.

    To add a method: one new file with one subclass, and one line in `distill.OBJECTIVES`. The constructor takes
    keyword-only options and raises CSDError for invalid ones.
    """

    input_scales: tuple[int, ...] = (1,)
    """The factors by which frames are pooled before the networks see them, for which `forward` needs features."""
    needs_features = True
    """Whether `forward` needs features; otherwise no layer is tapped, and networks need not name one."""
    learns_scale = False
    """Whether layers that learn first bring the student's features to the teacher's scale."""
    resizes = False
    """Whether features are first brought to the teacher's height and width."""
    diagnoses = True
    """Whether `forward` should compute slow diagnostics; nobody reads them in iterations that are not logged."""
    follows_steps = False
    """Whether `after_step` has something to do with these options."""
    fidelities: tuple[str, ...] = ()
    """Names of presets of options for the key `fidelity`; see `fidelity`."""

    def __init__(self) -> None:
        super().__init__()  # no keywords for nn.Module, which accepts any: they would be mistyped options

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the losses that `forward` returns with these options."""
        raise NotImplementedError

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The raw losses of a batch of clips.

        Args:
            student, teacher: the networks' views of the same L frames. Gradients never reach the teacher's.
            target: (B, L, 3, H, W), the clean frames, RGB in [0, 1].
        """
        raise NotImplementedError

    def check(self, student: ClipView, teacher: ClipView) -> None:
        """Raise CSDError for features that `forward` would refuse. Called before a run, with shapes only.

        Args:
            student, teacher: as for `forward`, with only the features of input scale 1.
        """
        if self.needs_features:
            feature_pairs(type(self).__name__, student, teacher)

    def warnings(self, features: Sequence[Sequence[int]]) -> list[str]:
        """Warnings to print before a run, one line each.

        Args:
            features: the shape (B, L, C, h, w) of the student's feature at each tap.
        """
        return []

    def weights_without_use(self) -> list[nn.Parameter]:
        """Weights that have no effect with these options; they do not learn."""
        return []

    def after_step(self) -> None:
        """Called after each optimizer step, for anything that follows the weights without being learned."""


def feature_pairs(
    method: str, student: ClipView, teacher: ClipView, *, scale: int = 1, count: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's feature at each tap for an input scale, (B, L, C, h, w), the teacher's detached.

    Args:
        method: begins the messages.
        scale: the input scale.
        count: the required number of taps; None: any number above 0.

    Raises:
        CSDError: the number of taps, or batch, frames, height or width, differ; channels may.
    """
    tapped = {"student": student.features.get(scale, ()), "teacher": teacher.features.get(scale, ())}
    wanted = count or max(len(tapped["student"]), 1)
    for network, features in tapped.items():
        if len(features) != wanted:
            raise CSDError(
                f"{method}: needs {wanted} feature(s) of the {network} at input scale {scale}, got {len(features)}; "
                f"tap that many layers, or, as one of Combined's objectives, give it its `taps`"
            )
    pairs = []
    for ours, theirs in zip(*tapped.values(), strict=True):
        if ours.shape[:2] != theirs.shape[:2] or ours.shape[3:] != theirs.shape[3:]:
            raise CSDError(
                f"{method}: at input scale {scale} the student's feature is {_size(ours)} and the teacher's "
                f"{_size(theirs)}; batch, frames, height and width must agree; tap layers of equal size, or give "
                f"`adapters: [resize]` in `taps`"
            )
        pairs.append((ours, theirs.detach()))
    return pairs


def _size(feature: Tensor) -> str:
    return "x".join(map(str, feature.shape))
