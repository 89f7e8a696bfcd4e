"""Windows and derained frames are those of the whole clip, however they arrive."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from videos import make_video

from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.data.video import open_reader
from csd_plugin.data.windows import reflect_indices
from csd_plugin.errors import CSDError
from csd_plugin.inference import runner
from csd_plugin.inference.runner import Derainer, split
from csd_plugin.inference.streaming import WindowStream, ahead


@given(length=st.integers(1, 20), num_frame=st.sampled_from((1, 3, 5, 7)), together=st.integers(1, 6))
def test_stream_gives_the_windows_of_the_whole_clip_as_early_as_it_can(length, num_frame, together):
    stream, runs = WindowStream(num_frame, together), []
    for item in range(length):
        runs += stream.push(item)
        assert len(runs) == max(0, item + 1 - num_frame // 2) // together
    runs += stream.flush()
    windows = [run[i : i + num_frame] for run in runs for i in range(len(run) - num_frame + 1)]
    assert windows == [reflect_indices(center, num_frame, length) for center in range(length)]
    assert all(len(run) == together + num_frame - 1 for run in runs[:-1])
    assert stream.flush() == []
    again = [run for item in range(length) for run in stream.push(item)]  # another clip
    assert again + stream.flush() == runs


@given(length=st.integers(1, 12), num_frame=st.sampled_from((1, 3, 5, 7)), num_future=st.integers(0, 3))
def test_windows_wait_for_the_items_that_count_and_hold_no_others(length, num_frame, num_future):
    num_future = min(num_future, num_frame // 2)
    stream, windows = WindowStream(num_frame, num_future=num_future), []
    for item in range(length):
        windows += stream.push(item)
        assert len(windows) == max(0, item + 1 - num_future)
    windows += stream.flush()
    assert len(windows) == length
    for center, window in enumerate(windows):
        known = min(length, center + num_future + 1)
        assert window == reflect_indices(center, num_frame, known)[: num_frame // 2 + 1 + num_future]
        assert window[num_frame // 2] == center and max(window) < known


splits = given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    pixels=st.integers(1, 4000),
    reach=st.integers(0, 9),
    divisor=st.integers(1, 4),
)


@splits
def test_tiles_cover_the_frame_once_and_see_all_that_they_need(height, width, pixels, reach, divisor):
    kept = np.zeros((height, width), int)
    for tile in split(height, width, pixels, reach, divisor):
        for span, length in zip(tile, (height, width), strict=True):
            assert span.seen.start % divisor == 0 and 0 <= span.seen.start < span.seen.stop <= length
            assert span.seen.start <= max(span.kept.start - reach, 0)
            assert span.seen.stop >= min(span.kept.stop + reach, length)
            assert span.inner == slice(span.kept.start - span.seen.start, span.kept.stop - span.seen.start)
        kept[tile[0].kept, tile[1].kept] += 1
    assert (kept == 1).all()


def cost(tiles) -> tuple[int, int]:
    """Pixels that a tile sees, which is the same for all, and those that all of them see together."""
    [area] = {(y.seen.stop - y.seen.start) * (x.seen.stop - x.seen.start) for y, x in tiles}
    return area, area * len(tiles)


@splits
def test_tiles_fit_into_memory_and_more_of_it_means_no_more_work(height, width, pixels, reach, divisor):
    finest, _ = cost(split(height, width, 1, reach, divisor))
    area, work = cost(split(height, width, pixels, reach, divisor))
    assert area <= max(pixels, finest)
    assert cost(split(height, width, max(pixels, finest) + 500, reach, divisor))[1] <= work
    assert len(split(height, width, height * width, reach, divisor)) == 1


def test_where_no_tile_is_small_enough_they_are_the_smallest_that_there_are():
    assert cost(split(90, 60, 1, 0)) == (2, 90 * 60)  # up to 64 in each direction
    assert cost(split(90, 60, 1, 3))[0] == (2 + 6) * (1 + 6)


def test_ahead_keeps_order_and_raises_where_the_item_would_come():
    def items():
        yield from range(5)
        raise CSDError("frame 5")

    made = ahead(items(), depth=2)
    assert [next(made) for _ in range(5)] == list(range(5))
    with pytest.raises(CSDError, match="frame 5"):
        next(made)


def test_ahead_stops_its_thread_when_nobody_asks_any_more():
    taken = []
    made = ahead((taken.append(i) for i in range(1000)), depth=2)
    next(made)
    made.close()
    assert len(taken) <= 4


@pytest.fixture(scope="module")
def network() -> SLDNet:
    torch.manual_seed(0)
    return SLDNet(num_frame=3, num_feat=4, num_pair=3, num_transition=2, reducing=(4, 7), init_type="kaiming").eval()


def clip_of(length: int, dtype: type = np.uint8, height: int = 13, width: int = 17) -> np.ndarray:
    """(length, H, W, 3)."""
    return np.random.default_rng(length).integers(0, np.iinfo(dtype).max, (length, height, width, 3), dtype)


@torch.no_grad()
def slowly(network: SLDNet, clip: np.ndarray) -> np.ndarray:
    """The whole clip, a window at a time, by the definition."""
    peak = np.iinfo(clip.dtype).max
    frames = []
    for center in range(len(clip)):
        window = clip[reflect_indices(center, network.num_frame, len(clip))].astype(np.float32) / peak
        output = network(torch.from_numpy(window).permute(0, 3, 1, 2)[None])[0]
        frames.append((output.clamp(0, 1).permute(1, 2, 0).double().numpy() * peak).round())
    return np.stack(frames)


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_streaming_equals_the_clip_at_once(network, length, batch):
    clip = clip_of(length)
    frames = list(Derainer(network, device="cpu", batch=batch)(iter(clip)))
    assert len(frames) == length and all(frame.dtype == np.uint8 for frame in frames)
    assert np.abs(np.stack(frames).astype(int) - slowly(network, clip)).max() <= 1  # a tie may round either way


def test_a_frame_comes_as_soon_as_its_window_is_full_and_a_second_clip_starts_anew(network):
    derainer = Derainer(network, device="cpu", batch=1)
    for clip in (clip_of(4), clip_of(5)):
        counts = [len(derainer.push(frame)) for frame in clip]
        assert counts == [0] + [1] * (len(clip) - 1)
        assert len(derainer.flush()) == 1
    first = next(iter(derainer(clip_of(2))))
    assert np.abs(first - slowly(network, clip_of(2))[0]).max() <= 1


def test_tiles_leave_no_seam(network):
    clip = clip_of(3, height=200, width=150)
    whole = Derainer(network, device="cpu", memory=1024)
    tiled = Derainer(network, device="cpu", memory=1)
    sizes, run = [], tiled.backend
    tiled.backend = spy = mock.Mock(wraps=run, side_effect=lambda x: sizes.append(x.shape[-2:].numel()) or run(x))
    spy.facts = run.facts
    a, b = list(whole(clip)), list(tiled(clip))
    assert max(sizes) < 200 * 150
    assert np.abs(np.stack(a).astype(int) - np.stack(b)).max() <= 1


@pytest.mark.parametrize("memory", [64, 1])
def test_the_time_to_expect_counts_what_is_computed(monkeypatch, memory):
    derainer = Derainer(SLDNet(preset="student2", num_feat=4), memory=memory, device="cpu")
    clock = iter(range(1000))
    monkeypatch.setattr(runner.time, "perf_counter", lambda: next(clock))  # every trial takes a second
    computed = []

    class Recorder:
        facts = derainer.backend.facts

        def __call__(self, window):
            computed.append(window.shape[-2] * window.shape[-1])
            return window[:, 0]

    derainer.backend = Recorder()
    expected = derainer.seconds_a_frame(300, 200)
    trial, computed[:] = computed[-1], []
    frame = np.zeros((200, 300, 3), np.uint8)
    assert len(list(derainer([frame]))) == 1
    assert (len(computed) == 1) == (memory == 64)
    assert expected == pytest.approx(sum(computed) / trial)


def test_a_result_that_is_not_finite_is_one_line(network):
    broken = copy.deepcopy(network)
    *_, last = (layer for layer in broken.modules() if isinstance(layer, torch.nn.Conv3d))
    torch.nn.init.constant_(last.weight, 3e38)
    with pytest.raises(CSDError, match="the network's output holds NaN or infinity"):
        list(Derainer(broken, device="cpu")(clip_of(3)))


def test_deep_frames_and_tensors_come_back_as_they_went_in(network):
    deep = clip_of(3, np.uint16)
    frames = np.stack(list(Derainer(network, device="cpu")(deep)))
    assert frames.dtype == np.uint16
    assert np.abs(frames - slowly(network, deep)).max() <= 2
    tensors = torch.from_numpy(deep.astype(np.float32) / 65535).permute(0, 3, 1, 2)
    for tensor, frame in zip(Derainer(network, device="cpu")(tensors), frames, strict=True):
        assert tensor.shape == (3, 13, 17) and torch.all((tensor >= 0) & (tensor <= 1))
        assert np.abs(tensor.permute(1, 2, 0).numpy() * 65535 - frame).max() <= 1


def test_mistakes_are_one_line(network):
    derainer = Derainer(network, device="cpu")
    with pytest.raises(CSDError, match="expected uint8 or uint16"):
        derainer.push(np.zeros((4, 4, 3)))
    derainer.reset()
    derainer.push(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(CSDError, match="a clip needs frames of one kind"):
        derainer.push(np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(CSDError, match=r"find_checkpoint\('tiny'\) of csd_plugin.weights"):
        Derainer("tiny")
    with pytest.raises(CSDError, match="device 'abacus'"):
        Derainer(network, device="abacus")
    broken = SLDNet(preset="student2", num_feat=3)
    with torch.no_grad():
        broken.conv1.bias.fill_(float("nan"))
    with pytest.raises(CSDError, match="NaN"):
        list(Derainer(broken, device="cpu")(clip_of(2)))


@pytest.fixture(scope="module", params=["plain", "blocks"])
def derainer(request, network) -> Derainer:
    return Derainer(network if request.param == "plain" else HalfNet(preset="tiny", num_feat=4).eval(), device="cpu")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, torch.float32])
def test_frames_may_be_used_again_by_those_who_gave_them(derainer, kind):
    clip = clip_of(6, np.uint16 if kind is torch.float32 else kind, 16, 18)
    frames: list = list(clip)
    if kind is torch.float32:
        frames = list(torch.from_numpy(clip.astype(np.float32) / 65535).permute(0, 3, 1, 2))
    expected = [np.asarray(frame).copy() for frame in derainer(copy.deepcopy(frames))]

    def one_buffer():
        buffer = frames[0].clone() if isinstance(frames[0], torch.Tensor) else frames[0].copy()
        for frame in frames:
            buffer[:] = frame
            yield buffer

    assert np.array_equal([np.asarray(frame) for frame in derainer(one_buffer())], expected)
    pushed = [clean for frame in one_buffer() for clean in derainer.push(frame)] + derainer.flush()
    assert np.array_equal([np.asarray(frame) for frame in pushed], expected)


def test_frames_of_a_reader_are_not_copied(derainer, tmp_path):
    taken = []
    note = mock.patch.object(derainer, "_waiting", side_effect=lambda frame, own: taken.append(own) or frame)
    with note, mock.patch.object(derainer, "_compute", return_value=[]):
        with open_reader(make_video(tmp_path / "in.mp4")) as reader:
            list(derainer(reader))
        list(derainer(clip_of(2)))
    assert taken == [True] * 8 + [False] * 2


def test_clips_of_one_derainer_do_not_mix(derainer):
    one, other = clip_of(5, height=16), clip_of(6, height=16)
    expected = list(derainer(one)), list(derainer(other))
    left = derainer(one)
    next(left)
    left.close()
    pushed = [clean for frame in other for clean in derainer.push(frame)]
    a, b = derainer(one), derainer(other)
    first = [next(a), next(b), next(a)]
    with ThreadPoolExecutor(2) as threads:
        rest, side = threads.submit(list, a), threads.submit(lambda: list(derainer(other)))
        assert np.array_equal([first[0], first[2], *rest.result()], expected[0])
        assert np.array_equal(side.result(), expected[1])
    assert np.array_equal([first[1], *b], expected[1])
    assert np.array_equal(pushed + derainer.flush(), expected[1])


def test_clean_tensors_may_be_changed_and_trained_with(derainer):
    tensors = [torch.rand(3, 16, 18).requires_grad_() for _ in range(3)]
    weight = torch.ones(1, requires_grad=True)
    for frame in derainer(tensors):
        (frame * weight).square().sum().backward()
        assert not frame.requires_grad
        frame.mul_(255)
    assert weight.grad.isfinite()


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (None, "^None holds no frames"),
        ("clip.mp4", "is a path, not frames"),
        (Path("clip.mp4"), "is a path, not frames"),
        ([[[1, 2, 3]]], "a list is not a frame"),
        ([None], "^None is not a frame"),
        ([Image.new("RGB", (4, 4))], "^an Image is not a frame"),
        (np.zeros((16, 16, 3), np.uint8), r"one frame is no clip: give a list of frames, such as \[frame\]"),
        (torch.zeros(3, 16, 16), "one frame is no clip"),
        ([np.zeros((0, 4, 3), np.uint8)], "is not a frame"),
        ([torch.zeros(3, 0, 4)], "no pixels"),
        ([torch.zeros(3, 4, 4, device="meta")], "no pixels"),
        ([torch.zeros(3, 16, 16), torch.full((3, 16, 16), float("nan"))], "frame 1 of the clip.*NaN"),
        ([torch.full((3, 16, 16), 255.0)], "frame 0 of the clip.*holds values from 255 to 255: give values in"),
        ([torch.full((3, 16, 16), -1.0)], "holds values from -1 to -1"),
        ([torch.full((3, 16, 16), float("inf"), dtype=torch.bfloat16)], "holds NaN or infinity"),
        ([np.zeros((16, 16, 3), np.uint8), [1]], "a list is not a frame"),
    ],
)
def test_what_is_no_frame_is_one_line(derainer, frames, reason):
    with pytest.raises(CSDError, match=reason):
        list(derainer(frames))


@pytest.mark.parametrize(
    "given",
    [
        np.random.default_rng(0).random((16, 18, 3)),
        np.random.default_rng(0).random((16, 18), np.float32),
        np.full((16, 18), 9, np.uint16),
        np.full((16, 18, 1), 9, np.uint8),
        np.full((16, 18, 4), 9, np.uint8),
        np.full((3, 16, 18), 9, np.uint8),
        Image.new("RGBA", (18, 16)),
        Image.new("L", (18, 16)),
        torch.full((16, 18, 3), 9, dtype=torch.uint8),
        torch.rand(1, 16, 18),
        torch.rand(16, 18),
    ],
    ids=[
        "double",
        "grey float",
        "grey 16 bit",
        "grey axis",
        "rgba",
        "channels first",
        "pillow rgba",
        "pillow grey",
        "tensor of bytes",
        "grey tensor axis",
        "grey tensor",
    ],
)
def test_the_conversion_that_a_refusal_names_makes_a_frame(derainer, given):
    """The conversion is run as it is written."""
    with pytest.raises(CSDError, match="; convert it by ") as refused:
        list(derainer([given]))
    line = str(refused.value)
    assert "\n" not in line
    for step in line.partition("; convert it by ")[2].split(", then "):
        given = eval(step.removesuffix(" if its values lie in [0, 1]"), {"np": np, "cv2": cv2, "frame": given})
    [clean] = derainer([given])
    assert (clean.shape, clean.dtype) == (given.shape, given.dtype)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize(("network", "kind"), [(None, "None"), (3, "an int"), (b"net.pth", "a bytes")])
def test_what_is_no_network_is_one_line(network, kind, precision):
    with pytest.raises(CSDError, match=f"^{kind} is not a path: give the path of a checkpoint, find_checkpoint"):
        Derainer(network, precision=precision, device="cpu")
