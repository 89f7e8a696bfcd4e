from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csd_plugin.data.windows import clip_starts, join_windows, reflect_indices, slice_windows, target_slice
from csd_plugin.errors import CSDError


@pytest.mark.parametrize(
    ("center", "num_frame", "length", "expected"),
    [
        (0, 7, 100, [3, 2, 1, 0, 1, 2, 3]),
        (98, 5, 100, [96, 97, 98, 99, 98]),
        (5, 3, 10, [4, 5, 6]),
        (0, 1, 1, [0]),
        (0, 5, 1, [0] * 5),
        (1, 7, 2, [0, 1, 0, 1, 0, 1, 0]),
        (1, 9, 3, [1, 2, 1, 0, 1, 2, 1, 0, 1]),
    ],
)
def test_reflection(center, num_frame, length, expected):
    assert reflect_indices(center, num_frame, length) == expected


@given(st.integers(1, 9), st.integers(0, 8), st.integers(0, 6))
def test_reflection_walks_back_and_forth(length, center, radius):
    center = min(center, length - 1)
    window = reflect_indices(center, 2 * radius + 1, length)
    assert window[radius] == center
    for a, b in pairwise(window):
        assert abs(a - b) == (length > 1)
    assert set(window) <= set(range(length))


@pytest.mark.parametrize("call", [lambda: reflect_indices(0, 4, 9), lambda: reflect_indices(9, 3, 9)])
def test_reflection_refuses_what_has_no_window(call):
    with pytest.raises(CSDError):
        call()


def test_clip_starts():
    assert list(clip_starts(13, 11)) == [0, 1, 2]
    assert list(clip_starts(11, 11)) == [0]
    assert not clip_starts(10, 11)


def test_target_slice():
    assert target_slice(11, 5) == slice(3, 8)
    assert target_slice(5, 5) == slice(0, 5)
    for num_frame, num_target in ((11, 4), (4, 5), (11, 0)):
        with pytest.raises(CSDError, match=f"num_frame={num_frame}.*num_target={num_target}"):
            target_slice(num_frame, num_target)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))
def test_windows_are_centred_on_their_targets(batch, num_target, margin, radius):
    num_input = num_target + 2 * margin
    clip = torch.arange(batch * num_input).view(batch, num_input, 1, 1, 1).expand(-1, -1, 3, 2, 2).float()
    if radius > margin:
        with pytest.raises(CSDError):
            slice_windows(clip, num_target, 2 * radius + 1)
        return
    windows = slice_windows(clip, num_target, 2 * radius + 1)
    assert windows.shape == (batch * num_target, 2 * radius + 1, 3, 2, 2)
    slow = [clip[b, margin + t - radius : margin + t + radius + 1] for b in range(batch) for t in range(num_target)]
    assert torch.equal(windows, torch.stack(slow))


def test_a_network_that_sees_more_than_the_clip_gives_is_told_what_to_set():
    with pytest.raises(CSDError, match=r"needs 7 frames.*clip of 9 with 5 targets.*5 at most.*num_frame.* 11 or more"):
        slice_windows(torch.zeros(1, 9, 3, 4, 4), num_target=5, num_frame=7)
    with pytest.raises(CSDError, match="odd"):
        slice_windows(torch.zeros(1, 9, 3, 4, 4), num_target=5, num_frame=2)


@given(st.integers(1, 9), st.integers(0, 4), st.data())
def test_joined_windows_are_the_clip_with_its_reflections(length, radius, data):
    num_frame = 2 * radius + 1
    first = data.draw(st.integers(0, length - 1))
    last = data.draw(st.integers(first, length - 1))
    indices = [reflect_indices(center, num_frame, length) for center in range(first, last + 1)]
    windows = torch.tensor(indices)[..., None, None, None].float()
    clip = join_windows(windows)
    assert clip.shape[1] == last - first + num_frame
    assert torch.equal(slice_windows(clip, last - first + 1, num_frame), windows)
