"""The short way of whole numbers through networks on blocks gives the frames of the plain one, whatever the form."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from forks import end_with
from torch.nn import functional as F

from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.data.windows import reflect_indices
from csd_plugin.errors import CSDError
from csd_plugin.inference import blocks
from csd_plugin.inference.blocks import from_blocks, to_blocks
from csd_plugin.inference.files import paired
from csd_plugin.inference.precision import psnr_between
from csd_plugin.inference.runner import Derainer
from csd_plugin.inference.tiles import split

FORMS = {
    "realtime": {"preset": "realtime", "num_feat": 8},
    "tiny": {"preset": "tiny", "num_feat": 4},
    "causal": {"preset": "causal", "num_feat": 4},
    "two levels": {"preset": "wide", "num_feat": 4, "num_pair": 2, "num_deep": 2},
    "branches": {"num_frame": 5, "num_feat": 4, "num_pair": 2, "num_deep": 1, "branches": True},
    "one frame": {"num_frame": 1, "num_feat": 4, "num_pair": 1},
}


def network_of(form: str) -> HalfNet:
    """One that changes frames by some grey levels."""
    torch.manual_seed(2)
    network = HalfNet(**FORMS[form]).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.nn.init.normal_(network.tail.weight, std=0.03)
    return network


@functools.cache
def opened(form: str) -> tuple[HalfNet, Derainer]:
    """The network, and what runs it."""
    network = network_of(form)
    return network, Derainer(network, device="cpu")


def clip_of(length: int, height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(length).integers(0, np.iinfo(dtype).max, (length, height, width, 3), dtype, True)


@torch.no_grad()
def plainly(network: HalfNet, clip: np.ndarray) -> np.ndarray:
    """By the definition, a window at a time, not rounded. A causal network's clip ends with every frame."""
    peak, frames = np.iinfo(clip.dtype).max, []
    for center in range(len(clip)):
        length = center + 1 if network.causal else len(clip)
        window = clip[reflect_indices(center, network.num_frame, length)].astype(np.float32) / peak
        frames.append(network(torch.from_numpy(window).permute(0, 3, 1, 2)[None])[0].clamp(0, 1))
    return torch.stack(frames).permute(0, 2, 3, 1).double().numpy() * peak


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(32, 40), (21, 30), (17, 7)])
def test_frames_are_those_of_the_plain_network(form, size, monkeypatch):
    (network, derainer), clip = opened(form), clip_of(6, *size)
    expected = plainly(network, clip)
    assert np.abs(expected - clip).mean() > 3
    at_once = np.stack(list(derainer(clip)))
    assert at_once.dtype == np.uint8 and np.abs(at_once - expected).max() < 0.51  # rounding, nothing else
    monkeypatch.setattr(derainer, "_pixels", size[0] * size[1] * derainer.at_once // 2)
    assert len(split(*size, derainer._pixels // derainer.at_once, 0, 4)) > 1
    assert np.abs(np.stack(list(derainer(clip))) - expected).max() < 0.51
    by_tensors = [
        tensor.permute(1, 2, 0).numpy() for tensor in derainer(torch.from_numpy(clip / 255).float().movedim(3, 1))
    ]
    assert np.abs(255 * np.stack(by_tensors) - expected).max() < 0.01


@pytest.mark.parametrize("form", ["tiny", "two levels"])
def test_deep_frames(form):
    network, clip = network_of(form), clip_of(3, 21, 30, np.uint16)
    frames = np.stack(list(Derainer(network, device="cpu")(clip)))
    assert frames.dtype == np.uint16 and np.abs(frames - plainly(network, clip)).max() < 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_not_changed_stays_as_it_is_to_the_last_bit(precision, dtype):
    network = HalfNet(preset="tiny", num_feat=4)
    torch.nn.init.zeros_(network.tail.weight)
    clip = clip_of(3, 15, 18, dtype)
    assert np.array_equal(np.stack(list(Derainer(network, precision=precision, device="cpu")(clip))), clip)


def test_results_are_kept_in_range():
    network = HalfNet(preset="tiny", num_feat=4)
    clip = clip_of(2, 8, 8)
    for bias, level in ((2.0, 255), (-2.0, 0)):
        torch.nn.init.constant_(network.tail.bias, bias)
        assert all((frame == level).all() for frame in Derainer(network, device="cpu")(clip))


def test_bf16_is_nearer_than_that_of_the_whole_frame_and_far_within_45_db_on_real_rain(shared):
    folder = shared / "data" / "NTURain" / "Dataset_Testing_RealRain" / "ra1_Rain"
    clip = np.stack([cv2.imread(str(path))[100:260, 200:400, ::-1] for path in sorted(folder.iterdir())[:4]])
    network = network_of("realtime")
    exact = plainly(network, clip)
    assert np.abs(exact - clip).mean() > 1
    frames = list(Derainer(network, precision="bf16", device="cpu")(clip))
    tensors = Derainer(network, precision="bf16", device="cpu")(torch.from_numpy(clip / 255).float().movedim(3, 1))
    whole = [tensor.permute(1, 2, 0).numpy() * 255 for tensor in tensors]
    assert psnr_between(frames, exact) > max(50, psnr_between(whole, exact))


def test_blocks_are_those_of_pixel_unshuffle_in_the_order_of_memory():
    frame = clip_of(1, 6, 8)[0]
    blocks = to_blocks(frame)
    expected = F.pixel_unshuffle(torch.from_numpy(frame).permute(2, 0, 1).float(), 2)
    expected = expected.unflatten(0, (3, 2, 2)).permute(3, 4, 1, 2, 0).flatten(2)
    assert np.array_equal(blocks, expected.numpy())
    for dtype in (torch.float32, torch.bfloat16):
        back = from_blocks(torch.from_numpy(blocks).to(dtype).permute(2, 0, 1)[None])
        assert back.dtype == np.float32 and np.array_equal(back, frame)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_for_pixels_is_the_same_network_in_other_units(form):
    network = network_of(form).double()
    frames = torch.rand(network.num_seen, 8, 12, 3).double() * 255
    blocks = torch.from_numpy(np.concatenate([to_blocks(frame.numpy()) for frame in frames], 2)).permute(2, 0, 1)[None]
    added = from_blocks(
        network.for_pixels().forward_blocks(blocks).contiguous(memory_format=torch.channels_last).float()
    )
    window = frames.permute(0, 3, 1, 2)[None] / 255
    expected = network(window)[0] - window[0, network.num_frame // 2]
    np.testing.assert_allclose(added, 255 * expected.permute(1, 2, 0).numpy(), atol=1e-3)


def test_a_causal_network_gives_every_frame_at_once_and_sees_no_other():
    network, clip = network_of("causal"), clip_of(7, 8, 12)
    derainer = Derainer(network, device="cpu")
    assert [len(derainer.push(frame)) for frame in clip] == [1] * 7 and derainer.flush() == []
    lengths, run = [], derainer.backend
    tensors = torch.from_numpy(clip / 255).float().movedim(3, 1)
    derainer.backend = lambda window: lengths.append(window.shape[1]) or run(window)
    derainer.backend.facts, derainer.backend.device = run.facts, run.device
    assert [len(derainer.push(frame)) for frame in tensors] == [1] * 7
    assert lengths == [3] * 7  # of a window of five
    waits = Derainer(network_of("realtime"), device="cpu")
    assert [len(waits.push(frame)) for frame in clip] == [0, 1, 1, 1, 1, 1, 1]


def test_frames_side_by_side_come_in_order_and_none_is_lost():
    derainer, clip = Derainer(network_of("tiny"), device="cpu"), clip_of(40, 8, 12)
    expected = np.stack(list(derainer(clip)))
    pairs = list(paired(iter(clip), derainer))
    assert all(np.array_equal(pair.rainy, frame) for pair, frame in zip(pairs, clip, strict=True))
    cuts = [number for number, pair in enumerate(pairs) if pair.begins_shot]
    shots = [0, *cuts, len(clip)]
    for begin, end in itertools.pairwise(shots):
        alone = list(derainer(clip[begin:end]))
        assert all(np.array_equal(pair.clean, clean) for pair, clean in zip(pairs[begin:end], alone, strict=True))
    if not cuts:
        assert np.array_equal(np.stack([pair.clean for pair in pairs]), expected)


@pytest.mark.parametrize(("threads", "lanes", "each"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (9, 4, 2)])
def test_lanes_share_the_threads_and_others_keep_theirs(threads, lanes, each):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        derainer = Derainer(network_of("tiny"), device="cpu")
        assert derainer.at_once == lanes and torch.get_num_threads() == threads
        list(derainer(clip_of(6, 8, 8)))
        assert {derainer._lanes.submit(torch.get_num_threads).result() for _ in range(8)} == {each}
        with ThreadPoolExecutor(1) as another:
            assert another.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lanes_share_the_memory(precision, monkeypatch):
    """Each has its part, of numbers that may be half as large."""
    before, asked = torch.get_num_threads(), []
    monkeypatch.setattr(blocks, "split", lambda *given: asked.append(given[2]) or split(*given))
    try:
        torch.set_num_threads(2)
        derainer = Derainer(network_of("tiny"), device="cpu", precision=precision)
        list(derainer(clip_of(3, 8, 8)))
    finally:
        torch.set_num_threads(before)
    share = {"fp32": 1, "bf16": 2}[precision] * derainer._pixels // 2
    assert asked == [share] * 3


def test_a_result_that_is_not_finite_is_one_line():
    network = HalfNet(preset="tiny", num_feat=4)
    torch.nn.init.constant_(network.tail.weight, 3e38)  # in grey levels it is not finite itself
    with pytest.raises(CSDError, match=r"its weight tail\.weight holds NaN or infinity"):
        Derainer(network, device="cpu")
    torch.nn.init.constant_(network.tail.weight, 1e36)
    with pytest.raises(CSDError, match="the network's output holds NaN or infinity"):
        list(Derainer(network, device="cpu")(clip_of(2, 8, 8)))


def test_a_derainer_works_in_a_forked_process_and_leaves_its_threads_to_the_parent(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        derainer, clip = Derainer(network_of("tiny"), device="cpu"), clip_of(4, 8, 12)
        expected = list(derainer(clip))

        def derains() -> int:
            torch.set_num_threads(1)  # as in a loader's worker
            return int(not np.array_equal(list(derainer(clip)), expected)) or torch.get_num_threads() - 1

        if (process := os.fork()) == 0:
            signal.alarm(60)
            end_with(derains, tmp_path / "log")
        assert os.waitpid(process, 0)[1] == 0, (tmp_path / "log").read_text()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda derainer: pickle.loads(pickle.dumps(derainer))])
def test_copies_give_the_same_frames(copied):
    derainer, clip = Derainer(network_of("tiny"), device="cpu"), clip_of(4, 8, 12)
    expected = list(derainer(clip))
    assert np.array_equal(list(copied(derainer)(clip)), expected)
