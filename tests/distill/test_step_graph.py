"""Which steps are recorded and replayed. A graph that computes when it is replayed stands for a GPU's;
tests/gpu/graphs.py has a real one."""

from __future__ import annotations

import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.distill.csd import CSD
from csd_plugin.distill.distiller import Distiller, Teacher
from csd_plugin.distill.step_graph import StepGraph
from csd_plugin.errors import CSDError
from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.models.preflight import check_graph


class Graph:
    """Replays what was computed while it was recorded, into the same tensors."""

    recording: Graph | None = None

    def __init__(self):
        self.replays, self.again = 0, None

    def replay(self):
        self.replays += 1
        self.again()


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def graphs(monkeypatch):
    made = []

    def graph():
        made.append(Graph())
        return made[-1]

    @contextmanager
    def record(graph, stream, capture_error_mode):
        Graph.recording = graph
        yield
        Graph.recording = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)
    return made


class Steps:
    """loss = (weight x).sum(), with what runs in Python counted."""

    def __init__(self):
        self.weight, self.idle, self.warnings = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1)), []
        self.launched = 0
        self.graph = StepGraph([self.weight, self.idle], self.warnings.append)

    def compute(self, batch):
        self.launched += 1
        loss = (self.weight * batch["lq"]).sum()
        loss.backward()
        computed = {"l_recon": loss.detach().clone()}, torch.isfinite(loss)
        recorded = Graph.recording
        if recorded is not None:
            gradient = self.weight.grad

            def again():
                computed[0]["l_recon"].copy_((self.weight.detach() * batch["lq"]).sum())
                gradient.copy_(batch["lq"])

            recorded.again = again
            computed[0]["l_recon"].zero_()  # recording computes nothing
            gradient.zero_()
        return computed

    def step(self, value, key=(), size=2):
        self.weight.grad = self.idle.grad = None
        batch = {"lq": torch.full((size,), float(value))}
        losses, finite = self.graph.run(self.compute, batch, key)
        losses["more"] = torch.zeros(())  # the caller may
        assert bool(finite) and self.idle.grad is None
        assert torch.equal(self.weight.grad, torch.full((2,), float(value)))
        assert float(losses["l_recon"]) == 2 * value


def test_the_fourth_step_of_a_kind_is_recorded_and_replayed_from_then_on(graphs):
    steps = Steps()
    for value in range(1, 7):
        steps.step(value)
    assert steps.launched == 4 and graphs[0].replays == 3


def test_steps_of_their_own_are_launched_between(graphs):
    steps = Steps()
    for number in range(1, 11):
        steps.step(number, key=None if number % 5 == 0 else "usual")
    assert len(graphs) == 1 and graphs[0].replays == 5 and steps.launched == 3 + 1 + 2


def test_another_kind_of_step_is_recorded_anew(graphs):
    steps = Steps()
    for number in range(10):
        steps.step(number, key=number >= 5)
    assert [graph.replays for graph in graphs] == [2, 2]
    for number in range(5):  # keys that change in each step
        steps.step(number, key=f"weight {number}")
    assert len(graphs) == 2


def test_what_cannot_be_recorded_is_launched_and_said_once(graphs, monkeypatch):
    @contextmanager
    def refuse(*_, **__):
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    steps = Steps()
    for number in range(8):
        steps.step(number)
    assert len(steps.warnings) == 1 and "operation not permitted when stream is capturing" in steps.warnings[0]
    assert "more" not in steps.warnings[0] and len(graphs) == 1


def test_what_a_broken_recording_said_first_is_said(graphs, monkeypatch):
    @contextmanager
    def broken(*_, **__):
        try:
            yield
            raise RuntimeError("operation not permitted: the cause")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    streams = []
    monkeypatch.setattr(torch.cuda, "graph", broken)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    steps = Steps()
    for number in range(8):
        steps.step(number)
    [line] = steps.warnings
    assert line.endswith("launched as usual: operation not permitted: the cause")
    assert len(streams) == 1  # torch leaves the recording's in place


@pytest.fixture
def modes(monkeypatch):
    """What torch's way of looking for waits was set to."""
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


class WarnedSteps(Steps):
    """Of which torch says these lines whenever `when` holds."""

    def __init__(self, when, *lines):
        super().__init__()
        self.when, self.lines = when, lines

    def compute(self, batch):
        for line in self.lines if self.when() else ():
            warnings.warn(line, UserWarning, stacklevel=1)
        return super().compute(batch)


WAITS = "called a synchronizing CUDA operation"


def test_steps_that_wait_for_the_gpu_are_not_begun_to_be_recorded(graphs, modes):
    """In torch's own mode, in which it warns of them."""
    told_once = "Synchronization debug mode is a prototype feature"
    steps = WarnedSteps(lambda: modes[-1:] == ["warn"], WAITS, told_once, "another")
    with pytest.warns(UserWarning, match="another") as told:
        for number in range(8):
            steps.step(number)
    [line] = steps.warnings
    assert "it waits for the GPU at " in line and "test_step_graph.py:" in line
    assert not graphs and modes == ["warn", 0] * 2 and steps.launched == 8
    assert {str(one.message) for one in told} == {"another"}
    assert not steps.graph.records


def test_what_another_thread_waited_for_once_is_forgotten(graphs, modes):
    steps = WarnedSteps(lambda: modes == ["warn"], WAITS)
    for number in range(8):
        steps.step(number)
    assert steps.graph.records and graphs[0].replays == 4 and not steps.warnings


def distiller(examine_every, **weights) -> Distiller:
    student, teacher = (SLDNet(preset=preset, num_feat=4) for preset in ("student2", "teacher"))
    teachers = [Teacher(teacher, CSD(hidden=2))]
    return Distiller(student, teachers, PyramidSSIMLoss(), weights=weights, examine_every=examine_every)


def test_steps_of_a_distiller_that_do_more():
    """Logged steps, those that are looked at, and those that measure balances; asking changes nothing."""
    weights = {"spatial": 0.1, "temporal": {"balance": 0.3}}
    unwatched = distiller(0, **weights)
    assert unwatched.repeats(1, logged=False) is None  # its balance was not measured yet
    unwatched.balance.measured["temporal"] = 2.0
    assert unwatched.repeats(1, logged=False) == (0.1, 2.0) == unwatched.repeats(2, logged=False)
    assert unwatched.repeats(2, logged=True) is None and unwatched.repeats(20, logged=False) is None

    watched = distiller(10, **weights)
    watched.balance.measured["temporal"] = 2.0
    assert watched.repeats(11, logged=False) is None  # the first one is looked at
    watched.monitor.start["ratio"] = 1.0
    assert watched.repeats(11, logged=False) == (0.1, 2.0) and watched.repeats(10, logged=False) is None

    idle = distiller(10, spatial=0, temporal=0)  # no teacher runs, so that there is nothing to look at
    assert idle.repeats(10, logged=True) == (0, 0)


def test_several_processes_are_refused():
    options = {"is_train": True, "dist": True, "train": {"cuda_graph": True}}
    with pytest.raises(CSDError, match=r"train\.cuda_graph is for one process"):
        check_graph(options)
    check_graph(options | {"dist": False})
