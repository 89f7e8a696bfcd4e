"""The measurement of `csd bench step`."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.bench.measure import announce, finished, in_turns, median, peak_memory
from csd_plugin.bench.patterns import TERM_WEIGHT, PerFrame, Released
from csd_plugin.bench.process import answer, measured_apart
from csd_plugin.devices import exact_float32
from csd_plugin.distill.step_graph import USUAL_STEPS
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.inference.memory import keep_freed_memory
from csd_plugin.report.text import markdown

if TYPE_CHECKING:
    from csd_plugin.models.distill_model import DistillModel

OURS, GRAPH, PER_FRAME, RELEASED = "csd", "csd, graph", "per frame", "released"
CONTENDERS = (OURS, PER_FRAME, RELEASED)
"""On a GPU, ours is also measured as a recorded CUDA graph; see `contenders`."""
_TO_RECORD = USUAL_STEPS + 1
"""Steps until ours is recorded, including the recording."""
_CHECKED_BATCH, _CHECKED_SIZE = 2, 32
"""The largest clips on which values are compared, so that large settings do not make the comparison slow."""

TOLERANCE = 1e-4
"""The largest difference between the plain step's loss and ours, and between gradients, each relative to the largest of
its tensor. Ten times as large on a GPU, whose libraries add in a different order for every size."""

_LR = 1e-4


@dataclass(frozen=True)
class Settings:
    """The settings. Networks are presets; a width of None is the preset's. Clips of size x size; precision: fp32, bf16.

    Threads are the CPU's. device: as for `devices.pick_device`.
    """

    student: str
    teacher: str
    student_width: int | None
    teacher_width: int | None
    batch: int
    size: int
    num_target: int
    precision: str
    threads: int
    device: str = "cpu"


@dataclass(frozen=True)
class StepRow:
    """One contender.

    Attributes:
        seconds: per step, for each round.
        peak, before: the most memory in MiB, overall and before the first step; for a GPU its own, as counted by torch.
    """

    contender: str
    seconds: list[float]
    peak: float
    before: float


class Bench:
    """A model as described by an option file, random clips, and the plain steps from the same weights.

    Args:
        graph: whether the model records its step as a CUDA graph, with a fused optimizer.

    Raises:
        CSDError: the settings do not describe valid networks.
    """

    def __init__(self, settings: Settings, *, graph: bool = False) -> None:
        from csd_plugin.registration import install

        install()
        from csd_plugin.models.probe import Probe

        torch.manual_seed(0)
        self.device = torch.device(settings.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # the GPU that `num_gpu: 1` uses
        probe = Probe(_options(settings, graph))
        self.model = cast("DistillModel", probe.model)
        self.model.feed_data(probe.batch)
        self.lq, self.gt = self.model.lq, self.model.gt

    def plain(self, cls: type[PerFrame]) -> PerFrame:
        model, [teacher] = self.model, self.model.teachers
        return cls(
            model.net_g,
            teacher.network,
            teacher.objective.cells,  # type: ignore[arg-type]
            model.cri_pix,
            lr=_LR,
            autocast=model.autocast_dtype,
        )

    def step(self, contender: str) -> Callable[[], object]:
        """One step of a contender, as a function."""
        if contender in (OURS, GRAPH):
            return finished(lambda: self.model.optimize_parameters(1), self.device)
        plain = self.plain(Released if contender == RELEASED else PerFrame)
        return finished(lambda: plain.step(self.lq, self.gt), self.device)


def contenders(settings: Settings) -> tuple[str, ...]:
    """The names of the contenders, ours first."""
    return (OURS, GRAPH, PER_FRAME, RELEASED) if _on_gpu(settings) else CONTENDERS


def _on_gpu(settings: Settings) -> bool:
    return torch.device(settings.device).type == "cuda"


def _options(settings: Settings, graph: bool) -> dict[str, Any]:
    """The settings as options of an option file."""
    networks = {}
    for role in ("student", "teacher"):
        preset, width = getattr(settings, role), getattr(settings, f"{role}_width")
        if preset not in SLDNet.presets:
            raise CSDError(f"--{role} {preset} is unknown{suggestion(preset, SLDNet.presets)}")
        networks[role] = {"type": "SLDNet", "preset": preset, "num_feat": width, "init_type": "kaiming"}
    window = max(int(SLDNet.presets[name]["num_frame"]) for name in (settings.student, settings.teacher))
    clips = {
        "batch_size_per_gpu": settings.batch,
        "num_frame": settings.num_target + window - 1,
        "num_target": settings.num_target,
        "gt_size": settings.size,
    }
    return {
        "model_type": "DistillModel",
        "num_gpu": int(_on_gpu(settings)),
        "datasets": {"train": clips},
        "network_g": networks["student"],
        "network_t": networks["teacher"],
        "path": {},
        "logger": {"print_freq": 1_000_000},  # logged steps are rare in training
        "train": {
            "ema_decay": 0,
            "health": False,  # it only measures in some steps
            "autocast": "bf16" if settings.precision == "bf16" else None,
            "optim_g": {"type": "Adam", "lr": _LR, **({"fused": True} if graph else {})},
            "cuda_graph": graph,
            "scheduler": {"type": "MultiStepLR", "milestones": [1000], "gamma": 0.5},
            "total_iter": 1,
            "pixel_opt": {"type": "PyramidSSIMLoss"},
            "distill_opt": {"type": "CSD", "weights": {"spatial": TERM_WEIGHT, "temporal": TERM_WEIGHT}},
        },
    }


def verify(settings: Settings) -> float:
    """Check that the plain step computes our values, in fp32; the largest relative difference of loss and gradients.

    On a few small clips. Raises CSDError if it is larger than `TOLERANCE`, as the timings would not be comparable.
    """
    batch, size = min(settings.batch, _CHECKED_BATCH), min(settings.size, _CHECKED_SIZE)
    bench = Bench(replace(settings, precision="fp32", batch=batch, size=size))
    plain = bench.plain(PerFrame)
    with exact_float32():
        losses, _ = bench.model.compute_losses(1)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        value = plain.gradients(bench.lq, bench.gt)
    differences = [_difference(torch.tensor(value), total.detach().cpu())]
    ours: Sequence[nn.Parameter] = bench.model.optimized_parameters()
    theirs = [*plain.student.parameters(), *plain.cells.parameters()]
    differences += [_difference(b.grad, a.grad) for a, b in zip(ours, theirs, strict=True)]
    worst = max(differences)
    if not worst <= TOLERANCE * (10 if _on_gpu(settings) else 1):
        raise CSDError(f"the step per frame and ours differ by {worst:.1e}; please report this")
    return worst


def _difference(theirs: Tensor | None, ours: Tensor | None) -> float:
    """Relative to our largest; a weight that only met zeros has no gradient, which counts as zero."""
    zero = torch.zeros(())
    theirs, ours = (zero if x is None else x for x in (theirs, ours))
    return float((theirs - ours).abs().max() / ours.abs().max().clamp_min(1e-12))


def measure(settings: Settings, rounds: int) -> Iterator[StepRow]:
    """Measure all contenders: the time in turns, then the memory one by one, with which each is given."""
    with _as_in_training(settings):
        times = _times(settings, contenders(settings), rounds)
        for name, taken in times.items():
            yield StepRow(name, taken, *_footprint(settings, name))


@contextmanager
def _as_in_training(settings: Settings) -> Iterator[None]:
    """Inside, use this many threads, and let cuDNN time its algorithms, as in the toolbox."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    try:
        torch.set_num_threads(settings.threads)
        torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark


def _times(settings: Settings, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender's steps; without a contender that could not be recorded, which was warned about.
    The contenders are released at the end."""
    bench, recording = Bench(settings), Bench(settings, graph=True) if GRAPH in names else None
    steps = {name: (recording if recording and name == GRAPH else bench).step(name) for name in names}
    if recording is not None:
        for _ in range(_TO_RECORD):
            steps[GRAPH]()
        if recording.model.step_graph is None or not recording.model.step_graph.records:
            del steps[GRAPH]
    return in_turns(steps, rounds, "bench step", _clock(settings), say=announce)


def _clock(settings: Settings) -> Callable[[], float]:
    """For one thread of a CPU, its CPU time, on which other programs have little effect; otherwise wall-clock time."""
    return time.process_time if settings.threads == 1 and not _on_gpu(settings) else time.perf_counter


def _clock_at_ends(settings: Settings) -> Callable[[], float]:
    """The clock, which first waits for the device."""
    clock, wait = _clock(settings), finished(lambda: None, torch.device(settings.device))

    def now() -> float:
        wait()
        return clock()

    return now


def _footprint(settings: Settings, contender: str) -> tuple[float, float]:
    """`footprint`; for a CPU, whose memory cannot be counted per contender, in a separate process."""
    if _on_gpu(settings):
        gc.collect()  # models are in reference cycles
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(settings.device)
        return footprint(settings, contender)
    arguments = [contender, json.dumps(asdict(settings))]
    peak, before = measured_apart(__name__, arguments, f"memory of {contender}")
    return peak, before


def footprint(settings: Settings, contender: str) -> tuple[float, float]:
    """The most MiB that this process has held, overall (after some steps) and before the first step."""
    bench = Bench(settings, graph=contender == GRAPH)
    step, before = bench.step(contender), _peak_memory(bench.device)
    for _ in range(_TO_RECORD + 1 if contender == GRAPH else 2):
        step()
    return _peak_memory(bench.device), before


def _peak_memory(device: torch.device) -> float:
    """The most MiB that this process has held on the device; on a GPU, including what torch keeps for its graphs."""
    return torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else peak_memory()


def profile(settings: Settings, rounds: int) -> dict[str, list[float]]:
    """The time of the parts of our step: part -> seconds in each round, from hooks on what the step runs."""
    with _as_in_training(settings):
        watch = Stopwatch(Bench(settings).model, _clock_at_ends(settings))
        parts: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for part, seconds in watch.time_step().items():
                parts.setdefault(part, []).append(seconds)
            if not number:  # warm-up
                parts.clear()
        return parts


class Stopwatch:
    """Times the parts of a model's steps.

    Hooks mark the end of one part and the beginning of the next. The backward pass goes from the last computed part to
    the first: reconstruction, objective, student.
    """

    def __init__(self, model: DistillModel, clock: Callable[[], float] = time.perf_counter) -> None:
        self.model, self._clock = model, clock
        self._seconds: dict[str, float] = {}
        self._part, self._since = "rest", 0.0
        [teacher] = model.teachers
        for part, module in (
            ("teacher, forward", teacher.network),
            ("student, forward", model.net_g),
            ("objective, forward", teacher.objective),
            ("reconstruction, forward", model.cri_pix),
        ):
            module.register_forward_pre_hook(lambda *_, part=part: self._enter(part))
            module.register_forward_hook(lambda *_: self._enter("rest"))
        teacher.objective.register_forward_hook(self._follow_gradients)
        model.cri_pix.register_forward_hook(lambda _, __, loss: self._on_gradient(loss, "reconstruction, backward"))
        model.optimizer_g.register_step_pre_hook(lambda *_: self._enter("optimizer"))
        model.optimizer_g.register_step_post_hook(lambda *_: self._enter("rest"))

    def time_step(self) -> dict[str, float]:
        """Run one step; seconds of each of its parts, in the order in which they ran."""
        self._seconds, self._part, self._since = {}, "rest", self._clock()
        self.model.optimize_parameters(1)
        self._enter("rest")
        rest = self._seconds.pop("rest")
        return {**self._seconds, "rest": rest}

    def _follow_gradients(self, _: nn.Module, views: tuple[Any, ...], terms: Any) -> None:
        for loss in terms.losses.values():
            self._on_gradient(loss, "objective, backward")
        student = views[0]
        for tensor in (student.output, *(feature for features in student.features.values() for feature in features)):
            self._on_gradient(tensor, "student, backward")

    def _on_gradient(self, tensor: Tensor, part: str) -> None:
        tensor.register_hook(lambda _: self._enter(part))

    def _enter(self, part: str) -> None:
        now = self._clock()
        self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now


def step_table(rows: Sequence[StepRow]) -> str:
    """The rows as Markdown, one per contender."""
    ours = rows[0]
    cells = []
    for row in rows:
        slower = median([theirs / own for theirs, own in zip(row.seconds, ours.seconds, strict=True)])
        more = (row.peak - row.before) / (ours.peak - ours.before) if ours.peak > ours.before else None
        took = median(row.seconds)
        cells.append(
            [
                row.contender,
                f"{took:.3f}",
                f"{1 / took:.2f}",
                f"{slower:.2f}",
                f"{row.peak:.0f}",
                f"{row.peak - row.before:.0f}",
                "-" if more is None else f"{more:.2f}",
            ]
        )
    return markdown(["step", "s/step", "steps/s", "x time", "peak MiB", "+MiB", "x memory"], cells, 1)


def profile_table(parts: dict[str, list[float]]) -> str:
    """The parts as Markdown, one row per part of the step."""
    took = {part: median(seconds) for part, seconds in parts.items()}
    total = sum(took.values())
    rows = [[part, f"{1000 * seconds:.1f}", f"{seconds / total:.1%}"] for part, seconds in took.items()]
    return markdown(["part of our step", "ms", "share"], [*rows, ["all", f"{1000 * total:.1f}", "100.0%"]], 1)


def draw(figure: Any, rows: Sequence[StepRow], parts: dict[str, list[float]]) -> None:
    """Draw bars of time and memory, and of the parts of our step if they were measured."""
    panels = figure.subplots(1, 3 if parts else 2)
    names = [row.contender for row in rows]
    colors = [f"C{i}" for i in range(len(rows))]
    panels[0].bar(names, [median(row.seconds) for row in rows], color=colors)
    panels[0].set_ylabel("seconds for a step")
    panels[1].bar(names, [row.peak - row.before for row in rows], color=colors)
    panels[1].set_ylabel("memory that the steps add, MiB")
    for panel in panels[:2]:
        panel.tick_params(axis="x", labelsize=7)
    if parts:
        panels[2].barh(list(parts), [1000 * median(seconds) for seconds in parts.values()])
        panels[2].invert_yaxis()
        panels[2].set_xlabel("ms of our step")
        panels[2].tick_params(axis="y", labelsize=7)


def _footprint_here() -> tuple[float, float]:
    """The footprint for the arguments of this process."""
    settings = Settings(**json.loads(sys.argv[2]))
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    return footprint(settings, sys.argv[1])


if __name__ == "__main__":
    answer(_footprint_here)
