"""Measures a step of each network, before trainings share the time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slicing.networks import Network
from slicing.processes import start, stop, wait
from slicing.telling import say

MEASURED = Path("measured.json")
#: `--measure`: ways to compute a step, the last one that of the trainings
WAYS: dict[str, dict[str, Any]] = {
    "launched": {"train.cuda_graph": False, "train.optim_g.fused": False},
    "compiled": {"train.cuda_graph": False, "train.optim_g.fused": False, "train.compile": True},
    "as a graph": {},
}


def start_measuring(networks: Sequence[Network], cpu: bool, ways: Mapping[str, dict[str, Any]]) -> Any:
    """A process that writes seconds and memory of a step of each network to MEASURED. ways: as WAYS."""
    from csd_plugin.lab.matrix import changed

    MEASURED.unlink(missing_ok=True)
    given = [(one.row, way, changed(one.options, change)) for one in networks for way, change in ways.items()]
    return start(measure_all, given, cpu, MEASURED.resolve(), log=None)


def end_measuring(child: Any, networks: Sequence[Network], until: float) -> None:
    """Take over what it has found by then; what it has not got to is noted."""
    wait([child], until)
    stop([child], until)
    found = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    for network in networks:
        facts = found.get(network.row, {"note": "left out: not measured in time"})
        network.step, network.memory = facts.get("step", 0.0), facts.get("memory", 0.0)
        network.note = facts.get("note", "")
        if network.note:
            say(f"{network.row} {network.note}")


def measure_all(given: Sequence[tuple[str, str, dict[str, Any]]], cpu: bool, file: Path) -> None:
    """Into the file, network by network: step (s), memory (GiB), or a note of what failed; of several ways, the last.

    Args:
        given: row, way, and the options of a training.
    """
    import torch

    from csd_plugin.atomic import write_text
    from csd_plugin.bench.measure import MatrixRate
    from csd_plugin.errors import first_line

    device = torch.device("cpu" if cpu else "cuda:0")
    torch.backends.cudnn.benchmark = True  # as trainings have
    if cpu:
        torch.set_num_threads(1)  # as trainings have
    rate = MatrixRate(device, torch.float32 if cpu else torch.bfloat16).measure()
    say(f"matrix products: {2 * rate / 1e12:.2f} TFLOP/s in {'fp32' if cpu else 'bf16'}")
    found: dict[str, dict[str, Any]] = {}
    for row, way, options in given:
        title = f"{row}, {way}" if way else row
        try:
            found[row] = measure_one(title, options, device, rate)
        except (RuntimeError, ValueError) as error:  # too little memory, for one
            found[row] = {"note": f"left out: measuring it failed: {first_line(error)}"}
            say(f"{title}: {first_line(error)}")
        write_text(file, json.dumps(found))


def measure_one(title: str, options: Mapping[str, Any], device: Any, rate: float) -> dict[str, Any]:
    """Of the forward pass and the whole step also the share of the device's own rate, as a line."""
    import torch

    from csd_plugin.archs.interface import run_network
    from csd_plugin.bench.measure import finished, seconds
    from csd_plugin.bench.operations import operations
    from csd_plugin.models.probe import Probe

    on_gpu, times = device.type == "cuda", 10 if device.type == "cuda" else 2
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    probe = Probe(options)
    model, step = probe.model, finished(probe.step, device)
    step()
    took = min(seconds(step) for _ in range(times))
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else 0.0
    useful = operations(model.net_g, model.num_frame).useful * model.gt.numel() / 3

    def forward() -> None:
        with torch.no_grad():
            interface = model.interface_of(model.net_g)
            run_network(model.net_g, model.lq, model.gt.shape[1], interface, autocast=model.autocast_dtype)

    once = finished(forward, device)
    once()
    ahead = min(seconds(once) for _ in range(times))
    say(
        f"{title}: step {1e3 * took:.1f} ms ({3 * useful / took / rate:.1%} of matrix products), forward "
        f"{1e3 * ahead:.1f} ms ({useful / ahead / rate:.1%}), {memory:.1f} GiB"
    )
    return {"step": took, "memory": memory}
