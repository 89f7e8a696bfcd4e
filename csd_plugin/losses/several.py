"""Several losses between the same frames and their truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from csd_plugin.errors import CSDError


class SeveralLosses(nn.Module):
    """Losses by name; `forward` returns each of them, whose sum is to be minimised (`total_of`).

    Args:
        losses: each maps frames and truth, (B, 3, H, W) in [0, 1], to a scalar, or to what `one_number` adds.

    Raises:
        CSDError: there are none.
    """

    def __init__(self, losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not losses:
            raise CSDError("SeveralLosses has no losses; give at least one, {name: loss}")
        self.names = tuple(losses)
        self.losses = nn.ModuleList(losses.values())  # torch's dict of modules refuses names such as `keys`

    def forward(self, frames: Tensor, truth: Tensor) -> dict[str, Tensor]:
        named = zip(self.names, self.losses, strict=True)
        return {name: one_number(loss(frames, truth)) for name, loss in named}


def one_number(value: Any) -> Any:
    """The sum of a tuple of scalars, of which some may be None, as from BasicSR's PerceptualLoss; else the value."""
    parts = [part for part in value if part is not None] if isinstance(value, tuple) else []
    fits = parts and all(isinstance(part, Tensor) and part.numel() == 1 for part in parts)
    return sum(parts[1:], parts[0]) if fits else value


def total_of(value: Tensor | tuple[Tensor | None, ...] | Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What a loss returns, as one scalar, and its named parts, detached, if it has any."""
    if not isinstance(value, Mapping):
        return one_number(value), {}
    first, *others = value.values()
    return sum(others, first), {name: part.detach() for name, part in value.items()}
