"""Protocols and averages: golden numbers of real frames, and the rules of averaging on made-up ones."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from csd_plugin.errors import CSDError
from csd_plugin.metrics.protocols import Quality, score_frame, to_uint8
from csd_plugin.metrics.scores import Scores, without_ends

RNG = np.random.default_rng(0)
CLEAN = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
RAINY = np.maximum(CLEAN, RNG.integers(0, 200, CLEAN.shape, dtype=np.uint8))


def test_rainy_a1_reads_what_it_must(shared):
    """All 168 frames of NTURain's a1, its rainy input scored as it is."""
    clips = shared / "data" / "NTURain" / "Dataset_Testing_Synthetic"
    scores = Scores()
    for truth in sorted((clips / "a1_GT").glob("*.jpg")):
        images = (cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in (clips / "a1_Rain" / truth.name, truth))
        scores.add("a1", truth.stem, *images)
    assert len(scores.clips["a1"].frames) == 168
    average = scores.average()
    assert average["nturain_y"].psnr == pytest.approx(29.7045, abs=1e-4)
    assert average["nturain_y"].ssim == pytest.approx(0.9147, abs=5e-5)
    assert average["rgb"].psnr == pytest.approx(28.2474, abs=1e-4)
    assert average["rgb"].ssim == pytest.approx(0.9063, abs=5e-5)


def test_both_protocols_by_scikit_image():
    luma = [np.round(rgb2ycbcr(image)[..., 0]).astype(np.uint8) for image in (RAINY, CLEAN)]
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    score = score_frame(RAINY, CLEAN)
    assert score["nturain_y"] == pytest.approx((peak_signal_noise_ratio(*luma), structural_similarity(*luma, **wang)))
    rgb = structural_similarity(RAINY, CLEAN, channel_axis=-1, **wang)
    assert score["rgb"] == pytest.approx((peak_signal_noise_ratio(RAINY, CLEAN), rgb))


def test_what_is_no_rgb_frame_is_refused():
    with pytest.raises(CSDError, match="the result is not an RGB image"):
        score_frame(CLEAN[..., 0], CLEAN)
    with pytest.raises(CSDError, match=r"clip a1, frame 00007: .*differ in size"):
        Scores().add("a1", "00007", CLEAN[1:], CLEAN)


def test_network_output_is_clamped_then_rounded():
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 100.49 / 255, 254.51 / 255, 1.0, 7.0])
    frame = values.expand(3, 2, 8)
    assert to_uint8(frame)[0, :, 0].tolist() == [0, 0, 0, 1, 100, 255, 255, 255]
    assert to_uint8(frame.bfloat16().requires_grad_()).dtype == np.uint8


def test_channels_go_last_and_stay_in_order():
    pixels = torch.randint(0, 256, (2, 5, 3, 4, 6))
    frames = to_uint8(pixels / 255)
    assert frames.shape == (2, 5, 4, 6, 3) and frames.flags.c_contiguous
    assert np.array_equal(frames, pixels.permute(0, 1, 3, 4, 2).numpy())


def test_nan_is_no_picture():
    with pytest.raises(CSDError, match="NaN"):
        to_uint8(torch.full((3, 2, 2), float("nan")))


def made_up(clip_lengths):
    scores = Scores()
    for clip, length in clip_lengths.items():
        for i in range(length):
            quality = Quality(20.0 + i, 0.5 + i / 100)
            scores.record(clip, f"{i:05d}", {"nturain_y": quality, "rgb": Quality(quality.psnr - 1, 0.25)})
    return scores


def test_every_clip_counts_the_same_whatever_its_length():
    scores = made_up({"long": 5, "short": 1})
    assert scores.clips["long"].average()["nturain_y"] == pytest.approx((22, 0.52))
    assert scores.average()["nturain_y"] == pytest.approx((21, 0.51))
    assert scores.summary() == pytest.approx(
        {"nturain_y/psnr": 21, "nturain_y/ssim": 0.51, "rgb/psnr": 20, "rgb/ssim": 0.25}
    )


def test_ends_are_left_out_of_every_clip():
    scores = made_up({"a": 5, "b": 4}).without_ends((2, 1))
    assert list(scores.clips["a"].frames) == ["00002", "00003"]
    assert list(scores.clips["b"].frames) == ["00002"]
    assert scores.skip == (2, 1)
    assert scores.without_ends((0, 0)) == scores
    assert made_up({"a": 5}).without_ends((2, 1)).without_ends((1, 0)).skip == (3, 1)
    for skip in ((0, 4), (4, 0), (2, 2), (9, 9)):
        assert list(without_ends([1, 2, 3], skip)) == []
    with pytest.raises(CSDError, match="clip b: skipping 3 and 1 of 4 frames leaves none"):
        made_up({"a": 5, "b": 4}).without_ends((3, 1))
    with pytest.raises(CSDError, match="negative"):
        without_ends([1, 2], (-1, 0))


def test_a_frame_counts_once():
    scores = made_up({"a": 2})
    with pytest.raises(CSDError, match="clip a, frame 00001 was scored twice"):
        scores.record("a", "00001", scores.clips["a"].frames["00001"])


@pytest.mark.parametrize(
    ("score", "metrics", "name"),
    [
        ({}, {"warping": 1.0, "niqe": math.nan}, "niqe"),
        ({"nturain_y": Quality(math.nan, 0.5), "rgb": Quality(20.0, 0.5)}, {}, "psnr"),
        ({"nturain_y": Quality(20.0, 0.5), "rgb": Quality(20.0, math.nan)}, {}, "ssim"),
    ],
)
def test_nan_is_no_score(score, metrics, name):
    """A results file with it would be refused as damaged."""
    scores = made_up({"a": 1})
    with pytest.raises(CSDError, match=f"clip b, frame 2: its {name} is nan; leave out"):
        scores.record("b", "2", score, metrics)
    assert list(scores.clips) == ["a"]


def test_nothing_has_no_average():
    with pytest.raises(CSDError, match="no scores to average"):
        Scores().average()


def test_an_identical_frame_has_infinite_psnr():
    scores = Scores()
    scores.add("a", "1", CLEAN, CLEAN)
    scores.add("a", "2", RAINY, CLEAN)
    assert scores.average()["rgb"].psnr == math.inf
    assert scores.average()["rgb"].ssim < 1


def test_further_metrics_average_over_the_frames_that_have_them():
    scores = made_up({"a": 3})
    scores.record("b", "1", {}, {"niqe": 4.0})
    scores.record("b", "2", {}, {"niqe": 2.0, "warping": 0.5})
    scores.clips["a"].metrics["niqe"] = {"00001": 5.0, "00002": 7.0}
    assert scores.clips["b"].metric_means() == {"niqe": 3.0, "warping": 0.5}
    assert scores.metric_means() == {"niqe": 4.5, "warping": 0.5}
    assert scores.clips["b"].average() == {}
    assert scores.clips["b"].metrics_of("1") == {"niqe": 4.0}
    assert scores.without_ends((0, 1)).clips["a"].metrics == {"niqe": {"00001": 5.0}}
    only_b = Scores({"b": scores.clips["b"]})
    assert only_b.summary() == {"niqe": 3.0, "warping": 0.5}


@pytest.mark.parametrize("alone_first", [True, False])
def test_scores_are_of_the_clips_that_have_truth(alone_first):
    scores = made_up({"a": 3} if not alone_first else {})
    scores.record("real", "1", {}, {"niqe": 4.0})
    if alone_first:
        scores.clips |= made_up({"a": 3}).clips
    assert scores.average() == made_up({"a": 3}).average()
    assert scores.summary() == pytest.approx(made_up({"a": 3}).summary() | {"niqe": 4.0})
    assert scores.without_truth() == ["real"]
    scores.record("real", "2", scores.clips["a"].frames["00002"])  # a clip may have truth for some of its frames
    assert scores.clips["real"].average() == {"nturain_y": (22, 0.52), "rgb": (21, 0.25)}
    assert scores.without_truth() == []
