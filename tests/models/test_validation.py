"""Validation and test runs: what is scored, on which frames, and which files come out."""

from __future__ import annotations

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from toolbox import changed, scored_set, scoring_options, train_options

from csd_plugin import registration
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.errors import CSDError
from csd_plugin.metrics.protocols import score_frame
from csd_plugin.metrics.results import load_results
from csd_plugin.metrics.warping import warping_error
from csd_plugin.models.validation import ValidationMixin

registration.install()
from basicsr.data import build_dataset  # noqa: E402

VAL = {"val_freq": 2, "save_img": False}


@pytest.fixture
def checkpoint(tmp_path):
    """A student that returns its centre frame exactly: scores are those of the rainy input."""
    path = tmp_path / "identity.pth"
    network = SLDNet(preset="student2", num_feat=4)
    torch.nn.init.zeros_(network.conv22.weight[:, 3:].detach())
    torch.save({"params_ema": network.state_dict(), "params": SLDNet(preset="student2", num_feat=4).state_dict()}, path)
    return path


def read(path):
    return cv2.imread(str(path))[..., ::-1]


def test_a_test_run_scores_every_frame_of_every_clip(launcher, tiny_rain, checkpoint):
    assert launcher.test(scoring_options(tiny_rain, checkpoint)) == 0

    results = launcher.folder / "results/row"
    content = json.loads((results / "rain.json").read_text())
    assert list(content["clips"]) == ["a1", "b1"]
    assert all(list(clip["frames"]) == ["00001", "00002", "00003"] for clip in content["clips"].values())
    folder = tiny_rain / "Dataset_Testing_Synthetic"
    expected = score_frame(read(folder / "a1_Rain/00002.png"), read(folder / "a1_GT/00002.png"))
    for protocol, quality in expected.items():
        assert content["clips"]["a1"]["frames"]["00002"][protocol] == pytest.approx(quality._asdict(), abs=1e-9)

    rows = list(csv.DictReader((results / "rain.csv").open()))
    assert {row["clip"] for row in rows} == {"a1", "b1", "average"}
    table = (results / "rain.md").read_text()
    assert "row" in table
    assert "a1" in table
    log = next(results.glob("test_row_*.log")).read_text()
    assert "# nturain_y/psnr: " in log and "Best" not in log  # a test has nothing to be better than


def test_the_number_of_windows_at_once_changes_no_score(launcher, tiny_rain, checkpoint):
    frames = []
    for size in (1, 2, 5):
        name = f"batch{size}"
        assert launcher.test(scoring_options(tiny_rain, checkpoint, name=name, **{"val.batch_size": size})) == 0
        frames.append(json.loads((launcher.folder / f"results/{name}/rain.json").read_text())["clips"])
    assert frames[0] == frames[1] == frames[2]


@pytest.mark.parametrize("error", [RuntimeError("no memory"), CSDError("no memory")], ids=["torch", "ours"])
def test_a_network_that_fails_in_between_names_the_frames(launcher, tiny_rain, checkpoint, monkeypatch, capsys, error):
    """The second clip's first frame is the fourth of the set."""
    predict, calls = ValidationMixin._predict, []

    def failing(self, network, windows):
        calls.append(len(windows))
        if sum(calls) > 3:
            raise error
        return predict(self, network, windows)

    monkeypatch.setattr(ValidationMixin, "_predict", failing)
    options = scoring_options(tiny_rain, checkpoint)
    if isinstance(error, CSDError):
        assert launcher.test(options) == 2
        assert "rain, clip b1, frame 00001: no memory" in capsys.readouterr().err
        return
    with pytest.raises(RuntimeError, match="no memory") as raised:
        launcher.test(options)
    assert raised.value.__notes__ == ["in the validation of rain, clip b1, frame 00001"]


def test_clips_without_truth_are_written_and_not_scored(launcher, tiny_rain, checkpoint):
    sets = {"test_1": scored_set(tiny_rain), "test_2": scored_set(tiny_rain, name="real", split="real")}
    options = scoring_options(tiny_rain, checkpoint, datasets=sets, **{"val.save_img": True})
    assert launcher.test(options) == 0

    results = launcher.folder / "results/row"
    assert {path.name for path in results.iterdir() if path.suffix in (".json", ".csv", ".md")} == {
        "rain.json",
        "rain.csv",
        "rain.md",
    }
    frames = sorted(path.relative_to(results / "visualization") for path in results.rglob("*.png"))
    assert len(frames) == 3 * 3
    assert str(frames[-1]) == "real/ra1/00003_row.png"
    written = read(results / "visualization/real/ra1/00003_row.png")
    assert np.array_equal(written, read(tiny_rain / "Dataset_Testing_RealRain/ra1_Rain/00003.png"))
    named = {"name": "other", "val.suffix": "clean", "datasets": {"test_1": sets["test_2"]}}
    assert launcher.test(changed(options, named)) == 0
    frames = [path.name for path in (launcher.folder / "results/other/visualization/real/ra1").iterdir()]
    assert sorted(frames) == [f"0000{i}_clean.png" for i in (1, 2, 3)]


def test_gains_over_a_named_baseline(launcher, tiny_rain, checkpoint):
    assert launcher.test(scoring_options(tiny_rain, checkpoint, name="before")) == 0
    baseline = {"val.baseline": "results/before/rain.json"}
    assert launcher.test(scoring_options(tiny_rain, checkpoint, name="after", **baseline)) == 0
    before, after = ((launcher.folder / f"results/{name}/rain.md").read_text() for name in ("before", "after"))
    assert "+0.00" in after
    assert "+0.00" not in before


def test_training_validates_several_sets_and_keeps_the_best(launcher, tiny_rain, capfd):
    sets = {
        "val": scored_set(tiny_rain, frame_range=[1, 1]),
        "val_2": scored_set(tiny_rain, name="other", clips=["b1"]),
        "val_3": scored_set(tiny_rain, name="real", split="real"),
    }
    options = train_options(tiny_rain, val=VAL | {"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}})
    options["datasets"] |= sets
    assert launcher.train(changed(options, {"train.total_iter": 4})) == 0

    metrics = launcher.folder / "experiments/run/metrics"
    written = {path.name for path in metrics.glob("*.json")}
    assert written == {"rain_2.json", "rain_4.json", "other_2.json", "other_4.json"}
    other = json.loads((metrics / "other_4.json").read_text())
    assert list(other["clips"]) == ["b1"]
    assert other["facts"]["iteration"] == 4

    model = launcher.models[-1]
    assert set(model.best_metric_results) == {"rain", "other"}
    best, iteration = model.best_metric_results["other"]["psnr"]
    assert iteration in (2, 4)
    # the toolbox's PSNR over all frames is the rgb protocol's, one clip
    scores = {i: json.loads((metrics / f"other_{i}.json").read_text())["average"]["rgb"]["psnr"] for i in (2, 4)}
    assert best == pytest.approx(max(scores.values()), abs=1e-4)
    assert model.net_g.training
    said = capfd.readouterr().err
    assert "Validation other" in said and "only* supported" not in said


def test_the_averaged_network_is_what_is_validated(launcher, tiny_rain):
    options = train_options(tiny_rain, val=VAL)
    options["datasets"]["val"] = scored_set(tiny_rain, frame_range=[2, 2])
    assert launcher.train(options) == 0
    trained = json.loads((launcher.folder / "experiments/run/metrics/rain_2.json").read_text())["average"]
    averages = {}
    for key in ("params", "params_ema"):
        checkpoint = launcher.folder / "experiments/run/models/net_g_2.pth"
        row = scoring_options(tiny_rain, checkpoint, name=key, **{"path.param_key_g": key})
        assert launcher.test(changed(row, {"datasets.test_1.frame_range": [2, 2]})) == 0
        averages[key] = json.loads((launcher.folder / f"results/{key}/rain.json").read_text())["average"]
    assert trained == averages["params_ema"]
    assert trained != averages["params"]


def test_scores_go_to_tensorboard(launcher, tiny_rain):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = train_options(tiny_rain, val=VAL, **{"logger.use_tb_logger": True})
    options["datasets"]["val"] = scored_set(tiny_rain)
    assert launcher.train(options) == 0
    events = EventAccumulator(str(launcher.folder / "tb_logger/run")).Reload()
    tags = set(events.Tags()["scalars"])
    assert "losses/l_recon" in tags
    assert any(tag.startswith("metrics/rain/") and tag.endswith("/a1") for tag in tags)


WARPING = {"warping": {"type": "calculate_warping_error", "better": "lower"}}


def read_rgb(path):
    return np.ascontiguousarray(read(path))


def test_metrics_of_neighbouring_frames_are_measured_within_clips(launcher, tiny_rain, checkpoint):
    metrics = WARPING | {"psnr": {"type": "calculate_psnr", "crop_border": 0}}
    assert launcher.test(scoring_options(tiny_rain, checkpoint, **{"val.metrics": metrics})) == 0

    content = json.loads((launcher.folder / "results/row/rain.json").read_text())
    folder = tiny_rain / "Dataset_Testing_Synthetic"
    for clip in ("a1", "b1"):
        frames = content["clips"][clip]["frames"]
        assert [sorted(frame["measures"]) for frame in frames.values()] == [["psnr"], *[["psnr", "warping"]] * 2]
        rain, truth = ([read_rgb(folder / f"{clip}_{kind}/0000{i}.png") for i in (3, 2)] for kind in ("Rain", "GT"))
        assert frames["00003"]["measures"]["warping"] == pytest.approx(warping_error(*rain, *truth))
        assert frames["00003"]["measures"]["psnr"] == pytest.approx(frames["00003"]["rgb"]["psnr"], abs=1e-4)
    assert "warping" in (launcher.folder / "results/row/rain.csv").read_text()
    assert "warping error ↓" in (launcher.folder / "results/row/rain.md").read_text()


def test_clips_without_truth_have_the_metrics_that_need_none(launcher, tiny_rain, checkpoint):
    metrics = WARPING | {"psnr": {"type": "calculate_psnr", "crop_border": 0}}
    sets = {"test_1": scored_set(tiny_rain, name="real", split="real")}
    assert launcher.test(scoring_options(tiny_rain, checkpoint, datasets=sets, **{"val.metrics": metrics})) == 0

    frames = load_results(launcher.folder / "results/row/real.json").scores.clips["ra1"]
    assert frames.frames == {"00002": {}, "00003": {}}  # the first has nothing that could be measured
    folder = tiny_rain / "Dataset_Testing_RealRain/ra1_Rain"
    rain = [read_rgb(folder / f"0000{i}.png") for i in (3, 2)]
    assert frames.metrics["warping"]["00003"] == pytest.approx(warping_error(*rain, *rain))


@pytest.fixture
def mixed_rain(tiny_rain, tmp_path):
    """The test clips a1 and b1, the truth of one of which is not there."""

    def without(clip):
        root = tmp_path / f"without_{clip}"
        shutil.copytree(tiny_rain, root)
        shutil.rmtree(root / f"Dataset_Testing_Synthetic/{clip}_GT")
        return root

    return without


@pytest.mark.parametrize("alone", ["a1", "b1"])
@pytest.mark.parametrize("metrics", [None, WARPING | {"psnr": {"type": "calculate_psnr", "crop_border": 0}}])
def test_one_clip_without_truth_leaves_the_scores_of_the_others(
    launcher, tiny_rain, mixed_rain, checkpoint, alone, metrics, capfd
):
    scored = {"a1": "b1", "b1": "a1"}[alone]
    root = mixed_rain(alone)
    assert launcher.test(scoring_options(root, checkpoint, name="mixed", **{"val.metrics": metrics})) == 0
    line = f"Validation rain of 1 of 2 clips; without truth: {alone}"
    assert line in capfd.readouterr().err
    alone_set = {"test_1": scored_set(tiny_rain, clips=[scored])}
    whole = scoring_options(tiny_rain, checkpoint, name="whole", datasets=alone_set, **{"val.metrics": metrics})
    assert launcher.test(whole) == 0
    mixed, whole = (load_results(launcher.folder / f"results/{name}/rain.json").scores for name in ("mixed", "whole"))
    assert mixed.average() == whole.average()
    assert mixed.clips[scored] == whole.clips[scored]
    table = (launcher.folder / "results/mixed/rain.md").read_text()
    assert table.count(f"of 1 of 2 clips; without truth: {alone}\n") == 2
    if metrics:
        assert mixed.clips[alone].metrics.keys() == {"warping"}
        assert mixed.metric_means()["psnr"] == whole.metric_means()["psnr"]
        assert "psnr of 1 of 2 clips" in table


def test_a_set_of_which_nothing_can_be_scored_says_so(launcher, tiny_rain, checkpoint, capfd):
    sets = {"test_1": scored_set(tiny_rain, name="real", split="real")}
    assert launcher.test(scoring_options(tiny_rain, checkpoint, datasets=sets)) == 0
    assert "WARNING: Validation real: no clip has truth" in capfd.readouterr().err


def test_processes_look_back_over_the_edges_of_their_shares(launcher, tiny_rain, checkpoint, monkeypatch):
    assert launcher.test(scoring_options(tiny_rain, checkpoint, **{"val.metrics": WARPING})) == 0
    model, dataset = launcher.models[-1], build_dataset(scored_set(tiny_rain, phase="test", scale=1))
    whole = model._score_dataset(model.net_g, dataset, "rain", 0, False)
    parts = []
    for rank in range(4):
        monkeypatch.setattr("csd_plugin.models.validation.get_dist_info", lambda rank=rank: (rank, 4))
        parts += model._score_dataset(model.net_g, dataset, "rain", 0, False)
    assert parts == whole
    assert sum("warping" in frame["metrics"] for frame in whole) == 4


def test_the_best_needs_the_truth_unless_its_metric_does_not(launcher, tiny_rain, capfd):
    options = train_options(tiny_rain, val=VAL | {"metrics": WARPING}, **{"logger.keep_best": "rgb/psnr"})
    roots = {"dataroot": ..., "split": ..., "dataroot_lq": str(tiny_rain / "Dataset_Testing_RealRain")}
    options["datasets"]["val"] = changed(scored_set(tiny_rain), roots)
    assert launcher.train(options) == 2
    assert "logger.keep_best: rgb/psnr needs the truth, and datasets.val has none" in capfd.readouterr().err
    assert launcher.train(changed(options, {"logger.keep_best": "warping"})) == 0
    assert (launcher.folder / "experiments/run/models/net_g_best.pth").is_file()


def test_better_is_lower_where_the_file_says_so(launcher, tiny_rain):
    options = train_options(tiny_rain, val=VAL | {"metrics": WARPING})
    options["datasets"]["val"] = scored_set(tiny_rain)
    assert launcher.train(changed(options, {"train.total_iter": 4})) == 0
    folder = launcher.folder / "experiments/run/metrics"
    values = [json.loads((folder / f"rain_{i}.json").read_text())["average"]["measures"]["warping"] for i in (2, 4)]
    assert launcher.models[-1].best_metric_results["rain"]["warping"][0] == pytest.approx(min(values))


@pytest.mark.parametrize("missing", [None, "", "path.pretrain_network_g"])
def test_a_test_of_random_weights_is_refused(launcher, tiny_rain, missing, capfd):
    options = scoring_options(tiny_rain, "none.pth")
    if missing:
        del options["path"]["pretrain_network_g"]
    else:
        options["path"]["pretrain_network_g"] = missing
    assert launcher.test(options) == 2
    assert "path.pretrain_network_g is missing" in capfd.readouterr().err.strip().splitlines()[-1]
    assert launcher.written() == []
