"""What the networks of a matrix cost: parameters, multiply-adds, and seconds a frame on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from csd_plugin.bench.measure import in_turns, median
from csd_plugin.lab.matrix import Matrix, Run

#: The paper's Table 2 counts at this size; speed is measured at that of NTURain's frames.
COUNTED_SIZE = 128
TIMED_SIZE = (640, 480)
ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """parameters and operations (multiply-adds and bias additions at 128x128) of a network; seconds a frame."""

    parameters: int | None = None
    operations: int | None = None
    seconds: float | None = None


def costs_of(matrix: Matrix, runs: Mapping[str, Run]) -> dict[str, Cost]:
    """By row, as far as the matrix asks for it and rows have a network."""
    if not (matrix.complexity or matrix.speed):
        return {}
    networks = {}
    for run in runs.values():
        options = None if run.rainy or run.frames else run.options or run.test
        if matrix.rows[run.row].shown and options and "network_g" in options and run.row not in networks:
            networks[run.row] = _build(options)
    seconds = _seconds(networks) if matrix.speed else {}
    return {row: _cost(*built, seconds.get(row), counted=matrix.complexity) for row, built in networks.items()}


def _build(options: Mapping[str, Any]) -> tuple[Any, Any]:
    """A network with random weights, and how it is called."""
    from csd_plugin.models.preflight import build_networks

    with torch.random.fork_rng():
        networks, layouts = build_networks({**options, "is_train": False})
    return networks["network_g"].eval(), layouts["network_g"]


def _cost(network: Any, layout: Any, seconds: float | None, *, counted: bool) -> Cost:
    from csd_plugin.report.complexity import complexity

    parameters = sum(p.numel() for p in network.parameters())
    if not counted:
        return Cost(parameters, None, seconds)
    frames = () if layout.kind == "image" else (layout.num_frame,)
    operations = complexity(network, (*frames, 3, COUNTED_SIZE, COUNTED_SIZE)).operations
    return Cost(parameters, operations // (layout.num_frame if layout.kind == "sequence" else 1), seconds)


def _seconds(networks: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """All in turns, each in its fastest exact form, one frame of 640x480."""
    from csd_plugin.inference.folding import fold

    width, height = TIMED_SIZE
    actions = {}
    for row, (network, layout) in networks.items():
        shape = (1, 3, height, width) if layout.kind == "image" else (1, layout.num_frame, 3, height, width)
        frames, ready = torch.rand(shape), fold(network) if layout.kind == "window" else network

        def once(ready: Any = ready, frames: torch.Tensor = frames) -> object:
            with torch.inference_mode():
                return ready(frames)

        actions[row] = once
    times = in_turns(actions, ROUNDS, "speed")
    per_pass = {row: layout.num_frame if layout.kind == "sequence" else 1 for row, (_, layout) in networks.items()}
    return {row: median(times[row]) / per_pass[row] for row in networks}
