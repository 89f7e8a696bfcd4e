"""What every distillation objective is: frames and features of two networks in, named raw losses out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import Tensor, nn

from csd_plugin.types import ClipView, Terms


class Objective(nn.Module):
    """One distillation method. It owns the modules that learn beside the student, and only those.

    To add a method: one new file with one subclass, and one line in `objective.OBJECTIVES`. The constructor takes
    keyword-only options; what is wrong with them it tells by CSDError.
    """

    #: The factors by which frames are pooled before a network sees them, for which `forward` needs features.
    input_scales: tuple[int, ...] = (1,)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the losses that `forward` returns, as the options switch them."""
        raise NotImplementedError

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The raw losses of a batch of clips.

        student, teacher: what the networks made of the same L frames. Gradients never reach the teacher's.
        target: (B, L, 3, H, W), the clean frames, RGB in [0, 1].
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Called once after each optimizer step, for what follows the weights without being learned."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """One line on a name that is not known: the nearest known one, or all of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"
    return f"{what} {name!r} is unknown; {hint}"
