"""What a tap captured as features of targets: layers that run several times in a pass, and axes that must be clear."""

from __future__ import annotations

import pytest
import torch

from csd_plugin.archs.interface import Captured, Interface
from csd_plugin.errors import CSDError

IMAGE, WINDOW, SEQUENCE = Interface(1, "image"), Interface(5, "window"), Interface(5, "sequence")


def features(interface, *calls, batch=2, num_target=3, volumetric=False, warn=pytest.fail):
    return interface.features(Captured(calls, volumetric), batch, num_target, "tail", warn)


@pytest.mark.parametrize(
    ("divisor", "side", "cells", "kept"),
    [
        (1, 36, 9, 9),
        (16, 48, 12, 12),
        (16, 36, 48, 36),
        (16, 36, 12, 9),
        (16, 35, 12, 9),
        (16, 33, 3, 3),
        (64, 8, 2, 1),
    ],
)
def test_cells_in_the_padding_alone_are_cut_off(divisor, side, cells, kept):
    interface = Interface(1, "image", size_divisor=divisor)
    whole = torch.rand(6, 4, cells, cells)
    cut = interface.features(Captured((whole,)), 2, 3, "tail", size=(side, side))
    assert torch.equal(cut.flatten(0, 1), whole[..., :kept, :kept])


def test_calls_for_one_frame_of_a_window_after_the_other_are_averaged_as_together():
    calls = torch.rand(5, 6, 4, 8, 8).unbind()
    torch.testing.assert_close(features(WINDOW, *calls), features(WINDOW, torch.stack(calls, 1).flatten(0, 1)))


def test_calls_for_one_frame_of_a_sequence_after_the_other_are_its_frames():
    calls = torch.rand(7, 2, 4, 8, 8).unbind()
    assert torch.equal(features(SEQUENCE, *calls), torch.stack(calls[2:5], dim=1))


@pytest.mark.parametrize(
    ("interface", "count", "number"), [(IMAGE, 6, 3), (WINDOW, 6, 4), (WINDOW, 30, 5), (SEQUENCE, 14, 7)]
)
def test_of_stages_the_last_is_compared_which_is_said(interface, count, number):
    calls = torch.rand(number, count, 4, 8, 8).unbind()
    said = []
    assert torch.equal(features(interface, *calls, warn=said.append), features(interface, calls[-1]))
    assert len(said) == 1 and f"'tail': the layer ran {number} times in one pass" in said[0]


def test_layers_that_run_once_for_each_scale_are_named_with_their_sizes():
    said = []
    calls = [torch.rand(6, 4, size, size) for size in (2, 4, 8, 16, 32)]
    assert torch.equal(features(WINDOW, *calls, warn=said.append), features(WINDOW, calls[-1]))
    assert "on 2x2 and 4x4 and 8x8 and 16x16 and 32x32 pixels" in said[0] and "only the last of them" in said[0]


def test_calls_that_are_not_the_frames_of_a_sequence_are_refused():
    with pytest.raises(CSDError, match=r"'tail'.*the last of a layer that ran 6 times in one pass of 7 frames.*tap an"):
        features(SEQUENCE, *torch.rand(6, 2, 4, 8, 8).unbind())


@pytest.mark.parametrize(
    ("interface", "shape", "time"),
    [
        (WINDOW, (6, 3, 6, 8, 8), 1),  # fewer frames than the window has, before the channels
        (WINDOW, (6, 6, 3, 8, 8), 2),
        (WINDOW, (6, 8, 1, 8, 8), 2),
        (WINDOW, (6, 1, 8, 8, 8), 1),
        (WINDOW, (6, 1, 1, 8, 8), 2),
        (IMAGE, (6, 4, 1, 8, 8), 2),
        (IMAGE, (6, 1, 4, 8, 8), 1),
    ],
)
def test_frames_are_the_axis_that_is_no_longer_than_the_window(interface, shape, time):
    captured = torch.rand(shape)
    torch.testing.assert_close(features(interface, captured).flatten(0, 1), captured.mean(dim=time))


@pytest.mark.parametrize("shape", [(2, 7, 1, 8, 8), (2, 1, 7, 8, 8), (14, 1, 4, 8, 8), (14, 4, 1, 8, 8)])
def test_a_single_channel_or_frame_of_a_sequence_stays_what_it_is(shape):
    captured = torch.rand(shape)
    channels = 1 if shape[0] == 2 else 4
    assert torch.equal(features(SEQUENCE, captured), captured.reshape(2, 7, channels, 8, 8)[:, 2:5])


@pytest.mark.parametrize(
    ("interface", "shape"),
    [
        (WINDOW, (6, 3, 5, 8, 8)),
        (WINDOW, (6, 4, 1, 8, 8)),  # four channels of a frame, or one channel of four frames
        (WINDOW, (6, 8, 9, 8, 8)),
        (IMAGE, (6, 4, 3, 8, 8)),
        (SEQUENCE, (2, 7, 7, 8, 8)),
    ],
)
def test_axes_that_may_be_either_are_refused(interface, shape):
    with pytest.raises(CSDError, match="not clearly: which axis has frames, of which there are"):
        features(interface, torch.rand(shape))


@pytest.mark.parametrize("shape", [(6, 3, 5, 8, 8), (6, 4, 1, 8, 8), (6, 4, 7, 8, 8)])
def test_layers_for_volumes_say_which_axis_has_frames(shape):
    captured = torch.rand(shape)
    found = features(WINDOW, captured, volumetric=True)
    torch.testing.assert_close(found.flatten(0, 1), captured.mean(dim=2))
    whole = torch.rand(2, 7, 7, 8, 8)
    assert torch.equal(features(SEQUENCE, whole, volumetric=True), whole.transpose(1, 2)[:, 2:5])


@pytest.mark.parametrize("shape", [(), (6,), (6, 4, 8), (0, 4, 8, 8), (36, 4, 8, 8)])  # the last: parts of frames
@pytest.mark.parametrize("interface", [IMAGE, WINDOW, SEQUENCE])
def test_other_shapes_are_refused(interface, shape):
    with pytest.raises(CSDError, match="holds no feature for each of 2 x 3 targets; tap another"):
        features(interface, torch.rand(shape))
