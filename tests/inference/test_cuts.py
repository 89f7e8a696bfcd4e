"""Windows never hold frames of two shots, and fast motion is no cut."""

from __future__ import annotations

from itertools import chain

import cv2
import numpy as np
import pytest
import torch
from synthetic import moving_scene

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.inference.cuts import CutDetector
from csd_plugin.inference.files import paired
from csd_plugin.inference.runner import Derainer


def cuts(frames) -> list[int]:
    detector = CutDetector()
    return [number for number, frame in enumerate(frames) if detector.cut(frame)]


def shots() -> list[list[np.ndarray]]:
    """Three of different colours."""
    tints = ((1, 0.5, 0.2), (0.3, 0.8, 0.9), (0.9, 0.9, 0.1))
    return [
        [(frame * tint).astype(np.uint8) for frame in moving_scene(5, 48, 64, seed)] for seed, tint in enumerate(tints)
    ]


def test_cuts_are_found_in_8_and_16_bits_and_at_any_size():
    clip = [frame for shot in shots() for frame in shot]
    assert cuts(clip) == [5, 10]
    assert cuts([frame.astype(np.uint16) * 257 for frame in clip]) == [5, 10]
    assert cuts([cv2.resize(frame, (15, 11)) for frame in clip]) == [5, 10]


@pytest.mark.parametrize("speed", [4, 16, 48])
def test_fast_motion_is_no_cut(speed):
    wide = cv2.resize(moving_scene(1, 48, 400, 3)[0], (1600, 192))
    assert cuts(wide[:, speed * i : speed * i + 256] for i in range(20)) == []


def test_slow_light_is_no_cut():
    assert cuts(np.full((30, 40, 3), level, np.uint8) for level in range(20, 240, 10)) == []


@pytest.mark.parametrize(("rows", "found"), [(7, []), (8, [1])])
def test_more_than_a_quarter_of_the_colours_change_at_a_cut(rows, found):
    before = np.full((27, 48, 3), 40, np.uint8)  # as large as what is compared
    after = before.copy()
    after[:rows] = 200  # 0.259 or 0.296 of it
    assert cuts([before, after]) == found


@pytest.mark.parametrize(("level", "found"), [(131, []), (133, [1])])
def test_a_cut_is_more_than_a_step_of_light(level, found):
    """By 11 or 13 grey levels; either way all pixels count as of another colour."""
    assert cuts(np.full((30, 40, 3), grey, np.uint8) for grey in (120, level)) == found


def test_real_clips(shared):
    root = shared / "data" / "NTURain"
    rain = [
        [cv2.imread(str(path)) for path in sorted((root / clip).iterdir())[:20]]
        for clip in ("Dataset_Testing_Synthetic/a1_Rain", "Dataset_Testing_RealRain/ra1_Rain")
    ]
    assert cuts([*rain[0], *rain[1], *rain[0]]) == [20, 40]


def test_every_shot_is_derained_as_a_clip_of_its_own():
    torch.manual_seed(0)
    network = SLDNet(
        num_frame=5, num_feat=3, num_pair=4, num_transition=4, reducing=(4, 7, 10, 13), init_type="kaiming"
    )
    derainer = Derainer(network, device="cpu", batch=2)
    pairs = list(paired([frame for shot in shots() for frame in shot], derainer))
    assert [number for number, pair in enumerate(pairs) if pair.begins_shot] == [5, 10]
    alone = [clean for shot in shots() for clean in derainer(shot)]
    assert all(np.array_equal(pair.clean, clean) for pair, clean in zip(pairs, alone, strict=True))
    assert all(np.array_equal(pair.rainy, frame) for pair, frame in zip(pairs, chain(*shots()), strict=True))
