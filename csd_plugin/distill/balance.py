"""Weights that follow measurements: a term's gradient is kept at a fixed ratio to the reconstruction's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from csd_plugin.distill.health import gradient_norms
from csd_plugin.distill.schedule import Weight, is_balanced
from csd_plugin.errors import CSDError

EVERY = 20
"""Iterations between two measurements, as each takes a backward pass per term."""
_SHARE_OF_NEW = 0.3
"""Share of a new measurement in the logarithm of the weight, as gradients differ between batches."""


class Balance:
    """The weights of terms with `balance: SHARE`: the norm of the term's gradient is SHARE times the reconstruction's.

    The norms are those of the gradients of all the student's weights, as in `health`, which logs their ratio.

    measured: term -> weight, plain numbers; restored by a resumed run.
    """

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self.shares = {
            term: float(weight["balance"])
            for term, weight in weights.items()
            if isinstance(weight, Mapping) and is_balanced(weight)
        }
        self.measured: dict[str, float] = {}
        self._last = 0

    def at(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The weights of an iteration, as from `weight_at`, with measured ones inserted; weights of 0 stay 0."""
        return {term: self.measured.get(term, weight) if weight else weight for term, weight in weights.items()}

    def due(self, iteration: int, weights: Mapping[str, float]) -> list[str]:
        """The terms to measure in an iteration: at regular intervals those in use, and every term at its first use.

        Once per iteration: if a batch goes through in parts, all parts have the weights of the first.
        """
        if iteration == self._last:
            return []
        terms = self.wants(iteration, weights)
        self._last = iteration if terms else self._last
        return terms

    def wants(self, iteration: int, weights: Mapping[str, float]) -> list[str]:
        """The terms that this iteration would measure."""
        on = [term for term in self.shares if weights.get(term)]
        return [term for term in on if iteration % EVERY == 0 or term not in self.measured]

    def measure(
        self, recon: Tensor, losses: Mapping[str, Tensor], parameters: Iterable[nn.Parameter], *, scale: float = 1.0
    ) -> None:
        """Let the weights of these terms follow the gradients of one batch.

        Args:
            recon: the weighted reconstruction loss.
            losses: term -> raw loss; with several teachers, the sum of their losses weighted by their shares.
            parameters: the student's.
            scale: see `gradient_norms`.

        Raises:
            CSDError: the reconstruction has no gradient. Gradients that are not finite change nothing.
        """
        norms = gradient_norms({"": recon, **losses}, parameters, scale=scale, together=True)
        reference, *others = torch.stack(list(norms.values())).cpu().tolist()
        if not math.isfinite(reference):
            return  # this step will be skipped
        if reference == 0:
            raise CSDError(
                "balance: the reconstruction loss gives the student no gradient, so terms cannot be balanced with it; "
                "give pixel_opt a loss_weight, lower the learning rate, or use numbers as weights"
            )
        for term, norm in zip(losses, others, strict=True):
            if norm > 0 and math.isfinite(norm):
                weight = self.shares[term] * reference / norm
                before = self.measured.get(term, weight)
                self.measured[term] = before ** (1 - _SHARE_OF_NEW) * weight**_SHARE_OF_NEW
