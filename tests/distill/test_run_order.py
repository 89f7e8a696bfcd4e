"""Layers that run once for each frame: forward or backward in time, or as stages that only look like it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from csd_plugin.archs.interface import Interface
from csd_plugin.distill.distiller import Distiller, Teacher
from csd_plugin.distill.interface import Objective
from csd_plugin.distill.run_order import find_run_orders
from csd_plugin.distill.taps import Runs, tap_layers
from csd_plugin.types import Terms

WIDTH = 6


def conv(frames: int = 1) -> nn.Conv2d:
    return nn.Conv2d(frames * WIDTH, WIDTH, 3, padding=1)


class Recurrent(nn.Module):
    """A sequence in one direction; `gain` of its state in the next one, and frames to each side that it sees ahead."""

    def __init__(self, *, backward: bool, gain: float = 1.0, ahead: int = 0):
        super().__init__()
        self.backward, self.gain, self.ahead = backward, gain, ahead
        self.head, self.tail = nn.Conv2d(3 * (2 * ahead + 1), WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 3, 1)

    def forward(self, clip):
        near = [clip[:, :1]] * self.ahead + [clip] + [clip[:, -1:]] * self.ahead
        near = torch.cat(near, dim=1)
        state, made = 0.0, [None] * clip.shape[1]
        order = range(clip.shape[1])
        for i in reversed(order) if self.backward else order:
            state = self.gain * state + self.head(near[:, i : i + 2 * self.ahead + 1].flatten(1, 2))
            made[i] = self.tail(state)
        return torch.stack(made, dim=1)


class BothWays(nn.Module):
    """As in BasicVSR++: each of four passes over a sequence uses what all earlier ones have made."""

    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(5 * WIDTH, 3, 1)
        self.passes = nn.ModuleList(conv(number + 2) for number in range(4))

    def forward(self, clip):
        made = [[self.head(frame) for frame in clip.unbind(1)]]
        for number, step in enumerate(self.passes):
            state, order, found = torch.zeros_like(made[0][0]), range(clip.shape[1]), {}
            for i in order if number % 2 else reversed(order):
                state = 0.5 * state + step(torch.cat([*(earlier[i] for earlier in made), state], dim=1))
                found[i] = state
            made.append([found[i] for i in order])
        return torch.stack([self.tail(torch.cat(parts, dim=1)) for parts in zip(*made, strict=True)], dim=1)


class Stages(nn.Module):
    """A window, or a sequence, of which a block with shared weights improves the whole as often as it has frames."""

    def __init__(self, frames: int, *, gives_clip: bool = False):
        super().__init__()
        self.frames, self.gives_clip = frames, gives_clip
        self.head, self.block = nn.Conv2d(3 * frames, WIDTH, 3, padding=1), nn.Sequential(conv(), nn.ReLU())
        self.tail = nn.Conv2d(WIDTH, 3 * frames if gives_clip else 3, 3, padding=1)

    def forward(self, clip):
        state = self.head(clip.flatten(1, 2))
        for _ in range(self.frames):
            state = state + self.block(state)
        return self.tail(state).unflatten(1, (self.frames, 3)) if self.gives_clip else self.tail(state)


class Aligned(nn.Module):
    """A window whose frames are each compared with the centre, as in EDVR."""

    def __init__(self):
        super().__init__()
        self.head, self.align, self.tail = nn.Conv2d(3, WIDTH, 3, padding=1), conv(2), conv(5)

    def forward(self, window):
        features = [self.head(frame) for frame in window.unbind(1)]
        return self.tail(torch.cat([self.align(torch.cat([one, features[2]], dim=1)) for one in features], dim=1))[
            :, :3
        ]


class Counts(nn.Module):
    """Counts its passes, in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return x


def found(network, interface, layer, num_target=1, size=(20, 24)):
    """The order of the layer's runs."""
    [tap] = tap_layers(network, [layer])
    find_run_orders(network, interface, [tap], num_target, size)
    tap.remove()
    return tap.runs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("frames", [2, 3, 7])
@pytest.mark.parametrize("keywords", [{}, {"gain": 0.2}, {"gain": 3.0}, {"ahead": 1}], ids=str)
def test_the_direction_of_recurrent_layers_is_found(keywords, frames, seed):
    torch.manual_seed(seed)
    ahead = keywords.get("ahead", 0)
    for backward, order in ((False, Runs.FORWARD), (True, Runs.BACKWARD)):
        network = Recurrent(backward=backward, **keywords)
        if 2 * ahead < frames:  # otherwise all runs see all frames
            assert found(network, Interface(1, "sequence"), "tail", frames) is order


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("layer", "order"), [("passes.2", Runs.BACKWARD), ("passes.3:output", Runs.FORWARD)])
def test_the_direction_is_found_where_every_run_depends_on_all_frames(layer, order, seed):
    torch.manual_seed(seed)
    assert found(BothWays(), Interface(1, "sequence"), layer, 5) is order
    assert found(BothWays(), Interface(1, "sequence"), "tail", 5) is Runs.FORWARD


def test_the_directions_of_a_network_of_the_toolbox():
    from csd_plugin import registration

    registration.install()
    from basicsr.archs.basicvsr_arch import BasicVSR

    torch.manual_seed(0)
    network = BasicVSR(num_feat=8, num_block=1)
    for level in network.spynet.basic_module:
        level.basic_module = nn.Conv2d(8, 2, 7, padding=3)  # instead of five, most of the time of a pass
    interface = Interface(1, "sequence", scale=4)
    for layer, order in {
        "backward_trunk": Runs.BACKWARD,
        "forward_trunk": Runs.FORWARD,
        "fusion": Runs.FORWARD,
    }.items():
        assert found(network, interface, layer, 4, (64, 64)) is order


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("frames", [3, 5, 7])
def test_stages_on_a_whole_window_are_not_taken_for_frames(frames, seed):
    torch.manual_seed(seed)
    network, window = Stages(frames), Interface(frames, "window")
    assert found(network, window, "block") is Runs.UNCLEAR
    assert found(Stages(frames, gives_clip=True), Interface(1, "sequence"), "block", frames) is Runs.UNCLEAR


class FixedStages(nn.Module):
    """A sequence of any length, to whose frames seven stages on their mean are added; or seven on all at once."""

    def __init__(self):
        super().__init__()
        self.of_mean, self.of_all = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

    def forward(self, clip):
        mean, frames = clip.mean(dim=1), clip.flatten(0, 1)
        for _ in range(7):
            mean, frames = mean + self.of_mean(mean), frames + self.of_all(frames)
        return frames.unflatten(0, clip.shape[:2]) + mean[:, None]


def test_runs_that_do_not_follow_the_number_of_frames_are_of_no_frame():
    network, interface = FixedStages(), Interface(1, "sequence")
    assert found(network, interface, "of_mean", 7) is Runs.UNCLEAR
    for layer, frames in (("of_mean", 6), ("of_all", 7)):  # stages, as `features` says
        assert found(network, interface, layer, frames) is Runs.FORWARD


def test_layers_that_run_once_or_for_each_frame_of_a_window():
    torch.manual_seed(0)
    assert found(Aligned(), Interface(5, "window"), "align") is Runs.FORWARD
    assert found(Aligned(), Interface(5, "window"), "tail") is Runs.FORWARD


def test_the_search_leaves_the_network_and_random_numbers_as_they_were():
    torch.manual_seed(0)
    network = Recurrent(backward=True)
    network.head = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), Counts(), nn.BatchNorm2d(WIDTH), nn.Dropout2d())
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert found(network, Interface(1, "sequence"), "tail", 3) is Runs.BACKWARD
    assert network.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Compares(Objective):
    """Keeps the features that it gets."""

    terms = ("compared",)

    def forward(self, student, teacher, target):
        self.given = student.features[1][0], teacher.features[1][0]
        return Terms({"compared": (self.given[0] - self.given[1]).square().mean()}, {})


def distilled(student, teacher, interface, clip):
    """The features of both networks that an objective gets, and the warnings."""
    lines, objective = [], Compares()
    taught = Teacher(teacher, objective, interface=interface)
    d = Distiller(
        *(student, [taught], nn.L1Loss()),
        **{"weights": {"compared": 1.0}, "interface": interface, "warn": lines.append, "examine_every": 0},
    )
    d({"lq": clip, "gt": clip[:, 2:-2]})
    return *objective.given, lines


def test_a_backward_layer_is_compared_frame_by_frame():
    torch.manual_seed(0)
    clip = torch.rand(2, 7, 3, 12, 12)
    forward, backward = (Recurrent(backward=backward, gain=0.0) for backward in (False, True))
    backward.load_state_dict(forward.state_dict())
    ours, theirs, lines = distilled(forward, backward, Interface(5, "sequence", feature="tail"), clip)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours[:, 0], forward.head(clip[:, 2]))
    assert not lines


def test_of_stages_the_last_one_is_compared_and_that_is_said():
    torch.manual_seed(0)
    clip = torch.rand(2, 7, 3, 12, 12)
    student, teacher = (Stages(5).eval() for _ in range(2))
    ours, _, lines = distilled(student, teacher, Interface(5, "window", feature="block:output"), clip)
    stages = []
    student.block.register_forward_hook(lambda module, _, output: stages.append(output))
    student(clip[:, 1:6])
    torch.testing.assert_close(ours[:, 1], stages[-1])
    assert any("'block': the layer ran 5 times in one pass of 5 frames, and only the last" in line for line in lines)


class Locked(Recurrent):
    """Cannot be copied."""

    def __deepcopy__(self, known):
        raise TypeError("cannot be copied")


class OneClip(Recurrent):
    """Takes batches of two clips alone, of one size."""

    def forward(self, clip):
        assert clip.shape[0] == 2 and clip.shape[3] == 12
        return super().forward(clip)


class Centred:
    """Gives the centre frame of a sequence of five."""

    def forward(self, window):
        return super().forward(window)[:, 2]


@pytest.mark.parametrize("cls", [Locked, OneClip])
@pytest.mark.parametrize("layout", ["sequence", "window"])
def test_an_order_that_cannot_be_tried_is_said(cls, layout):
    torch.manual_seed(0)
    clip, interface, runs = torch.rand(2, 7, 3, 12, 12), Interface(5, layout, feature="tail"), 7
    networks, taken = [cls, Recurrent], "compared as if they were in the order of the frames; if they are not, or are"
    if layout == "window":
        clip, runs, networks = clip[:, 1:6], 5, [type("Windowed", (Centred, network), {}) for network in networks]
        taken = "averaged as if they were one for each frame; if they are"
    student, teacher = (network(backward=True) for network in networks)
    _, _, lines = distilled(student, teacher, interface, clip)
    [told] = [line for line in lines if "the network cannot be tried to see which run is of which" in line]
    assert told.startswith(f"feature tap 'tail': the layer runs {runs} times in a pass of {runs} frames")
    assert f"they are {taken} stages, tap another layer" in told


def test_stages_that_are_compared_like_frames_are_said():
    torch.manual_seed(0)
    clip = torch.rand(2, 7, 3, 12, 12)
    student, teacher = (Stages(7, gives_clip=True) for _ in range(2))
    _, _, lines = distilled(student, teacher, Interface(5, "sequence", feature="block"), clip)
    [told] = [line for line in lines if "'block'" in line]
    assert "the layer runs 7 times in a pass of 7 frames, and changing single frames does not show" in told


class Drifts(Recurrent):
    """Goes backward in time for as long as `turned` is 0."""

    def __init__(self):
        super().__init__(backward=True)
        self.register_buffer("turned", torch.zeros(()))

    def forward(self, clip):
        self.backward = not self.turned
        return super().forward(clip)


def test_the_order_is_kept_where_a_run_goes_on():
    """With the weights of the resumed run alone, another order could be found than that of the steps before."""
    torch.manual_seed(0)
    clip, interface = torch.rand(2, 7, 3, 12, 12), Interface(5, "sequence", feature="tail")

    def distiller():
        student = Drifts()
        taught = Teacher(Drifts(), Compares(), interface=interface)
        options = {"weights": {"compared": 1.0}, "interface": interface, "examine_every": 0}
        return Distiller(student, [taught], nn.L1Loss(), **options)

    def runs(of):
        of({"lq": clip, "gt": clip[:, 2:-2]})
        return of.student_taps[0].runs

    first = distiller()
    assert runs(first) is Runs.BACKWARD
    resumed, anew = distiller(), distiller()
    for later in (resumed, anew):
        later.student.turned.fill_(1)
    resumed.restore(json.loads(json.dumps(first.progress())))
    assert runs(resumed) is Runs.BACKWARD and runs(anew) is Runs.FORWARD
    assert resumed.progress() == first.progress()


def test_progress_of_another_form_changes_nothing():
    first = Distiller(nn.Conv2d(3, 3, 1), [], nn.L1Loss(), weights={}, interface=Interface(1, "image"))
    before = first.progress()
    for wrong in ({"orders": {"student": "SIDEWAYS"}}, {"balance": {"a": "x"}}, {"orders": 3}):
        with pytest.raises((ValueError, LookupError, AttributeError)):
            first.restore({"balance": {"a": 1.0}} | wrong)
    assert first.progress() == before
