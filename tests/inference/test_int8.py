"""Networks in 8-bit integers give nearly the frames of fp32, whatever the form of the network and of the frames."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.halfnet import PRESETS, HalfNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.cli import main
from csd_plugin.data.video import open_reader
from csd_plugin.errors import CSDError
from csd_plugin.inference import int8, precision, runner
from csd_plugin.inference.int8 import Int8HalfNet, computes_int8, dead_leaves
from csd_plugin.inference.precision import Precision, psnr_between, rainy_clip
from csd_plugin.inference.runner import Derainer
from csd_plugin.inference.tiles import split
from csd_plugin.weights import NETWORKS, find_checkpoint

needs_int8 = pytest.mark.skipif(not computes_int8(), reason="torch has no int8 convolutions for this CPU")

FORMS = {
    **{name: {"preset": name, "num_feat": 8} for name in PRESETS},
    "no channels for whole words": {"preset": "realtime", "num_feat": 6},
    "branches": {"num_frame": 5, "num_feat": 8, "num_pair": 3, "num_deep": 1, "branches": True},
    "one frame, one level": {"num_frame": 1, "num_feat": 8, "num_pair": 1},
}


def network_of(form: str) -> HalfNet:
    """One that changes frames by some grey levels, and whose channels have very different ranges."""
    torch.manual_seed(2)
    network = HalfNet(**FORMS[form]).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        network.head.weight.mul_(torch.linspace(0.1, 3, network.num_feat)[:, None, None, None])
    torch.nn.init.normal_(network.tail.weight, std=0.005)
    return network


@needs_int8
@pytest.mark.parametrize("form", FORMS)
def test_frames_are_near_those_of_fp32(form):
    network, clip = network_of(form), rainy_clip(6, (70, 50))
    exact, near = (list(Derainer(network, precision=how, device="cpu")(clip)) for how in ("fp32", "int8"))
    assert psnr_between(clip, exact) < 30
    assert psnr_between(exact, near) > 48
    assert all(frame.dtype == np.uint8 and frame.shape == (50, 70, 3) for frame in near)


@needs_int8
@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_networks_lose_little_on_scenes_they_were_not_measured_on(name):
    clip = list(dead_leaves(99, 5, 96))
    exact, near = (list(Derainer(find_checkpoint(name), precision=how, device="cpu")(clip)) for how in ("fp32", "int8"))
    assert psnr_between(exact, near) > 48


@needs_int8
@pytest.mark.parametrize("name", ["realtime", "tiny"])
def test_on_real_rain_shipped_networks_lose_little(name, shared):
    folder = shared / "data" / "NTURain" / "Dataset_Testing_RealRain" / "ra1_Rain"
    real = [cv2.imread(str(path))[100:356, 200:456, ::-1].copy() for path in sorted(folder.iterdir())[:4]]
    exact, near = (list(Derainer(find_checkpoint(name), precision=how, device="cpu")(real)) for how in ("fp32", "int8"))
    assert psnr_between(exact, near) > 50


def by_hand(conv: int8._Conv, x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    """A layer by its definition, in float64."""
    numbers = conv._numbers
    weight = conv._weight.double() * numbers["w_scale"].double()[:, None, None, None]
    made = F.conv2d(x.double(), weight, numbers["bias"].double(), numbers["stride"], numbers["padding"])
    if not conv._relu:
        return made
    return (made if other is None else made + other).round().clamp(0, 255)


@needs_int8
def test_layers_compute_by_their_definition(monkeypatch):
    """Sums of integers are exact; only a value that lies between two steps may be rounded to the other one."""
    calls, plain = [], int8._Conv.__call__

    def compared(self, x, other=None):
        expected = by_hand(self, x, other)  # before the call, which overwrites `other`
        made = plain(self, x, other)
        difference = (made.double() - expected).abs()
        assert difference.max() <= (1 if self._relu else 1e-3 * expected.abs().max())
        assert (difference > 0.01).double().mean() < 0.001
        calls.append(made.dtype)
        return made

    network = network_of("realtime")
    int8_network = Int8HalfNet(network)
    monkeypatch.setattr(int8._Conv, "__call__", compared)
    blocks = torch.randint(0, 256, (1, 36, 16, 24), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        int8_network.forward_blocks(blocks)
    count = sum(isinstance(layer, torch.nn.Conv2d) for layer in network.modules())
    assert calls == [torch.uint8] * (count - 1) + [torch.float32]


def test_blocks_of_cells_are_those_of_torch():
    for channels in (16, 6):
        x = torch.randint(0, 256, (2, channels, 6, 8), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        cells = int8._to_cells(x)
        expected = F.pixel_unshuffle(x, 2).unflatten(1, (channels, 4)).transpose(1, 2).flatten(1, 2)
        assert (cells == expected).all() and cells.is_contiguous(memory_format=torch.channels_last)
        assert (int8._from_cells(cells) == x).all()


@needs_int8
@pytest.mark.parametrize("size", [(40, 264), (37, 253), (4, 4), (1, 1)])
def test_tiles_leave_no_trace_and_tensors_give_the_same(size):
    network = network_of("realtime")
    height, width = size
    clip = rainy_clip(5, (max(width, 8), max(height, 8)))
    clip = [frame[:height, :width].copy() for frame in clip]
    derainer = Derainer(network, precision="int8", device="cpu")
    whole = np.stack(list(derainer(clip)))
    tensors = [torch.from_numpy(frame).permute(2, 0, 1) / 255 for frame in clip]
    by_tensors = np.stack([255 * frame.permute(1, 2, 0).numpy() for frame in derainer(tensors)])
    assert np.abs(by_tensors - whole).max() < 0.51
    derainer._pixels = max(height * width * derainer.at_once // 8, 1)
    if height > 30:
        assert len(split(height, width, derainer._pixels * 4 // derainer.at_once, derainer.backend.facts.reach, 4)) > 1
    assert (np.stack(list(derainer(clip))) == whole).all()


@needs_int8
def test_frames_of_16_bits_are_seen_as_8_and_changed_by_as_much():
    network, clip = network_of("tiny"), rainy_clip(4)
    derainer = Derainer(network, precision="int8", device="cpu")
    deep = [frame.astype(np.uint16) * 257 for frame in clip]
    shifted = [frame + np.uint16(100) for frame in (np.minimum(frame, 60000) for frame in deep)]
    for given, made in ((deep, list(derainer(deep))), (shifted, list(derainer(shifted)))):
        seen = [np.round(frame / 257).astype(np.uint8) for frame in given]
        added = [a.astype(float) - b for a, b in zip(derainer(seen), seen, strict=True)]
        for frame, clean, change in zip(given, made, added, strict=True):
            inner = (clean > 0) & (clean < 65535) & (np.abs(change) < 60)
            assert clean.dtype == np.uint16
            assert np.abs(clean.astype(float) - frame - 257 * change)[inner].max() < 257 * 0.51 + 257


@needs_int8
def test_copies_and_threads_give_the_same_frames():
    clip = rainy_clip(5)
    derainer = Derainer(network_of("realtime"), precision="int8", device="cpu")
    expected = np.stack(list(derainer(clip)))
    copies = [copy.deepcopy(derainer), pickle.loads(pickle.dumps(derainer)), derainer]
    assert all((np.stack(list(one(clip))) == expected).all() for one in copies)
    with ThreadPoolExecutor(4) as pool:
        for frames in pool.map(lambda _: np.stack(list(derainer(clip))), range(8)):
            assert (frames == expected).all()


@needs_int8
def test_two_openings_give_the_same_frames():
    clip = rainy_clip()
    first, second = (list(Derainer(find_checkpoint("tiny"), precision="int8", device="cpu")(clip)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_scenes_differ_and_are_always_the_same():
    scenes = [list(dead_leaves(seed, 3, 32)) for seed in (0, 0, 1)]
    assert all((a == b).all() for a, b in zip(*scenes[:2], strict=True))
    assert (scenes[0][0] != scenes[2][0]).any()
    for one, following in pairwise(scenes[0]):
        assert one.shape == (32, 32, 3) and one.dtype == np.uint8 and (one != following).any()


@needs_int8
def test_auto_is_int8_where_only_that_is_fast(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    monkeypatch.setattr(precision, "has_int8", lambda: True)
    derainer = Derainer(find_checkpoint("tiny"), precision="auto", device="cpu")
    clip = rainy_clip()
    exact, near = (Derainer(find_checkpoint("tiny"), precision=how, device="cpu") for how in ("fp32", "int8"))
    psnr = psnr_between(exact(clip), near(clip))
    assert derainer.precision == Precision("int8", f"nearly the same frames as in fp32: PSNR {psnr:.1f} dB")
    assert all((a == b).all() for a, b in zip(derainer(clip), near(clip), strict=True))
    other = Derainer(SLDNet(preset="student2", num_feat=4), precision="auto", device="cpu")
    assert other.precision == Precision("fp32", "this CPU has no fast bf16")
    torch.manual_seed(0)
    wild = network_of("tiny")
    torch.nn.init.normal_(wild.tail.weight, std=5)
    left = Derainer(wild, precision="auto", device="cpu").precision
    assert left.name == "fp32" and left.why.startswith("int8 would change the frames too much: PSNR ")


def test_what_cannot_be_computed_in_int8_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(CSDError, match="int8 is for networks of type HalfNet, not SLDNet; use another precision"):
        Derainer(SLDNet(preset="student2", num_feat=4), precision="int8", device="cpu")
    network = network_of("tiny")
    with pytest.raises(CSDError, match="int8 is computed by torch here, not by onnxruntime"):
        Derainer(network, precision="int8", backend="onnxruntime", device="cpu")
    graph = tmp_path / "tiny.onnx"
    graph.write_bytes(b"")
    with pytest.raises(CSDError, match=r"tiny.onnx: give the checkpoint to compute in int8"):
        Derainer(graph, precision="int8")
    monkeypatch.setattr("csd_plugin.inference.backends.computes_int8", lambda: False)
    with pytest.raises(CSDError, match="torch has no int8 convolutions for this CPU"):
        Derainer(network, precision="int8", device="cpu")


@needs_int8
def test_broken_weights_are_refused():
    network = network_of("tiny")
    torch.nn.init.constant_(network.tail.bias, float("nan"))
    with pytest.raises(CSDError, match=r"its weight tail.bias holds NaN or infinity"):
        Derainer(network, precision="int8", device="cpu")


@needs_int8
def test_layers_that_overflow_are_refused():
    network = network_of("tiny")
    with torch.no_grad():
        network.deep[0].conv1.weight.mul_(1e30)
        network.deep[0].conv2.weight.mul_(1e30)
    with pytest.raises(CSDError, match=r"holds NaN or infinity: its weights are broken"):
        Derainer(network, precision="int8", device="cpu")


@needs_int8
def test_the_size_of_values_between_layers_does_not_matter():
    network, clip = network_of("tiny"), rainy_clip()
    expected = list(Derainer(network, precision="int8", device="cpu")(clip))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("head") or (name.endswith("bias") and not name.startswith("tail")):
                parameter.mul_(2**-40)
        network.tail.weight.mul_(2**40)
    assert psnr_between(expected, Derainer(network, precision="int8", device="cpu")(clip)) > 60


@needs_int8
def test_what_is_set_outside_changes_nothing():
    network, clip = network_of("realtime"), rainy_clip()
    expected = np.stack(list(Derainer(network, precision="int8", device="cpu")(clip)))
    for outside in (torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"), torch.inference_mode()):
        computes_int8.cache_clear()
        with outside:
            derainer = Derainer(network, precision="int8", device="cpu")
            assert (np.stack(list(derainer(clip))) == expected).all(), outside


@needs_int8
def test_auto_opens_a_network_once_in_each_format(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    monkeypatch.setattr(precision, "has_int8", lambda: True)
    opened, plain = [], runner.open_backend

    def noted(network, **how):
        opened.append(how["precision"])
        return plain(network, **how)

    monkeypatch.setattr(runner, "open_backend", noted)
    assert Derainer(network_of("tiny"), precision="auto", device="cpu").precision.name == "int8"
    assert opened == ["fp32", "int8"]


@pytest.mark.parametrize("fault", [AttributeError("no such operator"), "cut off at 16 bits"])
def test_convolutions_that_are_missing_or_overflow_are_found_out(monkeypatch, fault):
    def call(self, x, other=None):
        if isinstance(fault, Exception):
            raise fault
        return torch.full((1, 16, 4, 4), 32767.0) if other is None else torch.full((1, 16, 4, 4), 255)

    monkeypatch.setattr(int8._Conv, "__call__", call)
    computes_int8.cache_clear()
    assert not computes_int8() and not int8.has_int8()
    computes_int8.cache_clear()


@needs_int8
def test_a_slow_choice_is_said(monkeypatch):
    monkeypatch.setattr(runner, "has_int8", lambda: False)
    chosen = Derainer(network_of("tiny"), precision="int8", device="cpu").precision
    assert chosen == Precision("int8", "this CPU has no fast int8")


@needs_int8
def test_the_command_derains_in_int8(tmp_path, capsys):
    folder = tmp_path / "rain"
    folder.mkdir()
    clip = rainy_clip(4)
    for number, frame in enumerate(clip):
        cv2.imwrite(str(folder / f"{number:05d}.png"), frame[..., ::-1])
    assert main(["derain", str(folder), str(tmp_path / "clean"), "--model", "tiny", "--precision", "int8"]) == 0
    assert " in int8" in capsys.readouterr().out
    with open_reader(tmp_path / "clean") as written:
        made = [frame.copy() for frame in written]
    expected = list(Derainer(load_network(find_checkpoint("tiny")), precision="int8", device="cpu")(clip))
    assert all((a == b).all() for a, b in zip(made, expected, strict=True))
