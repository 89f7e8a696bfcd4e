"""Pictures: what is compared, which details are chosen, that scales are equal, and what comes out."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from synthetic import moving_scene, rain_on, write_image

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.data.video import open_reader
from csd_plugin.errors import CSDError
from csd_plugin.inference.runner import Derainer
from csd_plugin.report.figures.comparison import write_comparison
from csd_plugin.report.figures.crops import Box, draw_crops, find_boxes
from csd_plugin.report.figures.errors import draw_errors
from csd_plugin.report.figures.features import draw_features, feature_of
from csd_plugin.report.figures.sheet import DPI, PAGE_WIDTH, Sheet
from csd_plugin.report.figures.slices import draw_slices
from csd_plugin.report.figures.sources import Method, Scene, find_method

FRAMES, HEIGHT, WIDTH = 5, 48, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A truth, rain on it, results that are half way between, and a narrow network."""
    root = tmp_path_factory.mktemp("figures")
    truth = moving_scene(FRAMES, HEIGHT, WIDTH, 0)
    for i, (clean, rainy) in enumerate(zip(truth, rain_on(truth, 1), strict=True)):
        write_image(root / f"truth/{i:05d}.png", clean)
        write_image(root / f"rain/{i:05d}.png", rainy)
        write_image(root / f"half/{i:05d}.png", (clean // 2 + rainy // 2).astype(np.uint8))
    torch.manual_seed(0)
    torch.save({"params": SLDNet(preset="student2", num_feat=4).state_dict()}, root / "net.pth")
    return root


@pytest.fixture
def scene(folder):
    methods = (Method("half", folder / "half"), Method("net", folder / "net.pth"))
    return Scene(folder / "rain", folder / "truth", methods, "cpu")


def read(path):
    return cv2.imread(str(path))[..., ::-1]


def page_pixels():
    return round(PAGE_WIDTH * DPI)


def test_columns_are_the_clips_frames_and_what_the_network_makes_of_the_whole_clip(scene, folder):
    with open_reader(folder / "rain") as reader:
        whole = list(Derainer(folder / "net.pth", device="cpu")(reader))
    for number in range(FRAMES):
        frames = scene.frame(number)
        assert list(frames) == ["input", "half", "net", "ground truth"]
        assert np.array_equal(frames["input"], read(folder / f"rain/{number:05d}.png"))
        assert np.array_equal(frames["half"], read(folder / f"half/{number:05d}.png"))
        assert np.array_equal(frames["net"], whole[number])
        assert np.array_equal(frames["ground truth"], read(folder / f"truth/{number:05d}.png"))
    assert scene.middle() == FRAMES // 2
    assert len(list(scene.frames(1, 4))) == 3


def test_methods_are_named(folder, tmp_path):
    assert find_method("realtime").label == "realtime"
    assert find_method(f"mine={folder / 'net.pth'}") == Method("mine", folder / "net.pth")
    assert find_method(str(folder / "half")).label == "half"
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert find_method(str(odd)) == Method("a=b", odd)
    models = tmp_path / "experiments/student1_csd/models"
    models.mkdir(parents=True)
    (models / "net_g_latest.pth").write_bytes(b"")
    assert find_method(str(models / "net_g_latest.pth")).label == "student1_csd"
    with pytest.raises(CSDError, match="no checkpoint none"):
        find_method("mine=none")


def test_columns_that_do_not_pair_are_named(folder, tmp_path):
    with pytest.raises(CSDError, match="two columns are called half"):
        Scene(folder / "rain", None, (Method("half", folder / "half"),) * 2)
    write_image(tmp_path / "short/00000.png", read(folder / "half/00000.png"))
    with pytest.raises(CSDError, match="short ends before frame 1"):
        list(Scene(folder / "rain", None, (Method("short", tmp_path / "short"),)).frames())
    write_image(tmp_path / "small/00000.png", read(folder / "half/00000.png")[:-2])
    with pytest.raises(CSDError, match=r"small is 64x46, .*rain is 64x48"):
        Scene(folder / "rain", None, (Method("small", tmp_path / "small"),)).frame(0)


def test_details_are_chosen_where_the_pictures_differ():
    flat = np.full((60, 120, 3), 100, np.uint8)
    first, second = flat.copy(), flat.copy()
    first[40:46, 70:80] += 50
    second[5:9, 3:9] += 20
    boxes = find_boxes({"input": flat, "a": first, "b": second}, 2)
    assert [box[2:] for box in boxes] == [(20, 10)] * 2
    assert boxes[0].cut(first).max() == 150 and boxes[0].cut(first).sum() == (first[36:52, 60:90]).sum() - 100 * 3 * 280
    assert (boxes[1].cut(second) == 120).sum() == 4 * 6 * 3
    assert find_boxes({"input": flat, "a": first}, 100)[1:]  # never more than fit


@pytest.mark.parametrize("count", [2, 5, 9])
def test_chosen_details_are_apart(count):
    """Half a box, in width or height, as long as so many fit; one wide streak holds the best places of all."""
    flat = np.full((60, 120, 3), 100, np.uint8)
    streak = flat.copy()
    streak[20:40, 30:90] += np.arange(60, dtype=np.uint8)[None, :, None]
    boxes = find_boxes({"input": flat, "a": streak}, count)
    assert len(boxes) == count
    for one, other in itertools.combinations(boxes, 2):
        assert abs(one.x - other.x) >= 20 + 10 or abs(one.y - other.y) >= 10 + 5
    small = find_boxes({"input": flat, "a": streak}, 20)  # fewer fit with that distance
    assert len(small) == 20
    for one, other in itertools.combinations(small, 2):
        assert abs(one.x - other.x) >= 20 or abs(one.y - other.y) >= 10


def test_crops(scene, tmp_path):
    out = tmp_path / "crops.png"
    boxes = draw_crops(scene, out, number=2)
    assert len(boxes) == 2
    assert read(out).shape[1] == page_pixels()
    assert draw_crops(scene, tmp_path / "crops.pdf", number=2, boxes=[Box(0, 0, 64, 48)]) == [Box(0, 0, 64, 48)]
    assert (tmp_path / "crops.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(CSDError, match=r"box 60,0,10,10 .* is not within the frame of 64x48"):
        draw_crops(scene, out, number=2, boxes=[Box(60, 0, 10, 10)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops.pdf", "crops.png"]


@pytest.fixture
def drawn(monkeypatch):
    """What is put on sheets: pixels and style of every image, in order."""
    images = []
    real = Sheet.image

    def image(self, pixels, *place, **style):
        images.append((pixels, style))
        return real(self, pixels, *place, **style)

    monkeypatch.setattr(Sheet, "image", image)
    return images


def test_error_maps_have_one_scale(scene, tmp_path, drawn):
    peak = draw_errors(scene, tmp_path / "errors.png", number=1)
    frames = scene.frame(1)
    truth, *maps = drawn
    assert np.array_equal(truth[0], frames["ground truth"])
    for label, (pixels, style) in zip(("input", "half", "net"), maps, strict=True):
        expected = np.abs(frames[label].astype(float) - frames["ground truth"]).mean(axis=2)
        assert np.allclose(pixels, expected, atol=1e-4)
        assert (style["vmin"], style["vmax"]) == (0, peak)
    with pytest.raises(CSDError, match="--truth"):
        draw_errors(Scene(scene.clip), tmp_path / "x.png", number=0)


@pytest.mark.parametrize("line", [{}, {"row": 3}, {"column": 63}])
def test_slices(scene, tmp_path, line):
    out = tmp_path / "slice.png"
    assert draw_slices(scene, out, **line) == FRAMES
    assert read(out).shape[1] == page_pixels()
    assert draw_slices(Scene(scene.clip), out, start=1, end=3, **line) == 2


def test_slices_say_what_cannot_be_cut(scene, tmp_path):
    with pytest.raises(CSDError, match="not both"):
        draw_slices(scene, tmp_path / "x.png", row=1, column=1)
    with pytest.raises(CSDError, match=r"row 48 is outside .* 0 \.\. 47"):
        draw_slices(scene, tmp_path / "x.png", row=48)
    with pytest.raises(CSDError, match="at least two frames"):
        draw_slices(scene, tmp_path / "x.png", end=1)


@pytest.mark.parametrize("number", [0, 2, FRAMES - 1])
def test_features_are_those_of_the_frames_window(scene, folder, number):
    method = scene.methods[1]
    network = load_network(method.path)
    indices = {0: (1, 0, 1), 2: (1, 2, 3), 4: (3, 4, 3)}[number]
    window = np.stack([read(folder / f"rain/{i:05d}.png") for i in indices])
    seen = []
    network.conv22.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        network(torch.from_numpy(window).permute(0, 3, 1, 2)[None].float() / 255)
    assert torch.equal(feature_of(method, scene, number), seen[0][0].squeeze(1))
    assert feature_of(method, scene, number, "conv4:output").shape == (4, HEIGHT, WIDTH)  # averaged over time


class OfCells(torch.nn.Module):
    """A network of frames whose sides are multiples of 32, which sees the means of 4x4 pixels."""

    num_frame, size_divisor, feature_tap = 1, 32, "body"

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 3, 1)

    def forward(self, window):
        assert window.shape[3] % 32 == window.shape[4] % 32 == 0
        cells = torch.nn.functional.avg_pool2d(window[:, 0], 4)
        return torch.nn.functional.interpolate(self.body(cells), scale_factor=4)


def test_features_have_none_of_the_padding_that_a_network_needs(scene, folder, monkeypatch):
    """48 rows are 64 for this network; in the picture, the map of all of them would be pressed together."""
    monkeypatch.setattr("csd_plugin.report.figures.features.load_network", lambda path: OfCells())
    found = feature_of(scene.methods[1], scene, 2)
    rows = read(folder / "rain/00002.png") / 255
    assert found.numpy() == pytest.approx(rows.reshape(12, 4, 16, 4, 3).mean((1, 3)).transpose(2, 0, 1), abs=1e-6)


def test_feature_maps(scene, tmp_path):
    pytest.importorskip("mmengine")
    networks = Scene(scene.clip, scene.truth, scene.methods[1:], "cpu")
    for shared in (False, True):
        out = tmp_path / f"{shared}.png"
        shapes = draw_features(networks, out, number=0, taps=["conv22", "conv1:output"], shared_scale=shared)
        assert shapes == {"net": (4, HEIGHT, WIDTH)}
        assert read(out).shape[1] == page_pixels()
    with pytest.raises(CSDError, match="half holds frames"):
        draw_features(scene, tmp_path / "x.png", number=0)
    with pytest.raises(CSDError, match="no such layer"):
        draw_features(networks, tmp_path / "x.png", number=0, taps=["conv99"])


@pytest.mark.parametrize("shared", [False, True])
def test_feature_maps_have_a_scale_each_or_one(scene, tmp_path, drawn, monkeypatch, shared):
    pytest.importorskip("mmengine")
    ramp = torch.linspace(0, 1, WIDTH).expand(2, HEIGHT, WIDTH)
    features = {"half": ramp, "net": 3 * ramp}
    monkeypatch.setattr("csd_plugin.report.figures.features.feature_of", lambda method, *_: features[method.label])
    written: list[str] = []
    monkeypatch.setattr("csd_plugin.report.figures.features._tag", lambda axes, text, *_: written.append(text))
    draw_features(scene, tmp_path / "x.png", number=0, shared_scale=shared)
    rainy, (small, _), (large, _), truth = drawn
    assert np.array_equal(rainy[0], scene.frame(0)["input"]) and np.array_equal(
        truth[0], scene.frame(0)["ground truth"]
    )
    assert small.shape == large.shape == (HEIGHT, WIDTH, 3)
    assert np.array_equal(small, large) == (not shared)
    assert written == (["0 to 3", "0 to 3"] if shared else ["0 to 1", "0 to 3"])  # up to what is clipped at the ends
    if shared:  # the same value has the same colour: 1 is at the right end of one, a third on in the other
        assert np.abs(small[0, -1].astype(int) - large[0, WIDTH // 3]).max() <= 12


def test_labels_and_frames_of_every_kind(folder, tmp_path, caplog, recwarn):
    """Labels are no formulas, and the smallest frames and the thinnest have details and videos too."""
    for name, (height, width) in {"small": (11, 11), "thin": (40, 2)}.items():
        for number in range(2):
            write_image(tmp_path / name / f"{number}.png", np.full((height, width, 3), 9 * number, np.uint8))
        methods = (Method("a$\\bad$", tmp_path / name), Method("漢字", tmp_path / name))
        scene = Scene(tmp_path / name, None, methods, "cpu")
        draw_crops(scene, tmp_path / "out.png", number=0, boxes=[], choose=2, protocol="rgb")
        assert write_comparison(scene, tmp_path / f"{name}_video", height=16) == 2
    assert caplog.text.count("lacks characters") == 2 and not any("Glyph" in str(one.message) for one in recwarn)


def test_videos_side_by_side(scene, tmp_path):
    assert write_comparison(scene, tmp_path / "out", start=1, end=4) == 3
    frame = read(tmp_path / "out/00002.png")
    assert frame.shape == (HEIGHT, 4 * WIDTH + 3 * 2, 3)
    expected = scene.frame(2)
    below = slice(HEIGHT // 2, None)  # of the labels
    for index, picture in enumerate(expected.values()):
        left = index * (WIDTH + 2)
        assert np.array_equal(frame[below, left : left + WIDTH], picture[below])
        assert not np.array_equal(frame[:12, left : left + 12], picture[:12, :12])


def test_videos_in_stripes_and_in_a_file(scene, tmp_path):
    write_comparison(scene, tmp_path / "out", end=1, split=True)
    frame, expected = read(tmp_path / "out/00000.png"), scene.frame(0)
    assert frame.shape == (HEIGHT, WIDTH, 3)
    for index, picture in enumerate(expected.values()):
        stripe = slice(index * 16 + 1, index * 16 + 15)
        assert np.array_equal(frame[HEIGHT // 2 :, stripe], picture[HEIGHT // 2 :, stripe])
    assert write_comparison(scene, tmp_path / "both.mp4", height=24) == FRAMES
    with open_reader(tmp_path / "both.mp4") as reader:
        assert reader.size == (4 * 32 + 3 * 2, 24)
        assert len(list(reader)) == FRAMES


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_a_disk_that_is_full_leaves_nothing(scene, tmp_path, monkeypatch, suffix):
    def full(self, data):
        self.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CSDError, match=rf"x\.{suffix}: cannot be written .No space left"):
        draw_slices(scene, tmp_path / f"x.{suffix}", end=2)
    assert not list(tmp_path.iterdir())
