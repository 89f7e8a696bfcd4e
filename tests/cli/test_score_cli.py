"""`csd score` on made-up folders, end to end, and what it says about folders that do not fit."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from csd_plugin.cli import main
from csd_plugin.errors import CSDError
from csd_plugin.metrics.niqe import NIQE, niqe
from csd_plugin.metrics.protocols import score_frame
from csd_plugin.metrics.results import load_results
from csd_plugin.metrics.scoring import score_folders
from csd_plugin.metrics.warping import warping_error


def frame(seed, size=(24, 32)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_clip(folder, frames, name="{:05d}.png"):
    """frames: number -> image."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in frames.items():
        assert cv2.imwrite(str(folder / name.format(number)), image[..., ::-1])


@pytest.fixture
def nturain(tmp_path):
    """NTURain's root with the test clips a1, of 5 frames, and b1, of 3; with stray files, and results for both."""
    for clip, length in (("a1", 5), ("b1", 3)):
        seed = ord(clip[0])
        write_clip(tmp_path / "NTURain/Dataset_Testing_Synthetic" / f"{clip}_GT", truth_of(seed, length))
        write_clip(tmp_path / "NTURain/Dataset_Testing_Synthetic" / f"{clip}_Rain", rain_of(seed, length))
        write_clip(tmp_path / "out" / clip, result_of(seed, length))
    (tmp_path / "NTURain/Dataset_Testing_Synthetic/a1_GT/Thumbs.db").write_bytes(b"x")
    return tmp_path


def truth_of(seed, length):
    return {i: frame(seed + i) for i in range(1, length + 1)}


def rain_of(seed, length):
    return {i: image // 2 for i, image in truth_of(seed, length).items()}


def result_of(seed, length):
    return {i: image - image // 8 for i, image in truth_of(seed, length).items()}


def test_one_clip_of_frames(nturain, capsys):
    out = nturain / "scores" / "a1.json"
    truth = nturain / "NTURain/Dataset_Testing_Synthetic/a1_GT"
    assert main(["score", str(nturain / "out/a1"), "--truth", str(truth), "--out", str(out), "--name", "mine"]) == 0
    result = load_results(out)
    assert (result.network, result.dataset, list(result.scores.clips)) == ("mine", "a1_GT", ["a1"])
    frames = result.scores.clips["a1"].frames
    assert list(frames) == ["00001", "00002", "00003", "00004", "00005"]
    expected = score_frame(result_of(97, 5)[4], truth_of(97, 5)[4])
    assert frames["00004"] == expected
    printed = capsys.readouterr().out
    assert out.with_suffix(".md").read_text().strip() in printed
    assert "| mine | PSNR |" in printed


def test_whole_data_set_with_its_input(nturain, capsys):
    out = nturain / "all.json"
    arguments = ["--truth", str(nturain / "NTURain"), "--input", str(nturain / "NTURain"), "--out", str(out)]
    assert main(["score", str(nturain / "out"), *arguments, "--published", "--jobs", "2"]) == 0
    assert {clip: len(s.frames) for clip, s in load_results(out).scores.clips.items()} == {"a1": 5, "b1": 3}
    rows = {line.split(" | ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {"| rainy input", "| out", "| student1 + CSD (published)"} <= rows.keys()
    assert "| + " not in rows["| out"] and "+" in rows["| out"]


def test_gain_over_an_earlier_result(nturain, capsys):
    truth, early = str(nturain / "NTURain"), nturain / "early.json"
    assert main(["score", str(nturain / "NTURain"), "--truth", truth, "--out", str(early), "--name", "early"]) == 0
    assert main(["score", str(nturain / "out"), "--truth", truth, "--baseline", str(early), "--input", truth]) == 0
    luma = capsys.readouterr().out.split("written")[1].split("\n\n")[1].splitlines()
    assert "ΔPSNR" in luma[0]
    assert [line.split(" | ")[0] for line in luma[2::2]] == ["| rainy input", "| early", "| out"]
    gains = [line.split(" | ")[5] for line in luma[2::2]]
    assert gains[:2] == ["+0.00", "-"] and float(gains[2]) > 0  # the earlier result is the rain itself


def test_ends_that_do_not_count_need_no_results(nturain, capsys):
    for name in ("00001.png", "00005.png"):
        (nturain / "out/a1" / name).unlink()
    arguments = [str(nturain / "out/a1"), "--truth", str(nturain / "NTURain/Dataset_Testing_Synthetic/a1_GT")]
    assert "--skip 1 1 scores the frames that exist" in complaint_of(capsys, *arguments)
    out = nturain / "x.json"
    assert main(["score", *arguments, "--skip", "1", "1", "--out", str(out)]) == 0
    assert list(load_results(out).scores.clips["a1"].frames) == ["00002", "00003", "00004"]
    assert json.loads(out.read_text())["skip"] == [1, 1]
    (nturain / "out/a1/00003.png").unlink()
    assert "derain the others first" in complaint_of(capsys, *arguments)


@pytest.mark.parametrize("name", ["frame{}_student2.png", "{:08d}_net_g_20000.png", "a1-{:03d}.png"])
def test_frames_pair_by_number(tmp_path, name):
    write_clip(tmp_path / "truth", truth_of(0, 12))
    write_clip(tmp_path / "mine", result_of(0, 12), name)
    out = tmp_path / "x.json"
    assert main(["score", str(tmp_path / "mine"), "--truth", str(tmp_path / "truth"), "--out", str(out)]) == 0
    frames = load_results(out).scores.clips["truth"].frames
    assert list(frames) == [f"{i:05d}" for i in range(1, 13)]
    assert frames["00010"] == score_frame(result_of(0, 12)[10], truth_of(0, 12)[10])


def test_several_rainy_versions_of_a_scene(tmp_path):
    write_clip(tmp_path / "truth/t1_GT", truth_of(0, 2))
    for version in ("t1_Rain_01", "t1_Rain_02"):
        write_clip(tmp_path / "mine" / version, result_of(0, 2))
    out = tmp_path / "x.json"
    assert main(["score", str(tmp_path / "mine"), "--truth", str(tmp_path / "truth"), "--out", str(out)]) == 0
    assert list(load_results(out).scores.clips) == ["t1_Rain_01", "t1_Rain_02"]


def test_clips_are_in_the_order_of_their_numbers(tmp_path):
    for folder, clip in ((f, c) for f in ("truth", "mine") for c in ("c10", "c2", "c1")):
        write_clip(tmp_path / folder / clip, truth_of(0, 2))
    out = tmp_path / "x.json"
    assert main(["score", str(tmp_path / "mine"), "--truth", str(tmp_path / "truth"), "--out", str(out)]) == 0
    assert list(load_results(out).scores.clips) == ["c1", "c2", "c10"]


def test_training_clips_of_a_whole_data_set(nturain, capsys):
    root = nturain / "NTURain"
    for version in ("t1_Rain_01", "t1_Rain_02"):
        write_clip(root / "Dataset_Training_Synthetic" / version, rain_of(0, 2))
        write_clip(nturain / "trained" / version, result_of(0, 2))
    write_clip(root / "Dataset_Training_Synthetic/t1_GT", truth_of(0, 2))
    for results, clips in (("trained", ["t1_Rain_01", "t1_Rain_02"]), ("out", ["a1", "b1"])):
        out = nturain / f"{results}.json"
        folders = (nturain / results, "--truth", root, "--input", root, "--out", out)
        assert main(["score", *map(str, folders)]) == 0
        assert list(load_results(out).scores.clips) == clips
        assert "| rainy input | PSNR |" in capsys.readouterr().out


def test_a_clip_without_results_is_said(nturain, caplog):
    (nturain / "out/b1").rename(nturain / "elsewhere")
    write_clip(nturain / "NTURain/Dataset_Testing_Synthetic/b2_GT", truth_of(0, 1))
    write_clip(nturain / "out/b2", truth_of(0, 1))
    assert main(["score", str(nturain / "out"), "--truth", str(nturain / "NTURain")]) == 0
    assert "no results for b1" in caplog.text


@pytest.fixture
def real(tmp_path):
    """Rain without truth and two results, frames large enough for NIQE."""
    smooth = cv2.GaussianBlur(np.random.default_rng(0).uniform(0, 255, (100, 220, 3)).astype(np.float32), (0, 0), 1)
    scene = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    steady = {i: np.ascontiguousarray(scene[:, i : i + 200]) for i in (1, 2, 3)}
    write_clip(tmp_path / "ra1_Rain", steady)
    write_clip(tmp_path / "steady", steady)
    write_clip(tmp_path / "flicker", {i: image // (2 if i == 2 else 1) for i, image in steady.items()})
    return tmp_path


def test_without_truth_niqe_and_the_warping_error_are_measured(real, capsys):
    out = real / "flicker.json"
    assert main(["score", str(real / "flicker"), "--input", str(real / "ra1_Rain"), "--out", str(out)]) == 0
    result = load_results(out)
    assert (result.network, result.dataset, list(result.scores.clips)) == ("flicker", "ra1_Rain", ["ra1"])
    clip = result.scores.clips["ra1"]
    assert list(clip.metrics["niqe"]) == ["00001", "00002", "00003"]
    frames = [
        cv2.imread(str(real / f"{name}/0000{i}.png"))[..., ::-1] for name in ("flicker", "ra1_Rain") for i in (3, 2)
    ]
    assert clip.metrics["niqe"]["00003"] == niqe(frames[0])
    assert clip.metrics["warping"] == {
        "00002": pytest.approx(warping_error(*frames), rel=0.2),
        "00003": warping_error(*frames),
    }
    printed = capsys.readouterr().out
    assert "PSNR" not in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert [row[:2] for row in rows[2:]] == [
        ["| rainy input", "NIQE ↓"],
        ["| ", "warping error ↓"],
        ["| flicker", "NIQE ↓"],
        ["| ", "warping error ↓"],
    ]
    assert float(rows[3][3]) < 0.1 and float(rows[5][3]) > 20


def test_real_clips_of_a_whole_data_set(real, nturain):
    """Whose root has test clips too, of other names."""
    root = nturain / "NTURain"
    shutil.copytree(real / "ra1_Rain", root / "Dataset_Testing_RealRain/ra1_Rain")
    shutil.copytree(real / "flicker", real / "derained/ra1")
    scores, derained = [], real / "derained"
    for results, rain in ((real / "flicker", real / "ra1_Rain"), (derained / "ra1", root), (derained, root)):
        out = real / "x.json"
        assert main(["score", str(results), "--input", str(rain), "--metrics", "warping", "--out", str(out)]) == 0
        scores.append(load_results(out).scores.clips["ra1"].metrics)
    assert scores[0] == scores[1] == scores[2]


def test_results_alone_are_their_own_guide(real, capsys):
    out = real / "x.json"
    assert main(["score", str(real / "steady"), "--metrics", "warping", "--skip", "1", "0", "--out", str(out)]) == 0
    result = load_results(out)
    assert result.dataset == "steady"
    assert list(result.scores.clips["steady"].frames) == ["00002", "00003"]
    assert list(result.scores.clips["steady"].metrics) == ["warping"]
    assert result.scores.clips["steady"].metrics["warping"]["00003"] < 0.1
    arguments = ["score", str(real / "flicker"), "--metrics", "warping", "--baseline", str(out)]
    assert main(arguments) == 0


def test_further_metrics_beside_a_truth(real, capsys):
    arguments = [str(real / "flicker"), "--truth", str(real / "steady"), "--metrics", "warping", "niqe"]
    assert main(["score", *arguments, "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| flicker | PSNR |") == 2
    assert "| flicker | NIQE ↓ |" in printed and "|  | warping error ↓ |" in printed


def test_metrics_that_cannot_be_measured_are_named(real, nturain, capsys):
    steady, truth = real / "steady", real / "ra1_Rain"
    assert "LPIPS compares with the truth" in complaint_of(capsys, steady, "--metrics", "lpips")
    assert "there is no metric 'nique'" in complaint_of(capsys, steady, "--metrics", "nique")
    none = ("--metrics", "lpips", "--lpips-weights", real / "none.pth")
    assert "none.pth does not exist" in complaint_of(capsys, steady, "--truth", truth, *none)
    assert "are too small for NIQE" in complaint_of(capsys, nturain / "out/a1")
    write_clip(real / "more", {7: frame(0)})
    assert "has no rainy frame" in complaint_of(capsys, real / "more", "--input", truth)


def test_a_frame_too_small_for_a_metric_is_found_before_any_is_scored(real, monkeypatch, capsys):
    monkeypatch.setattr("csd_plugin.metrics.scoring._score_pair", lambda *_, **__: pytest.fail("a frame was scored"))
    write_clip(real / "steady", {4: frame(0, (90, 300))})
    assert "steady/00004.png: frames of 300x90 are too small for NIQE" in complaint_of(capsys, real / "steady")


def complaint_of(capsys, *arguments):
    assert main(["score", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("options", [(), ("--truth",), ("--input",)])
def test_one_frame_has_no_warping_error_and_that_is_said(real, caplog, capsys, options):
    folders = [str(real / "flicker"), *(word for option in options for word in (option, str(real / "ra1_Rain")))]
    assert main(["score", *folders, "--metrics", "warping", "niqe", "--skip", "1", "1"]) == 0
    assert caplog.text.count("no warping error, which needs two frames: only one is scored") == 1
    assert "NIQE" in capsys.readouterr().out and "no NIQE" not in caplog.text
    caplog.clear()
    assert main(["score", *folders, "--metrics", "warping", "--skip", "1", "0"]) == 0
    assert not caplog.text


def test_rainy_frames_that_are_missing_are_said_of_their_folder(nturain, capsys, caplog):
    out, root = nturain / "out", nturain / "NTURain"
    rain, truth = (root / f"Dataset_Testing_Synthetic/a1_{kind}" for kind in ("Rain", "GT"))
    (rain / "00003.png").unlink()
    error = complaint_of(capsys, out / "a1", "--truth", truth, "--input", rain)
    assert f"clip a1: {rain} lacks 1 of 5 rainy frames, the first that of {truth / '00003.png'}; add the" in error
    for number in (4, 5):
        (rain / f"0000{number}.png").unlink()
    error = complaint_of(capsys, out, "--truth", root, "--input", root)
    assert f"{rain} lacks 3 of 5 rainy frames" in error and "; --skip 0 3 scores the frames that exist" in error
    assert main(["score", *map(str, (out / "a1", "--truth", truth, "--input", rain)), "--skip", "0", "3"]) == 0
    shutil.rmtree(rain)
    assert main(["score", *map(str, (out, "--truth", root, "--input", root))]) == 0
    assert "no rainy frames of a1; the row of the rainy input leaves them out" in caplog.text


def test_what_does_not_fit_is_named(nturain, capsys):
    out, truth = nturain / "out", nturain / "NTURain"
    synthetic = truth / "Dataset_Testing_Synthetic"
    assert "nowhere is not a folder" in complaint_of(capsys, nturain / "nowhere", "--truth", truth)
    (nturain / "empty").mkdir()
    assert "empty holds no images" in complaint_of(capsys, out, "--truth", nturain / "empty")
    assert "clip b1" in complaint_of(capsys, out, "--truth", synthetic / "a1_GT")
    assert "leaves none" in complaint_of(capsys, out, "--truth", truth, "--skip", 3, 0)
    with pytest.raises(CSDError, match="negative"):
        score_folders(out, truth=truth, skip=(-1, 0))
    assert "must end in .json" in complaint_of(capsys, out, "--truth", truth, "--out", nturain / "x.csv")
    assert "cannot read the results file" in complaint_of(capsys, out, "--truth", truth, "--baseline", nturain / "x")

    (out / "a1/00003.png").write_bytes((out / "a1/00003.png").read_bytes()[:200])
    assert "a1/00003.png" in complaint_of(capsys, out, "--truth", truth)
    write_clip(out / "a1", {3: frame(0, (24, 30))})
    assert "differ in size: 30x24 and 32x24" in complaint_of(capsys, out, "--truth", truth)
    write_clip(out / "a1", {3: frame(0), 6: frame(0)})
    assert "a1/00006.png has no true frame" in complaint_of(capsys, out, "--truth", truth)


def test_frames_counted_from_zero_are_not_taken_for_their_neighbours(tmp_path, capsys):
    write_clip(tmp_path / "truth", truth_of(0, 6))
    write_clip(tmp_path / "mine", {i - 1: image for i, image in result_of(0, 6).items()})
    arguments = (tmp_path / "mine", "--truth", tmp_path / "truth", "--skip", 1, 1)
    assert "00000.png has no true frame" in complaint_of(capsys, *arguments)


def test_names_with_two_changing_numbers_are_refused(tmp_path, capsys):
    write_clip(tmp_path / "truth", truth_of(0, 3))
    for i, image in result_of(0, 3).items():
        write_clip(tmp_path / "mine", {i: image}, f"it{i * 7}_{{}}.png")
    assert "is unclear" in complaint_of(capsys, tmp_path / "mine", "--truth", tmp_path / "truth")


def test_a_smaller_input_is_enlarged(tmp_path, capsys):
    """As in `csd table`, for super-resolution."""
    truth, small = {i: frame(i, (48, 64)) for i in range(3)}, {i: frame(9 + i, (24, 32)) for i in range(3)}
    write_clip(tmp_path / "truth", truth)
    write_clip(tmp_path / "small", small)
    write_clip(tmp_path / "mine", {i: frame(20 + i, (48, 64)) for i in range(3)})
    out = tmp_path / "scores.json"
    folders = ("--truth", tmp_path / "truth", "--input", tmp_path / "small", "--metrics", "warping", "--out", out)
    assert main(["score", str(tmp_path / "mine"), *map(str, folders)]) == 0
    large = [cv2.resize(small[i], (64, 48), interpolation=cv2.INTER_CUBIC) for i in range(3)]
    expected = np.mean([score_frame(large[i], truth[i])["rgb"].psnr for i in range(3)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| rainy input | PSNR")]
    assert f"{expected:.2f}" in rows[-1]

    assert "images to compare differ in size: 32x24" in complaint_of(
        capsys, tmp_path / "small", "--truth", str(tmp_path / "truth")
    ).replace(f" against {tmp_path / 'truth/00000.png'}", "")  # a result is not
    write_clip(tmp_path / "small", {2: frame(0, (24, 30))})
    assert "00002.png: images to compare differ in size: 30x24" in complaint_of(
        capsys, tmp_path / "mine", *map(str, folders[:4])
    ).replace(f" against {tmp_path / 'truth/00002.png'}", "")


def test_a_smaller_input_is_large_enough_for_a_metric_once_it_is_enlarged(tmp_path):
    for folder, size in (("truth", (96, 192)), ("mine", (96, 192)), ("small", (48, 96))):
        write_clip(tmp_path / folder, {i: frame(i, size) for i in range(2)})
    metrics = {"niqe": NIQE()}
    scores = score_folders(tmp_path / "small", tmp_path / "truth", metrics=metrics, of_input=True)
    large = [cv2.resize(frame(i, (48, 96)), (192, 96), interpolation=cv2.INTER_CUBIC) for i in range(2)]
    assert next(iter(scores.clips.values())).metrics["niqe"] == {f"{i:05d}": niqe(large[i]) for i in range(2)}
    with pytest.raises(CSDError, match="frames of 96x48 are too small for NIQE"):
        score_folders(tmp_path / "small", tmp_path / "truth", metrics=metrics)


def test_a_clip_whose_name_has_a_line_break_keeps_its_row_whole(tmp_path, capsys):
    name = "a\nb | c"
    for folder in ("truth", "mine"):
        write_clip(tmp_path / folder / name, truth_of(0, 2))
    assert main(["score", str(tmp_path / "mine"), "--truth", str(tmp_path / "truth")]) == 0
    assert "| network |  | a b \\| c | average |\n| --- | --- |" in capsys.readouterr().out
