"""The versions of CSD in the paper and in the released code, as presets: `train.distill_opt.fidelity`, or `fidelity` of
one of the objectives of `Combined`.

A preset fills in what an option file leaves out. Given options stay unchanged; differences are reported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

FIDELITIES = ("paper", "released")
LOSS = "PyramidSSIMLoss"
_OBJECTIVE = "train.distill_opt"

POINTS: dict[str, dict[str, Any]] = {
    path: dict(zip(FIDELITIES, values, strict=True))
    for path, values in {
        "train.distill_opt.aggregation": ("mean_squared", "sum_squared"),
        "train.distill_opt.scale_source": ("feature", "frames"),
        "train.distill_opt.order": ("spatial_first", "temporal_first"),
        "train.distill_opt.detach_teacher_state": (True, False),
        "train.distill_opt.cells": ("joint", "joint"),
        "train.pixel_opt.type": (LOSS, LOSS),
        "train.pixel_opt.scale_weights": ([0.6, 0.2, 0.2], [1.0, 0.5, 0.5]),
        "datasets.train.num_target": (5, 4),
    }.items()
}
"""All points that options can set: path of the key -> value by preset. Those of the objective are filled in, and
`scale_weights` if the loss is `LOSS`; the others are keys that every file has to give."""

REMAINS: dict[str, tuple[str, ...]] = {
    "paper": (),
    "released": (
        "not reproduced: six optimizer steps per frame on retained graphs; here one per batch, on the total loss",
        "not reproduced: optical flow that warps every neighbouring frame to the centre",
        "not reproduced: crops always from the top-left corner, a bug",
        "no difference: its loss is -SSIM, here it is 1 - SSIM, with the same gradient",
    ),
}
"""The differences that remain, whatever the options."""


def filled(opt: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a run's options, with the values of their fidelity for keys that they leave out."""
    options = copy.deepcopy(dict(opt))
    name, points = _preset(options)
    for path, wanted in points.items():
        section, key = _locate(options, path)
        if path.startswith(f"{_OBJECTIVE}.") or (key == "scale_weights" and section["type"] == LOSS):
            section.setdefault(key, wanted[name])
    return options


def report(opt: Mapping[str, Any]) -> list[str]:
    """A report on the fidelity of a run's options, which may be filled in already, as lines; empty without one."""
    name, points = _preset(opt)
    if not name:
        return []
    lines = [f"fidelity: {name}"]
    for path, by_preset in points.items():
        others = [f"{other}: {value}" for other, value in by_preset.items() if value != by_preset[name]]
        lines.append(f"  {path}: {_value(opt, path)}{f' ({others[0]})' if others else ''}")
    return lines + [f"  {difference}" for difference in REMAINS[name]]


def mismatches(opt: Mapping[str, Any]) -> list[str]:
    """The options that differ from their fidelity's, one line each."""
    name, points = _preset(opt)
    given = {path: (_value(opt, path), by_preset[name]) for path, by_preset in points.items()}
    return [
        f"{path} is {value}, but fidelity: {name} has {wanted}; the file's value is used"
        for path, (value, wanted) in given.items()
        if value != wanted
    ]


def without_name(objective: Mapping[str, Any]) -> dict[str, Any]:
    """`train.distill_opt`, filled in, without the preset's name, which is no keyword of an objective."""
    options = {key: value for key, value in objective.items() if key != "fidelity"}
    if isinstance(parts := options.get("objectives"), list):
        options["objectives"] = [without_name(part) if isinstance(part, Mapping) else part for part in parts]
    return options


def _preset(opt: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The preset that options name, and `POINTS` by their paths in these options; empty if they name none.

    At most one objective of `Combined` can have one, as two of a type have the same terms.
    """
    whole = opt["train"]["distill_opt"]
    sections = {_OBJECTIVE: whole}
    if isinstance(whole.get("objectives"), list):
        sections |= {f"{_OBJECTIVE}.objectives.{number}": part for number, part in enumerate(whole["objectives"])}
    for place, section in sections.items():
        name = section.get("fidelity") if isinstance(section, Mapping) else None
        if name is not None:
            return name, {path.replace(f"{_OBJECTIVE}.", f"{place}."): values for path, values in POINTS.items()}
    return "", {}


def _locate(opt: Mapping[str, Any], path: str) -> tuple[Any, str]:
    """The section that holds a key, and the key's name."""
    *sections, key = path.split(".")
    section: Any = opt
    for name in sections:
        section = section[int(name) if isinstance(section, list) else name]
    return section, key


def _value(opt: Mapping[str, Any], path: str) -> Any:
    section, key = _locate(filled(opt), path)
    value = section.get(key)
    return list(value) if isinstance(value, (list, tuple)) else value
