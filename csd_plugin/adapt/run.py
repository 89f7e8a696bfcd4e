"""From rainy videos to a network for their camera."""

from __future__ import annotations

import copy
import datetime
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from csd_plugin import __version__
from csd_plugin.adapt import scoring
from csd_plugin.adapt.batches import Batches, camera_pairs, other_pairs
from csd_plugin.adapt.cache import Cache, open_cache
from csd_plugin.adapt.features import store_features
from csd_plugin.adapt.learning import Learner
from csd_plugin.adapt.page import Row, picture_of, write_page
from csd_plugin.adapt.shots import refuse_live
from csd_plugin.adapt.teacher import Named, Teacher, find_teacher, named, open_teacher, runnable, weights_of
from csd_plugin.adapt.warnings import each_once
from csd_plugin.archs.checkpoint import load_network, load_plain, save_plain
from csd_plugin.archs.interface import interface_of
from csd_plugin.archs.provenance import facts_in
from csd_plugin.atomic import refuse_inputs, refuse_unwritable, same_place
from csd_plugin.data.images import files_of
from csd_plugin.data.layout import refuse_store
from csd_plugin.data.stores import open_store
from csd_plugin.data.video import open_reader
from csd_plugin.devices import pick_device
from csd_plugin.errors import CSDError
from csd_plugin.extras import check_temporary_folder
from csd_plugin.inference.backends import GRAPH_SUFFIXES
from csd_plugin.inference.runner import Derainer
from csd_plugin.metrics.image_quality import Image
from csd_plugin.metrics.protocols import Quality
from csd_plugin.report.text import counted
from csd_plugin.weights import find_checkpoint, under_todays_keys

CROP, _SMALLEST = 96, 32
"""Side of a crop in pixels; the smallest that a network learns from."""
CLIPS = 3
"""Clips per batch."""
_SEED = 0
"""The seed of the order of samples, and of crops."""
_LOOKING = 0.008
"""The largest share of the time for one comparison on the held-back frames."""
_KEPT = 24
"""Bytes that are written per parameter, in float32: the network, its average, the best one in both files, and two
values of the optimizer."""
_STEADIER = 1.1
"""A warning is given if the teacher's frames flicker more than this times the student's own results. Two teachers that
helped had 0.6 and 0.8 times, and one that cost 4 dB had 1.5 times, see docs/adapt.md."""


@dataclass(frozen=True)
class Plan:
    """What to adapt, and how.

    Attributes:
        inputs: rainy videos and folders.
        teachers: as for `open_teacher`.
        student: as for `find_checkpoint`.
        out: the checkpoint to write, .pth.
        minutes: of training, without the teacher's work.
        ensemble: average each teacher over mirrored and reversed clips.
        cache: folder for the teacher's frames; by default next to `out`.
        frames: how many the teacher cleans, see `find_shots`.
        pairs: other pairs, see `other_pairs`.
        keep: the share of clips from `pairs` in the batches, 0 to 1.
        validation: pairs that are scored before and after.
        rate: the highest learning rate.
        features: also store the teacher's features, for trainings that compare them.
        resume: continue an interrupted run.
        overwrite: replace `out`.
    """

    inputs: tuple[Path, ...]
    teachers: tuple[str, ...]
    student: str
    out: Path
    minutes: float = 10.0
    ensemble: bool = False
    cache: Path | None = None
    frames: int = 300
    pairs: Path | None = None
    keep: float = 0.3
    validation: Path | None = None
    rate: float = 2e-3
    features: bool = False
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False

    @property
    def cache_folder(self) -> Path:
        return self.cache or self.out.with_suffix(".cache")

    @property
    def state(self) -> Path:
        """The state from which an interrupted run continues: next to `out`, as outputs may share a cache."""
        return self.out.with_suffix(".state")

    @property
    def page(self) -> Path:
        return self.out.with_name(f"{self.out.stem}_report.md")

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All output files, except the cache's."""
        return self.out, self.state, self.page, picture_of(self.page)


class _Run(NamedTuple):
    """One adaptation: the plan and what was opened for it.

    Attributes:
        source: the student's checkpoint.
        start: the student as it is there.
        setting: see `_setting`.
    """

    plan: Plan
    source: Path
    start: nn.Module
    teacher: Teacher
    cache: Cache
    learner: Learner
    setting: dict[str, Any]


class _Before(NamedTuple):
    """The held-back frames before the student learns.

    Attributes:
        results: the student's, clip by clip.
        flicker, teachers_flicker: of these results, and of the teacher's frames.
    """

    results: list[list[Image]]
    flicker: float | None
    teachers_flicker: float | None


class _After(NamedTuple):
    """The network that is kept, and its results on the held-back frames, clip by clip."""

    network: nn.Module
    results: list[list[Image]]


@each_once()
def adapt(plan: Plan, say: Callable[[str], object] = print) -> None:
    """Adapt the student to the inputs, and write its checkpoint and a page about it.

    Args:
        say: called with a line for each step.

    Raises:
        CSDError: inputs, teachers, student, cache or an earlier state do not match; there is nothing to learn from; an
            output cannot be written.
        KeyboardInterrupt: the user has stopped it; the best network so far is in `plan.out`.
    """
    source = _check(plan)
    start = load_network(source)
    if not any(weight.requires_grad for weight in start.parameters()):
        raise CSDError(
            f"--student {plan.student}: all weights of {type(start).__name__} are frozen (requires_grad is False), so "
            f"it cannot learn; take another network"
        )
    teacher = open_teacher(plan.teachers, ensemble=plan.ensemble, device=plan.device)
    context = interface_of(start).num_frame // 2
    guards = scoring.validation_clips(plan.validation, context) if plan.validation else []
    _check_pairs(plan, start)
    refuse_unwritable(plan.out, _KEPT * sum(parameter.numel() for parameter in start.parameters()))
    cache = open_cache(plan.cache_folder, plan.inputs, teacher, ensemble=plan.ensemble, most=plan.frames, say=say)
    if plan.features:
        _store_features(plan, cache, teacher, say)
    run = _Run(plan, source, start, teacher, cache, _learner(plan, start), _setting(plan, source, cache))
    batches = _batches(plan, start, cache)
    clips = scoring.held_back(cache, context)
    before = _before(start, clips, plan.device)
    for line in _doubt(before):
        say(f"warning: {line}")
    _learn(run, batches, scoring.affordable(start, clips, plan.device, _LOOKING * 60 * plan.minutes), say)
    _report(run, clips, before, _after(run, clips, before), guards, say)


def _learn(run: _Run, batches: Batches, looked_at: list[scoring.Clip], say: Callable[[str], object]) -> None:
    """Until the time is over, saving the state and the best network so far.

    Args:
        looked_at: the held-back frames that there is time to look at on the way.

    Raises:
        CSDError: an earlier state that does not fit.
        KeyboardInterrupt: after all has been saved.
    """
    plan, learner = run.plan, run.learner
    if plan.resume:
        state = _saved(plan.state, run.setting)
        try:
            learner.load(state)
        except CSDError as error:
            raise CSDError(f"--resume: {plan.state}: {error}; remove it, and leave --resume out") from error
        say(f"continued after {learner.progress.seconds / 60:.1f} minutes, {learner.progress.step:,} steps")
    # also for an earlier run's best, which was compared on as many frames as that run's time allowed
    learner.progress.best = _nearness(_with(run.start, learner.best), looked_at, plan.device)
    if plan.overwrite:
        plan.state.unlink(missing_ok=True)  # --resume after this run, however it ends, must not continue another one

    def save() -> None:
        _save(run)

    try:
        learner.learn(batches, 60 * plan.minutes, lambda average: _nearness(average, looked_at, plan.device), save)
    except KeyboardInterrupt:
        save()
        raise


def _save(run: _Run) -> None:
    save_plain({"setting": run.setting, **run.learner.state()}, run.plan.state)
    _write(run)


def _check(plan: Plan) -> Path:
    """The student's checkpoint. Raises CSDError for anything that would make the run fail at its end."""
    check_temporary_folder()
    source = find_checkpoint(plan.student)
    if source.suffix.lower() in GRAPH_SUFFIXES:
        raise CSDError(f"--student {source}: an exported network cannot learn: give its checkpoint")
    if plan.out.suffix != ".pth":
        raise CSDError(f"--out {plan.out}: the name of a checkpoint ends in .pth")
    if not plan.out.parent.is_dir():
        raise CSDError(f"--out {plan.out}: the folder {plan.out.parent} does not exist; make it first")
    exported = [name for name in plan.teachers if Path(name).suffix.lower() in GRAPH_SUFFIXES]
    if plan.features and exported:
        raise CSDError(
            f"--features: {exported[0]} is an exported network, whose layers are not accessible: give its checkpoint"
        )
    if plan.features and (plan.ensemble or len(plan.teachers) > 1):
        raise CSDError("--features: works with a single network: give one --teacher, without --ensemble")
    _check_inputs(plan)
    _check_outputs(plan, source)
    return source


def _check_inputs(plan: Plan) -> None:
    """Raise CSDError for inputs that cannot be adapted to, or that an output would be put into."""
    refuse_live(plan.inputs)
    places = [path.resolve() for path in plan.inputs]
    for path, place in zip(plan.inputs, places, strict=True):
        if places.count(place) > 1:
            raise CSDError(f"{path} is given twice; give each video or folder once")
        if same_place(path, plan.cache_folder):
            raise CSDError(f"--cache {plan.cache_folder}: is an input; give the cache another folder")
        with open_reader(path) as reader:
            width, height = reader.size
        if min(width, height) < _SMALLEST:
            raise CSDError(
                f"{path}: frames of {width}x{height} are too small to learn from: {_SMALLEST} pixels are needed"
            )


def _check_outputs(plan: Plan, source: Path) -> None:
    """Raise CSDError if an output is also an input, or an existing one would be lost."""
    for path in plan.inputs:
        if same_place(path, plan.out.parent):
            raise CSDError(
                f"--out {plan.out}: the report's picture would be one of the frames in {path}: give another folder"
            )
    read = [file for path in plan.inputs for file in files_of(path)]
    teachers = [find_teacher(name) for name in plan.teachers]
    refuse_store(plan.cache_folder)
    for output in plan.outputs:
        if output.is_dir():
            raise CSDError(f"{output} is a folder, but a file is to be written there; give --out another name")
    refuse_inputs(plan.outputs, [source, *read, *teachers, *map(weights_of, teachers)])
    if plan.resume and not plan.state.exists():
        raise CSDError(f"--resume: there is no {plan.state} to continue from; leave --resume out")
    there = next((path for path in plan.outputs if path.exists()), None)
    if there and not (plan.resume or plan.overwrite):
        raise CSDError(f"{there} already exists; replace it with --overwrite, continue it with --resume, or rename it")


def _store_features(plan: Plan, cache: Cache, teacher: Teacher, say: Callable[[str], object]) -> None:
    path = find_teacher(plan.teachers[0])
    network = runnable(path)
    assert isinstance(network, nn.Module)  # see `_check`
    # by its weights, which identify it in a training
    features_of = Named(teacher.networks[0].name, named(weights_of(path)).sha256)
    store_features(cache, network, features_of, device=pick_device(plan.device), say=say)


def _learner(plan: Plan, start: nn.Module) -> Learner:
    torch.manual_seed(_SEED)
    return Learner(copy.deepcopy(start), rate=plan.rate, device=pick_device(plan.device))


def _batches(plan: Plan, start: nn.Module, cache: Cache) -> Batches:
    num_frame = interface_of(start).num_frame
    crop = _crop(cache)
    kept = other_pairs(plan.pairs, num_frame=num_frame, crop=crop) if plan.pairs else None
    camera = camera_pairs(cache.store, num_frame=num_frame, crop=crop)
    return Batches(camera, kept, keep=plan.keep, clips=CLIPS, seed=_SEED)


def _check_pairs(plan: Plan, start: nn.Module) -> None:
    """Raise CSDError for pairs that cannot be learned from, before the teacher works for minutes."""
    if plan.pairs:
        try:
            other_pairs(plan.pairs, num_frame=interface_of(start).num_frame, crop=_SMALLEST)
        except CSDError as error:
            raise CSDError(f"--pairs {plan.pairs}: {error}") from error


def _crop(cache: Cache) -> int:
    """The side of crops that fit into all frames."""
    store = open_store(cache.store)
    return min(CROP, min(min(store.shape(shot.keys("Rain")[0])) for shot in cache.shots) // 4 * 4)


def _with(start: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    network = copy.deepcopy(start)
    network.load_state_dict(weights)
    return network


def _nearness(network: nn.Module, clips: list[scoring.Clip], device: str) -> float:
    return scoring.nearness(scoring.cleaned(network, clips, device), clips)


def _before(start: nn.Module, clips: list[scoring.Clip], device: str) -> _Before:
    results = scoring.cleaned(start, clips, device)
    return _Before(results, scoring.flicker(results, clips), scoring.flicker([clip.clean for clip in clips], clips))


def _doubt(before: _Before) -> list[str]:
    """A warning, if the teacher seems to leave more of the rain than the student does now."""
    ours, theirs = before.flicker, before.teachers_flicker
    if ours is None or theirs is None or theirs <= _STEADIER * ours:
        return []
    return [
        f"the teacher's frames flicker more than the student's own results ({theirs:.2f} against {ours:.2f}): it may "
        f"leave rain that the student removes now, and the student would learn to leave it; look at some of its "
        f"frames, or try another --teacher"
    ]


def _setting(plan: Plan, source: Path, cache: Cache) -> dict[str, Any]:
    """The settings that must not change when a run is continued."""
    return {
        "--student": named(source).sha256,
        "videos, teachers or frames": hashlib.sha256((cache.folder / "manifest.json").read_bytes()).hexdigest(),
        "--pairs": str(plan.pairs),
        "--keep": plan.keep if plan.pairs else None,
        "--rate": plan.rate,
    }


def _saved(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """The state of an interrupted run. Raises CSDError if its settings differ."""
    state = load_plain(path, "--resume: the state")
    if not (isinstance(state, dict) and {"setting", "progress", "best"} <= state.keys()):
        raise CSDError(f"--resume: {path} is not a state of csd adapt; remove it, and leave --resume out")
    for key, value in setting.items():
        if not isinstance(state["setting"], dict) or state["setting"].get(key) != value:
            raise CSDError(f"--resume: {path} belongs to a run with other {key}: give the same, or leave --resume out")
    return {key: value for key, value in state.items() if key != "setting"}


def _write(run: _Run) -> None:
    """Write the best network so far, with its origin."""
    plan, cache, learner = run.plan, run.cache, run.learner
    clips = ", ".join(one.name for one in cache.inputs)
    teachers = " and ".join(one.name for one in run.teacher.networks) + (", self-ensemble" if plan.ensemble else "")
    known = under_todays_keys(facts_in(run.source))
    minutes = round(learner.progress.seconds / 60, 2)
    kept = f"; {plan.keep:.0%} other pairs ({plan.pairs})" if plan.pairs else ""
    facts = {
        "what": f"{named(run.source).name} adapted to {clips}",
        "trained_on": f"{counted(cache.frames, 'rainy frame')} of {clips}, cleaned by {teachers}{kept}",
        "recipe": f"csd adapt, {learner.progress.step:,} steps in {minutes:g} minutes",
        "license": known.get("license", "not stated"),
        "adapted": {
            "clips": [asdict(one) for one in cache.inputs],
            "teachers": [asdict(one) for one in run.teacher.networks],
            "ensemble": plan.ensemble,
            "student": asdict(named(run.source)),
            "minutes": minutes,
            "steps": learner.progress.step,
            "kept": plan.keep if plan.pairs else 0.0,
            "date": datetime.date.today().isoformat(),
            "version": __version__,
        },
    }
    save_plain({"params": learner.best, "facts": facts}, plan.out)


def _after(run: _Run, clips: list[scoring.Clip], before: _Before) -> _After:
    """What was learned; the student as it was, which is saved then, where that comes nearer to the teacher."""
    best, device = _with(run.start, run.learner.best), run.plan.device
    results = scoring.cleaned(best, clips, device)
    if scoring.nearness(results, clips) >= scoring.nearness(before.results, clips):
        return _After(best, results)
    run.learner.best = run.start.state_dict()  # comparisons during training saw fewer frames
    _save(run)
    return _After(run.start, before.results)


def _report(
    run: _Run,
    clips: list[scoring.Clip],
    before: _Before,
    after: _After,
    guards: list[scoring.Clip],
    say: Callable[[str], object],
) -> None:
    """Write the page, and print lines that say the same."""
    plan, guard, rows = run.plan, _guard(run, after, guards), _rows(run, clips, before, after)
    _write_page(run, clips, before, after, rows, guard)
    say(
        f"held-back frames, PSNR to the teacher: {rows['before'].psnr:.2f} dB before, {rows['after'].psnr:.2f} dB after"
    )
    if all(torch.equal(weight, run.learner.best[name]) for name, weight in run.start.state_dict().items()):
        say("no gain on the held-back frames: the checkpoint holds the unchanged student")
    say(guard)
    say(f"written: {plan.out} and {plan.page}; the teacher's frames stay in {run.cache.folder} for other students")


def _rows(run: _Run, clips: list[scoring.Clip], before: _Before, after: _After) -> dict[str, Row]:
    """How near the held-back frames come to the teacher's, how they look, and what each takes."""
    height, width = clips[0].rainy[0].shape[:2]
    # Measured once: both networks have the same layers, and only the machine's load would tell them apart.
    seconds = Derainer(after.network, precision="auto", device=run.plan.device).seconds_a_frame(width, height)
    rows = {
        name: Row(scoring.nearness(results, clips), flicker, scoring.naturalness(results), seconds)
        for name, results, flicker in (
            ("before", before.results, before.flicker),
            ("after", after.results, scoring.flicker(after.results, clips)),
        )
    }
    clean, rainy = [clip.clean for clip in clips], [clip.rainy[clip.scored] for clip in clips]
    teachers = run.teacher.seconds_a_frame(width, height)
    rows["teacher"] = Row(None, before.teachers_flicker, scoring.naturalness(clean), teachers)
    rows["rain"] = Row(scoring.nearness(rainy, clips), scoring.flicker(rainy, clips), scoring.naturalness(rainy), None)
    return rows


def _write_page(
    run: _Run, clips: list[scoring.Clip], before: _Before, after: _After, rows: dict[str, Row], guard: str
) -> None:
    plan, cache, learner = run.plan, run.cache, run.learner
    first = clips[0]
    number = len(first.clean) // 2
    rainy = first.rainy[first.scored]
    pictures = {"rain": rainy, "before": before.results[0], "after": after.results[0], "teacher": first.clean}
    held_back = sum(len(clip.clean) for clip in clips)
    write_page(
        plan.page,
        title=f"{plan.out.name}: {named(find_checkpoint(plan.student)).name} adapted to "
        f"{', '.join(one.name for one in cache.inputs)}",
        rows=rows,
        size=(rainy[0].shape[1], rainy[0].shape[0]),
        pictures={label: frames[number] for label, frames in pictures.items()},
        lines=[
            f"{counted(cache.frames, 'frame')}, {held_back} of them held back; "
            f"{learner.progress.step:,} steps in {learner.progress.seconds / 60:.1f} minutes",
            *_doubt(before),
            guard,
        ],
    )


def _guard(run: _Run, after: _After, guards: list[scoring.Clip]) -> str:
    """One line: the network's quality on other rain, before and after."""
    if not guards:
        return (
            "other rain than this camera's was not scored, and an adapted network can be worse there: --validation "
            "scores it, and --pairs mixes other rain in"
        )
    scores: dict[str, Quality] = {
        name: scoring.quality(network, guards, run.plan.device)
        for name, network in (("before", run.start), ("after", after.network))
    }
    shown = ", ".join(f"{score.psnr:.2f} dB / {score.ssim:.4f} {name}" for name, score in scores.items())
    return f"{run.plan.validation}, {_scored(guards)}, PSNR and SSIM of the luma: {shown}"


def _scored(clips: list[scoring.Clip]) -> str:
    """The scored frames and their clips, in words."""
    names: dict[tuple[int, int], list[str]] = {}
    for clip in clips:
        names.setdefault((clip.number, clip.number + len(clip.clean) - 1), []).append(clip.name)
    parts = [f"frames {first} to {last} of {', '.join(those)}" for (first, last), those in names.items()]
    return f"{counted(len(clips), 'clip')} ({'; '.join(parts)})"
