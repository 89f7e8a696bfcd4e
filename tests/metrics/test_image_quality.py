"""The fast metrics against scikit-image, which stays the independent reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from csd_plugin.errors import CSDError
from csd_plugin.metrics.image_quality import STRIP_ROWS, luma_8bit, psnr, ssim

# the field's SSIM in scikit-image's words
WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


def image_pair(height, width, channels=3, noise=20, seed=0):
    """A smooth picture with some clipped parts, and the same with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 160 * np.sin(rows / (5 + c) + seed) * np.cos(columns / (9 - c)) for c in range(channels)]
    clean = np.stack(waves, -1)
    noisy = clean + rng.normal(0, noise, clean.shape)
    return tuple(np.clip(x, 0, 255).round().astype(np.uint8) for x in (clean, noisy))


@pytest.mark.parametrize("height", [11, 12, STRIP_ROWS + 9, STRIP_ROWS + 10, STRIP_ROWS + 11, 3 * STRIP_ROWS + 29])
@pytest.mark.parametrize("noise", [1, 40])
def test_agrees_with_scikit_image_at_every_strip_boundary(height, noise):
    a, b = image_pair(height, 53, noise=noise)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-9)
    assert ssim(a, b) == pytest.approx(structural_similarity(a, b, channel_axis=-1, **WANG), abs=1e-9)
    assert ssim(a[..., 0], b[..., 0]) == pytest.approx(structural_similarity(a[..., 0], b[..., 0], **WANG), abs=1e-9)


def test_flat_images_lose_no_digits():
    """Variances of flat images are differences of equal large numbers."""
    a, b = np.full((32, 32), 255, np.uint8), np.full((32, 32), 249, np.uint8)
    assert ssim(a, b) == pytest.approx(structural_similarity(a, b, **WANG), abs=1e-9)


def test_a_view_of_an_image_scores_as_its_copy():
    a, b = image_pair(40, 60)
    for view in (lambda x: x[..., ::-1], lambda x: x[3:38, 5:50], lambda x: x[::2, ::-2]):
        assert psnr(view(a), view(b)) == psnr(view(a).copy(), view(b).copy())
        assert ssim(view(a), view(b)) == ssim(view(a).copy(), view(b).copy())


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 255), st.integers(1, 90))
def test_properties_of_both(seed, level, noise):
    a, b = image_pair(16, 20, noise=noise, seed=seed)
    assert psnr(a, b) == psnr(b, a)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert ssim(a, b) <= 1
    flat = np.full_like(a, level)
    if level < 255:
        assert psnr(flat, flat + np.uint8(1)) == pytest.approx(20 * math.log10(255))


def test_largest_error_of_a_large_image_is_counted_exactly():
    black, white = np.zeros((1080, 1920, 3), np.uint8), np.full((1080, 1920, 3), 255, np.uint8)
    assert psnr(black, white) == 0


def test_luma_is_matlabs_to_the_last_bit():
    """Against integers: 16 + (65.481 R + 128.553 G + 24.966 B) / 255, rounded half up."""
    levels = np.arange(0, 256, 5)
    rgb = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3).astype(np.uint8)
    thousandths = [65481 * int(r) + 128553 * int(g) + 24966 * int(b) for r, g, b in rgb[0]]
    expected = [16 + (2 * value + 255_000) // (2 * 255_000) for value in thousandths]
    assert luma_8bit(rgb)[0].tolist() == expected
    assert (expected[0], expected[-1]) == (16, 235)


def test_luma_rounds_a_tie_up():
    """R 0, G 200, B 0 is no tie, but some colours are exactly halfway: of those, find one and look."""
    red, blue = (axis.ravel() for axis in np.meshgrid(np.arange(256), np.arange(256)))
    ties = [
        (r, g, b)
        for g in range(256)
        for r, b in zip(
            *(x[(65481 * red + 128553 * g + 24966 * blue) % 255_000 == 127_500] for x in (red, blue)), strict=True
        )
    ]
    assert ties
    for r, g, b in ties[:20]:
        exact_half = 16 + (65481 * int(r) + 128553 * g + 24966 * int(b)) / 255_000
        assert luma_8bit(np.array([[[r, g, b]]], np.uint8))[0, 0] == exact_half + 0.5


def test_what_cannot_be_compared_says_so():
    a, b = image_pair(20, 30)
    with pytest.raises(CSDError, match="30x20x3 and 29x20x3"):
        psnr(a, b[:, 1:])
    with pytest.raises(CSDError, match="30x10x3 is too small for SSIM"):
        ssim(a[:10], b[:10])
    with pytest.raises(CSDError, match="must be uint8, not uint8 and float32"):
        ssim(a, b.astype(np.float32))
    with pytest.raises(CSDError, match="empty: 30x0x3"):
        psnr(a[:0], b[:0])
