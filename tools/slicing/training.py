"""Trains the networks in turns."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Any

from slicing.clips import DATA, TRAINING
from slicing.deadlines import Deadlines
from slicing.networks import Network
from slicing.processes import elsewhere, last_error, launch, stop, wait
from slicing.telling import say

START_UP = 20.0  # seconds of a training before its first step
LEAST_TURN = 1.0  # seconds
CONTEXT_GIB = 1.0  # of a GPU's memory, that a process takes for itself
#: how a training ends that has not failed: by its clock, or told to, with or without having saved, or killed
ENDED = (0, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)


def train(networks: Sequence[Network], room: float, deadlines: Deadlines) -> None:
    """One after the other, each in a process; they end by the clock, or are stopped.

    Beside each other they would share the GPU in slices of time, and lose some: measured on an H200, three together
    (teacher, large, realtime) kept it busy for 60 % of the time, with steps that took two to three times as
    long as alone. Only the start of the next one, which hardly needs it, is beside the training before.
    """
    began = time.monotonic()
    if all(network.note for network in networks):
        return
    chosen = fitting([one for one in networks if not one.note], room, elsewhere(resident_memory))
    spent = elsewhere(seconds_before, chosen)
    children: dict[str, Any] = {}
    turn_begins = began
    for place, network in enumerate(chosen):
        turn = (deadlines.trained - turn_begins) * network.share / sum(one.share for one in chosen[place:])
        if turn < LEAST_TURN:
            network.note = "not begun: no time was left"
            continue
        turn_ends = turn_begins + turn
        network.options["train"]["max_seconds"] = round(spent[network.row] + turn_ends - time.monotonic(), 1)
        every = deadlines.saves_every / network.step
        network.options["logger"]["save_checkpoint_freq"] = max(1, round(every))
        child = children[network.row] = launch("train", network, network.options)
        ahead = 0.0 if network is chosen[-1] else min(START_UP, turn / 2)
        child.join(max(turn_ends - ahead - time.monotonic(), 0.0))
        turn_begins = turn_ends if child.is_alive() else time.monotonic()
    wait(children.values(), deadlines.trained)
    late = stop(children.values(), deadlines.saved)
    for network in chosen:
        if network.row in children:
            child = children[network.row]
            network.note = how_it_ended(network, child.exitcode, child in late)
    ended = "; ".join(f"{one.row} {one.steps - one.before:,}" for one in chosen)
    say(f"{len(children)} networks trained for {time.monotonic() - began:.0f} s; steps: {ended}")


def how_it_ended(network: Network, status: int, late: bool) -> str:
    """Of a training: nothing where it did so by its clock. late: it was told to, or killed."""
    if status not in ENDED or (status == -signal.SIGKILL and not late):
        return f"training failed with status {status}: {last_error(network)}"
    if network.steps == network.before:
        return "not begun: its first step was not done in time" if late else "no step was saved"
    if status == -signal.SIGKILL:
        return f"killed: it took longer to end; weights of its last save, step {network.steps:,}"
    return "stopped: its step at the end took longer than those before" if late else ""


def seconds_before(networks: Sequence[Network]) -> dict[str, float]:
    """By row, those that a training has had which is resumed, as its clock counts them."""
    import torch

    newest = {network.row: network.states[-1] for network in networks if network.states}
    had = {row: float(torch.load(state, map_location="cpu")["seconds"]) for row, state in newest.items()}
    return {network.row: had.get(network.row, 0.0) for network in networks}


def resident_memory() -> float:
    """GiB of the training clips, which each process keeps decoded on the GPU."""
    import cv2

    total = 0
    for clip in (DATA / TRAINING).iterdir():
        frames = sorted(clip.iterdir())
        total += len(frames) * cv2.imread(str(frames[0])).nbytes
    return total / 2**30


def fitting(networks: Sequence[Network], room: float, resident: float) -> list[Network]:
    """Those for which the GPU has room, also while the one before ends; a process needs some for itself and clips."""
    chosen: list[Network] = []
    before = 0.0
    for network in networks:
        needed = 1.2 * network.memory + resident + CONTEXT_GIB
        if before + needed <= room:
            chosen.append(network)
            before = needed
        else:
            beside = f" beside the {before:.1f} of {chosen[-1].row}" if chosen else ""
            network.note = f"left out: needs {needed:.1f} GiB{beside}, the GPU has {room:.1f}"
            say(f"{network.row} {network.note}")
    return chosen
