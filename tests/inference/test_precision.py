"""bf16 is taken where the processor has it and frames stay near, and what was taken is said; int8: test_int8.py."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.inference import precision, runner
from csd_plugin.inference.precision import Precision, psnr_between, rainy_clip
from csd_plugin.inference.runner import Derainer
from csd_plugin.weights import DEFAULT, FASTEST, find_checkpoint


def test_psnr_is_that_of_the_mean_error_of_all_frames():
    dark, one, white = (np.full((4, 6, 3), level, np.uint8) for level in (0, 1, 255))
    assert psnr_between([dark], [white]) == psnr_between([white], [dark]) == 0
    assert psnr_between([dark], [one]) == psnr_between([one], [dark]) == pytest.approx(48.1308, abs=1e-4)
    assert psnr_between([dark, one], [one, one]) == pytest.approx(48.1308 + 3.0103, abs=1e-4)
    assert psnr_between([white], [white]) == np.inf


@pytest.fixture
def with_bf16(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda: True)


def test_without_fast_bf16_and_int8_it_is_fp32(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    monkeypatch.setattr(precision, "has_int8", lambda: False)
    derainer = Derainer(HalfNet(preset="tiny", num_feat=4), precision="auto", device="cpu")
    assert derainer.precision == Precision("fp32", "this CPU has no fast bf16 or int8")


def test_a_network_that_needs_more_digits_is_left_in_fp32(with_bf16):
    torch.manual_seed(0)
    network = HalfNet(preset="tiny", num_feat=4)
    torch.nn.init.normal_(network.tail.weight, std=5)
    derainer = Derainer(network, precision="auto", device="cpu")
    assert derainer.precision.name == "fp32" and derainer.backend.blocks.itemsize == 4
    assert "too much: PSNR " in derainer.precision.why


class MixesTypes(torch.nn.Module):
    """Attends as SwinIR does: a float32 mask makes its weights of attention float32, and its values are bf16."""

    num_frame = 1

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)

    def forward(self, window):
        values = self.conv(window[:, 0].to(self.conv.weight.dtype))
        height = values.shape[-2]
        return window[:, 0] + torch.eye(height).expand(len(values), 3, height, height) @ values


def test_a_network_that_does_not_compute_in_bf16_is_left_in_fp32(with_bf16):
    derainer = Derainer(MixesTypes(), precision="auto", device="cpu")
    assert derainer.precision.name == "fp32" and len(list(derainer(rainy_clip()))) == len(rainy_clip())
    assert derainer.precision.why.startswith("the network does not compute in bf16: expected ")


def test_it_says_how_near_the_frames_are(with_bf16):
    torch.manual_seed(0)
    network = SLDNet(preset="student2", num_feat=4, init_type="kaiming")
    torch.nn.init.normal_(network.conv22.weight, std=0.02)
    derainer = Derainer(network, precision="auto", device="cpu")
    clip = rainy_clip()
    exact, near = (list(Derainer(network, precision=name, device="cpu")(clip)) for name in ("fp32", "bf16"))
    psnr = psnr_between(exact, near)
    assert derainer.precision == Precision("bf16", f"nearly the same frames as in fp32: PSNR {psnr:.1f} dB")
    assert all((a == b).all() for a, b in zip(derainer(clip), near, strict=True))
    assert Derainer(network, device="cpu").precision == Precision("fp32")


@pytest.mark.parametrize("name", sorted({DEFAULT, FASTEST}))
def test_on_real_rain_shipped_networks_are_as_near_as_on_the_made_up_clip(name, shared):
    folder = shared / "data" / "NTURain" / "Dataset_Testing_RealRain" / "ra1_Rain"
    real = [cv2.imread(str(path))[100:228, 200:328, ::-1].copy() for path in sorted(folder.iterdir())[:3]]
    exact, near = (Derainer(find_checkpoint(name), precision=how, device="cpu") for how in ("fp32", "bf16"))
    made_up = psnr_between(exact(rainy_clip()), near(rainy_clip()))
    found = psnr_between(exact(real), near(real))
    assert found > precision.LEAST and made_up > precision.LEAST
    assert abs(found - made_up) < 4


def test_what_was_tried_is_not_opened_again(with_bf16, monkeypatch):
    opened = []
    whole = runner.open_backend

    def counting(*args, precision, **kwargs):
        opened.append(precision)
        return whole(*args, precision=precision, **kwargs)

    monkeypatch.setattr(runner, "open_backend", counting)
    Derainer(HalfNet(preset="tiny", num_feat=4), precision="auto", device="cpu")
    assert opened == ["fp32", "bf16"]
