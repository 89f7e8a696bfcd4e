"""`csd derain` from the command line."""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from videos import make_video, read

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.cli import derain as cli_derain
from csd_plugin.cli import main
from csd_plugin.cli.derain import chosen, duration, position, too_slow
from csd_plugin.data.images import write_png
from csd_plugin.data.video import open_reader
from csd_plugin.inference.runner import Derainer
from csd_plugin.weights import DEFAULT, FASTEST, FOR_CAMERAS, NETWORKS, find_checkpoint


@pytest.fixture
def frames(tmp_path):
    """A folder of five small frames, and the same as 'truth', a little darker."""
    for name, offset in (("rain", 0), ("truth", 4)):
        (tmp_path / name).mkdir()
        for number in range(5):
            image = np.full((24, 32, 3), 100 + 5 * number, np.uint8) + np.arange(32, dtype=np.uint8)[None, :, None]
            cv2.imwrite(str(tmp_path / name / f"{number:05d}.png"), image - offset)
    return tmp_path


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "net_g.pth"
    network = SLDNet(num_frame=3, num_feat=4, num_pair=2, num_transition=2, reducing=(4, 7))
    torch.save({"params": network.state_dict()}, path)
    return str(path)


def derain(*arguments) -> int:
    return main(["derain", *map(str, arguments), "--device", "cpu"])


def test_folder_to_video_and_folder(frames, model, capsys):
    assert derain(frames / "rain", frames / "out.mp4", "--model", model, "--fps", 10) == 0
    with open_reader(frames / "out.mp4") as reader:
        assert reader.fps == 10 and len(list(reader)) == 5
    assert derain(frames / "rain", frames / "out", "--model", model, "--start", 1, "--end", "0.12s") == 0
    assert sorted(path.name for path in (frames / "out").iterdir()) == ["00001.png", "00002.png"]
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{re.escape(model)}: about \S+ s per frame, .* s in all; in (bf16|fp32).*", said[0])
    assert said[-1].startswith("2 frames written")


@pytest.mark.parametrize(
    ("model", "fast", "source", "name"),
    [
        (None, False, "rain.mp4", DEFAULT),
        (None, True, "rain.mp4", FASTEST),
        (None, False, "camera:0", FOR_CAMERAS),
        (None, True, "camera:0", FASTEST),
        ("tiny", False, "/dev/video0", "tiny"),
    ],
)
def test_the_network_fits_the_source(model, fast, source, name):
    assert chosen(model, fast, Path(source)) == NETWORKS[name].path
    assert NETWORKS[FOR_CAMERAS].numbers["causal"]


def test_shipped_networks_by_name(frames, capsys):
    once = ["--end", 1, "--precision", "fp32"]
    assert derain(frames / "rain", frames / "out", *once) == 0
    assert capsys.readouterr().out.startswith(f"{DEFAULT} ({NETWORKS[DEFAULT].parameters:,} parameters): about ")
    assert derain(frames / "rain", frames / "fast", *once, "--fast") == 0
    assert capsys.readouterr().out.startswith(f"{FASTEST} (")
    with pytest.raises(SystemExit):
        derain(frames / "rain", frames / "both", "--fast", "--model", DEFAULT)


@pytest.mark.parametrize(
    "seconds, text", [(0.42, "0.4 s"), (28.4, "28 s"), (90, "90 s"), (301, "5 min"), (11_980, "3 h 20 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_compare_and_side_by_side(frames, model, capsys):
    options = ("--model", model, "--side-by-side", "--compare", frames / "truth")
    assert derain(frames / "rain", frames / "out", *options) == 0
    shown = cv2.imread(str(frames / "out" / "00002.png"))
    assert shown.shape == (24, 96, 3)
    assert np.array_equal(shown[:, :32], cv2.imread(str(frames / "rain" / "00002.png")))
    assert np.array_equal(shown[:, 64:], cv2.imread(str(frames / "truth" / "00002.png")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("rainy") and f"rgb {20 * np.log10(255 / 4):.2f} dB" in lines[2]
    assert lines[3].startswith("derained")


def test_mistakes_are_one_line_and_leave_nothing(frames, model, capsys):
    (frames / "bad.mp4").write_bytes(b"no video")
    (frames / "short").mkdir()
    cv2.imwrite(str(frames / "short" / "1.png"), np.zeros((24, 32, 3), np.uint8))
    before = sorted(frames.iterdir())
    for arguments, message in (
        ((frames / "rain", frames / "o.mp4", "--model", "nothing.pth"), "there is no checkpoint nothing.pth"),
        ((frames / "bad.mp4", frames / "o.mp4", "--model", model), "not a video"),
        ((frames / "rain", frames / "o.mp4", "--model", model, "--compare", frames / "short"), "ends after 1 frames"),
        ((frames / "rain", frames / "rain", "--model", model), "is also the input"),
    ):
        assert derain(*arguments) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error and error.startswith("csd derain: error: ")
        assert sorted(frames.iterdir()) == before


def test_ends_that_are_refused_are_refused_before_a_network_is_loaded(frames, monkeypatch, capsys):
    def loaded(*_, **__):
        raise AssertionError("a network was loaded")

    monkeypatch.setattr("csd_plugin.inference.runner.Derainer", loaded)
    there, rain = make_video(frames / "there.mp4"), frames / "rain"
    (frames / "short").mkdir()
    shutil.copy(rain / "00000.png", frames / "short")
    for arguments, message in (
        ((frames / "none.mp4", frames / "o.mp4"), "none.mp4 does not exist"),
        ((rain, there), "already exists"),
        ((rain, frames / "truth"), "holds frames already"),
        ((rain, "-", "--resume"), "what was written to a pipe cannot be resumed"),
        ((rain, frames / "o.gif"), "cannot write '.gif'"),
        ((rain, frames / "o.mp4", "--start", 9), "no frames from 9"),
        ((rain, frames / "o.mp4", "--compare", frames / "short"), "ends after 1 frames"),
        (("-", frames / "o.mp4"), "give --size"),
    ):
        assert derain(*arguments) == 2
        assert message in capsys.readouterr().err


def test_positions():
    assert position("120") == 120 and isinstance(position("120"), int)
    assert position("4.8s") == position("0:04.8") == position("4.8") == Fraction(24, 5)
    assert position("1:02:03.5") == Fraction(7447, 2)
    with pytest.raises(SystemExit):
        derain("in.mp4", "out.mp4", "--start", "soon")


def test_patterns_of_images(frames, model, capsys):
    for number in range(5):
        (frames / "rain" / f"{number:05d}.png").rename(frames / "rain" / f"f_{number + 7:03d}.png")
    (frames / "rain" / "f_1.png").write_bytes(b"another numbering")
    assert derain(frames / "rain" / "f_%03d.png", frames / "out" / "c%d.png", "--model", model) == 0
    assert sorted(path.name for path in (frames / "out").iterdir()) == [
        "c10.png",
        "c11.png",
        "c7.png",
        "c8.png",
        "c9.png",
    ]
    (frames / "rain" / "f_009.png").unlink()
    for pattern, message in (("f_%03d.png", "number 9 of 7 to 11 is missing"), ("g_%d.png", "no file matches")):
        assert derain(frames / "rain" / pattern, frames / "o", "--model", model) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("written", [0, 1])
def test_an_interruption_says_whether_frames_are_there(frames, model, monkeypatch, capsys, written):
    from csd_plugin.data.video.folder import FolderWriter

    put, calls = FolderWriter._put, []

    def interrupted(self, frame):
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(frame)
        put(self, frame)

    monkeypatch.setattr(FolderWriter, "_put", interrupted)
    assert derain(frames / "rain", frames / "new", "--model", model) == 130
    hint = "the frames before it are written; --resume continues the run" if written else "no frame was written"
    assert capsys.readouterr().err.endswith(f"csd derain: interrupted; {hint}\n")


def test_a_part_is_that_of_the_whole_and_an_interrupted_folder_is_gone_on_with(frames, model, capsys):
    assert derain(frames / "rain", frames / "whole", "--model", model) == 0
    assert derain(frames / "rain", frames / "part", "--model", model, "--start", 2, "--end", 4) == 0
    whole = {path.name: path.read_bytes() for path in (frames / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (frames / "part").iterdir()} == {
        name: whole[name] for name in ("00002.png", "00003.png")
    }
    for name in ("00003.png", "00004.png"):
        (frames / "whole" / name).unlink()
    capsys.readouterr()
    assert derain(frames / "rain", frames / "whole", "--model", model, "--resume") == 0
    assert "2 frames written" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (frames / "whole").iterdir()} == whole
    assert derain(frames / "rain", frames / "whole", "--model", model, "--resume") == 0
    assert capsys.readouterr().out == f"0 frames written to {frames / 'whole'}: all are there already\n"


def test_raw_frames_through_pipes(frames, model, monkeypatch, capsys):
    clip = np.stack([cv2.imread(str(path))[:, :, ::-1] for path in sorted((frames / "rain").iterdir())])
    command = [sys.executable, "-m", "csd_plugin", "derain", "-", "-", "--model", model, "--device", "cpu"]
    run = subprocess.run([*command, "--size", "32x24"], input=clip.tobytes(), capture_output=True)
    assert run.returncode == 0 and b"5 frames written" in run.stderr and b" s per frame; in " in run.stderr
    assert b"raw rgb24 frames of 32x24, 25 per second, on standard output" in run.stderr
    assert derain(frames / "rain", frames / "out", "--model", model) == 0
    files = np.stack([cv2.imread(str(path))[:, :, ::-1] for path in sorted((frames / "out").iterdir())])
    assert np.array_equal(np.frombuffer(run.stdout, np.uint8).reshape(clip.shape), files)

    for options, data, message in (
        ([], b"", "give --size WIDTHxHEIGHT"),
        (["--size", "32x24"], b"", "standard input is empty"),
        (
            ["--size", "32x24"],
            b"YUV4MPEG2 W32 H24 F25:1\n" * 99,
            "standard input is YUV4MPEG2 (y4m), not raw frames: let",
        ),
        (["--size", "32x24"], b"\0\0\0\x20ftypisom" * 200, "standard input is an MP4 or MOV file, not raw frames"),
        (["--size", "32x24"], clip.tobytes()[:-1], "ends within frame 4: 2303 of 2304 bytes"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert derain("-", frames / "o", "--model", model, *options) == 2
        assert message in capsys.readouterr().err


def test_raw_frames_are_as_wide_as_is_said(frames, model, capfdbinary):
    for flags, width in (([], 64), (["--compare", frames / "rain"], 96)):
        command = [frames / "rain", "-", "--model", model, "--side-by-side", *flags, "--fps", "30000/1001"]
        assert derain(*command) == 0
        out, err = capfdbinary.readouterr()
        assert f"frames of {width}x24, 29.97 per second".encode() in err
        assert len(out) == 5 * width * 24 * 3


@pytest.mark.parametrize("closed, stream", [(">&-", "output"), ("<&- >&-", "input"), ("2>&-", "")])
def test_closed_pipes_are_one_line_and_lines_are_no_frames(frames, model, closed, stream):
    clip = np.zeros((2, 24, 32, 3), np.uint8).tobytes()
    call = [sys.executable, "-m", "csd_plugin", "derain", "-", "-", "--model", model, "--size", "32x24"]
    run = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *call], input=clip, capture_output=True)
    if stream:
        assert run.returncode == 2 and run.stdout == b""
        lines = run.stderr.decode().strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"csd derain: error: standard {stream} is closed: "), lines
    else:  # without standard error, what would be said there does not come among the frames
        assert run.returncode == 0 and len(run.stdout) == len(clip)


def test_cuts_are_reported(frames, model, capsys):
    for number in range(3, 5):
        cv2.imwrite(str(frames / "rain" / f"{number:05d}.png"), np.full((24, 32, 3), (200, 20, 40), np.uint8))
    assert derain(frames / "rain", frames / "out", "--model", model) == 0
    assert "1 scene cut, before frames 3" in capsys.readouterr().out


def test_what_is_there_is_replaced_only_when_asked(frames, model, capsys):
    rain, out = frames / "rain", frames / "out"
    assert derain(rain, out, "--model", model, "--end", 2) == 0
    assert derain(rain, out / "c_%03d.png", "--model", model, "--end", 1) == 0  # other names
    (frames / "notes.mp4").write_text("mine")
    before = {path: path.read_bytes() for path in [*out.iterdir(), frames / "notes.mp4"]}
    for target, there in (
        (out, "out holds frames already, such as 00000.png"),
        (out / "c_%03d.png", "out holds frames already, such as c_000.png"),
        (frames / "notes.mp4", "notes.mp4 already exists"),
    ):
        capsys.readouterr()
        assert derain(rain, target, "--model", model, "--start", 3) == 2
        error = capsys.readouterr().err
        assert there in error and "--overwrite" in error
    assert {path: path.read_bytes() for path in [*out.iterdir(), frames / "notes.mp4"]} == before
    assert derain(rain, out, "--model", model, "--overwrite", "--side-by-side") == 0
    assert cv2.imread(str(out / "00000.png")).shape[1] == 2 * cv2.imread(str(out / "c_000.png")).shape[1]
    assert derain(rain, frames / "notes.mp4", "--model", model, "--overwrite") == 0


def test_frames_of_another_size_are_not_gone_on_with(frames, model, capsys):
    assert derain(frames / "rain", frames / "out", "--model", model, "--end", 2) == 0
    before = sorted((frames / "out").iterdir())
    for flags in (
        ["--side-by-side"],
        ["--side-by-side", "--compare", frames / "truth"],
        ["--side-by-side", "--start", 3],
    ):
        capsys.readouterr()
        assert derain(frames / "rain", frames / "out", "--model", model, "--resume", *flags) == 2
        assert "00000.png is 32x24, but frames would now be" in capsys.readouterr().err
    assert sorted((frames / "out").iterdir()) == before
    assert derain(frames / "rain", frames / "out", "--model", model, "--resume", "--start", 3) == 0  # a further part
    assert len(list((frames / "out").iterdir())) == 4


def test_frames_of_another_network_clip_or_precision_are_not_gone_on_with(frames, model, tmp_path, capsys, caplog):
    other, again = tmp_path / "elsewhere" / "net_g.pth", tmp_path / "elsewhere" / "renamed.pth"
    other.parent.mkdir()
    torch.save({"params": SLDNet(preset="student2", num_feat=4).state_dict()}, other)
    shutil.copy(model, again)
    shutil.copytree(frames / "rain", frames / "snow")  # the same under another name
    shutil.copytree(frames / "truth", frames / "other" / "rain")  # another under the same name
    shutil.copytree(frames / "rain", frames / "longer" / "rain")
    shutil.copy(frames / "rain" / "00004.png", frames / "longer" / "rain" / "00005.png")
    out, fp32 = frames / "out", ["--precision", "fp32"]
    assert derain(frames / "rain", out, "--model", model, *fp32, "--end", 2) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for source, flags, message in (
        ("rain", ["--model", other, *fp32], "its network was net_g.pth ("),
        ("rain", ["--model", model, "--precision", "bf16"], "its precision was fp32, now it is bf16"),
        ("other/rain", ["--model", model, *fp32], "its clip was rain ("),
        ("longer/rain", ["--model", model, *fp32], ", 5 frames), now it is rain ("),
        ("rain/%05d.png", ["--model", model, *fp32, "--compare", frames / "no"], "no does not exist"),
    ):
        capsys.readouterr()
        assert derain(frames / source, out, "--resume", *flags) == 2
        assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    cv2.imwrite(str(out / "00000.png"), cv2.imread(str(out / "00000.png")))  # as other programs write it
    (out / "00001.png").write_bytes(before["00001.png"][:-1])  # as a power failure may leave it
    assert derain(frames / "snow", out, "--resume", "--model", again, *fp32, "--compare", frames / "truth") == 0
    said = capsys.readouterr().out
    assert "4 frames written" in said and "scored: the frames written now; csd score" in said
    assert "1 of its frames do not state their origin" in caplog.text
    assert derain(frames / "snow", out, "--resume", "--model", again, *fp32) == 0
    assert "0 frames written" in capsys.readouterr().out


def test_frames_behind_a_gap_are_not_replaced_by_those_of_another_network(frames, model, tmp_path, capsys):
    other, fp32 = tmp_path / "other.pth", ["--precision", "fp32"]
    torch.save({"params": SLDNet(preset="student2", num_feat=4).state_dict()}, other)
    assert derain(frames / "rain", frames / "in.mp4", "--model", model) == 0
    for source, first in (("rain", 0), ("in.mp4", 1)):
        for name, gap in ((f"{source}_out", 0), (f"{source}_out", 2), (f"{source}_out/c%d.png", 1)):
            out = frames / name
            assert derain(frames / source, out, "--model", model, *fp32, "--overwrite") == 0
            whole = {file.name: file.read_bytes() for file in frames.glob(f"{source}_out/*")}
            number = gap + (1 if "%" in name else first)
            missing = out.with_name(f"c{number}.png") if "%" in name else out / f"{number:05d}.png"
            missing.unlink()
            capsys.readouterr()
            assert derain(frames / source, out, "--model", other, *fp32, "--resume") == 2
            assert "its network was net_g.pth (" in capsys.readouterr().err
            assert derain(frames / source, out, "--model", model, *fp32, "--resume") == 0
            assert {file.name: file.read_bytes() for file in frames.glob(f"{source}_out/*")} == whole


@pytest.mark.parametrize("source", ["rain", "in.mp4"])
@pytest.mark.parametrize("kind", [".png", ".jpg"])
def test_pictures_of_others_are_not_replaced_by_a_run_that_resumes(frames, model, source, kind, capsys):
    assert derain(frames / "rain", frames / "in.mp4", "--model", model) == 0
    out = frames / "out"
    out.mkdir()
    mine = cv2.imencode(kind, np.full((24, 32, 3), 9, np.uint8))[1].tobytes()
    (out / "00003.png").write_bytes(mine)  # also a picture of another kind under such a name
    assert derain(frames / source, out, "--model", model, "--resume") == 2
    error = capsys.readouterr().err
    assert "00003.png: does not state its origin" in error and "use --overwrite for that" in error
    assert [file.read_bytes() for file in out.iterdir()] == [mine]
    part = ["--model", model, "--resume", "--end", "2"]  # frames before it
    assert derain(frames / source, out, *part) == 0 and (out / "00003.png").read_bytes() == mine
    (out / "00003.png").write_bytes(mine[:4])
    assert derain(frames / source, out, "--model", model, "--resume") == (kind == ".jpg") * 2


@pytest.mark.parametrize(
    "target, flags, leads", [("out", [], True), ("out", ["--side-by-side"], False), ("out", ["--start", 1], False),
                             ("out", ["--end", 4], False), ("out/c%d.png", [], False), ("out.mp4", [], False)],
)  # fmt: skip
def test_the_way_to_score_all_frames_is_shown_where_it_leads_there(frames, model, target, flags, leads, capsys):
    options = ["--model", model, *flags, "--compare", frames / "truth", "--resume"]
    assert derain(frames / "rain", frames / target, *options) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("scored: the frames written now") and ("csd score" in last) == leads
    if leads:
        assert main(["score", *last.partition("; csd score ")[2].removesuffix(" scores all of them").split()]) == 0


def test_flags_without_effect_are_refused(frames, model, capsys):
    assert derain(frames / "rain", frames / "in.mp4", "--model", model, "--fps", 10) == 0
    for arguments, message in (
        ([frames / "in.mp4", frames / "out", "--fps", 60], "--fps: without effect, as IN has a frame rate of its own"),
        (["camera:0", frames / "out.mp4", "--fps", 60], "--fps: without effect"),
        ([frames / "rain", frames / "out", "--encoding", "small"], "--encoding: without effect, as OUT is not a video"),
        ([frames / "rain", frames / "out", "--keep-going"], "--keep-going: without effect, as IN is a folder"),
    ):
        capsys.readouterr()
        assert derain(*arguments, "--model", model) == 2
        assert message in capsys.readouterr().err
    assert not (frames / "out").exists()


@pytest.mark.parametrize("pattern", ["c%d_%05d.png", "%03d%03d.png"])
def test_a_pattern_has_one_number(frames, model, pattern, capsys):
    for source, output in ((frames / pattern, frames / "out"), (frames / "rain", frames / "out" / pattern)):
        assert derain(source, output, "--model", model) == 2
        assert "a pattern has one number" in capsys.readouterr().err


def test_what_images_lose_is_said(frames, model, caplog):
    """Transparency also where it comes later; further pages."""
    rain = sorted((frames / "rain").iterdir())
    clear = cv2.cvtColor(cv2.imread(str(rain[2])), cv2.COLOR_BGR2BGRA)
    clear[0, 0, 3] = 7
    cv2.imwrite(str(rain[2]), clear)
    pages = [Image.fromarray(np.zeros((24, 32, 3), np.uint8)) for _ in range(3)]
    rain[4].unlink()
    pages[0].save(rain[4].with_suffix(".tif"), save_all=True, append_images=pages[1:])
    assert derain(frames / "rain", frames / "out", "--model", model) == 0
    assert "00002.png: left out: transparency" in caplog.text
    assert "00004.tif: left out: all pictures but the first" in caplog.text


def test_side_by_side_goes_on_with_the_same_truth_only(frames, model, capsys):
    out, flags = frames / "out", ["--model", model, "--side-by-side", "--precision", "fp32"]
    assert derain(frames / "rain", out, *flags, "--compare", frames / "truth", "--end", 2) == 0
    assert derain(frames / "rain", out, *flags, "--compare", frames / "rain", "--resume") == 2
    assert "its truth was truth (" in capsys.readouterr().err


def test_frames_with_hostile_notes_are_taken_as_they_are(frames, model, caplog):
    out = frames / "out"
    assert derain(frames / "rain", out, "--model", model) == 0
    for number, note in enumerate(("[" * 9000, "[1]", '{"network": 3}')):
        write_png(out / f"{number:05d}.png", np.zeros((24, 32, 3), np.uint8), note)
    status = derain(frames / "rain", out, "--model", model, "--resume")
    assert status == 2  # the third says that it has no network


def test_the_truth_begins_where_the_part_does_whatever_its_rate(frames, model, capsys):
    said = []
    assert derain(frames / "rain", frames / "rain10.mkv", "--model", model, "--fps", 10) == 0
    for rate in (10, 20):
        capsys.readouterr()
        part = ["--start", "0.2s", "--end", "0.4s", "--model", model, "--overwrite", "--fps", rate]
        assert derain(frames / "rain10.mkv", frames / "out.mkv", *part, "--compare", frames / "truth") == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if "dB" in line])
    assert said[0] == said[1] != []


def test_the_time_of_a_part_counts_the_frames_around_it(frames, model, monkeypatch, capsys):
    monkeypatch.setattr("csd_plugin.inference.runner.Derainer.seconds_a_frame", lambda *_: 10.0)
    reach = SLDNet(preset="student2", num_feat=4).num_frame // 2
    assert derain(frames / "rain", frames / "part", "--model", model, "--start", 1, "--end", 2) == 0
    read = min(5, 2 + reach)  # one frame is before the part, and up to `reach` come after it
    assert f"about 10 s per frame, {10 * read} s in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "name", "hints"), [(30.0, DEFAULT, True), (30.0, FASTEST, False), (5.0, DEFAULT, False)]
)
def test_a_long_run_of_the_default_network_names_the_faster_one(frames, seconds, name, hints):
    derainer = Derainer(find_checkpoint(FASTEST), device="cpu")
    derainer.seconds_a_frame = lambda *_: seconds
    with open_reader(frames / "rain") as reader:
        line = cli_derain.expectation(find_checkpoint(name), derainer, reader)
    assert ("(--fast takes a fraction of that)" in line) == hints


def test_people_are_told_that_the_network_is_loading(model, monkeypatch, capsys):
    given = argparse.Namespace(backend="auto", device="cpu", memory=512)
    for at_a_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda at=at_a_terminal: at, raising=False)
        assert cli_derain._load(given, Path(model), "fp32").num_frame == 3
        shown = capsys.readouterr()
        assert shown.err == ("loading net_g ..\n" if at_a_terminal else "") and not shown.out


@pytest.mark.parametrize(
    ("encoding", "effort"), [("auto", b"subme=7 "), ("quick", b"subme=0 "), ("small", b"subme=7 ")]
)
def test_encoding_and_precision_are_what_was_asked_for(frames, model, capsys, encoding, effort):
    options = ("--model", model, "--encoding", encoding, "--precision", "fp32")
    assert derain(frames / "rain", frames / "out.mp4", *options) == 0
    assert effort in (frames / "out.mp4").read_bytes()  # x264 writes its settings into the stream
    assert capsys.readouterr().out.splitlines()[0].endswith("; in fp32")


def test_an_onnx_file_says_its_own_precision(frames, model, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", str(model), str(tmp_path / "net.onnx")]) == 0
    capsys.readouterr()
    assert derain(frames / "rain", frames / "out", "--model", tmp_path / "net.onnx") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("; in the precision of its file")
    assert derain(frames / "rain", frames / "o2", "--model", tmp_path / "net.onnx", "--precision", "bf16") == 2
    assert "computes in the precision of the file, not in bf16" in capsys.readouterr().err


def test_a_quantised_file_says_so(frames, model, tmp_path, capsys):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for name, options in (("whole.xml", ()), ("int8.xml", ("--int8", "--calibrate", str(frames / "rain")))):
        assert main(["export", str(model), str(tmp_path / name), *options]) == 0
    capsys.readouterr()
    for name, words in (("whole.xml", "; in fp32"), ("int8.xml", "; in int8 where its file says so, else fp32")):
        options = ("--model", tmp_path / name, "--precision", "fp32")
        assert derain(frames / "rain", frames / Path(name).stem, *options) == 0
        assert capsys.readouterr().out.splitlines()[0].endswith(words)


@pytest.mark.parametrize(
    ("seconds", "rate", "words"),
    [
        (0.04, 25.0, ""),
        (0.06, 25.0, "the camera gives 25 frames per second, so about 33% of them will be dropped"),
        (0.1, 29.97, "the camera gives 30 frames per second, so about 67% of them will be dropped"),
    ],
)
def test_a_camera_that_is_too_fast_is_said_before_it_begins(seconds, rate, words):
    said = too_slow(seconds, rate)
    assert words in said and bool(words) == bool(said)


def test_each_video_of_a_folder_and_only_what_is_missing(tmp_path, capsys):
    rainy, clean = tmp_path / "in", tmp_path / "out"
    rainy.mkdir()
    for name in ("b10.mp4", "b9.mkv"):
        make_video(rainy / name, times=[0, 40, 80])
    make_video(tmp_path / "x.mkv", times=[0, 40, 80]).rename(rainy / "c.ts")  # found by its name, read by its content
    (rainy / "a.mov").write_bytes(b"nothing")
    (rainy / "notes.txt").write_text("no video")
    command = ["derain", str(rainy), str(clean), "--model", "tiny"]
    assert main(command) == 2
    said = capsys.readouterr()
    heads = [line for line in said.out.splitlines() if "of 4)" in line]
    assert heads == ["a.mov (1 of 4)", "b9.mkv (2 of 4)", "b10.mp4 (3 of 4)", "c.ts (4 of 4)"]
    assert sorted(path.name for path in clean.iterdir()) == ["b10.mp4", "b9.mkv", "c.mp4"]
    first, last = said.err.strip().splitlines()[0], said.err.strip().splitlines()[-1]
    assert first.startswith("a.mov (1 of 4): ") and "not a video file that can be read" in first
    assert "error: 1 of 4 videos failed, as said above: a.mov; the same command tries them again" in last

    alone = tmp_path / "alone.mp4"
    assert main(["derain", str(rainy / "b10.mp4"), str(alone), "--model", "tiny"]) == 0
    assert np.array_equal(read(alone)[0], read(clean / "b10.mp4")[0])

    (rainy / "a.mov").unlink()
    (clean / "b9.mkv").unlink()
    before = (clean / "c.mp4").stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count("is there already") == 2 and "3 frames written" in out
    assert (clean / "b9.mkv").is_file() and (clean / "c.mp4").stat().st_mtime_ns == before
    assert main([*command, "--overwrite"]) == 0
    assert capsys.readouterr().out.count("3 frames written") == 3


@pytest.mark.parametrize(
    ("output", "flags", "words"),
    [
        ("clean.mp4", [], "is a folder of 2 videos; give a folder as OUT, too"),
        ("-", [], "is a folder of 2 videos; give a folder as OUT, too"),
        ("in/one.mp4", [], "is a folder of 2 videos; give a folder as OUT, too"),
        ("notes", [], "is a folder of 2 videos; give a folder as OUT, too"),
        ("in", [], "is IN itself; give another folder as OUT"),
        ("notes/../in", [], "is IN itself; give another folder as OUT"),
        ("out", ["--end", "3"], "--end: without effect, as IN is a folder of videos"),
        ("out", ["--start", "3"], "--start: without effect, as IN is a folder of videos"),
        ("out", ["--resume"], "--resume: without effect, as IN is a folder of videos"),
        ("out", ["--model", "in/one.ts"], "one.ts"),
        ("out", [], "would both become out/one.mp4; rename one of them"),
    ],
)
def test_a_folder_of_videos_that_cannot_be_derained(tmp_path, monkeypatch, capsys, output, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("one.ts", "one.mp4" if output == "out" and not flags else "two.mp4"):
        (tmp_path / "in" / name).write_bytes(b"nothing")
    (tmp_path / "notes").write_text("no folder")
    assert main(["derain", "in", output, *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def folders(tmp_path):
    """A folder of three videos, of which the first is derained already, and OUT."""
    rainy, clean = tmp_path / "in", tmp_path / "out"
    for folder in (rainy, clean):
        folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        make_video(rainy / name, times=[0, 40])
    shutil.copy(rainy / "a.mp4", clean)
    return rainy, clean


def test_a_network_is_loaded_once_for_a_folder_and_its_faults_are_no_videos(folders, monkeypatch, capsys):
    loads, load = [], cli_derain._load
    monkeypatch.setattr(cli_derain, "_load", lambda *given: loads.append(given) or load(*given))
    broken = folders[0] / "notes.pth"
    broken.write_bytes(b"no network")
    assert main(["derain", *map(str, folders), "--model", str(broken)]) == 2
    said = capsys.readouterr()
    assert "notes.pth" in said.err and "videos failed" not in said.err and "of 3)" not in said.out
    assert main(["derain", *map(str, folders), "--model", "tiny", "--precision", "fp32"]) == 0
    assert len(loads) == 2


@pytest.mark.parametrize("error", [AssertionError("a mistake of ours"), RuntimeError("a mistake of ours")], ids=repr)
def test_a_mistake_of_ours_is_no_fault_of_a_video(folders, monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr(cli_derain, "_derain", failing)
    with pytest.raises(type(error), match="a mistake of ours"):
        main(["derain", *map(str, folders), "--model", "tiny"])


def test_an_interrupted_folder_of_videos_says_that_they_are_there(folders, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_derain, "_derain", stopped)
    assert main(["derain", *map(str, folders), "--model", "tiny"]) == 130
    assert "videos finished before it are written; the same command goes on" in capsys.readouterr().err
