"""Networks of windows and of sequences, called by what they declare: trained and scored by the same models."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from toolbox import scored_set, scoring_options, train_options
from torch import nn

from csd_plugin.archs.s2vd import S2VD
from csd_plugin.errors import CSDError
from csd_plugin.metrics.protocols import score_frame, to_uint8

SMALL = {"num_feat": 4, "num_block": 1}


class Mean(nn.Module):
    """The mean of each frame and its two neighbours; the end frames' are the frames themselves."""

    num_frame, layout = 3, "sequence"

    def forward(self, sequence):
        inner = (sequence[:, :-2] + sequence[:, 1:-1] + sequence[:, 2:]) / 3
        return torch.cat([sequence[:, :1], inner, sequence[:, -1:]], dim=1)


class MeanOfWindow(nn.Module):
    num_frame = 3

    def forward(self, window):
        return window.mean(dim=1)


@pytest.mark.parametrize(("kind", "made"), [("image", 1), ("window", 1), ("sequence", 5)])
def test_the_declared_shape_is_one_that_a_network_of_the_kind_takes(kind, made):
    from csd_plugin.archs.interface import Interface

    interface = Interface(1 if kind == "image" else 5, kind)
    shape = interface.input_shape(8, 12)
    assert shape == ((3, 8, 12) if kind == "image" else (5, 3, 8, 12))
    network = {"image": nn.Identity(), "window": MeanOfWindow(), "sequence": Mean()}[kind]
    frames = network(torch.rand(1, *shape))
    assert frames.numel() == interface.num_made * 3 * 8 * 12


def test_a_layout_that_is_unknown_is_one_line():
    from csd_plugin.archs.interface import interface_of

    with pytest.raises(CSDError, match="layout 'windows' is unknown; did you mean window"):
        interface_of(nn.Identity(), {"layout": "windows", "num_frame": 3})


@pytest.mark.parametrize("kind", ["window", "sequence"])
def test_a_network_of_an_even_number_of_frames_is_told_before_it_runs(kind):
    from csd_plugin.archs.interface import interface_of

    with pytest.raises(CSDError, match="num_frame=4 has no centre: give an odd number"):
        interface_of(nn.Identity(), {"layout": kind, "num_frame": 4})


@pytest.mark.parametrize("scale", [0, 1.5, "2", None, True])
def test_a_scale_that_is_no_whole_number_is_one_line(scale):
    from csd_plugin.archs.interface import Interface

    with pytest.raises(CSDError, match=f"scale is {scale!r}; give a whole number, 1 or more"):
        Interface(1, "image", scale=scale)


class Blocks(nn.Module):
    """(B, T, 3, H, W) to its centre frame, with the mean of each block of 4x6 pixels added, enlarged `scale` times."""

    num_frame = 3

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, window):
        frame = window[:, 1]
        means = frame.unflatten(3, (-1, 6)).unflatten(2, (-1, 4)).mean(dim=(3, 5))
        made = frame + means.repeat_interleave(4, dim=2).repeat_interleave(6, dim=3)
        return made.repeat_interleave(self.scale, dim=2).repeat_interleave(self.scale, dim=3)


@pytest.mark.parametrize("scale", [1, 3])
def test_frames_are_padded_for_a_network_and_its_results_are_cut(scale):
    from csd_plugin.archs.interface import interface_of

    interface = interface_of(Blocks(scale), {"size_divisor": 12, "scale": scale})
    clips = torch.rand(2, 5, 3, 13, 7)
    repeated = np.pad(clips.numpy(), ((0, 0), (0, 0), (0, 0), (0, 11), (0, 5)), mode="edge")
    windows = torch.from_numpy(repeated).unfold(1, 3, 1).movedim(-1, 2).flatten(0, 1)  # (B*L, T, 3, H, W)
    expected = Blocks(scale)(windows)[..., : 13 * scale, : 7 * scale]
    torch.testing.assert_close(interface.run(Blocks(scale), clips, 3), expected, rtol=0, atol=0)
    assert interface.input_shape(13, 7) == (3, 3, 24, 12)
    with pytest.raises(RuntimeError):
        interface_of(Blocks(scale), {"scale": scale}).run(Blocks(scale), clips, 3)


def test_a_network_states_what_the_sides_of_its_frames_are_multiples_of():
    from csd_plugin.archs.interface import interface_of

    network = MeanOfWindow()
    network.size_divisor = 8
    assert interface_of(network).size_divisor == 8
    assert interface_of(network, {"size_divisor": 4}).size_divisor == 4
    with pytest.raises(CSDError, match="size_divisor is 0; give a whole number, 1 or more"):
        interface_of(network, {"size_divisor": 0})
    with pytest.raises(CSDError, match="num_frame is -3; give a whole number, 1 or more"):
        interface_of(network, {"num_frame": -3})


def test_an_unknown_key_of_an_interface_is_told():
    from csd_plugin.archs.interface import interface_of

    with pytest.raises(CSDError, match="size_divisors is unknown in an interface; did you mean size_divisor"):
        interface_of(MeanOfWindow(), {"size_divisors": 8})


@pytest.mark.parametrize("num_target", [1, 3, 5])
def test_sequences_and_windows_give_the_same_targets(num_target):
    from csd_plugin.archs.interface import interface_of

    clips = torch.rand(2, 7, 3, 4, 5)
    results = [interface_of(network).run(network, clips, num_target) for network in (Mean(), MeanOfWindow())]
    torch.testing.assert_close(*results)
    assert results[0].shape == (2 * num_target, 3, 4, 5)


class Shifts:
    """Changes what it is given in place."""

    def forward(self, frames):
        return super().forward(frames.sub_(0.5))


class Same(nn.Identity):
    num_frame, layout = 1, "image"


@pytest.mark.parametrize("kind", [Same, Mean, MeanOfWindow])
@pytest.mark.parametrize(("batch", "length", "num_target"), [(1, 3, 1), (2, 3, 1), (2, 5, 3), (1, 3, 3)])
def test_a_network_that_changes_frames_in_place_changes_its_own(kind, batch, length, num_target):
    from csd_plugin.archs.interface import interface_of

    if length - num_target + 1 < kind.num_frame:
        pytest.skip("too short for a window")
    network = type("Shifting", (Shifts, kind), {})()
    clips = torch.rand(batch, length, 3, 4, 5)
    before = clips.clone()
    interface_of(network).run(network, clips, num_target)
    assert torch.equal(clips, before)


def test_a_clip_that_is_too_short_is_told():
    from csd_plugin.archs.interface import interface_of

    with pytest.raises(CSDError, match="the network needs 3 frames"):
        interface_of(Mean()).run(Mean(), torch.rand(1, 5, 3, 4, 5), 5)


def test_a_network_of_sequences_is_scored_in_chunks_with_context(launcher, tiny_rain):
    torch.manual_seed(0)
    network = S2VD(**SMALL).eval()
    checkpoint = launcher.folder / "s2vd.pth"
    torch.save(network.state_dict(), checkpoint)
    data = {"test_1": scored_set(tiny_rain, num_frame=5, frame_range=[2, 6], clips=["a1"])}
    options = scoring_options(tiny_rain, checkpoint, datasets=data, network_g={"type": "S2VD", **SMALL})
    options["val"]["batch_size"] = 3
    assert launcher.test(options) == 0
    scores = json.loads((launcher.folder / "results/row/rain.json").read_text())["clips"]["a1"]["frames"]

    folder = tiny_rain / "Dataset_Testing_Synthetic"
    rain, truth = (
        [cv2.imread(str(folder / kind / f"{i:05d}.png"))[..., ::-1].copy() for i in range(1, 10)]
        for kind in ("a1_Rain", "a1_GT")
    )
    clip = torch.stack([torch.from_numpy(frame).permute(2, 0, 1) for frame in rain]).float() / 255
    # frames 2-4 and 5-6, numbered from 1, each with two more at both ends; before frame 1 comes frame 2
    with torch.no_grad():
        first, second = network(clip[[1, 0, 1, 2, 3, 4, 5]][None])[0, 2:5], network(clip[2:8][None])[0, 2:4]
    for number, frame in enumerate(torch.cat([first, second]), start=2):
        expected = score_frame(to_uint8(frame), truth[number - 1])
        for protocol, quality in expected.items():
            assert scores[f"{number:05d}"][protocol] == pytest.approx(quality._asdict(), rel=1e-6)


@pytest.mark.parametrize("network", [{"type": "S2VD", **SMALL}, {"type": "PReNet", "num_feat": 4, "num_stage": 2}])
def test_other_families_train(launcher, tiny_rain, network):
    assert launcher.train(train_options(tiny_rain, network_g=network)) == 0
    model = launcher.models[-1]
    assert type(model.net_g).__name__ == network["type"]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.net_g.parameters())
    assert any(p.grad.any() for p in model.net_g.parameters())


@pytest.mark.parametrize(("kind", "num_frame"), [("image", 1), ("window", 3), ("sequence", 3)])
def test_a_network_that_gives_more_than_frames_is_told(kind, num_frame):
    from csd_plugin.archs.interface import Interface

    class WithLoss(nn.Module):
        def forward(self, frames):
            return frames, frames.mean()

    with pytest.raises(CSDError, match="WithLoss gives a tuple in evaluation, and frames alone are needed"):
        Interface(num_frame, kind).run(WithLoss().eval(), torch.rand(1, 5, 3, 8, 8), 1)
