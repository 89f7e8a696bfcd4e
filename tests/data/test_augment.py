from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from csd_plugin.data.augment import Augmentation, AugmentOptions, apply, apply_to_tensor, draw
from csd_plugin.errors import CSDError

PLAIN = Augmentation(top=3, left=5, side=9, crop=9, hflip=False, vflip=False, rot=False, reverse=False)
FRAMES = list(np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), dtype=np.uint8))
EVERYTHING = AugmentOptions(crop=21, scale=(0.4, 2.0), vflip=True, rot=True, reverse=True)


def regions(plan):
    return [frame[plan.top : plan.top + plan.side, plan.left : plan.left + plan.side] for frame in FRAMES]


def test_same_seed_same_draw_and_seeds_differ():
    draws = [draw(np.random.default_rng(seed), 480, 640, EVERYTHING, "a1") for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
def test_region_lies_in_the_frame(seed, height, width, crop):
    options = replace(EVERYTHING, crop=crop)
    if crop > 2 * min(height, width):
        with pytest.raises(CSDError, match=rf"a1: frames of {width}x{height} .*gt_size {crop}"):
            draw(np.random.default_rng(seed), height, width, options, "a1")
        return
    plan = draw(np.random.default_rng(seed), height, width, options, "a1")
    assert 1 <= plan.side <= min(height, width)
    assert 0 <= plan.top <= height - plan.side
    assert 0 <= plan.left <= width - plan.side
    assert round(crop / 2.0) <= max(plan.side, 1) <= np.ceil(crop / 0.4)


def test_draws_cover_what_is_asked_for_and_nothing_else():
    rng = np.random.default_rng(0)
    plans = [draw(rng, 60, 80, replace(EVERYTHING, crop=20), "a1") for _ in range(400)]
    sides = {plan.side for plan in plans}
    assert sides <= set(range(10, 51)) and len(sides) > 35
    for flag in ("hflip", "vflip", "rot", "reverse"):
        assert 140 < sum(getattr(plan, flag) for plan in plans) < 260
    assert len({(plan.hflip, plan.vflip, plan.rot, plan.reverse) for plan in plans}) == 16
    quiet = [draw(rng, 9, 60, AugmentOptions(crop=9, hflip=False), "a1") for _ in range(900)]
    assert {(plan.top, plan.side, plan.hflip, plan.vflip, plan.rot, plan.reverse) for plan in quiet} == {
        (0, 9, False, False, False, False)
    }
    assert {plan.left for plan in quiet} == set(range(52))
    shrunk = {draw(rng, 60, 80, AugmentOptions(crop=20, scale=(0.5, 0.8)), "a1").side for _ in range(400)}
    assert shrunk == set(range(25, 41))
    upright = [draw(rng, 60, 9, AugmentOptions(crop=9), "a1") for _ in range(900)]
    assert {plan.top for plan in upright} == set(range(52)) and {plan.left for plan in upright} == {0}


@pytest.mark.parametrize(("scale", "side"), [(1.25, 17), (1.3, 16), (0.8, 26), (0.7, 30)])
def test_a_region_is_as_near_to_its_scale_as_whole_pixels_are(scale, side):
    options = AugmentOptions(crop=21, scale=(scale, scale))
    assert draw(np.random.default_rng(0), 60, 80, options, "a1").side == side  # 21 / scale, rounded


def test_plain_crop_is_the_region():
    assert np.array_equal(apply(PLAIN, regions(PLAIN)), np.stack([frame[3:12, 5:14] for frame in FRAMES]))


@pytest.mark.parametrize(
    ("flag", "slow"),
    [
        ("hflip", lambda clip: np.stack([cv2.flip(frame, 1) for frame in clip])),
        ("vflip", lambda clip: np.stack([cv2.flip(frame, 0) for frame in clip])),
        ("rot", lambda clip: np.stack([cv2.transpose(frame) for frame in clip])),
        ("reverse", lambda clip: np.stack(list(reversed(list(clip))))),
    ],
)
def test_flips(flag, slow):
    plan = replace(PLAIN, **{flag: True})
    assert np.array_equal(apply(plan, regions(plan)), slow(apply(PLAIN, regions(PLAIN))))


@pytest.mark.parametrize("side", [7, 20])
def test_scaling_resizes_the_region_as_pillow_does(side):
    plan = replace(PLAIN, side=side, crop=11)
    slow = [Image.fromarray(region).resize((11, 11), Image.Resampling.BICUBIC) for region in regions(plan)]
    difference = apply(plan, regions(plan)).astype(int) - np.stack(slow)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("side", [7, 11, 20])
@pytest.mark.parametrize("flag", ["hflip", "vflip", "rot", "reverse"])
def test_tensors_are_augmented_as_frames_are_also_where_contrast_is_sharp(side, flag):
    """Bicubic weights go beyond black and white there, in rows before it comes to columns."""
    plan = replace(PLAIN, side=side, crop=11, **{flag: True})
    sharp = [(region > 127).astype(np.uint8) * 255 for region in regions(plan)]
    found = apply_to_tensor(plan, torch.from_numpy(np.stack(sharp)))
    assert found.dtype == torch.float32 and found.min() == 0 and found.max() == 1
    expected = apply(plan, sharp).astype(int).transpose(0, 3, 1, 2)
    assert np.abs((found * 255).round().int().numpy() - expected).max() <= 1


@pytest.mark.parametrize("options", [{"crop": 0}, {"crop": 8, "scale": (2.0, 1.0)}, {"crop": 8, "scale": (0.0, 1.0)}])
def test_impossible_options(options):
    with pytest.raises(CSDError, match=r"gt_size|scale_range"):
        AugmentOptions(**options)
