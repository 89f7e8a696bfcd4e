"""Cells that learn from the loss they define can shrink it by ignoring their input: detects this, and stops it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from csd_plugin.distill.processes import mean_over_processes

LOSS_GONE = 1e-8
"""A loss below this counts as zero: the cells that define it stop learning (STD's rule)."""


@torch.no_grad()
def spread(frames: Sequence[Tensor]) -> Tensor:
    """Standard deviation of the statuses (B, C, h, w) of frames, per channel, averaged over channels."""
    # From sums: torch.std over these dimensions takes twenty times as long on a CPU.
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in frames]).mean(dim=0)
    mean_square = torch.stack([x.square().mean(dim=(0, 2, 3)) for x in frames]).mean(dim=0)
    return (mean_square - mean.square()).clamp_min(0).sqrt().mean()


class Freeze(nn.Module):
    """Lets weights learn until they are frozen, permanently.

    Its buffers are saved with an objective, so that a resumed run continues with them, and all processes of a job
    follow the first one. An objective calls `hold` before it computes with the weights, and `restore` after each step.
    Computations without gradients, as in a validation, change nothing.
    """

    frozen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.tensor(False))
        self._kept: list[Tensor] = []
        """Whether they are frozen, and the weights held: the same tensors in every step, for CUDA graphs."""

    def hold(self, weights: Iterable[nn.Parameter]) -> None:
        """Remember the current weights, and whether they are frozen by now."""
        if not torch.is_grad_enabled():
            return
        now = [self.frozen, *(weight.detach() for weight in weights)]
        if not self._kept or self._kept[0].device != self.frozen.device:
            self._kept = [value.clone() for value in now]
            return
        for kept, value in zip(self._kept, now, strict=True):
            kept.copy_(value)

    def freeze_if_gone(self, loss: Tensor) -> None:
        """Freeze if the mean of this loss over all processes is below `LOSS_GONE`; effective from the next `hold` on.

        That is the one of the next step, or of the next part of this step.
        """
        if torch.is_grad_enabled():
            self.frozen |= mean_over_processes(loss.detach()) < LOSS_GONE

    @torch.no_grad()
    def restore(self, weights: Iterable[nn.Parameter]) -> None:
        """Undo the step on frozen weights: with zero gradients, an optimizer with momentum would still move them.

        The device decides whether there is anything to undo, as asking it would make a GPU's step wait.
        """
        if self._kept:
            held, *before = self._kept
            for weight, kept in zip(weights, before, strict=True):
                weight.copy_(torch.where(held, kept, weight))


class FreezeOnCollapse(Freeze):
    """Freezes when a status spreads less than `fraction` of its initial spread, or a loss is close to zero.

    Args:
        count: the number of statuses, each with its loss.
    """

    start: Tensor

    def __init__(self, *, count: int, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction
        self.register_buffer("start", torch.full((count,), torch.nan))

    def watch(self, losses: Iterable[Tensor], spreads: Iterable[Tensor]) -> None:
        """losses, spreads: scalars, `count` of each; several processes decide by their means."""
        if not torch.is_grad_enabled():
            return
        here = torch.stack([torch.stack(list(losses)), torch.stack(list(spreads))]).detach()
        loss, now = mean_over_processes(here).unbind()
        self.start.copy_(torch.where(self.start.isnan(), now, self.start))
        self.frozen |= ((loss < LOSS_GONE) | (now < self.fraction * self.start)).any()
