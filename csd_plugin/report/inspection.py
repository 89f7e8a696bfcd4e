"""A dry run of an option file: its networks, the alignment of their windows and features, and the memory it needs.

Shapes are found without computing anything, where a network allows it, and neither data nor checkpoints are needed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from csd_plugin.archs.complexity import complexity
from csd_plugin.archs.interface import Interface, interface_section
from csd_plugin.distill.adapters import AdaptedObjective, adapted_shapes
from csd_plugin.distill.dry_run import GIB, Clips, Dry, clips_of
from csd_plugin.distill.fidelity import mismatches, report
from csd_plugin.distill.objective import Objective, build_objective
from csd_plugin.distill.schedule import Weight, is_balanced, is_ever_on
from csd_plugin.distill.settings import Distillation, read_distillation
from csd_plugin.errors import CSDError
from csd_plugin.models.building import build_network
from csd_plugin.models.idle_options import idle_options, part_warnings
from csd_plugin.models.layers import described
from csd_plugin.models.pairing import check_network
from csd_plugin.models.preflight import check_features, check_parts, checked_objective, input_scales, placed_dry_run
from csd_plugin.models.repeating import carry_warnings, check_rebuilt
from csd_plugin.options.checks import distils, find_problems
from csd_plugin.options.files import load_options
from csd_plugin.options.problems import Problems


def inspect(path: Path, *, size: int | None = None, all_layers: bool = False) -> str:
    """The report on an option file, as text of several lines.

    Args:
        size: of the crops; by default the training set's, or 128.
        all_layers: list the layers that can be tapped, with their outputs' shapes.

    Raises:
        CSDError: lists all problems, including those of `check_parts`; layers are missing, or windows do not fit.
    """
    opt, problems = load_options(path, check_parts), Problems(str(path))
    find_problems(opt, problems)
    networks, interfaces = check_parts(opt, problems)
    problems.raise_any()
    clips = clips_of(opt, size)
    taps: Mapping[str, list[str] | None] = {}
    distillation = read_distillation(opt) if distils(opt) else None
    if distillation is not None and checked_objective(distillation).needs_features:
        taps = distillation.layers()

    scale = int(opt.get("scale", 1))
    larger = f", {scale} times as high and wide" if scale > 1 else ""
    lines = [
        f"clips      {clips.batch} of {clips.num_frame} frames, {clips.size}x{clips.size}; {clips.num_target} targets "
        f"in the middle of each{larger}"
    ]
    if (parts := (opt.get("train") or {}).get("accumulate", 1)) > 1:
        lines[0] += f"; {parts} such parts are a batch of {opt['datasets']['train']['batch_size_per_gpu']}"
    runs: dict[str, Dry] = {}
    carried: list[str] = []
    for name, network in networks.items():
        needs = [name, interface_section(name)]
        # before dry runs, which may leave tensors in it
        carried += carry_warnings(name, network, interfaces[name], clips.size)
        build = functools.partial(build_network, opt[name], name)
        problems.attempt(needs, check_rebuilt, name, network, build, interfaces[name], clips.size)
        problems.attempt(needs, check_network, name, network, interfaces[name], opt, size, input_scales(opt))
        how = {"tapped": name in taps, "may_compute": True}
        run = problems.attempt(
            needs, placed_dry_run, opt, name, network, interfaces[name], clips, taps.get(name), **how
        )
        if run is None:
            continue
        runs[name] = run
        lines += ["", *_describe(name, network, interfaces[name], clips, runs[name], learns=_learns(name, opt))]
        if _learns(name, opt):
            layers = opt["train"].get("layers") or {}
            lines += [f"             {line.removeprefix('train.')}" for line in described(layers, network)]
        if all_layers:
            lines += [f"             {path:<28} {_shape(shape)}" for path, shape in runs[name].layers.items()]
    problems.raise_any()
    if distillation is not None:
        problems.attempt([], _check_objective, distillation, runs)
        problems.raise_any()
    warnings = [*idle_options(opt), *part_warnings(opt, networks["network_g"])] if opt["is_train"] else []
    if distillation is not None:
        objectives = {label: _objective(distillation, runs, f"network_{label}") for label in distillation.teachers}
        learned = sum(p.numel() for of in objectives.values() for p in of.parameters() if p.requires_grad)
        fidelity = [f"           {line}" for line in report(opt)]
        lines += [
            "",
            *fidelity,
            f"objective  {distillation.objective['type']}; {learned:,} parameters learn in addition to the student",
        ]
        lines += [f"             {term:<28} weight {_weight(weight)}" for term, weight in distillation.weights.items()]
        if len(objectives) > 1:
            lines += [f"             network_{label:<20} share {of:.3g}" for label, of in distillation.teachers.items()]
        warnings += mismatches(opt)
        for label, objective in objectives.items():
            warnings += _warnings(objective, f"network_{label}", networks, interfaces, runs, distillation.adapters)
        warnings += [f"{name}: {line}" for name, run in runs.items() for line in run.warnings]
        off = [term for term, weight in distillation.weights.items() if not is_ever_on(weight)]
        warnings += [f"the weight of {term} is 0: it has no effect" for term in off]
    lines += [f"warning    {text}" for text in (*carried, *warnings)]
    return "\n".join(lines)


def _check_objective(distillation: Distillation, runs: Mapping[str, Dry]) -> None:
    """Raise CSDError for features that the objective would refuse in the first step; the message names its key."""
    student, objective = runs["network_g"], checked_objective(distillation)
    resizes = objective.resizes or "resize" in distillation.adapters
    for label in distillation.teachers:
        teacher = runs[f"network_{label}"]
        _check_pairs(student.features, teacher.features, f"network_{label}", resizes=resizes)
        compared = adapted_shapes(student.view(), teacher.view(), distillation.adapters)
        check_features(objective, compared, teacher.view())


def _objective(distillation: Distillation, runs: Mapping[str, Dry], teacher: str) -> Objective:
    """The objective for one teacher, with its adapters."""
    objective = build_objective(distillation.objective)
    if not distillation.adapters:
        return objective
    ours, theirs = (list(runs[name].features.values()) for name in ("network_g", teacher))
    return AdaptedObjective(objective, adapters=distillation.adapters, student=ours, teacher=theirs)


def _weight(weight: Weight) -> str:
    """A weight in words: a number, a schedule, or a balance."""
    if not isinstance(weight, Mapping):
        return f"{weight:g}"
    if is_balanced(weight):
        until = f", until iteration {weight['until']:g}" if weight.get("until") else ""
        return f"so that its gradient is {weight['balance']:g} of the reconstruction's{until}"
    way = f" to {weight.get('end', 0):g} in {weight['iters']:g} iterations" if "iters" in weight else ""
    return f"{weight['start']:g}{way}, {weight['schedule']}"


def _learns(name: str, opt: Mapping[str, Any]) -> bool:
    return name == "network_g" and bool(opt["is_train"])


def _describe(
    name: str, network: nn.Module, interface: Interface, clips: Clips, dry: Dry, *, learns: bool
) -> list[str]:
    parameters = sum(p.numel() for p in network.parameters())
    radius = interface.num_frame // 2
    sees = f"t-{radius} .. t+{radius}" if radius else "only t"
    held = f"{dry.kept / GIB:.2f} GiB of layers' outputs, kept for gradients" if learns else ""
    held = held or f"{2 * dry.largest / GIB:.2f} GiB for the largest layer"
    lines = [
        f"{name}  {type(network).__name__}, {'learns' if learns else 'frozen'}; {parameters:,} parameters",
        f"             for target t it sees {sees} ({interface.kind}); {_operations(network, interface, clips.size)}",
        f"             memory per step: about {held}",
    ]
    for layer, shape in dry.features.items():
        runs = f", from {dry.runs[layer]} runs" if layer in dry.runs else ""
        lines.append(f"             feature {layer:<20} {_shape(shape)}{runs}")
    return lines


def _operations(network: nn.Module, interface: Interface, size: int) -> str:
    try:
        count = complexity(network, interface.input_shape(size, size)).operations
    except CSDError as error:  # without mmengine
        return str(error)
    return f"{count / interface.num_made / 1e9:.2f} G multiply-adds per frame of {size}x{size}"


def _warnings(
    objective: Objective,
    teacher: str,
    networks: Mapping[str, nn.Module],
    interfaces: Mapping[str, Interface],
    runs: Mapping[str, Dry],
    adapters: Sequence[str],
) -> list[str]:
    """Unusual facts about one teacher and the student."""
    texts = []
    seen = [interfaces[name].num_frame for name in ("network_g", teacher)]
    if seen[1] < seen[0]:
        texts.append(f"{teacher} sees {seen[1]} frames, fewer than the student, which sees {seen[0]}")
    sizes = [sum(p.numel() for p in networks[name].parameters()) for name in ("network_g", teacher)]
    if sizes[1] < sizes[0]:
        texts.append(f"{teacher} has {sizes[1]:,} parameters, fewer than the student, which has {sizes[0]:,}")
    compared = adapted_shapes(runs["network_g"].view(), runs[teacher].view(), adapters).features[1]
    return texts + objective.warnings([tuple(feature.shape) for feature in compared])


def _check_pairs(
    ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], teacher: str, *, resizes: bool
) -> None:
    """Raise CSDError for numbers or sizes of features that do not pair."""
    key = "train.distill_opt.taps"
    if len(ours) != len(theirs):
        raise CSDError(
            f"{key}: {len(ours)} of the student, {len(theirs)} of {teacher}; they pair in order, so give as many"
        )
    for (name, a), (other, b) in zip(ours.items(), theirs.items(), strict=True):
        if a[3:] != b[3:] and not resizes:
            raise CSDError(
                f"{key}: {name} of the student is {a[3]}x{a[4]}, {other} of {teacher} {b[3]}x{b[4]}; tap layers of "
                f"equal size, or give `adapters: [resize]` with them"
            )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
