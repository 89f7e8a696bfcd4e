"""Whether distillation teaches: what each term does to the student, and the signs that it does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from csd_plugin.distill.objective import Comparison, by_name
from csd_plugin.distill.processes import are_several, mean_over_processes
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView

COLLAPSED = 0.05
"""A status has collapsed when it spreads less than this share of what it did at the start."""
SCALE_LIMIT = 10.0
"""The student's and the teacher's feature are of one scale when neither is this many times the other."""


def gradient_norms(
    losses: Mapping[str, Tensor], parameters: Iterable[nn.Parameter], *, scale: float = 1.0, together: bool = False
) -> dict[str, Tensor]:
    """Norm of the gradient that each loss alone gives to all parameters together, float32; 0 where it gives none.

    One backward pass each, in which neither the graph nor any `.grad` changes: the step that follows is the same bit
    for bit. Hooks of data parallel wrappers, which sit where `.grad` is summed, are not called.

    Args:
        scale: what losses are multiplied by on the way, as a gradient scaler does, so that half precision holds them.
        together: of several processes, which all call this, the norm of the mean of their gradients: that of the
            whole batch. Otherwise nothing is exchanged, and it is that of this process's share.

    Raises:
        CSDError: a network with layers whose gradients torch gives together only.
    """
    leaves = [parameter for parameter in parameters if parameter.requires_grad]
    norms = {}
    for name, loss in losses.items():
        norm = torch.zeros((), device=loss.device)
        if loss.requires_grad and leaves:
            given = _gradients(scale * loss, leaves)
            if together and given and are_several():
                given = [mean_over_processes(torch.cat([g.float().flatten() for g in given]))]
            of_each = [
                torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)).float() for g in given
            ]
            norm = torch.linalg.vector_norm(torch.stack(of_each)) / scale if of_each else norm
        norms[name] = norm
    return norms


def _gradients(loss: Tensor, leaves: list[nn.Parameter]) -> list[Tensor]:
    """Those that there are, as dense real numbers. Raises CSDError, see `gradient_norms`."""
    try:
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        raise CSDError(
            "the student uses torch.utils.checkpoint, whose gradients cannot be looked at one loss at a time: call it "
            "with use_reentrant=False, which weights with `balance` need; or set train.health: false (of a Distiller, "
            "examine_every=0)"
        ) from error
    given = [g.to_dense() for g in gradients if g is not None]
    return [torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in given]


def scale_ratios(student: ClipView, teacher: ClipView) -> list[Tensor]:
    """Root mean square of the student's feature over that of the teacher's, for each pair of taps."""
    with torch.no_grad():
        pairs = zip(student.features.get(1, ()), teacher.features.get(1, ()), strict=False)
        return [_magnitude(ours) / _magnitude(theirs) for ours, theirs in pairs]


def _magnitude(feature: Tensor) -> Tensor:
    return feature.float().square().mean().sqrt()


def check_gradients(norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
    """Raise CSDError for the first term that is not zero and gives the student no gradient.

    Args:
        norms, losses: by term, of those with a weight. A loss of exactly zero has nothing left to teach.
    """
    for term, norm in norms.items():
        if norm == 0 and losses[term] != 0:
            raise CSDError(
                f"the term {term} is {losses[term]:.3g} and has a weight, but gives the student no gradient: tap a "
                f"layer of it that learns (train.distill_opt.taps), or set the weight of {term} to 0"
            )


class HealthMonitor:
    """Remembers how a run started, and says what has gone wrong since: each time once, until it is cured.

    It holds plain numbers only; `start`, which a resumed run takes over, has those of the beginning by name.
    """

    def __init__(self) -> None:
        self.start: dict[str, float] = {}
        self._told: set[str] = set()

    def examine(
        self,
        recon: Tensor,
        student: ClipView,
        compared: Mapping[str, Comparison],
        parameters: Iterable[nn.Parameter],
        *,
        scale: float = 1.0,
    ) -> tuple[dict[str, Tensor], list[str]]:
        """One batch's scalars to log, and what is wrong and was not the last time, a line each.

        Args:
            recon: the weighted reconstruction loss.
            compared: prefix of a teacher's names -> comparison with it.
            parameters: the student's.
            scale: see `gradient_norms`.

        Raises:
            CSDError: a term that has a weight and has never taught anything, in no process.
        """
        losses = by_name(compared, lambda one: one.terms.losses)
        weights = by_name(compared, lambda one: one.weights)
        weighted = {name: weights[name] * loss for name, loss in losses.items() if weights[name]}
        norms = gradient_norms({"recon": recon, **weighted}, parameters, scale=scale)
        of_all = _over_processes({name: norms[name] for name in weighted})
        check_gradients({n: norm for n, norm in of_all.items() if f"grad_{n}" not in self.start}, _floats(losses))
        ratios = by_name(compared, lambda one: _scales(student, one))

        measured = {f"grad_{name}": norm for name, norm in norms.items()}
        # not a number where the reconstruction has no gradient: all processes log the same names
        measured |= {f"ratio_{name}": norms[name] / norms["recon"] for name in weighted}
        measured |= {f"scale_{name}": ratio for name, ratio in ratios.items()}
        spreads = by_name(compared, _spreads)
        return measured, self.warnings(_floats(losses), _floats(spreads), _floats(ratios), of_all)

    def warnings(
        self,
        losses: Mapping[str, float],
        spreads: Mapping[str, float],
        ratios: Mapping[str, float],
        norms: Mapping[str, float],
    ) -> list[str]:
        """What is wrong now and was not at the last call, a line each.

        Args:
            losses: raw, by term.
            spreads: of the teacher's status, for those terms that have one.
            ratios: of the student's feature to the teacher's, by tap.
            norms: of the gradients of terms with a weight.
        """
        wrong = {}
        for term, norm in norms.items():
            if norm > 0:
                self.start.setdefault(f"grad_{term}", norm)
            elif norm == 0 and losses[term] != 0:
                wrong[f"grad_{term}"] = (
                    f"the term {term} gives the student no gradient in this batch, as where its tapped feature is zero "
                    f"everywhere; it has given one before"
                )
        for term, loss in losses.items():
            self.start.setdefault(f"loss_{term}", loss)
        for term, spread in spreads.items():
            spread0, loss0 = self.start.setdefault(f"spread_{term}", spread), self.start[f"loss_{term}"]
            if spread < COLLAPSED * spread0 and losses[term] < loss0:
                wrong[f"spread_{term}"] = (
                    f"the teacher's status of the term {term} has collapsed: it spreads {spread:.3g}, at the start "
                    f"{spread0:.3g}; that its loss fell from {loss0:.3g} to {losses[term]:.3g} proves nothing; keep "
                    f"the cells from learning (of CSD, cells: frozen, averaged or joint_until_collapsed)"
                )
        for tap, ratio in ratios.items():
            if ratio > SCALE_LIMIT or ratio < 1 / SCALE_LIMIT:
                wrong[f"scale_{tap}"] = (
                    f"the student's feature at {tap} is {ratio:.3g} times as large as the teacher's: an objective "
                    f"that does not normalise compares little else than size; tap other layers, or bridge them by "
                    f"train.distill_opt.taps.adapters: [conv1x1]"
                )
        new = [message for name, message in wrong.items() if name not in self._told]
        self._told = set(wrong)
        return new


def _scales(student: ClipView, one: Comparison) -> dict[str, Tensor]:
    """Ratios of scale by layer, for those that nothing brings to one scale."""
    return {} if one.learns_scale else dict(zip(one.layers, scale_ratios(student, one.teacher), strict=False))


def _spreads(one: Comparison) -> dict[str, Tensor]:
    """The spread of the teacher's status, for the terms that have one."""
    found = {term: one.terms.diagnostics.get(f"spread_{term}") for term in one.terms.losses}
    return {term: spread for term, spread in found.items() if spread is not None}


def _over_processes(norms: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over all processes, which are zero where it is zero in each: a crop may teach nothing, the batch all."""
    means = mean_over_processes(torch.stack(list(norms.values()))).cpu().tolist() if norms else []
    return dict(zip(norms, means, strict=True))


def _floats(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in scalars.items()}
