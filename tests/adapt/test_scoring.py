"""Held-back frames: they are scored as they are in their clip, not as a clip of their own."""

from __future__ import annotations

import numpy as np
import torch
from synthetic import moving_scene, rain_on

from csd_plugin.adapt.scoring import Clip, cleaned, nearness
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.inference.runner import Derainer


def test_frames_around_those_that_are_scored_count():
    torch.manual_seed(0)
    network = SLDNet(preset="student2", num_feat=4)
    scene = moving_scene(12, 24, 32, 0)
    rainy = rain_on(scene, 1)
    whole = list(Derainer(network, device="cpu")(rainy))
    clip = Clip("a", rainy[2:], scene[5:], lead=3)
    for part in (clip, clip.first(2)):
        [frames] = cleaned(network, [part], "cpu")
        assert len(frames) == len(part.clean)
        for ours, expected in zip(frames, whole[5:], strict=False):
            np.testing.assert_array_equal(ours, expected)


def test_equal_frames_are_near_but_not_infinitely():
    scene = moving_scene(3, 24, 32, 0)
    clip = Clip("a", scene, scene)
    assert nearness([scene], [clip]) == 100
    assert 30 < nearness([[frame + 1 for frame in scene]], [clip]) < 60
