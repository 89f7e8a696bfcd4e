"""Several distillation objectives at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from csd_plugin.distill.interface import Objective
from csd_plugin.distill.objective import build_objective
from csd_plugin.errors import CSDError
from csd_plugin.types import ClipView, Terms


class Combined(Objective):
    """Other objectives on the same frames and features. Its terms are all of theirs, each with a weight of its own.

    Args:
        objectives: of each its `type` and options, as `train.distill_opt` has them; and `taps`, the numbers of the
            layers that it compares, in the order of `train.distill_opt.taps`, from 0; by default all.

    Raises:
        CSDError: none, what one of them raises, two that have a term of the same name, or taps that are no numbers.
    """

    def __init__(self, *, objectives: list[dict[str, Any]]) -> None:
        super().__init__()
        if not objectives:
            raise CSDError("Combined: objectives is empty; give at least one, such as {type: CSD}")
        keywords = [{key: value for key, value in options.items() if key != "taps"} for options in objectives]
        self.parts = nn.ModuleList(build_objective(options) for options in keywords)
        self.taps = [_numbers(place, options.get("taps")) for place, options in enumerate(objectives)]
        for place, (part, taps) in enumerate(zip(self._parts, self.taps, strict=True)):
            if taps and not part.needs_features:
                raise CSDError(
                    f"Combined: objectives.{place}.taps: {type(part).__name__} compares no features; leave them out"
                )
        self.needs_features = any(part.needs_features for part in self._parts)
        self.input_scales = tuple(dict.fromkeys(scale for part in self._parts for scale in part.input_scales))
        twice = [term for term, count in Counter(self.terms).items() if count > 1]
        if twice:
            names = ", ".join(str(options["type"]) for options in objectives)
            raise CSDError(f"Combined: two of {names} have a term {twice[0]}; leave one of them out")

    @property
    def _parts(self) -> list[Objective]:
        return [part for part in self.parts if isinstance(part, Objective)]

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(term for part in self._parts for term in part.terms)

    def check(self, student: ClipView, teacher: ClipView) -> None:
        self._check_taps(student, teacher)
        for part, taps in zip(self._parts, self.taps, strict=True):
            part.check(_only(student, taps), _only(teacher, taps))

    def forward(self, student: ClipView, teacher: ClipView, target: Tensor) -> Terms:
        """The terms of all. Diagnostics of one name are told apart by the type of the later objective."""
        self._check_taps(student, teacher)
        losses: dict[str, Tensor] = {}
        diagnostics: dict[str, Tensor] = {}
        for part, taps in zip(self._parts, self.taps, strict=True):
            terms: Terms = part(_only(student, taps), _only(teacher, taps), target)
            losses |= terms.losses
            diagnostics |= _apart(terms.diagnostics, diagnostics, type(part).__name__)
        return Terms(losses, diagnostics)

    def warnings(self, features: Sequence[Sequence[int]]) -> list[str]:
        seen = [features if taps is None else [features[tap] for tap in taps] for taps in self.taps]
        return [line for part, its in zip(self._parts, seen, strict=True) for line in part.warnings(its)]

    def weights_without_use(self) -> list[nn.Parameter]:
        return [weight for part in self._parts for weight in part.weights_without_use()]

    def after_step(self) -> None:
        for part in self._parts:
            part.after_step()

    def _check_taps(self, student: ClipView, teacher: ClipView) -> None:
        """Raise CSDError for taps that do not pair, that an objective names but nobody taps, or that none compares."""
        count, others = (len(view.features.get(1, ())) for view in (student, teacher))
        if not self.needs_features:
            return
        if count != others:
            raise CSDError(
                f"Combined: {count} layers of the student are tapped, but {others} of the teacher; tap as many"
            )
        compared: set[int] = set()
        for place, (part, taps) in enumerate(zip(self._parts, self.taps, strict=True)):
            if taps and max(taps) >= count:
                known = f"0 to {count - 1}" if count > 1 else "0"
                raise CSDError(
                    f"Combined: objectives.{place}.taps has {max(taps)}, but the tapped layers are {known}; "
                    f"correct it, or tap more layers"
                )
            if part.needs_features:
                compared |= set(range(count) if taps is None else taps)
        for tap in sorted(set(range(count)) - compared):
            raise CSDError(
                f"Combined: no objective compares tap {tap} of 0 to {count - 1}; add it to the `taps` of one, or "
                f"do not tap that layer"
            )


def _numbers(place: int, taps: Any) -> tuple[int, ...] | None:
    """The numbers of taps that an objective names, or None for all. Raises CSDError for anything else."""
    if taps is None:
        return None
    whole = isinstance(taps, (list, tuple)) and all(type(tap) is int and tap >= 0 for tap in taps)
    if not whole or not taps or len(set(taps)) < len(taps):
        raise CSDError(
            f"Combined: objectives.{place}.taps is {taps!r}: give the numbers of its taps, from 0, each once: [0, 2]"
        )
    return tuple(taps)


def _only(view: ClipView, taps: tuple[int, ...] | None) -> ClipView:
    """A view with only these taps at each input scale, or with all."""
    if taps is None:
        return view
    features = {scale: tuple(of_scale[tap] for tap in taps) for scale, of_scale in view.features.items()}
    return ClipView(view.output, features)


def _apart(found: Mapping[str, Tensor], known: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {f"{key}_{name}" if key in known else key: value for key, value in found.items()}
