"""The warping error: nothing for what stands still or moves as the guide does, more for what flickers more."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from csd_plugin.errors import CSDError
from csd_plugin.metrics.warping import SCALE, correspondence, warp, warping_error

HEIGHT, WIDTH = 72, 96


def texture(seed=0, margin=8):
    """(H, W + margin, 3) smooth random colours."""
    noise = np.random.default_rng(seed).uniform(0, 255, (HEIGHT, WIDTH + margin, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 20, 220, cv2.NORM_MINMAX).astype(np.uint8)


def moved(by, seed=0):
    """The picture, moved to the right by so many pixels."""
    return np.ascontiguousarray(texture(seed)[:, 8 - by : 8 - by + WIDTH])


def brighter(image, by):
    return np.clip(image.astype(int) + by, 0, 255).astype(np.uint8)


def plain_difference(a, b):
    return SCALE * np.square(a / 255 - b / 255).mean()


def test_a_static_clip_has_none():
    assert warping_error(moved(0), moved(0), moved(0), moved(0)) == 0


@pytest.mark.parametrize("by", [1, 3, 5])
def test_a_translated_clip_has_almost_none(by):
    error = warping_error(moved(by), moved(0), moved(by), moved(0))
    assert error < 0.005
    assert error < plain_difference(moved(by), moved(0)) / 500


def test_a_guide_may_be_smaller_by_a_whole_factor():
    """As the input of super-resolution is."""
    small = [cv2.resize(moved(by), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for by in (4, 0)]
    enlarged = [cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for image in small]
    error = warping_error(moved(4), moved(0), *small)
    assert error == warping_error(moved(4), moved(0), *enlarged) < plain_difference(moved(4), moved(0)) / 100


@pytest.mark.parametrize("by", [0, 3])
def test_it_grows_with_flicker_by_its_square(by):
    errors = [warping_error(brighter(moved(by), f), moved(0), moved(by), moved(0)) for f in (0, 2, 5, 10, 20)]
    assert errors == sorted(errors)
    for flicker, error in zip((5, 10, 20), errors[2:], strict=True):
        assert error == pytest.approx(SCALE * (flicker / 255) ** 2, rel=0.02, abs=0.002)


def test_a_blurred_clip_is_steady_too():
    blurred = cv2.GaussianBlur(texture(), (0, 0), 4)
    assert warping_error(blurred[:, 5 : 5 + WIDTH], blurred[:, 8 : 8 + WIDTH], moved(3), moved(0)) < 0.005


def test_what_leaves_the_frame_or_is_hidden_does_not_count():
    flow, valid = correspondence(moved(5), moved(0))
    assert np.abs(flow[10:-10, 10:-10] - [-5, 0]).max() < 0.5
    assert not valid[:, :4].any()  # came in at the left
    assert valid[:, 8:].mean() > 0.95
    dirty = moved(5)
    dirty[:, :3] = 0
    assert warping_error(dirty, moved(0), moved(5), moved(0)) < 0.005


def test_neither_does_what_leaves_it_at_the_top():
    now, before = (np.ascontiguousarray(moved(by).transpose(1, 0, 2)) for by in (5, 0))
    flow, valid = correspondence(now, before)
    assert np.abs(flow[10:-10, 10:-10] - [0, -5]).max() < 0.5
    assert not valid[:4].any() and valid[8:].mean() > 0.95


def test_nor_what_something_was_before():
    """A square moves by 8 pixels over what stands still, and uncovers some of it."""
    frames = []
    for left in (38, 30):
        frames.append(moved(0, seed=1))
        frames[-1][20:50, left : left + 30] = moved(0, seed=2)[:30, :30]
    _, valid = correspondence(*frames)
    assert valid[20:50, 30:38].mean() < 0.3
    assert valid[25:45, 43:63].mean() > 0.9 and valid[:15].mean() > 0.9


def test_a_scene_cut_has_no_error():
    before, after = moved(0), 255 - moved(0)
    assert correspondence(after, before)[1].mean() < 0.25
    assert warping_error(after, before, after, before) is None
    for columns, error in ((12, None), (40, pytest.approx(0.5, abs=0.5))):  # that stay: an eighth, five twelfths
        partly = after.copy()
        partly[:, :columns] = before[:, :columns]
        assert correspondence(partly, before)[1].any()
        assert warping_error(partly, before, partly, before) == error
    assert warping_error(after, before, before, before) > 50  # the guide goes on: it is the result that jumps


def test_warping_by_whole_pixels_is_exact():
    image = moved(0).astype(np.float32)
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    assert np.array_equal(warp(image, flow), image)
    flow[..., 0], flow[..., 1] = 2, -1
    assert np.array_equal(warp(image, flow)[1:, :-2], image[:-1, 2:])
    flow[..., 0], flow[..., 1] = 0.5, 0
    assert np.allclose(warp(image, flow)[:, :-1], (image[:, 1:] + image[:, :-1]) / 2)


def test_frames_that_do_not_fit():
    small = moved(0)[:11]
    for frames in ((moved(0), moved(0), moved(0), small), (small,) * 4):
        with pytest.raises(CSDError, match="at least 12x12; these are"):
            warping_error(*frames)
