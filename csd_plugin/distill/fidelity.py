"""The versions of CSD in the paper and in the released code, as presets: `train.distill_opt.fidelity`.

A preset fills in what an option file leaves out. Given options stay unchanged; differences are reported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

FIDELITIES = ("paper", "released")
LOSS = "PyramidSSIMLoss"

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
    name = _fidelity(options)
    if name is not None:
        for path, by_preset in POINTS.items():
            section, key = _locate(options, path)
            if path.startswith("train.distill_opt.") or (key == "scale_weights" and section["type"] == LOSS):
                section.setdefault(key, by_preset[name])
    return options


def report(opt: Mapping[str, Any]) -> list[str]:
    """A report on the fidelity of a run's options, which may be filled in already, as lines; empty without one."""
    name = _fidelity(opt)
    if name is None:
        return []
    lines = [f"fidelity: {name}"]
    for path, by_preset in POINTS.items():
        others = [f"{other}: {value}" for other, value in by_preset.items() if value != by_preset[name]]
        lines.append(f"  {path}: {_value(opt, path)}{f' ({others[0]})' if others else ''}")
    return lines + [f"  {difference}" for difference in REMAINS[name]]


def mismatches(opt: Mapping[str, Any]) -> list[str]:
    """The options that differ from their fidelity's, one line each."""
    name = _fidelity(opt)
    given = {path: (_value(opt, path), by_preset[name]) for path, by_preset in POINTS.items() if name is not None}
    return [
        f"{path} is {value}, but fidelity: {name} has {wanted}; the file's value is used"
        for path, (value, wanted) in given.items()
        if value != wanted
    ]


def _fidelity(opt: Mapping[str, Any]) -> str | None:
    return opt["train"]["distill_opt"].get("fidelity")


def _locate(opt: Mapping[str, Any], path: str) -> tuple[Any, str]:
    """The section that holds a key, and the key's name."""
    *sections, key = path.split(".")
    section: Any = opt
    for name in sections:
        section = section[name]
    return section, key


def _value(opt: Mapping[str, Any], path: str) -> Any:
    section, key = _locate(filled(opt), path)
    value = section.get(key)
    return list(value) if isinstance(value, (list, tuple)) else value
