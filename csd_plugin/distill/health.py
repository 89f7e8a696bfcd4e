"""Whether distillation teaches: what each term does to the student, and the signs of a term that has no effect."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from csd_plugin.distill.objective import Comparison, by_name
from csd_plugin.distill.processes import are_several, mean_over_processes
from csd_plugin.errors import CSDError, graphs_apart
from csd_plugin.types import ClipView

COLLAPSED = 0.05
"""A status has collapsed if its spread is less than this fraction of its initial spread."""
SCALE_LIMIT = 10.0
"""Two features have the same scale if neither is larger than this many times the other."""


def gradient_norms(
    losses: Mapping[str, Tensor], parameters: Iterable[nn.Parameter], *, scale: float = 1.0, together: bool = False
) -> dict[str, Tensor]:
    """The norm of each loss's gradient for all parameters together, float32; 0 if there is none.

    One backward pass per loss, which changes neither the graph nor any `.grad`: the following step is bit for bit the
    same. Hooks of data parallel wrappers, which are attached where `.grad` is summed, are not called.

    Args:
        scale: factor on the losses during the pass, as with a gradient scaler, so that half precision does not
            underflow.
        together: with several processes, which must all call this, the norm of the mean of their gradients: that of the
            whole batch. Otherwise nothing is exchanged, and it is the norm for this process's share.

    Raises:
        CSDError: the network has layers whose gradients torch can only compute together, or its weights are in shards.
    """
    leaves = [parameter for parameter in parameters if parameter.requires_grad]
    norms = {}
    for name, loss in losses.items():
        norm = torch.zeros((), device=loss.device)
        if loss.requires_grad and leaves:
            given = _gradients(scale * loss, leaves)
            if not given and any(hasattr(leaf, "placements") for leaf in leaves):  # those of a DTensor
                raise CSDError(
                    "the student's weights are in shards (fully_shard), so gradients cannot be measured: shard the "
                    "Distiller as a whole, not its student, or give no `balance` and examine_every=0"
                )
            if together and given and are_several():
                given = [mean_over_processes(torch.cat([g.float().flatten() for g in given]))]
            of_each = [
                torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)).float() for g in given
            ]
            norm = torch.linalg.vector_norm(torch.stack(of_each)) / scale if of_each else norm
        norms[name] = norm
    return norms


def _gradients(loss: Tensor, leaves: list[nn.Parameter]) -> list[Tensor]:
    """The gradients that exist, as dense real tensors. Raises CSDError, see `gradient_norms`."""
    try:
        with graphs_apart():
            gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error).lower():
            raise
        raise CSDError(
            "the student uses torch.utils.checkpoint, whose gradients cannot be measured one loss at a time: call it "
            "with use_reentrant=False, which weights with `balance` need; or set train.health: false (of a Distiller, "
            "examine_every=0)"
        ) from error
    given = [g.to_dense() for g in gradients if g is not None]
    return [torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in given]


def scale_ratios(student: ClipView, teacher: ClipView) -> list[Tensor]:
    """Root mean square of the student's feature divided by that of the teacher's, for each pair of taps."""
    with torch.no_grad():
        pairs = zip(student.features.get(1, ()), teacher.features.get(1, ()), strict=False)
        return [_magnitude(ours) / _magnitude(theirs) for ours, theirs in pairs]


def _magnitude(feature: Tensor) -> Tensor:
    return feature.float().square().mean().sqrt()


def check_gradients(norms: Mapping[str, float], losses: Mapping[str, float]) -> None:
    """Raise CSDError for the first term that is not zero but gives the student no gradient.

    Args:
        norms, losses: by term, for terms with a weight. A loss of exactly zero has nothing left to teach, and one that
            is not finite does not teach in this batch.
    """
    for term, norm in norms.items():
        if norm == 0 and losses[term] != 0 and math.isfinite(losses[term]):
            raise CSDError(
                f"the term {term} is {losses[term]:.3g} and has a weight, but gives the student no gradient: tap a "
                f"layer of the student that learns (train.distill_opt.taps), or set the weight of {term} to 0"
            )


class HealthMonitor:
    """Remembers the start of a run, and reports what has gone wrong since: each fault once, until it is gone.

    It only holds plain numbers; `start`, which a resumed run restores, has the initial ones by name.
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
        """One batch's scalars to log, and what is wrong now but was not the last time, one line each.

        Args:
            recon: the weighted reconstruction loss.
            compared: prefix of a teacher's names -> comparison with it.
            parameters: the student's.
            scale: see `gradient_norms`.

        Raises:
            CSDError: a term that has a weight has never taught anything, in any process.
        """
        losses = by_name(compared, lambda one: one.terms.losses)
        weights = by_name(compared, lambda one: one.weights)
        weighted = {name: weights[name] * loss for name, loss in losses.items() if weights[name]}
        norms = gradient_norms({"recon": recon, **weighted}, parameters, scale=scale)
        of_all = _over_processes({name: norms[name] for name in weighted})
        check_gradients({n: norm for n, norm in of_all.items() if f"grad_{n}" not in self.start}, _floats(losses))
        ratios = by_name(compared, lambda one: _scales(student, one))

        measured = {f"grad_{name}": norm for name, norm in norms.items()}
        # NaN if the reconstruction has no gradient, as all processes must log the same names
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
        """What is wrong now but was not at the last call, one line each; nothing if a loss is not finite.

        Args:
            losses: raw, by term.
            spreads: of the teacher's status, for terms that have one.
            ratios: of the student's feature to the teacher's, by tap.
            norms: of the gradients, for terms with a weight.
        """
        if not all(map(math.isfinite, losses.values())):
            return []  # the step is left out
        wrong = {}
        for term, norm in norms.items():
            if norm > 0:
                self.start.setdefault(f"grad_{term}", norm)
            elif norm == 0 and losses[term] != 0:
                wrong[f"grad_{term}"] = (
                    f"the term {term} gives the student no gradient in this batch, for example because its tapped "
                    f"feature is zero everywhere; it did in earlier batches"
                )
        for term, loss in losses.items():
            self.start.setdefault(f"loss_{term}", loss)
        for term, spread in spreads.items():
            spread0, loss0 = self.start.setdefault(f"spread_{term}", spread), self.start[f"loss_{term}"]
            if spread < COLLAPSED * spread0 and losses[term] < loss0:
                wrong[f"spread_{term}"] = (
                    f"the teacher's status of the term {term} has collapsed: its spread is {spread:.3g}, at the start "
                    f"it was {spread0:.3g}; that its loss fell from {loss0:.3g} to {losses[term]:.3g} means nothing; "
                    f"keep the cells from learning (for CSD, cells: frozen, averaged or joint_until_collapsed)"
                )
        for tap, ratio in ratios.items():
            if ratio > SCALE_LIMIT or ratio < 1 / SCALE_LIMIT:
                wrong[f"scale_{tap}"] = (
                    f"the student's feature at {tap} is {ratio:.3g} times as large as the teacher's: an objective "
                    f"that does not normalise compares mainly the scale; tap other layers, or adapt them by "
                    f"train.distill_opt.taps.adapters: [conv1x1]"
                )
        new = [message for name, message in wrong.items() if name not in self._told]
        self._told = set(wrong)
        return new


def _scales(student: ClipView, one: Comparison) -> dict[str, Tensor]:
    """Ratios of scale by layer, for layers that nothing brings to the same scale."""
    return {} if one.learns_scale else dict(zip(one.layers, scale_ratios(student, one.teacher), strict=False))


def _spreads(one: Comparison) -> dict[str, Tensor]:
    """The spread of the teacher's status, for terms that have one."""
    found = {term: one.terms.diagnostics.get(f"spread_{term}") for term in one.terms.losses}
    return {term: spread for term, spread in found.items() if spread is not None}


def _over_processes(norms: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over all processes; zero only if zero in each: one crop may teach nothing although the batch does."""
    means = mean_over_processes(torch.stack(list(norms.values()))).cpu().tolist() if norms else []
    return dict(zip(norms, means, strict=True))


def _floats(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in scalars.items()}
