"""The folded network is the network: equal frames, whatever the preset, and no product with the padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.sldnet import PRESETS, SLDNet
from csd_plugin.bench.operations import operations
from csd_plugin.errors import CSDError
from csd_plugin.inference.facts import study, without_branches
from csd_plugin.inference.folding import ALL_FILLED, MIN_FILLED, DirectConv, FoldedConv3d, filled, fold
from csd_plugin.inference.runner import Derainer


def tiny(preset: str) -> SLDNet:
    torch.manual_seed(1)
    network = SLDNet(preset=preset, num_feat=5, init_type="kaiming")
    for layer in network.children():
        nn.init.normal_(layer.bias, std=0.1)
    return network


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_every_form_equals_plain(preset, batch):
    network = tiny(preset).double()
    window = torch.rand(batch, network.num_frame, 3, 9, 14, dtype=torch.float64)
    expected = network(window)
    network.float()
    for least in (0, MIN_FILLED, ALL_FILLED, 2):  # all folded, as graphs and as torch have it, none
        folded = fold(network, least)
        assert (folded(window.float()) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not any(isinstance(layer, nn.Conv3d) for layer in folded.modules())


@pytest.mark.parametrize(
    "make",
    [
        lambda: HalfNet(preset="realtime", num_feat=8),
        lambda: HalfNet(preset="wide", num_feat=4, branches=True),
        lambda: PReNet(num_stage=2, num_feat=8),
    ],
)
@torch.no_grad()
def test_plain_convolutions_go_to_onednn_too_strided_ones_included(make):
    torch.manual_seed(0)
    network = make().double().eval()
    window = torch.rand(2, network.num_frame, 3, 12, 16, dtype=torch.float64)
    expected = network(window)
    folded = fold(network.float())
    assert (folded(window.float()) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not any(isinstance(layer, nn.Conv2d) for layer in folded.modules())


def test_the_original_is_left_alone():
    network = tiny("student2").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold(network)
    assert network.training and not folded.training
    assert isinstance(network.conv1, nn.Conv3d) and all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(p.requires_grad for p in folded.parameters())


class Keeping(nn.Module):
    """It makes a mask at its first call, and keeps it."""

    num_frame = 1
    mask = None

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv3d(3, 3, 3, padding=1)

    def forward(self, window):
        if self.mask is None:
            self.mask = torch.full((), 0.5, device=window.device)
        return self.body(window.transpose(1, 2))[:, :, 0] * self.body.weight.mean() * self.mask


def test_a_network_that_keeps_tensors_trains_on():
    """Those of a validation belong to inference: no gradient goes through them."""
    network = Keeping()
    fold(network)
    operations(network)
    network(torch.rand(1, 1, 3, 8, 8)).sum().backward()
    assert network.body.weight.grad is not None


def test_the_cheaper_form_is_chosen_by_counting():
    three = nn.Conv3d(4, 4, 3, padding=1)
    assert filled(three, 7) == 19 / 49 and filled(three, 3) == 7 / 9 and filled(three, 2) == filled(three, 1) == 1
    assert filled(nn.Conv3d(4, 4, (2, 3, 3), padding=(0, 1, 1)), 2) == 1
    forms = {name: type(layer) for name, layer in fold(tiny("teacher")).named_children()}
    assert forms["conv2"] is DirectConv and forms["conv20"] is forms["conv22"] is FoldedConv3d
    assert {type(layer) for layer in fold(tiny("student1")).children()} == {FoldedConv3d}
    forms = {name: type(layer) for name, layer in fold(tiny("student1"), ALL_FILLED).named_children()}
    assert forms["conv16"] is DirectConv and forms["conv17"] is FoldedConv3d
    # dead taps: at one frame only the middle tap is left
    weight = fold(tiny("student1")).conv22.weight
    assert weight.shape == (3, 5, 3, 3)


class Odd(nn.Module):
    """Convolutions that are not to be folded, one used at two lengths, and one inside a container."""

    num_frame = 3

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())
        self.replicate = nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate")
        self.grouped = nn.Conv3d(4, 4, 3, padding=1, groups=2)
        self.dilated = nn.Conv3d(4, 4, 3, padding=(1, 2, 2), dilation=(1, 2, 2))
        self.same = nn.Conv3d(4, 4, 3, padding="same")
        self.shared = nn.Conv3d(4, 4, (2, 3, 3), padding=(0, 1, 1))
        self.tail = nn.Conv3d(4, 3, (1, 3, 3), padding=(0, 1, 1), bias=False)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        x = self.same(self.dilated(self.grouped(self.replicate(self.body(window.transpose(1, 2))))))
        return self.tail(self.shared(self.shared(x))).squeeze(2)


@torch.no_grad()
def test_other_networks_keep_what_cannot_be_folded():
    torch.manual_seed(0)
    network = Odd().eval()
    folded = fold(network)
    window = torch.rand(2, 3, 3, 8, 10)
    torch.testing.assert_close(folded(window), network(window))
    kinds = {name: type(layer) for name, layer in folded.named_modules()}
    assert kinds["body.0"] is kinds["tail"] is FoldedConv3d and kinds["shared"] is DirectConv
    assert {kinds[name] for name in ("replicate", "grouped", "dilated", "same")} == {nn.Conv3d}


class Wide(nn.Module):
    """It mirrors `padding` pixels at each end, so that smaller frames are refused."""

    num_frame = 3

    def __init__(self, padding):
        super().__init__()
        self.body = nn.Conv3d(3, 3, 3, padding=1)
        self.padding = padding

    def forward(self, window):
        inner = self.body(window.transpose(1, 2))[:, :, 1]
        wide = nn.functional.pad(inner, [self.padding] * 4, mode="reflect")
        return window[:, 1] + 0.1 * nn.functional.interpolate(wide, window.shape[-2:])


@pytest.mark.parametrize(("padding", "folds"), [(8, True), (18, True), (70, True), (260, False)])
def test_networks_that_take_no_small_frames_run(padding, folds, caplog):
    torch.manual_seed(0)
    network = Wide(padding).eval()
    folded = fold(network)
    assert (type(folded.body) is FoldedConv3d) == folds and ("refuses small frames" in caplog.text) != folds
    size = padding + 5
    with torch.inference_mode():
        window = torch.rand(1, 3, 3, size, size)
        torch.testing.assert_close(folded(window), network(window))
    if folds:
        clip = (255 * torch.rand(3, size, size, 3)).byte().numpy()
        for precision in ("fp32", "auto"):
            assert len(list(Derainer(network, device="cpu", precision=precision)(clip))) == 3
        assert operations(network).useful == 7 * 81
    else:
        with pytest.raises(CSDError, match=r"Wide runs on no frames of 16x16 or 64x64 or 256x256: .*adding"):
            study(network)


def test_only_networks_with_branches_are_built_anew():
    plain, branched = (HalfNet(preset="tiny", num_feat=4, branches=has_some) for has_some in (False, True))
    assert without_branches(plain) is plain and not without_branches(branched).branches
