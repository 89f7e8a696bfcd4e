"""Held-back frames: they are scored as they are in their clip, not as a clip of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import TEST, moving_scene, rain_on, write_image, write_ntu_rain

from csd_plugin.adapt import shots
from csd_plugin.adapt.cache import open_cache
from csd_plugin.adapt.scoring import Clip, cleaned, flicker, held_back, nearness, quality, validation_clips
from csd_plugin.adapt.teacher import open_teacher
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.inference.runner import Derainer


def test_frames_around_those_that_are_scored_count():
    torch.manual_seed(0)
    network = SLDNet(preset="student2", num_feat=4)
    scene = moving_scene(12, 24, 32, 0)
    rainy = rain_on(scene, 1)
    whole = list(Derainer(network, device="cpu")(rainy))
    clip = Clip("a", rainy[2:], scene[5:], lead=3)
    for part in (clip, clip.first(2, context=3)):
        [frames] = cleaned(network, [part], "cpu")
        assert len(frames) == len(part.clean)
        for ours, expected in zip(frames, whole[5:], strict=False):
            np.testing.assert_array_equal(ours, expected)


def test_equal_frames_are_near_but_not_infinitely():
    scene = moving_scene(3, 24, 32, 0)
    clip = Clip("a", scene, scene)
    assert nearness([scene], [clip]) == 100
    assert 30 < nearness([[frame + 1 for frame in scene]], [clip]) < 60


def test_held_back_frames_at_the_end_of_a_shot_are_scored_as_they_are_in_the_video(tmp_path, monkeypatch):
    monkeypatch.setattr(shots, "_RUN", 12)
    rainy = rain_on(moving_scene(40, 24, 32, 0), 1)
    for number, frame in enumerate(rainy, start=1):
        write_image(tmp_path / "long" / f"{number:05d}.png", frame)
    torch.manual_seed(0)
    network = SLDNet(preset="student2", num_feat=4)
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    teacher = open_teacher([str(tmp_path / "net.pth")], ensemble=False, device="cpu")
    cache = open_cache(tmp_path / "cache", [tmp_path / "long"], teacher, ensemble=False, most=24, say=print)
    clips = held_back(cache, teacher.context)
    whole = list(Derainer(network, device="cpu")(rainy))
    for clip, frames, first in zip(clips, cleaned(network, clips, "cpu"), (9, 37), strict=True):
        np.testing.assert_array_equal(frames, whole[first : first + 3])
        np.testing.assert_array_equal(clip.clean, frames)  # the same network as its own teacher


def test_validation_frames_are_scored_as_they_are_in_their_clip(tmp_path):
    write_ntu_rain(tmp_path, frames=26, height=24, width=32, clips={f"{TEST}/a1": ("GT", "Rain")})
    torch.manual_seed(0)
    network = SLDNet(preset="student2", num_feat=4)
    [clip] = validation_clips(tmp_path, context=3)
    [everything] = validation_clips(tmp_path, context=30)
    assert len(everything.rainy) == 26 and clip.number == everything.number == 6
    [frames], [expected] = (cleaned(network, [one], "cpu") for one in (clip, everything))
    np.testing.assert_array_equal(frames, expected)
    assert len(frames) == len(clip.clean) == 16


def test_averages_are_those_of_clips_as_csd_score_has_them():
    """A clip of two frames counts as much as one of eight."""
    scenes = [moving_scene(length, 96, 96, seed) for seed, length in enumerate((2, 8))]
    clips = [Clip(str(number), rain_on(scene, number), scene) for number, scene in enumerate(scenes)]
    results = [[frame + 8 for frame in scenes[0]], [frame // 2 + number for number, frame in enumerate(scenes[1])]]
    for mean in (nearness, flicker):
        apart = [mean([result], [clip]) for result, clip in zip(results, clips, strict=True)]
        assert apart[0] != pytest.approx(apart[1], rel=0.1)
        assert mean(results, clips) == pytest.approx(sum(apart) / 2)
    network = SLDNet(preset="student2", num_feat=4)
    assert nearness(cleaned(network, clips, "cpu"), clips) == pytest.approx(quality(network, clips, "cpu").psnr)
