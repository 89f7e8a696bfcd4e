"""Clean moving scenes from photographs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from csd_plugin.data.scenes import moving_scene


@pytest.fixture
def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((20, 20, 1), np.uint8))


def test_frames_have_the_size_and_number_asked_for_and_move(photo):
    frames = list(moving_scene(photo, 5, (40, 60), seed=1))
    assert [frame.shape for frame in frames] == [(40, 60, 3)] * 5
    assert all(frame.dtype == np.uint8 for frame in frames)
    steps = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(frames)]
    assert all(step > 0 for step in steps)
    # consecutive frames are closer to each other than the ends of the path are
    assert max(steps) < np.abs(frames[0].astype(int) - frames[-1]).mean()


def test_a_seed_is_a_path(photo):
    one, same, other = (np.stack(list(moving_scene(photo, 3, (40, 60), seed=seed))) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
