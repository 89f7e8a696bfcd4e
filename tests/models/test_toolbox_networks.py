"""Networks of the toolbox that know nothing of us, as student and as teacher."""

from __future__ import annotations

import functools

import pytest
import torch
from test_objectives import options_of
from toolbox import changed, scoring_options, train_options

RIDNET = {"type": "RIDNet", "in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 1}
IMAGE = {"layout": "image", "feature": "tail"}
TOFLOW = {"type": "TOFlow"}
WINDOW = {"layout": "window", "num_frame": 7, "feature": "conv_4"}


def checkpoint(folder, network):
    """The starting weights of a network of the toolbox, as a file."""
    from csd_plugin import registration

    registration.install()
    from basicsr.archs import build_network

    path = folder / "start.pth"
    torch.save(build_network(dict(network)).state_dict(), path)
    return path


def test_an_image_network_is_trained_and_tested(launcher, tiny_rain):
    assert launcher.train(train_options(tiny_rain, network_g=RIDNET, interface_g=IMAGE)) == 0
    file = launcher.folder / "experiments/run/models/net_g_latest.pth"
    row = scoring_options(tiny_rain, file, network_g=RIDNET, interface_g=IMAGE)
    assert launcher.test(row) == 0
    assert (launcher.folder / "results/row/rain.json").is_file()


def test_an_image_network_learns_from_a_video_network(launcher, tiny_rain, tiny_teacher):
    options = options_of(tiny_rain, tiny_teacher, "CSD", network_g=RIDNET, interface_g=IMAGE)
    assert launcher.train(options) == 0
    assert launcher.models[-1].net_g.head.weight.grad.any()
    assert float(launcher.models[-1].log_dict["l_spatial"]) > 0


def test_windows_cut_out_of_longer_ones_are_whole_tensors():
    from csd_plugin.archs.interface import Interface

    def network(window):
        return window.view(2, 9, 6, 5)[:, 3:6]  # as some networks do, and strided tensors cannot

    clips = torch.rand(2, 7, 3, 6, 5)
    assert torch.equal(Interface(num_frame=3, kind="window").run(network, clips, 1), clips[:, 3])


@pytest.mark.parametrize(("network", "interface"), [(RIDNET, IMAGE), (TOFLOW, WINDOW)])
def test_networks_of_the_toolbox_teach(launcher, tiny_rain, network, interface):
    teacher = {"network_t": network, "interface_t": interface, "datasets.train.gt_size": 16}
    options = options_of(tiny_rain, checkpoint(launcher.folder, network), "SRKD", **teacher)
    assert launcher.train(options) == 0
    assert float(launcher.models[-1].log_dict["l_maps"]) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interface_g": ...}, "network_g: RIDNet does not state how it is called; give `layout`"),
        (
            {"interface_g.layout": "window"},
            "network_g: RIDNet has the layout window, but nobody says of how many frames; give `num_frame` for it in "
            "the section interface_g",
        ),
        ({"interface_g.layout": "images"}, "interface_g.layout is 'images'"),
        ({"interface_g.feature": ...}, "RIDNet names no layer for distillation to compare; give its `feature`"),
        ({"interface_g.feature": "tial"}, "RIDNet has no such layer; nearest: tail"),
        ({"interface_g.num_frames": 1}, "num_frames is unknown; did you mean num_frame?"),
    ],
)
def test_what_nobody_says_is_told_before_anything_is_written(launcher, tiny_rain, tiny_teacher, capsys, changes, words):
    options = options_of(tiny_rain, tiny_teacher, "CSD", network_g=RIDNET, interface_g=dict(IMAGE))
    assert launcher.train(changed(options, changes)) == 2
    assert words in capsys.readouterr().err
    assert launcher.written() == []


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("embed_dimm", "network_g.embed_dimm: SwinIR takes it and never reads it; did you mean embed_dim?"),
        ("feature", "network_g.feature has no effect: SwinIR takes it and never reads it"),
    ],
)
def test_a_keyword_that_a_constructor_swallows_is_told(launcher, tiny_rain, capfd, key, words):
    swinir = {"type": "SwinIR", "upscale": 1, "window_size": 8, "depths": [1], "embed_dim": 4, "num_heads": [1]}
    options = train_options(tiny_rain, network_g=swinir | {key: 8}, interface_g={"layout": "image"})
    near = key == "embed_dimm"
    assert launcher.train(options) == (2 if near else 0)
    assert words in capfd.readouterr().err
    assert (launcher.written() == []) == near


class PassesOn(torch.nn.Conv2d):
    def __init__(self, width, **rest):
        super().__init__(3, width, **rest)


class ReadsInside(torch.nn.Module):
    def __init__(self, **rest):
        super().__init__()
        self.sizes = [rest["size"] for _ in range(2)]


class ReadsAll(torch.nn.Module):
    def __init__(self, **rest):
        super().__init__()
        self.given = dict(locals())


class Wrapped(torch.nn.Module):
    @functools.wraps(PassesOn.__init__)
    def __init__(self, *args, **options):
        super().__init__()
        self.options = options


@pytest.mark.parametrize(
    ("cls", "keywords"),
    [
        (PassesOn, {"width": 4, "kernel_size": 3}),
        (ReadsInside, {"size": 1}),
        (ReadsAll, {"size": 1}),
        (Wrapped, {"width": 1, "kernel": 3}),
    ],
)
def test_keywords_that_a_constructor_reads_without_naming_them_are_its_own(cls, keywords):
    from csd_plugin.models.building import construct

    assert isinstance(construct(cls, keywords, "network_g"), cls)


def test_a_network_of_another_scale_is_told(launcher, tiny_rain, capsys):
    upscaling = {"type": "MSRResNet", "num_feat": 4, "num_block": 1, "upscale": 2}
    assert launcher.train(train_options(tiny_rain, network_g=upscaling, interface_g={"layout": "image"})) == 2
    assert "the network returns (4, 3, 48, 48) where frames (4, 3, 24, 24) are needed" in capsys.readouterr().err


EDVR = {
    **{"type": "EDVR", "num_feat": 8, "num_frame": 5, "deformable_groups": 2, "hr_in": True, "with_tsa": False},
    **{"num_extract_block": 1, "num_reconstruct_block": 1},
}


@pytest.mark.parametrize("model", ["VideoDerainModel", "VideoBaseModel"])
def test_a_torchvision_without_its_compiled_part_is_told_for_networks_that_need_it(
    launcher, tiny_rain, capfd, monkeypatch, model
):
    from torchvision import extension

    monkeypatch.setattr(extension, "_has_ops", lambda: False)
    sizes = {"datasets.train.num_frame": 5, "datasets.train.num_target": 1, "datasets.train.gt_size": 16}
    ours = {"interface_g": {"layout": "window", "num_frame": 5}} if model == "VideoDerainModel" else {}
    assert launcher.train(train_options(tiny_rain, model_type=model, network_g=EDVR, **ours, **sizes)) == 2
    [error] = capfd.readouterr().err.strip().splitlines()
    assert "network_g: EDVR needs torchvision's compiled part, which does not load; install the torchvision" in error
    assert launcher.written() == []


class Doubles(torch.nn.Module):
    """Its weights are of a kind that an autocast does not cast."""

    layout, feature_tap = "image", "tail"

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(3, 4, 3, padding=1).double()
        self.tail = torch.nn.Conv2d(4, 3, 3, padding=1).double()

    def forward(self, frames):
        return frames + self.tail(self.head(frames))


@pytest.mark.parametrize("role", ["network_g", "network_t"])
def test_a_network_that_cannot_compute_in_16_bits_is_one_line(
    launcher, tiny_rain, tiny_teacher, capfd, monkeypatch, role
):
    from basicsr.utils.registry import ARCH_REGISTRY

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Doubles", Doubles)
    teacher = {"network_t": {"type": "Doubles"}, "path.pretrain_network_t": str(checkpoint_of(launcher, Doubles()))}
    changes = {"network_g": {"type": "Doubles"}} if role == "network_g" else teacher
    options = options_of(tiny_rain, tiny_teacher, "SRKD", **changes)
    assert launcher.train(changed(options, {"train.autocast": None})) == 0
    capfd.readouterr()
    assert launcher.train(changed(options, {"name": "bf16", "train.autocast": "bf16"})) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: train.autocast: {role} cannot compute in bf16 (Input type")


def checkpoint_of(launcher, network):
    path = launcher.folder / "doubles.pth"
    torch.save(network.state_dict(), path)
    return path


class Learns(torch.nn.Module):
    """(B, 3, 3, H, W) to its centre frame, in training with a loss of its own."""

    def __init__(self):
        super().__init__()
        self.tail = torch.nn.Conv2d(9, 3, 3, padding=1)

    def forward(self, window):
        frames = self.tail(window.flatten(1, 2))
        return (frames, frames.mean()) if self.training else frames


@pytest.fixture
def learns(monkeypatch):
    from csd_plugin.archs import NETWORKS

    monkeypatch.setitem(NETWORKS._rows, "Learns", Learns)
    yield {"type": "Learns"}
    from basicsr.utils.registry import ARCH_REGISTRY

    ARCH_REGISTRY._obj_map.pop("Learns", None)


@pytest.mark.parametrize(
    ("interface", "words"),
    [
        ({"layout": "window", "num_frame": 3}, "interface_g: Learns gives a tuple in training, and frames alone are"),
        # a sequence has as many frames as the clips have room for
        ({"layout": "sequence", "num_frame": 3}, "network_g: Learns fails on clips (2, 8, 3, 24, 24) ("),
    ],
)
def test_what_fails_in_training_alone_is_told_before_anything_is_written(
    launcher, tiny_rain, learns, capfd, interface, words
):
    assert launcher.train(train_options(tiny_rain, network_g=learns, interface_g=interface)) == 2
    [error] = capfd.readouterr().err.strip().splitlines()
    assert words in error
    assert launcher.written() == []
