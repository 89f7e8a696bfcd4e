"""The measurement of `csd bench infer`."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from csd_plugin import extensions
from csd_plugin.archs import Untrained, untrained
from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.interface import KINDS, in_precision, kind_of
from csd_plugin.archs.padding import whole_cells
from csd_plugin.bench.measure import MatrixRate, announce, finished, in_turns, median
from csd_plugin.bench.operations import Operations, operations
from csd_plugin.devices import exact_float32, pick_device, use_channels_last
from csd_plugin.errors import CSDError
from csd_plugin.inference.backends import BACKENDS, GRAPH_SUFFIXES, INT8, open_backend
from csd_plugin.inference.facts import Facts
from csd_plugin.inference.graph import DTYPES
from csd_plugin.report.text import counted, markdown, three_digits
from csd_plugin.weights import NETWORKS as SHIPPED
from csd_plugin.weights import find_checkpoint

_SEQUENCE = 8
"""Frames that count in one pass of a sequence network."""
_NUMBERS = {**DTYPES, INT8: torch.int8}
"""The number formats by name."""


@dataclass(frozen=True)
class SpeedRow:
    """One contender: a network in a backend, at one size and number of threads.

    Attributes:
        seconds: per frame, for each round.
        rates: the machine's multiply-adds per second just before each round.
        plain: seconds of the plain network in the same rounds; None if it was not measured.
    """

    network: str
    backend: str
    size: tuple[int, int]
    threads: int
    operations: Operations | None
    seconds: list[float]
    rates: list[float]
    plain: list[float] | None

    @property
    def useful(self) -> float | None:
        """Useful multiply-adds per frame."""
        return self.operations.useful * self.size[0] * self.size[1] if self.operations else None

    @property
    def reached(self) -> float | None:
        """Useful multiply-adds per second, as a fraction of the matrix products' rate: the median over the rounds."""
        if self.useful is None:
            return None
        return median([self.useful / took / rate for took, rate in zip(self.seconds, self.rates, strict=True)])

    @property
    def faster(self) -> float | None:
        """How many times faster than the plain network: the median over the rounds."""
        if self.plain is None:
            return None
        return median([plain / own for plain, own in zip(self.plain, self.seconds, strict=True)])

    def figures(self) -> dict[str, Any]:
        return asdict(self) | {"useful": self.useful, "reached": self.reached, "faster": self.faster}


def default_backends() -> list[str]:
    """All backends that are installed."""
    names = ["plain", "torch", "torch:bf16"]
    if importlib.util.find_spec("onnxscript"):
        names += ["onnxruntime"] if importlib.util.find_spec("onnxruntime") else []
        names += ["openvino", "openvino:bf16"] if importlib.util.find_spec("openvino") else []
    return names


def measure(
    networks: Sequence[str],
    backends: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    threads: Sequence[int],
    rounds: int,
    *,
    device: str = "cpu",
    batch: int = 1,
) -> Iterator[SpeedRow]:
    """Time every combination, those of one size and number of threads in turns; give their rows when they are measured.

    Ctrl-C is raised after the rows of the rounds before it.

    Args:
        networks, backends: by the names in `csd bench infer --help`.
        sizes: (width, height) of frames.
        threads: numbers of threads.
        rounds: how many times everything is measured.
        batch: windows in one pass.

    Raises:
        CSDError: a name is unknown, or a backend cannot be used here.
    """
    where = pick_device(device)
    modules = {name: None if name.endswith(GRAPH_SUFFIXES) else find_network(name) for name in networks}
    counts = {name: operations(module, _lengths(module)[0]) if module else None for name, module in modules.items()}
    before = torch.get_num_threads()
    try:
        for number in threads:
            torch.set_num_threads(number)
            ready = {
                (name, backend): run
                for name, module in modules.items()
                for backend, run in _ready(name, module, backends, where)
            }
            precisions = {_precision(backend) for _, backend in ready}
            rate_in = {precision: MatrixRate(where, _NUMBERS[precision]) for precision in precisions}
            rates_of = {f"{name} {backend}": rate_in[_precision(backend)] for name, backend in ready}
            for size in sizes:
                actions = {
                    f"{name} {backend}": _action(run, size, where, batch) for (name, backend), run in ready.items()
                }
                title = f"{size[0]}x{size[1]}, {counted(number, 'thread')}"
                times, rates, stopped = _until_stopped(actions, rounds, title, rates_of)
                for (name, backend), run in ready.items() if any(times.values()) else ():
                    frames = run.num_counted
                    per_frame = {key: [took / (batch * frames) for took in values] for key, values in times.items()}
                    key, plain = f"{name} {backend}", per_frame.get(f"{name} plain")
                    own, rate, count = per_frame[key], rates[key], _count(counts[name], frames)
                    yield SpeedRow(name, backend, size, number, count, own, rate, plain)
                if stopped:
                    raise stopped
    finally:
        torch.set_num_threads(before)


_PerContender = dict[str, list[float]]


def _until_stopped(
    actions: Mapping[str, Callable[[], object]], rounds: int, title: str, rates_of: Mapping[str, MatrixRate]
) -> tuple[_PerContender, _PerContender, KeyboardInterrupt | None]:
    """Seconds, and the machine's rate before them, in each whole round; and the Ctrl-C that kept it from the others."""
    times: _PerContender = {}
    rates: _PerContender = {name: [] for name in actions}
    stopped = None
    try:
        in_turns(actions, rounds, title, before=partial(_note_rate, rates, rates_of), times=times, say=announce)
    except KeyboardInterrupt as interrupt:
        stopped = interrupt
    whole = min(map(len, times.values()), default=0)
    for values in (*times.values(), *rates.values()):
        del values[whole:]
    return times, rates, stopped


def _note_rate(rates: Mapping[str, list[float]], rates_of: Mapping[str, MatrixRate], name: str) -> None:
    rates[name].append(rates_of[name].measure())


def find_network(name: str) -> nn.Module:
    """The network of this name, in eval mode.

    Args:
        name: a preset, or a network without presets by its name in lower case, both untrained; a network that comes
            with the package; or the path of a checkpoint. The first match is used.

    Raises:
        CSDError: the name is unknown, or a checkpoint cannot be read.
    """
    found = _find_untrained(name)
    if found is None and (name in SHIPPED or Path(name).exists()):
        return load_network(find_checkpoint(name))
    if found is None:  # other packages are imported only if they are needed
        faults = list(extensions.load())
        found = _find_untrained(name)
    if found is None:
        known = ", ".join(dict.fromkeys([*(network.name for network in untrained()), *SHIPPED]))
        also = "".join(f"; {fault}" for fault in faults)
        raise CSDError(f"--networks {name}: is not a file and not one of {known}{also}")
    return found.cls(**found.numbers).eval()


def _find_untrained(name: str) -> Untrained | None:
    return next((network for network in untrained() if network.name == name), None)


_MOST_FORMS = 256
"""Sizes and precisions for which one class of networks is compiled; beyond eight, torch would run it uncompiled."""


class Run(NamedTuple):
    """The function to run, the frames per pass, those that count, and the divisor of heights and widths."""

    compute: Callable[[Tensor], Tensor]
    num_frame: int
    num_counted: int
    divisor: int

    @classmethod
    def of(cls, facts: Facts | nn.Module, compute: Callable[[Tensor], Tensor]) -> Run:
        divisor = facts.divisor if isinstance(facts, Facts) else getattr(facts, "size_divisor", 1)
        return cls(compute, *_lengths(facts), int(divisor))


def _ready(
    name: str, module: nn.Module | None, backends: Iterable[str], device: torch.device
) -> Iterable[tuple[str, Run]]:
    """(backend, what to run) for the backends that support the network."""
    if module is None:
        backend = open_backend(name, device=device)
        yield backend.name, Run.of(backend.facts, backend)
        return
    for spelled in backends:
        runtime, precision = spelled.partition(":")[0], _precision(spelled)
        if precision not in _NUMBERS:
            raise CSDError(f"--backends {spelled}: the precision is one of {', '.join(_NUMBERS)}")
        if precision == INT8 and runtime != "torch":
            raise CSDError(f"--backends {spelled}: int8 is computed by torch alone, as torch:int8")
        if runtime in ("plain", "compiled"):
            yield spelled, Run.of(module, _as_trained(module, runtime == "compiled", DTYPES[precision], device))
        elif runtime not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise CSDError(f"--backends {spelled}: expected plain, compiled or one of {known}, e.g. torch:bf16")
        else:
            options = {"backend": runtime, "precision": precision, "device": device}
            yield spelled, Run.of(module, open_backend(module, **options))  # type: ignore[arg-type]


def _precision(backend: str) -> str:
    """Of `runtime:precision`."""
    return backend.partition(":")[2] or "fp32"


def _as_trained(
    module: nn.Module, compiles: bool, dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The network as in training, with autocast; in fp32 without TF32, like the backends."""
    network, half = copy.deepcopy(module).to(device), dtype != torch.float32
    if half and device.type == "cuda":
        use_channels_last(network)
    if compiles:
        config: Any = torch._dynamo.config
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # until torch 2.6
        setattr(config, limit, _MOST_FORMS)
        network.compile()

    def compute(window: Tensor) -> Tensor:
        with in_precision(network, dtype, device) if half else exact_float32():
            return network(window)  # type: ignore[no-any-return]

    return compute


def _lengths(facts: Facts | nn.Module) -> tuple[int, int]:
    """Frames per pass, and how many of them count."""
    count = _SEQUENCE if KINDS[kind_of(facts)].gives_clip else 1
    seen = getattr(facts, "num_seen", facts.num_frame)  # an exported network only takes the frames it uses
    return int(seen) + count - 1, count  # type: ignore[arg-type]


def _action(run: Run, size: tuple[int, int], device: torch.device, batch: int) -> Callable[[], object]:
    width, height = size
    window = torch.rand(batch, run.num_frame, 3, height, width, generator=torch.Generator().manual_seed(0))
    window = whole_cells(window, run.divisor).to(device)

    def once() -> object:
        with torch.inference_mode():
            return run.compute(window)

    return finished(once, device)


def _count(operations: Operations | None, frames: int) -> Operations | None:
    return operations and Operations(operations.useful / frames, operations.folded / frames)


def speed_table(rows: Sequence[SpeedRow]) -> str:
    """The rows as Markdown."""
    cells = []
    for row in rows:
        took = median(row.seconds)
        line = [row.network, row.backend, f"{row.size[0]}x{row.size[1]}", str(row.threads), three_digits(took)]
        line.append("-" if row.faster is None else f"{row.faster:.1f}")
        if row.operations is None or row.useful is None or row.reached is None:
            line += ["-"] * 4
        else:
            zeros = (
                "-"
                if row.backend.startswith(("plain", "compiled", "torch"))
                else f"{row.reached * row.operations.folded / row.operations.useful:.0%}"
            )
            line += [f"{row.useful / 1e9:.1f}", f"{row.useful / took / 1e9:.0f}", f"{row.reached:.0%}", zeros]
        cells.append(line)
    head = ["network", "backend", "size", "threads", "s/frame", "x plain", "GMAC", "GMAC/s", "of matmul", "+zeros"]
    return markdown(head, cells, 3)


def matrix_rates(rows: Sequence[SpeedRow]) -> str:
    """The machine's rates in matrix products, in a line."""
    rates = []
    for number, precision in dict.fromkeys((row.threads, _precision(row.backend)) for row in rows):
        group = [row for row in rows if (row.threads, _precision(row.backend)) == (number, precision)]
        rate = median([rate for row in group for rate in row.rates]) / 1e9
        rates.append(f"{precision} {rate:.0f} GMAC/s with {number} thread{'s' if number > 1 else ''}")
    return f"The machine's matrix products: {', '.join(rates)}."


def draw(figure: Any, rows: Sequence[SpeedRow]) -> None:
    """Bars of the useful multiply-adds per second, the matrix products' rate as a line."""
    axes = figure.subplots()
    labels = [f"{row.network} {row.backend} {row.size[0]}x{row.size[1]} t{row.threads}" for row in rows]
    rates = [row.useful / median(row.seconds) / 1e9 if row.useful else 0 for row in rows]
    figure.set_figheight(1.2 + 0.24 * len(rows))
    axes.barh(
        range(len(rows)),
        rates,
        color=[f"C{list(dict.fromkeys(r.network for r in rows)).index(row.network)}" for row in rows],
    )
    axes.plot([median(row.rates) / 1e9 for row in rows], range(len(rows)), "k|", markersize=9, label="matrix products")
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("useful multiply-adds per second, 10^9")
    axes.legend(fontsize=8)
