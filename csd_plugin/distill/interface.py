"""What every distillation objective is: frames and features of two networks in, named raw losses out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms


class Objective(nn.Module):
    """One distillation method. It owns the modules that learn with the student, and only those.

    To add a method: one new file with one subclass, and one line in `distill.OBJECTIVES`. The constructor takes
    keyword-only options; it raises CSDError for wrong ones.
    """

    input_scales: tuple[int, ...] = (1,)
    """The factors by which frames are pooled before a network sees them, for which `forward` needs the networks."""
    needs_features = True
    """Whether `forward` needs features; otherwise no layer is tapped, and networks need not name one."""
    learns_scale = False
    """Whether layers that learn bring the student's features to the teacher's scale first."""
    resizes = False
    """Whether features are brought to the teacher's height and width first."""
    diagnoses = True
    """Whether `forward` is to give diagnostics that take time; nobody reads those of iterations that are not logged."""
    fidelities: tuple[str, ...] = ()
    """Names of presets of options that `train.distill_opt.fidelity` may ask for; see `fidelity`."""

    def __init__(self) -> None:
        super().__init__()  # without the arbitrary keywords of nn.Module: these are options

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the losses that `forward` returns, as the options switch them."""
        raise NotImplementedError

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The raw losses of a batch of clips.

        Args:
            student, teacher: what the networks made of the same L frames. Gradients never reach the teacher's.
            target: (B, L, 3, H, W), the clean frames, RGB in [0, 1].
        """
        raise NotImplementedError

    def check(self, student: ClipView, teacher: ClipView) -> None:
        """Raise CSDError for features that `forward` would refuse. It is called before a run; only shapes are seen.

        Args:
            student, teacher: as for `forward`, with the features of input scale 1 alone.
        """
        if self.needs_features:
            feature_pairs(type(self).__name__, student, teacher)

    def warnings(self, features: Sequence[Sequence[int]]) -> list[str]:
        """What to say before a run, a line each.

        Args:
            features: the shape (B, L, C, h, w) of the student's feature of each tap.
        """
        return []

    def weights_without_use(self) -> list[nn.Parameter]:
        """Weights that the options leave without effect; they do not learn."""
        return []

    def after_step(self) -> None:
        """Called once after each optimizer step, for what follows the weights without being learned."""


def feature_pairs(
    method: str, student: ClipView, teacher: ClipView, *, scale: int = 1, count: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's feature of each tap at an input scale, (B, L, C, h, w), the teacher's detached.

    Args:
        method: begins the messages.
        scale: the input scale.
        count: how many taps there must be; None: any number but none.

    Raises:
        CSDError: the numbers of taps, batch, frames, heights or widths differ; those of channels may.
    """
    tapped = {"student": student.features.get(scale, ()), "teacher": teacher.features.get(scale, ())}
    wanted = count or max(len(tapped["student"]), 1)
    for network, features in tapped.items():
        if len(features) != wanted:
            raise CSDError(
                f"{method}: needs {wanted} feature(s) of the {network} at input scale {scale}, got {len(features)}; "
                f"tap that many layers"
            )
    pairs = []
    for ours, theirs in zip(*tapped.values(), strict=True):
        if ours.shape[:2] != theirs.shape[:2] or ours.shape[3:] != theirs.shape[3:]:
            raise CSDError(
                f"{method}: at input scale {scale} the student's feature is {_size(ours)} and the teacher's "
                f"{_size(theirs)}; batch, frames, height and width must agree; tap layers of one size, or give "
                f"`adapters: [resize]` in `taps`"
            )
        pairs.append((ours, theirs.detach()))
    return pairs


def _size(feature: Tensor) -> str:
    return "x".join(map(str, feature.shape))
