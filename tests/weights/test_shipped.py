"""The networks that come with the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.data.rain import PRESETS, RainRenderer, ambient_light
from csd_plugin.data.scenes import moving_scene
from csd_plugin.errors import CSDError
from csd_plugin.inference.runner import Derainer
from csd_plugin.metrics.protocols import score_frame
from csd_plugin.weights import DEFAULT, SHIPPED, find_checkpoint

CARD = Path(find_checkpoint(None)).with_name("MODEL_CARD.md")


def test_the_default_is_one_of_them():
    assert find_checkpoint(None) == find_checkpoint(DEFAULT)


def test_what_is_not_there_is_told_with_what_is():
    with pytest.raises(CSDError, match=r"no checkpoint nowhere.pth.*student2"):
        find_checkpoint("nowhere.pth")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_model_card_has_their_hashes(name):
    assert hashlib.sha256(find_checkpoint(name).read_bytes()).hexdigest() in CARD.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHIPPED)
def test_their_facts_travel_with_them(name):
    facts = torch.load(find_checkpoint(name), weights_only=True)["facts"]
    assert facts["licence"] == "Apache-2.0"
    assert {"preset", "trained_on", "recipe"} <= set(facts)


@pytest.mark.parametrize("name", SHIPPED)
def test_they_remove_rain_from_a_scene_they_have_not_seen(name):
    skimage_data = pytest.importorskip("skimage.data")
    import cv2

    photo = cv2.imread(str(Path(skimage_data.__file__).parent / "astronaut.png"))[..., ::-1].copy()
    clean = list(moving_scene(photo, 7, (96, 128), seed=0))
    renderer = RainRenderer(PRESETS["nturain"], seed=3, height=96, width=128, ambient=ambient_light(clean[0]))
    rainy = [renderer.render(frame, t) for t, frame in enumerate(clean)]
    derained = list(Derainer(load_network(find_checkpoint(name)))(rainy))
    before, after = score_frame(rainy[3], clean[3])["nturain_y"], score_frame(derained[3], clean[3])["nturain_y"]
    assert after.psnr > before.psnr + 1
    assert after.ssim > before.ssim
