"""Batches of any data set as clips and targets: which frames are whose truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import write_image

from csd_plugin.data.batches import as_clips
from csd_plugin.errors import CSDError
from csd_plugin.models.batches import Item, check_pair_sizes


def frames(*shape):
    """Each frame's value is its number in its clip; of clips that follow, 100 more each."""
    values = torch.zeros(*shape, 3, 4, 4)
    for i in range(shape[0]):
        values[i] += 100 * i
    for j in range(shape[1] if len(shape) > 1 else 0):
        values[:, j] += j
    return values


@pytest.mark.parametrize("batch", [1, 3])  # three of an axis are as many as there are colours
@pytest.mark.parametrize(
    ("given", "truth", "num_frame", "wanted"),
    [
        ((7,), (3,), 3, [0, 1, 2]),  # the targets of the middle, as our data sets give them
        ((7,), (1,), 7, [0]),
        ((7,), (), 3, [0]),  # the toolbox's one target
        ((3,), (), 3, [0]),
        ((1,), (), 1, [0]),
        ((), (), 1, [0]),  # single images
        ((1,), (1,), 1, [0]),
        ((5,), (5,), 3, [1, 2, 3]),  # the truth of every frame
        ((4,), (4,), 3, [1, 2]),
        ((3,), (3,), 3, [1]),
        ((5,), (5,), 1, [0, 1, 2, 3, 4]),
    ],
)
def test_the_targets_are_those_of_whole_windows(batch, given, truth, num_frame, wanted):
    lq, gt = as_clips({"lq": frames(batch, *given), "gt": frames(batch, *truth)}, num_frame, "Any")
    assert lq.shape == (batch, *(given or (1,)), 3, 4, 4)
    assert gt[..., 0, 0, 0].tolist() == [[100 * i + j for j in wanted] for i in range(batch)]


@pytest.mark.parametrize(
    ("given", "truth", "num_frame", "words"),
    [
        ((), (), 3, "single frames, but a network needs 3"),
        ((1,), (1,), 3, "single frames, but a network needs 3"),
        ((), (1,), 1, "targets of their size"),
        ((4,), (), 3, "1 targets cannot be centred in 4 frames; set num_frame to 5 or 3"),
        ((5,), (), 7, "windows of 5 frames, but a network needs 7; set its num_frame to 7 or more"),
        ((7,), (3,), 7, "windows of 5 frames, but a network needs 7; set its num_frame to 9 or more"),
        ((5,), (5,), 7, "the clips need 7 frames or more"),
        ((3,), (5,), 3, "the clips need 3 frames or more"),
    ],
)
def test_what_does_not_go_together_is_one_line(given, truth, num_frame, words):
    with pytest.raises(CSDError) as caught:
        as_clips({"lq": frames(2, *given), "gt": frames(2, *truth)}, num_frame, "datasets.train: AnyDataset")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("datasets.train: AnyDataset gives lq (2, ")


def test_frames_of_other_sizes_and_colours_are_refused():
    for gt in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 4, 4), torch.zeros(3, 3, 4, 4)):
        with pytest.raises(CSDError, match="targets of their size"):
            as_clips({"lq": frames(2, 5), "gt": gt}, 3, "Any")
    for key in ("lq", "gt"):
        with pytest.raises(CSDError, match=f"Any gives no {key}; these models learn from pairs"):
            as_clips({"lq": frames(2, 5), "gt": frames(2)} | {key: None}, 3, "Any")


def test_targets_are_larger_by_the_scale_on_both_sides():
    lq = torch.zeros(2, 3, 3, 4, 6)
    assert as_clips({"lq": lq, "gt": torch.zeros(2, 3, 8, 12)}, 3, "Any", scale=2)[1].shape == (2, 1, 3, 8, 12)
    for size in ((4, 6), (8, 6), (4, 12), (12, 8), (16, 24)):
        with pytest.raises(CSDError, match="targets of 2 times their size: check that the scale of the data set is 2"):
            as_clips({"lq": lq, "gt": torch.zeros(2, 3, *size)}, 3, "Any", scale=2)


@pytest.mark.parametrize(
    ("truth", "file", "fits"),
    [
        ((12, 15), (12, 15), True),
        ((12, 15), (14, 17), True),  # the toolbox has cut off less than a pixel of the input
        ((12, 15), (15, 15), False),
        ((12, 15), (12, 18), False),
        ((12, 15), (11, 15), False),
        ((12, 15), None, True),
        ((14, 17), None, False),
        ((12, 14), None, False),
    ],
)
def test_truth_is_larger_than_its_frame_by_the_scale(tmp_path, truth, file, fits):
    path = None
    if file:
        path = tmp_path / "truth.png"
        write_image(path, np.zeros((*file, 3), np.uint8))
    item = Item(0, "street", "0007", 0, torch.zeros(1, 3, 4, 5), torch.zeros(3, *truth), path)
    if fits:
        check_pair_sizes(item, 3)
        return
    height, width = file or truth
    with pytest.raises(CSDError, match=f"street, frame 0007: the truth is {width}x{height}, but the frame is 5x4 at"):
        check_pair_sizes(item, 3)


@pytest.mark.parametrize(
    ("lq", "gt", "words"),
    [
        ((2, 5, 24, 20, 3), (2, 3, 24, 20, 3), "clips.movedim(-1, -3)"),
        ((2, 5, 24, 20, 3), (2, 24, 20, 3), "clips.movedim(-1, -3)"),
        ((2, 3, 7, 24, 20), (2, 3, 5, 24, 20), "clips.transpose(1, 2)"),
        ((2, 3, 7, 24, 20), (2, 3, 7, 24, 20), "clips.transpose(1, 2)"),
    ],
)
def test_axes_in_the_order_of_other_packages_are_told(lq, gt, words):
    lq, gt = torch.zeros(lq), torch.zeros(gt)
    with pytest.raises(CSDError, match="the axes are ") as error:
        as_clips({"lq": lq, "gt": gt}, 3, "the batch")
    assert str(error.value).endswith(f"give both as {words}")
    turned = {key: eval(words, {"clips": clips}) for key, clips in (("lq", lq), ("gt", gt))}
    assert as_clips(turned, 3, "the batch")[0].shape[2:] == (3, 24, 20)


def test_grey_frames_are_not_taken_for_others():
    lq, _ = as_clips({"lq": torch.zeros(2, 3, 1, 8, 8), "gt": torch.zeros(2, 3, 1, 8, 8)}, 1, "the batch")
    assert lq.shape == (2, 3, 1, 8, 8)


def test_a_batch_that_is_no_dict_is_told():
    with pytest.raises(CSDError, match="the batch gives a list; give a dict of lq, "):
        as_clips([torch.zeros(2, 5, 3, 8, 8), torch.zeros(2, 3, 3, 8, 8)], 3, "the batch")
