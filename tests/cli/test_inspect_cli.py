"""`csd inspect`: what it says of an option file, without data, checkpoints or anything written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from toolbox import changed, distill_options, scoring_options
from torch import nn

from csd_plugin.cli import main

OPTIONS = Path(__file__).resolve().parents[2] / "options"


@pytest.fixture
def inspect(tmp_path, monkeypatch, capsys):
    """inspect(options, *flags) -> (status, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(options, *flags):
        (tmp_path / "x.yml").write_text(options if isinstance(options, str) else yaml.safe_dump(options))
        status = main(["inspect", "x.yml", *flags])
        assert [path.name for path in tmp_path.iterdir()] == ["x.yml"]
        out, err = capsys.readouterr()
        return status, out, err

    return run


def options(**changes):
    """Stage 2 of the narrow student of tests/toolbox.py, on data that is not there."""
    return distill_options(Path("nowhere"), Path("nowhere.pth"), **{"train.ema_decay": 0} | changes)


def test_networks_windows_features_and_objective(inspect):
    status, out, _ = inspect(options())
    assert status == 0
    assert "2 of 8 frames, 24x24; 2 targets" in out
    assert "network_g  SLDNet, learns; 5,599 parameters" in out
    assert "t-1 .. t+1 (window)" in out
    assert "network_t  SLDNet, frozen" in out
    assert "t-3 .. t+3 (window)" in out
    assert out.count("2 x 2 x 4 x 24 x 24") == 2
    assert "CSD; " in out and "parameters learn in addition to the student" in out
    assert "warning" not in out


def test_layers_with_a_rate_of_their_own_or_frozen(inspect):
    layers = {"conv22": {"frozen": True}, "conv8": {"frozen": 2, "lr_mul": 0.5}}
    status, out, err = inspect(options(**{"train.layers": layers, "train.total_iter": 9}))
    assert status == 0, err
    of_student = out.partition("network_t")[0]
    assert "layers.conv22: 327 weights, frozen.\n" in of_student
    assert "layers.conv8: 436 weights, learning rate x 0.5, frozen for 2 iterations.\n" in of_student
    assert "layers." not in inspect(options())[1]


def test_presets_cost_what_the_paper_says(inspect):
    status, out, _ = inspect(options(network_g={"type": "SLDNet", "preset": "student2"}), "--size", "128")
    assert status == 0
    assert "81,139 parameters" in out
    assert "2.81 G multiply-adds per frame of 128x128" in out


def test_layers_of_any_network_of_the_toolbox(inspect):
    image = {"type": "RIDNet", "in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 1}
    video = {"type": "TOFlow"}
    status, out, err = inspect(
        options(
            network_g=image,
            interface_g={"layout": "image", "feature": "tail"},
            network_t=video,
            interface_t={"layout": "window", "num_frame": 7, "feature": "conv_4"},
            **{"datasets.train.gt_size": 32},
        ),
        "--layers",
    )
    assert status == 0, err
    assert "only t (image)" in out
    assert [line.split(None, 1)[1] for line in out.splitlines() if line.split()[:1] == ["head"]] == ["4 x 16 x 32 x 32"]
    assert [line.split(None, 1)[1] for line in out.splitlines() if line.split()[:1] == ["conv_1"]] == [
        "4 x 64 x 32 x 32"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "DistilModel"}, "did you mean DistillModel?"),
        ({"model_type": ["DistillModel"]}, "model_type is ['DistillModel']: input should be a valid string"),
        ({"datasets.train.type": "PairedVideoDatset"}, "did you mean PairedVideoDataset?"),
        ({"train.optim_g.type": "Adan"}, "'Adan'"),
        ({"train.optim_g.betaz": [0.9, 0.99]}, "betaz is unknown; did you mean betas?"),
        (
            {"train.scheduler": {"type": "CosineAnnealingRestartLR", "periods": 2500}},
            "periods is 2500: input should be a valid list",
        ),
        ({"val": {"val_freq": 1, "save_img": False, "metrics": {"m": {"type": "calculate_psnrr"}}}}, "calculate_psnr?"),
        (
            {"train.distill_opt.taps": {"student": ["conv22", "conv7"], "teacher": ["conv22"]}},
            "2 of the student, 1 of network_t",
        ),
        (
            {
                "network_t": {"type": "S2VD", "num_feat": 4, "num_block": 1},
                "train.distill_opt.taps": {"teacher": ["body"]},
            },
            "conv22 of the student is 24x24, body of network_t 12x12",
        ),
        (
            {
                "network_t": {"type": "S2VD", "num_feat": 5, "num_block": 1},
                "train.distill_opt": {"type": "CRD", "weights": {"contrast": 1.0}, "taps": {"adapters": ["resize"]}},
            },
            "train.distill_opt: CRD: the student's feature has 4 channels, the teacher's has 5",
        ),
        ({"logger.wandb": {"project": "rain"}}, "logger.wandb: it copies TensorBoard's log"),
        (
            {
                "network_g": {
                    **{"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "scale": 1},
                    **{"num_feat": 4, "num_block": 1, "num_grow_ch": 2},
                },
                "interface_g": {"layout": "image"},
                "datasets.train.gt_size": 26,
            },
            "RRDBNet cannot process clips (2, 8, 3, 26, 26) as it needs sides that are multiples of 4",
        ),
        ({"train.distill_opt.num_scale": 9}, "CSD: a feature of 24x24 is too small for 9 scales"),
    ],
)
def test_what_training_would_refuse_is_refused(inspect, changes, words):
    status, _, err = inspect(options(**changes))
    assert status == 2 and words in err and err.count("\n") == 1
    assert err.startswith("csd inspect: error: x.yml: line ")


def test_a_type_that_the_toolbox_has_under_a_longer_name_is_found_in_silence(inspect):
    network = {"type": "SRVGGNetCompact", "num_feat": 4, "num_conv": 1, "upscale": 1}
    status, out, err = inspect(options(network_g=network, interface_g={"layout": "image", "feature": "body.2"}))
    assert status == 0, err
    assert "network_g  SRVGGNetCompact, learns" in out and "is not found" not in out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network_t": {"type": "PReNet", "num_feat": 4}}, "network_t sees 1 frames, fewer than the student"),
        ({"network_t": {"type": "PReNet", "num_feat": 3}}, "parameters, fewer than the student, which has 5,599"),
        ({"train.distill_opt.weights.spatial": 0}, "the weight of spatial is 0"),
        (
            {
                "train.distill_opt": {
                    "type": "FAKD",
                    "pool": 1,
                    "max_gib": 16,
                    "weights": {"affinity": 10.0, "truth": 0.5, "teacher": 0.5},
                },
                "datasets.train.gt_size": 128,
            },
            "FAKD's affinities take 12.0 GiB with pool 1",
        ),
    ],
)
def test_warnings(inspect, changes, words):
    status, out, err = inspect(options(**changes))
    assert status == 0, err
    assert any(words in line for line in out.splitlines() if line.startswith("warning"))


def test_a_fidelity_and_where_the_file_differs_from_it(inspect):
    status, out, err = inspect(options(**{"train.distill_opt.fidelity": "released"}))
    assert status == 0, err
    assert "fidelity: released" in out
    assert "train.distill_opt.aggregation: sum_squared (paper: mean_squared)" in out
    assert "not reproduced: six optimizer steps per frame" in out
    assert "warning    datasets.train.num_target is 2, but fidelity: released has 4" in out


def test_adapters_are_counted(inspect):
    teacher = {"type": "S2VD", "num_feat": 5, "num_block": 1}
    taps = {"student": ["conv22"], "teacher": ["body.0"], "adapters": ["conv1x1", "resize"]}
    section = {"type": "SRKD", "weights": {"maps": 1.0}, "taps": taps}
    status, out, err = inspect(options(network_t=teacher, **{"train.distill_opt": section}))
    assert status == 0, err
    assert f"SRKD; {4 * 5 + 5} parameters learn in addition to the student" in out
    assert "resize them" not in out


def test_several_teachers_and_weights_that_change(inspect):
    second = {"network_t2": {"type": "PReNet", "num_feat": 4}, "path.pretrain_network_t2": "nowhere.pth"}
    changes = {"train.distill_opt.weights.spatial": {"schedule": "stop_at", "start": 0.1, "iters": 50}}
    _, alone, _ = inspect(options())
    status, out, err = inspect(options(**second | changes))
    assert status == 0, err
    assert "network_t   SLDNet" in out or "network_t  SLDNet" in out
    assert "network_t2  PReNet, frozen" in out
    cells = [int(line.split(";")[1].split()[0].replace(",", "")) for line in (_objective(alone), _objective(out))]
    assert cells[1] == 2 * cells[0]
    assert "weight 0.1 to 0 in 50 iterations, stop_at" in out
    assert "network_t2                   share 0.5" in out
    assert "warning    network_t2 sees 1 frames, fewer than the student" in out


def _objective(report):
    return next(line for line in report.splitlines() if line.startswith("objective"))


def test_a_test_file(inspect, tmp_path):
    status, out, _ = inspect(scoring_options(tmp_path, tmp_path / "net.pth"))
    assert status == 0
    assert "1 of 3 frames, 128x128; 1 targets" in out


def test_a_file_that_is_not_there(capsys):
    assert main(["inspect", "nowhere.yml"]) == 2
    assert capsys.readouterr().err == "csd inspect: error: nowhere.yml does not exist; check the path\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "cannot be read as an option file"),
        (
            changed(options(), {"train.distill_opt.taps": {"student": ["conv99"]}}),
            "x.yml: line 36: train.distill_opt.taps: feature tap 'conv99': SLDNet has no such layer",
        ),
        (
            changed(options(), {"interface_t": {"layout": "image"}}),
            "x.yml: line 13: interface_t: SLDNet: the input has shape",
        ),
        (changed(options(), {"network_g.preset": "student9"}), "unknown preset 'student9'"),
    ],
)
def test_a_mistake_is_one_line(inspect, content, words):
    status, _, err = inspect(content)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1


def test_our_networks_do_not_enlarge_frames(inspect):
    status, _, err = inspect(options(scale=2))
    assert status == 2 and "2 problems" in err
    for name in ("network_g", "network_t"):
        assert f"{name}: frames from SLDNet are as large as its input, but the file's scale is 2; set scale: 1" in err


def test_all_mistakes_are_listed_with_their_lines(inspect):
    """Of form and of content, in every section, in the order of the file."""
    wrong = options(
        **{
            "datasets.train.gt_sise": 3,
            "datasets.train.split": "tests",
            "network_g.preset": "student9",
            "network_t.num_feet": 4,
            "train.ema_decya": 0.5,
            "train.optim_g.type": "Adan",
            "train.scheduler.gama": 1,
            "train.pixel_opt.type": "PyramidLoss",
            "train.distill_opt.weights.spatial": "1e-1",
            "train.distill_opt.hiden": 4,
            "logger.print_freq": 0,
        }
    )
    status, out, err = inspect(wrong)
    assert status == 2 and not out
    text = yaml.safe_dump(wrong)
    lines = err.splitlines()
    assert lines[0] == "csd inspect: error: x.yml: 11 problems"
    for key, words in {
        "gt_sise": "datasets.train.gt_sise is unknown; did you mean gt_size?",
        "split": "datasets.train.split is 'tests'",
        "preset": "network_g: SLDNet: unknown preset 'student9'",
        "num_feet": "network_t.num_feet is unknown; did you mean num_feat?",
        "ema_decya": "train.ema_decya is unknown; did you mean ema_decay?",
        "type: Adan": "train.optim_g.type: 'Adan' is not in torch.optim",
        "gama": "train.scheduler.gama is unknown; did you mean gamma?",
        "type: PyramidLoss": "train.pixel_opt.type: 'PyramidLoss' is unknown; did you mean PyramidSSIMLoss?",
        "spatial": "train.distill_opt.weights.spatial is '1e-1'",
        "hiden": "train.distill_opt.hiden is unknown; did you mean hidden?",
        "print_freq": "logger.print_freq is 0",
    }.items():
        [line] = [line for line in lines if words in line]
        number = int(line.split("x.yml: line ")[1].split(":")[0])
        there = text.splitlines()[number - 1]
        assert key in there or (key == "preset" and "network_g" in there)
    numbers = [int(line.split("line ")[1].split(":")[0]) for line in lines[1:]]
    assert numbers == sorted(numbers)


def test_a_mistyped_type_hides_no_mistake_behind_it(inspect):
    """Also where the toolbox could not even read the file: what is meant is checked."""
    wrong = options(
        **{
            "model_type": "DistilModel",
            "manual_seed": "zero",
            "datasets.train.type": "PairedVideoDatset",
            "datasets.train.gt_sise": 3,
            "network_g.type": "SLDNett",
            "network_g.num_feet": 4,
            "train.distill_opt.type": "CSDD",
            "train.total_iter": "many",
        }
    )
    status, _, err = inspect(wrong)
    assert status == 2 and err.splitlines()[0] == "csd inspect: error: x.yml: 8 problems"
    for words in (
        "model_type: 'DistilModel' is unknown; did you mean DistillModel?",
        "manual_seed is 'zero'",
        "datasets.train.type: 'PairedVideoDatset' is unknown; did you mean PairedVideoDataset?",
        "gt_sise is unknown; did you mean gt_size?",
        "network_g.type: 'SLDNett' is unknown; did you mean SLDNet?",
        "num_feet is unknown; did you mean num_feat?",
        "'CSDD' is unknown; did you mean CSD?",
        "train.total_iter is 'many'",
    ):
        assert words in err


# ---------------------------------------------------------------------- the schema
@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="the checks of the schema need jsonschema")
    made = json.loads((OPTIONS / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def test_the_schema_is_of_now(capsys):
    assert main(["inspect", "--schema"]) == 0
    # else: csd inspect --schema > options/schema.json
    assert capsys.readouterr().out == (OPTIONS / "schema.json").read_text()


def test_the_schema_takes_every_option_file(validator):
    files = [path for path in OPTIONS.rglob("*.yml") if not path.is_relative_to(OPTIONS / "matrix")]
    assert len(files) > 20
    for path in files:
        content = yaml.safe_load(path.read_text())
        if "rows" not in content:
            assert not list(validator.iter_errors(content)), path


@pytest.mark.parametrize(
    "changes",
    [
        {"network_g.num_feet": 4},
        {"network_t.num_feat": "4"},
        {"datasets.train.gt_size": 0},
        {"datasets.trian": {}},
        {"train.ema_decay": 1.5},
        {"train.distill_opt.type": "CDS"},
        {"train.distill_opt.weights.spatial": "0.1"},
        {"train.optim_g.lr": -1},
        {"num_gpu": "all"},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_checks_refuse(validator, changes):
    assert validator.is_valid(options())
    assert not validator.is_valid(changed(options(), changes))


def test_the_schema_takes_other_peoples_models(validator):
    assert validator.is_valid(options() | {"model_type": "SRModel", "network_g": {"any": 1}})


class Odd(nn.Module):
    """A sequence network that looks at values, that torch cannot trace, and that improves its whole clip twice."""

    layout, num_frame, feature_tap = "sequence", 3, "stage:output"

    def __init__(self):
        super().__init__()
        self.stage, self.step = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, clip):
        if torch.jit.is_tracing():
            raise RuntimeError("no tracing")
        assert clip.norm() >= 0
        frames = clip.flatten(0, 1)
        for _ in range(2):
            frames = frames + self.stage(frames)
        frames = frames.unflatten(0, clip.shape[:2])
        return torch.stack([self.step(frame) for frame in frames.unbind(1)], dim=1)


@pytest.fixture
def odd(monkeypatch):
    from csd_plugin.archs import NETWORKS

    monkeypatch.setitem(NETWORKS._rows, "Odd", Odd)
    yield {"type": "Odd"}
    from basicsr.utils.registry import ARCH_REGISTRY

    ARCH_REGISTRY._obj_map.pop("Odd", None)


def test_networks_that_cannot_be_run_without_values_or_traced_are_inspected(inspect, odd):
    status, out, err = inspect(options(network_g=odd))
    assert status == 0, err
    assert "(sequence); torch cannot trace Odd to count its multiply-adds (no tracing)" in out
    assert "feature stage:output         2 x 2 x 3 x 24 x 24, from 2 runs" in out


def test_what_training_says_of_several_runs_is_said(inspect, odd):
    _, out, _ = inspect(options(network_g=odd))
    told = "the layer ran 2 times in one pass of 4 frames, and only the last of them is compared"
    assert f"warning    network_g: feature tap 'stage': {told}" in out
    taps = {"student": ["step"], "teacher": ["conv22"]}
    _, out, _ = inspect(options(network_g=odd, **{"train.distill_opt.taps": taps}))
    assert "2 x 2 x 3 x 24 x 24, from 4 runs" in out and "feature tap" not in out
