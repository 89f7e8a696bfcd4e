"""What commands read stays as it is, what they count is there, and numbers out of bounds are one line."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from functools import partial
from io import BytesIO, TextIOWrapper
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from videos import SIZE, make_video, picture, read

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.cli import main
from csd_plugin.data.images import write_png
from csd_plugin.data.video import open_reader
from csd_plugin.errors import CSDError


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "net.pth"
    network = SLDNet(num_frame=3, num_feat=3, num_pair=2, num_transition=2, reducing=(4, 7))
    torch.save({"params": network.state_dict()}, path)
    return str(path)


@pytest.fixture
def derain(model, monkeypatch):
    """`csd derain` with a small network, without the trial that tells how long it will take."""
    monkeypatch.setattr("csd_plugin.inference.runner.Derainer.seconds_a_frame", lambda *_: 0.1)
    return lambda *arguments: run("derain", *arguments, "--model", model, "--device", "cpu")


def run(*arguments: object) -> int:
    """The exit status, also where the parser ends the command."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def folder(path: Path, count: int = 4, name: str = "{:05d}.png", deep: bool = False, offset: int = 0) -> Path:
    path.mkdir(parents=True)
    for number in range(count):
        frame = picture(number) + np.uint8(offset)
        frame = frame.astype(np.uint16) * 257 + number if deep else frame
        assert cv2.imwrite(str(path / name.format(number)), frame[..., ::-1])
    return path


def content(*paths: Path) -> dict[Path, bytes]:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return {file: file.read_bytes() for file in files if file.is_file()}


# --- frames that are lost ---------------------------------------------------------------------------------------------


def test_frames_in_two_kinds_of_file(tmp_path, derain, capsys):
    clip = folder(tmp_path / "clip")
    folder(tmp_path / "jpg", name="{:05d}.jpg")
    for file in (tmp_path / "jpg").iterdir():
        file.rename(clip / file.name)
    for command in (("derain", clip, tmp_path / "out"), ("rain", clip, tmp_path / "out"), ("rain", clip, "out.mp4")):
        status = derain(*command[1:]) if command[0] == "derain" else run(*command)
        error = last_line(capsys)
        assert status == 2 and "00000.jpg" in error and "00000.png" in error
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["{:05d}_x2.png", "x2_{:03d}_of_4.png", "{}.bmp"])
def test_as_many_files_of_a_pattern_as_frames_are_counted(tmp_path, derain, capsys, name):
    clip = folder(tmp_path / "clip", 6, name)
    assert derain(clip, tmp_path / "out" / "c_%03d.png", "--end", 4) == 0
    assert "4 frames written" in capsys.readouterr().out
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"c_{i:03d}.png" for i in range(4)]
    assert derain(clip, tmp_path / "out" / "c_%03d.png", "--resume") == 0
    assert "2 frames written" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert derain(clip, tmp_path / "out" / "c_%03d.png", "--resume") == 0
    assert "0 frames written" in capsys.readouterr().out


@pytest.mark.parametrize("name, codec", [("raw.h264", "libx264"), ("in.ts", "libx264"), ("in.mkv", "libx264")])
def test_resuming_what_is_done_whatever_the_source_tells_of_its_length(tmp_path, derain, capsys, name, codec):
    source = make_video(tmp_path / name, codec=codec)
    if name == "in.ts":  # twice: its length is an estimate, and wrong
        source.write_bytes(source.read_bytes() * 2)
    count = len(read(source)[0])
    assert count == (16 if name == "in.ts" else 8)
    assert derain(source, tmp_path / "out", "--end", 3) == 0
    capsys.readouterr()
    assert derain(source, tmp_path / "out", "--resume") == 0
    assert f"{count - 3} frames written" in capsys.readouterr().out
    before = content(tmp_path / "out")
    assert len(before) == count
    for part in ((), ("--end", 5), ("--start", 2), ("--end", count), ("--end", 99)):
        assert derain(source, tmp_path / "out", "--resume", *part) == 0
        assert "0 frames written" in capsys.readouterr().out
    assert content(tmp_path / "out") == before
    assert derain(source, tmp_path / "out", "--resume", "--start", count) == 2
    assert f"it has {count}, counted from 0" in last_line(capsys)


@pytest.mark.parametrize("longer", ["rain", "truth"])
@pytest.mark.parametrize("as_video", [False, True])
def test_a_truth_pairs_to_the_end(tmp_path, derain, capsys, longer, as_video):
    for name in ("rain", "truth"):
        count = 6 if name == longer else 4
        if as_video:
            make_video(tmp_path / f"{name}.mkv", codec="ffv1", times=[40 * i for i in range(count)])
        else:
            folder(tmp_path / f"{name}.mkv", count)
    rain, truth = tmp_path / "rain.mkv", tmp_path / "truth.mkv"
    assert derain(rain, tmp_path / "out", "--compare", truth) == 2
    error = last_line(capsys)
    ends, goes_on = (rain, truth) if longer == "truth" else (truth, rain)
    assert f"{ends} ends after 4 frames, {goes_on} continues" in error
    made = list((tmp_path / "out").glob("*.png"))
    assert len(made) == 4 if as_video else not made  # a folder's length is known before
    assert derain(rain, tmp_path / "part", "--compare", truth, "--end", 4) == 0
    assert "rainy" in capsys.readouterr().out


def test_a_damaged_clip_is_not_compared(tmp_path, derain, capsys):
    clip = folder(tmp_path / "clip")
    assert derain(clip, tmp_path / "out", "--compare", clip, "--keep-going") == 2
    assert "--keep-going" in last_line(capsys) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("deep", ["rain", "truth"])
def test_panels_of_two_depths_are_equally_bright(tmp_path, derain, deep):
    for name in ("rain", "truth"):
        folder(tmp_path / name, deep=name == deep, offset=3 * (name == "truth"))
    options = ("--side-by-side", "--compare", tmp_path / "truth")
    assert derain(tmp_path / "rain", tmp_path / "out", *options) == 0
    shown = cv2.imread(str(tmp_path / "out" / "00002.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert shown.dtype == np.uint16 and shown.shape == (SIZE[1], 3 * SIZE[0], 3)
    for panel, name, offset in ((0, "rain", 0), (2, "truth", 3)):
        expected = (picture(2) + np.uint8(offset)).astype(np.uint16) * 257 + (2 if name == deep else 0)
        assert np.array_equal(shown[:, panel * SIZE[0] : (panel + 1) * SIZE[0]], expected)


# --- inputs that would be overwritten ---------------------------------------------------------------------------------


def test_derain_writes_to_no_input(tmp_path, derain, capsys):
    clip, truth = folder(tmp_path / "clip"), folder(tmp_path / "truth", name="f_{:05d}.png")
    video = make_video(tmp_path / "in.mp4")
    (tmp_path / "same.mp4").hardlink_to(video)
    (tmp_path / "link").symlink_to(clip, target_is_directory=True)
    before = content(clip, truth, video)
    for arguments in (
        (clip, clip / "%05d.png"),
        (clip, f"{clip}/"),
        (clip, tmp_path / "link"),
        (clip / "%05d.png", clip),
        (clip / "%05d.png", tmp_path / "truth" / ".." / "clip" / "%05d.png"),
        (video, tmp_path / "same.mp4"),
        (clip, truth, "--compare", truth),
        (clip, truth / "f_%05d.png", "--compare", truth / "f_%05d.png"),
        (video, tmp_path / "same.mp4", "--compare", video),
        (clip, clip / "%05d.png", "--compare", truth),
        (video, tmp_path / "same.mp4", "--compare", truth),
    ):
        for mode in ("--overwrite", "--resume"):
            if mode == "--resume" and str(arguments[1]).endswith("mp4"):
                continue
            assert derain(*arguments, mode) == 2
            assert "is also the input" in last_line(capsys)
    assert content(clip, truth, video) == before


def test_rain_writes_to_no_input(tmp_path, capsys):
    clip, video = folder(tmp_path / "clip"), make_video(tmp_path / "in.mp4")
    (tmp_path / "same.mp4").symlink_to(video)
    before = content(clip, video)
    for arguments in (
        (video, video, "--overwrite"),
        (video, tmp_path / "same.mp4", "--overwrite"),
        (clip, "--contact-sheet", clip / "00001.png"),
        (tmp_path, "--contact-sheet", tmp_path / "clip" / ".." / "clip" / "00001.png", "--clips", "clip"),
    ):
        assert run("rain", *arguments) == 2
        assert "is also the input" in last_line(capsys)
    assert content(clip, video) == before


def test_figures_are_drawn_over_no_input(tmp_path, capsys):
    clip, results = folder(tmp_path / "clip"), folder(tmp_path / "results")
    video = make_video(tmp_path / "out.mkv", codec="ffv1", times=[0, 40, 80, 120])
    before = content(clip, results, video)
    for kind, out, more in (
        ("crops", clip / "00001.png", ()),
        ("errors", results / "00002.png", ("--truth", clip)),
        ("slice", tmp_path / "clip" / ".." / "results" / "00000.png", ()),
        ("video", results, ()),
        ("video", clip / "c_%d.png", ()),
        ("video", video, ("--truth", video)),
    ):
        assert run("figure", kind, "--clip", clip, "--models", f"mine={results}", *more, "--out", out) == 2
        assert "is also the input" in last_line(capsys)
    assert run("figure", "crops", "--clip", clip / "%05d.png", "--out", clip / "00001.png") == 2
    assert "is also the input" in last_line(capsys)
    assert content(clip, results, video) == before


def test_methods_in_figures_pair_to_the_end(tmp_path, capsys):
    clip, results = folder(tmp_path / "clip"), folder(tmp_path / "results", 6)
    arguments = ("figure", "video", "--clip", clip, "--models", f"mine={results}", "--out", tmp_path / "o.mp4")
    assert run(*arguments) == 2
    assert "mine continues after frame 3" in last_line(capsys) and not (tmp_path / "o.mp4").exists()
    assert run(*arguments, "--end", "4") == 0


def test_scores_are_written_over_no_input(tmp_path, capsys):
    clip, truth = folder(tmp_path / "a1"), folder(tmp_path / "truth", offset=2)
    base = tmp_path / "base.json"
    assert run("score", clip, "--truth", truth, "--out", base) == 0
    (tmp_path / "weights.csv").write_bytes(b"x")
    before = content(tmp_path)
    (tmp_path / "link.json").symlink_to(base)
    for out, more in ((base, ()), (tmp_path / "link.json", ())):
        assert run("score", clip, "--truth", truth, "--baseline", base, "--out", out, *more) == 2
        assert "is also the input" in last_line(capsys)
    weights = tmp_path / "weights.csv"
    arguments = ("--metrics", "lpips", "--lpips-weights", weights, "--out", tmp_path / "weights.json")
    assert run("score", clip, "--truth", truth, *arguments) == 2
    assert "weights.csv is also the input" in last_line(capsys)
    (tmp_path / "link.json").unlink()
    assert content(tmp_path) == before


def test_a_baseline_is_of_the_same_frames(tmp_path, capsys):
    clip, truth = folder(tmp_path / "a1", 6), folder(tmp_path / "truth", 6, offset=2)
    whole, part, named = (tmp_path / f"{name}.json" for name in ("whole", "part", "named"))
    assert run("score", clip, "--truth", truth, "--out", whole) == 0
    assert run("score", clip, "--truth", truth, "--skip", 1, 2, "--out", part) == 0
    capsys.readouterr()
    for base, skip, counts in ((whole, (1, 2), "3 frames, in the baseline 6"), (part, (0, 0), "6 frames, in")):
        status = run("score", clip, "--truth", truth, "--baseline", base, "--skip", *skip, "--out", tmp_path / "o.json")
        shown = capsys.readouterr()
        assert status == 2 and f"clip truth has {counts}" in shown.err and "00000" in shown.err and not shown.out
        assert not (tmp_path / "o.json").exists()
    assert run("score", clip, "--truth", truth, "--baseline", part, "--skip", 1, 2) == 0
    facts = json.loads(whole.read_text())
    frames = facts["clips"]["truth"]["frames"]
    facts["clips"]["truth"]["frames"] = {f"net_{key}": frame for key, frame in frames.items()}
    named.write_text(json.dumps(facts))  # the same numbers in other names are the same frames
    assert run("score", clip, "--truth", truth, "--baseline", named) == 0


def test_exports_are_written_over_no_input(tmp_path, model, capsys):
    weights = tmp_path / "net.bin"
    weights.write_bytes(Path(model).read_bytes())
    (tmp_path / "net.onnx").symlink_to(weights)
    before = weights.read_bytes()
    for out in ("net.xml", "net.onnx"):  # OpenVINO keeps its weights in a .bin beside
        assert run("export", weights, tmp_path / out) == 2
        assert "is also the input" in last_line(capsys)
    assert weights.read_bytes() == before


def test_adapted_networks_are_written_over_no_teacher(tmp_path, model, capsys):
    """Also where an option file names its weights."""
    (tmp_path / "weights.pth").write_bytes(Path(model).read_bytes())
    before = content(tmp_path)
    (tmp_path / "teacher.yml").write_text(
        "name: one\nmodel_type: VideoDerainModel\nnum_gpu: 0\n"
        "datasets:\n  test_1: {name: a, type: PairedVideoTestDataset, dataroot: x, num_frame: 1}\n"
        "network_g: {type: SLDNet, preset: student2, num_feat: 4}\n"
        f"path: {{pretrain_network_g: {tmp_path / 'weights.pth'}}}\nval: {{save_img: false}}\n"
    )
    rain = folder(tmp_path / "rain")
    for teacher in ("weights.pth", "teacher.yml"):
        arguments = ("adapt", rain, "--teacher", tmp_path / teacher, "--student", "tiny", "--overwrite")
        assert run(*arguments, "--out", tmp_path / "weights.pth") == 2
        assert "weights.pth is also the input" in last_line(capsys)
    assert (tmp_path / "weights.pth").read_bytes() == before[tmp_path / "weights.pth"]


def test_rain_is_written_into_no_folder_of_clean_clips(tmp_path, capsys):
    folder(tmp_path / "clips" / "one")
    before = sorted(tmp_path.rglob("*"))
    assert run("rain", tmp_path / "clips", tmp_path / "clips" / ".." / "clips") == 2
    assert "is also the input" in last_line(capsys) and sorted(tmp_path.rglob("*")) == before
    assert run("rain", tmp_path / "clips", tmp_path / "rain.gif") == 2
    assert "cannot write '.gif'" in last_line(capsys) and sorted(tmp_path.rglob("*")) == before


def test_reports_on_data_are_written_over_no_input(tiny_rain, tmp_path, capsys):
    image = next(tiny_rain.rglob("*.png"))
    before = image.read_bytes()
    assert run("data", tiny_rain, "--html", image) == 2
    assert "is not a file of this command" in last_line(capsys) and image.read_bytes() == before
    both = tmp_path / "facts"
    assert run("data", tiny_rain, "--html", both, "--json", tmp_path / "x" / ".." / "facts") == 2
    assert "give two different files" in last_line(capsys) and not both.exists()
    assert run("data", tiny_rain, "--json", tmp_path / "nowhere" / "facts.json") == 2
    assert "make it first" in last_line(capsys)


@pytest.mark.parametrize("name", ["s.json", "s.md", "s.csv"])
def test_scores_replace_scores_alone(tmp_path, capsys, name):
    clip, truth, file = folder(tmp_path / "a1"), folder(tmp_path / "truth", offset=2), tmp_path / name
    score = partial(run, "score", clip, "--truth", truth, "--out", tmp_path / "s.json")
    assert (score(), score()) == (0, 0)
    (tmp_path / "s.json").unlink()
    assert score() == 0  # as after a run that was ended between its files
    file.write_text("# My project\n")
    before = content(tmp_path)
    assert score() == 2
    assert f"{file}: already exists, and is not a file of this command; give another name" in last_line(capsys)
    assert content(tmp_path) == before
    file.write_text("")  # as of mktemp
    assert score() == 0


@pytest.mark.parametrize(("out", "name"), [("n.xml", "n.bin"), ("n.xml", "n.xml"), ("n.onnx", "n.onnx")])
def test_exports_replace_exports_alone(tmp_path, model, capsys, out, name):
    """A .bin file is a network's where its .xml file is there."""
    pytest.importorskip({"n.xml": "openvino", "n.onnx": "onnxruntime"}[out])
    (tmp_path / name).write_bytes(b"mine")
    assert run("export", model, tmp_path / out) == 2
    assert f"{tmp_path / name}: already exists, and is not a file of this command" in last_line(capsys)
    assert content(tmp_path) == {tmp_path / name: b"mine"}
    (tmp_path / name).unlink()
    assert run("export", model, tmp_path / out) == 0 and run("export", model, tmp_path / out) == 0


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg", "jpg", "tif"])
def test_figures_replace_pictures_of_their_kind_alone(tmp_path, capsys, suffix):
    out = tmp_path / f"f.{suffix}"
    draw = partial(run, "figure", "slice", "--clip", folder(tmp_path / "rain"), "--out", out)
    assert (draw(), draw()) == (0, 0)
    out.write_text("my notes")
    assert draw() == 2
    assert f"{out}: already exists, and is not a file of this command" in last_line(capsys)
    assert out.read_text() == "my notes"
    out.unlink()
    out.symlink_to("nowhere")
    assert draw() == 2 and out.is_symlink()


def test_reports_and_sheets_replace_their_kind_alone(tiny_rain, tmp_path, capsys):
    clips = folder(tmp_path / "clips" / "one").parent
    for name, *words in (
        ("page", "data", tiny_rain, "--html"), ("facts", "data", tiny_rain, "--json"),
        ("sheet.png", "rain", clips, "--contact-sheet"),
    ):  # fmt: skip
        out = tmp_path / name
        assert (run(*words, out), run(*words, out)) == (0, 0)
        out.write_text('{"mine": 1}')
        assert run(*words, out) == 2
        assert f"{out}: already exists, and is not a file of this command" in last_line(capsys)
        assert out.read_text() == '{"mine": 1}'


@pytest.mark.parametrize("name", ["b.json", "b.md", "b.png"])
def test_measurements_replace_measurements_alone(tmp_path, name):
    from csd_plugin.bench import measure

    report = tmp_path / "b.json"
    (tmp_path / name).write_text("mine")
    with pytest.raises(CSDError, match=rf"{name}: already exists"):
        measure.check_report(report)
    (tmp_path / name).unlink()
    measure.save_report(report, {"machine": {"cpu": "x"}}, "a table", lambda figure: figure.text(0, 0, "a plot"))
    measure.check_report(report)


# --- damaged and slow files, in every command -------------------------------------------------------------------------


def test_rain_and_prepare_leave_out_what_cannot_be_read(tmp_path, capsys):
    data = make_video(tmp_path / "whole.mkv", times=[40 * i for i in range(30)]).read_bytes()
    for name in ("walk.mkv", "a1_Rain.mkv"):
        (tmp_path / name).write_bytes(data[: len(data) * 7 // 10])
    jobs = (
        ("rain", tmp_path / "walk.mkv", tmp_path / "rainy.mp4"),
        ("rain", tmp_path / "walk.mkv", tmp_path / "pairs"),
        ("prepare", tmp_path / "a1_Rain.mkv", tmp_path / "data"),
    )
    for job in jobs:
        assert run(*job) == 2
        error = last_line(capsys)
        assert "is damaged after frame" in error and "--keep-going" in error
        assert run(*job, "--keep-going") == 0
    counts = [len(list(path.iterdir())) for path in sorted(tmp_path.glob("*/*/*")) if path.is_dir()]
    assert len(counts) == 3 and len(set(counts)) == 1 and 0 < counts[0] < 30
    assert len(read(tmp_path / "rainy.mp4")[0]) == counts[0]


def test_slow_matroska_in_every_command(tmp_path, derain):
    slow = make_video(tmp_path / "a1_Rain.mkv", times=[0, 2000, 4000])
    assert derain(slow, tmp_path / "clean.mkv") == 0
    assert run("rain", slow, tmp_path / "rainy.mkv") == 0
    assert run("prepare", slow, tmp_path / "data") == 0
    assert len(list((tmp_path / "data").rglob("*.png"))) == 3
    for name in ("clean.mkv", "rainy.mkv"):
        assert [float(time) for time in read(tmp_path / name)[1]] == pytest.approx([0, 2, 4], abs=0.002)


def test_the_rate_of_frames_with_rain_is_the_one_asked_for(tmp_path):
    clip = folder(tmp_path / "clip")
    assert run("rain", clip, tmp_path / "rainy.mkv", "--fps", "10") == 0
    with open_reader(tmp_path / "rainy.mkv") as reader:
        assert reader.fps == 10
    assert np.diff([float(time) for time in read(tmp_path / "rainy.mkv")[1]]) == pytest.approx([0.1] * 3, abs=0.001)


def test_rain_says_that_deep_frames_are_rounded(tmp_path, caplog):
    clip = folder(tmp_path / "clip", deep=True)
    assert run("rain", clip, tmp_path / "rainy.mp4") == 0
    assert run("rain", clip, tmp_path / "pairs") == 0
    lines = [record.message for record in caplog.records]
    assert lines == [f"{clip}: more than 8 bits per channel, rounded to 8"] * 2


# --- numbers ----------------------------------------------------------------------------------------------------------

HUGE = "9" * 30


WRONG_RATES = ("0", "-1", "1/0", "0/0", "nan", "inf", "1e400", HUGE, "text", "")


@pytest.mark.parametrize(
    "job, flag, values",
    [
        ("derain", "--fps", WRONG_RATES),
        ("derain", "--memory", ("0", "-5", "nan", "1.5", "text", HUGE * 200)),
        ("derain", "--start", ("-1", "nan", "inf", "text", "", "1:2:3:4", HUGE * 200)),
        ("derain", "--end", ("-1", "nan", "0", "text", "5s5")),
        ("derain", "--size", ("0x0", "-3", "3", "4x", "x4", "axb", "99999x99999", HUGE)),
        ("rain", "--fps", WRONG_RATES),
        ("rain", "--variants", ("0", "-1", "nan", HUGE)),
        ("rain", "--quality", ("0", "101", "nan", HUGE)),
        ("rain", "--jobs", ("0", "-2", "nan", "text")),
        ("rain", "--seed", ("nan", "1.5", HUGE * 200)),
        ("rain", "--set", ("density=nan", "wind=inf", "speed=-1", f"splash={HUGE}", "veil=text", "veil=", "=")),
    ],
)
def test_numbers_out_of_bounds_are_one_line(tmp_path, derain, capsys, job, flag, values):
    clip = folder(tmp_path / "clip")
    command = derain if job == "derain" else partial(run, "rain")
    for value in values:
        given = (flag, value) if flag == "--set" else (f"{flag}={value}",)
        assert command(clip, tmp_path / "out", *given) == 2, value
        error = last_line(capsys)
        assert error.startswith(f"csd {job}: error: ") and "Traceback" not in error
        assert not list(tmp_path.glob("out/*.png"))


def test_large_numbers_that_mean_something(tmp_path, derain, capsys):
    clip = folder(tmp_path / "clip")
    assert derain(clip, tmp_path / "a", "--memory", 2**31 - 1, "--end", HUGE) == 0
    assert derain(clip, tmp_path / "b", "--memory", 1, "--fps", "1000") == 0
    assert derain(clip, tmp_path / "c.mkv", "--fps", "0.001") == 0
    assert run("rain", clip, tmp_path / "d", "--seed", "-7", "--jobs", 30, "--variants", 1) == 0
    assert read(tmp_path / "c.mkv")[1] == [Fraction(1000 * i) for i in range(4)]


def test_a_frame_on_standard_input_that_no_memory_holds(tmp_path, derain, capsys, monkeypatch):
    class Full(BytesIO):
        def read(self, *_):
            raise MemoryError

    monkeypatch.setattr(sys, "stdin", TextIOWrapper(Full()))
    assert derain("-", tmp_path / "out", "--size", "16384x16384") == 2
    assert "not enough memory for a frame of 16384x16384" in last_line(capsys)


def test_sixteen_bits_are_computed_in_fp32(tmp_path, derain, capsys, caplog):
    """bf16 holds 8 bits: frames of 16 came back up to 128 levels off."""
    random = np.random.default_rng(0)
    for number in range(3):
        write_png(folder_of(tmp_path) / f"{number}.png", random.integers(0, 65536, (16, 16, 3), np.uint16))
    assert derain(tmp_path / "deep", tmp_path / "out") == 0
    assert "in fp32" in capsys.readouterr().out
    assert derain(tmp_path / "deep", tmp_path / "out.mp4") == 0
    assert "holds 10 bits per channel here, the input has 16" in caplog.text


def test_transparency_of_images_is_named(tmp_path, derain, caplog):
    folder = folder_of(tmp_path)
    for number in range(3):
        pixels = np.full((16, 16, 4), 255, np.uint8)
        pixels[:4, :, 3] = 100 if number == 0 else 255
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    assert derain(folder, tmp_path / "out") == 0
    assert caplog.text.count("left out: transparency") == 1


@pytest.mark.parametrize("name", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize(("profile", "said"), [("lab", 1), ("sRGB", 0)])
def test_a_colour_profile_of_images_is_named(tmp_path, derain, caplog, name, profile, said):
    """Of the kinds that frames have; an animation is a clip, too."""
    cms = pytest.importorskip("PIL.ImageCms")
    icc = cms.ImageCmsProfile(cms.createProfile(profile.upper() if profile == "lab" else profile)).tobytes()
    picture, folder = Image.new("RGB", (32, 24), (80, 120, 40)), folder_of(tmp_path)
    for number in range(3):
        picture.save(folder / f"{number}.{name}", icc_profile=icc)
    picture.save(tmp_path / "clip.webp", save_all=True, append_images=[picture.rotate(9)], icc_profile=icc)
    assert derain(folder, tmp_path / "out") == 0
    assert caplog.text.count("left out: colour profile (ICC)") == said
    assert derain(tmp_path / "clip.webp", tmp_path / "out2") == 0
    assert caplog.text.count("left out: colour profile (ICC)") == 2 * said


def folder_of(tmp_path):
    (tmp_path / "deep").mkdir(exist_ok=True)
    return tmp_path / "deep"
