"""Teachers: what several agree on, and networks averaged over mirrored and reversed clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import moving_scene, rain_on

from csd_plugin.adapt.teacher import SelfEnsemble, agreed, open_teacher, weights_of
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.s2vd import S2VD
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.errors import CSDError


def whole(frames):
    """What reads frames that are all the shot's own."""
    return lambda: ((frame, True) for frame in frames)


def random_weights(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.mark.parametrize(
    ("network", "reverses"),
    [
        (SLDNet(preset="student2", num_feat=4), True),
        (HalfNet(preset="tiny", num_feat=4), True),
        (HalfNet(preset="causal", num_feat=4, branches=True), False),
        (S2VD(num_feat=4, num_block=1), True),
    ],
    ids=["window", "half", "causal", "sequence"],
)
def test_an_ensemble_does_not_care_how_the_clip_is_turned(network, reverses):
    network = random_weights(network)
    ensemble = SelfEnsemble(network).eval()
    clip = torch.rand(2, network.num_frame, 3, 8, 12)

    def turned_back(frames, axes):
        return frames.flip([axis for axis in axes if axis != 1 or ensemble.layout == "sequence"])

    with torch.no_grad():
        plain = ensemble(clip)
        assert not torch.allclose(plain, network(clip), atol=1e-4)
        for axes in ([-1], [-2], [-1, -2], *([[1], [1, -1]] if reverses else [])):
            torch.testing.assert_close(turned_back(ensemble(clip.flip(axes)), axes), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "passes"),
    [
        (PReNet(num_feat=4, num_stage=2), 4),
        (SLDNet(preset="student2", num_feat=4), 8),
        (S2VD(num_frame=1, num_feat=4, num_block=1), 8),  # whose results depend on more frames in longer clips
    ],
    ids=["image", "window", "sequence"],
)
def test_a_network_of_single_images_computes_nothing_twice(network, passes):
    network = random_weights(network)
    ensemble, given = SelfEnsemble(network).eval(), []
    ensemble.network.register_forward_hook(lambda _, inputs, output: given.append(inputs[0].clone()))
    clip = torch.rand(1, max(network.num_frame, 3 if ensemble.layout == "sequence" else 1), 3, 8, 12)
    with torch.no_grad():
        mean = ensemble(clip)
        assert len(given) == passes and len({one.numpy().tobytes() for one in given}) == passes
        if passes == 4:
            turned = [network(clip.flip(axes)).flip(axes) for axes in ([], [-1], [-2], [-1, -2]) for _ in range(2)]
            torch.testing.assert_close(mean, sum(turned) / 8)


def test_two_agree_on_the_mean_and_three_leave_the_odd_one_out():
    frame = np.full((4, 5, 3), 100, np.uint8)
    assert agreed([frame]) is frame
    assert (agreed([frame, frame + 10]) == 105).all()
    odd = agreed([frame, frame + 2, frame + 90])
    assert abs(odd.astype(int) - 101).max() < abs(float(np.mean([100, 102, 190])) - 101) / 2


def test_several_networks_clean_a_clip_frame_by_frame(tmp_path):
    paths = []
    for number, seed in enumerate((1, 2)):
        torch.manual_seed(seed)
        path = tmp_path / f"{number}.pth"
        torch.save({"params": SLDNet(preset="student2", num_feat=4).state_dict()}, path)
        paths.append(str(path))
    frames = rain_on(moving_scene(5, 24, 32, 0), 1)
    pair, *single = (open_teacher(chosen, ensemble=False) for chosen in (paths, paths[:1], paths[1:]))
    assert [one.name for one in pair.networks] == ["0.pth", "1.pth"]
    both, first, second = ([clean for _, clean in teacher.clean(whole(frames))] for teacher in (pair, *single))
    for mean, a, b in zip(both, first, second, strict=True):
        np.testing.assert_allclose(mean, (a.astype(float) + b) / 2, atol=0.51)


def test_a_shot_is_cleaned_as_a_part_of_its_clip(tmp_path):
    torch.save({"params": random_weights(SLDNet(preset="student2", num_feat=4)).state_dict()}, tmp_path / "net.pth")
    teacher = open_teacher([str(tmp_path / "net.pth")], ensemble=False)
    frames = rain_on(moving_scene(16, 24, 32, 0), 1)
    expected = [clean for _, clean in teacher.clean(whole(frames))][5:10]
    seen = range(5 - teacher.context, 10 + teacher.context)
    rainy, clean = zip(*teacher.clean(lambda: ((frames[n], 5 <= n < 10) for n in seen)), strict=True)
    np.testing.assert_array_equal(rainy, frames[5:10])
    np.testing.assert_array_equal(clean, expected)


def test_networks_of_other_windows_have_the_frames_of_the_longest(tmp_path):
    networks = {"one": HalfNet(num_frame=1, num_feat=4, num_pair=1), "five": HalfNet(preset="wide", num_feat=4)}
    for name, network in networks.items():
        torch.save({"params": random_weights(network).state_dict()}, tmp_path / f"{name}.pth")
    for order in (["one", "five"], ["five", "one"]):
        assert open_teacher([str(tmp_path / f"{name}.pth") for name in order], ensemble=False).context == 2


def test_option_files_name_networks_too(tmp_path):
    torch.save({"params": SLDNet(preset="student3", num_feat=4).state_dict()}, tmp_path / "net.pth")
    text = """
name: one
model_type: VideoDerainModel
num_gpu: 0
datasets:
  test_1: {name: a, type: PairedVideoTestDataset, dataroot: x, num_frame: 1}
network_g: {type: SLDNet, preset: student3, num_feat: 4}
path: {pretrain_network_g: NET}
val: {save_img: false}
"""
    options = tmp_path / "teacher.yml"
    options.write_text(text.replace("NET", str(tmp_path / "net.pth")), encoding="utf-8")
    frames = rain_on(moving_scene(2, 24, 32, 0), 1)
    by_options, by_weights = (
        [clean for _, clean in open_teacher([str(name)], ensemble=False).clean(whole(frames))]
        for name in (options, tmp_path / "net.pth")
    )
    np.testing.assert_array_equal(by_options, by_weights)
    before = open_teacher([str(options)], ensemble=False).networks
    assert open_teacher([str(options)], ensemble=False).networks == before
    torch.save({"params": SLDNet(preset="student3", num_feat=4).state_dict()}, tmp_path / "net.pth")
    assert open_teacher([str(options)], ensemble=False).networks != before  # other weights by the same options
    assert weights_of(options) == weights_of(tmp_path / "net.pth") == tmp_path / "net.pth"
    options.write_text(text.replace("NET", "~"), encoding="utf-8")
    with pytest.raises(CSDError, match="pretrain_network_g is missing"):
        open_teacher([str(options)], ensemble=False)


def test_exported_networks_are_not_turned(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(CSDError, match="give the checkpoint"):
        open_teacher([str(tmp_path / "net.onnx")], ensemble=True)
