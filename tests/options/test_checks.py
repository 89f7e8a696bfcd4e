"""Checks of options: a mistyped key or a wrong value is named with its place; what is right passes unchanged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from toolbox import changed, distill_options, train_options

from csd_plugin.errors import CSDError
from csd_plugin.options.checks import check_file, check_options, find_problems


def parsed(options: dict[str, Any]) -> dict[str, Any]:
    """What the toolbox's parser adds, as far as the checks look at it."""
    return options | {"is_train": "train" in options, "auto_resume": False, "dist": False}


def message(options: dict[str, Any]) -> str:
    with pytest.raises(CSDError) as caught:
        check_file(options, "x.yml")
        check_options(parsed(options), "x.yml")
    text = str(caught.value)
    assert text.startswith("x.yml: ") and "\n" not in text
    return text


def full_options() -> dict[str, Any]:
    options = distill_options(Path("data"), Path("teacher.pth"), val={"val_freq": 5, "save_img": False})
    options["datasets"]["val"] = {
        "name": "v",
        "type": "PairedVideoTestDataset",
        "dataroot": "data",
        "num_frame": 7,
        "frame_range": [1, 2],
    }
    options["network_t2"] = dict(options["network_t"])
    options["interface_t2"] = {"layout": "window", "feature": "conv22"}
    options["path"] |= {"pretrain_network_t2": "teacher2.pth", "param_key_t2": "params"}
    weight = {"schedule": "linear", "start": 0.0, "end": 0.1, "iters": 9}
    options["train"]["distill_opt"]["weights"]["temporal"] = weight
    options["train"]["distill_opt"] |= {"teachers": {"t": 1.0, "t2": 0.5}, "taps": {"teacher": {"t2": ["conv7"]}}}
    return changed(options, {"train.grad_clip": 1.0, "train.autocast": "bf16", "val.batch_size": 2})


def keys_of(section: dict[str, Any], prefix: str = "") -> list[str]:
    """Paths of all keys, but for those that torch and the toolbox look after, and names that are free."""
    paths = []
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path not in ("datasets.train", "datasets.val", "train.distill_opt.weights"):
            paths.append(path)
        if isinstance(value, dict) and path not in ("train.scheduler", "train.optim_g"):
            paths += keys_of(value, f"{path}.")
    of_names = tuple(f"train.distill_opt.{section}." for section in ("weights", "teachers", "taps.teacher"))
    return [path for path in paths if not path.startswith(of_names)]


def test_complete_options_pass():
    check_file(full_options(), "x.yml")
    check_options(parsed(full_options()), "x.yml")


@pytest.mark.parametrize("path", keys_of(full_options()))
def test_a_mistyped_key_is_an_error_that_names_the_right_one(path):
    options = full_options()
    *sections, key = path.split(".")
    section = options
    for name in sections:
        section = section[name]
    mistyped = key[: len(key) // 2] + key[len(key) // 2 + 1 :]
    section[mistyped] = section.pop(key)
    assert f"{mistyped} is unknown; did you mean {key}?" in message(options)


def test_other_peoples_keys_pass_in_the_toolboxs_sections_and_not_in_ours():
    options = full_options() | {"my_note": "anything", "my_t7": 1}
    options["train"]["my_plugin"] = {"x": 1}
    check_options(parsed(options), "x.yml")
    options["network_g"]["my_plugin"] = 1
    assert "network_g.my_plugin is unknown; known: type, preset" in message(options)


def test_other_peoples_models_are_left_alone():
    options = full_options() | {"model_type": "SRGANModel", "network_d": {"type": "VGG"}}
    del options["network_t"], options["network_t2"], options["train"]["pixel_opt"]
    check_file(options, "x.yml")
    check_options(parsed(options), "x.yml")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"datasets": ...}, "datasets is missing"),
        ({"datasets": []}, "datasets is []"),
        ({"datasets": {"train": None}}, "datasets.train is None"),
        ({"datasets": {"trian": {}}}, "datasets.trian is unknown"),
        ({"datasets.train": ...}, "datasets.train is missing"),
        ({"path": None}, "path is None"),
        ({"name": 3}, "name is 3"),
        ({"num_gpu": "all"}, "num_gpu is 'all'"),
        ({"network_g": ...}, "network_g is missing"),
        ({"network_t": ...}, "network_t is missing"),
        ({"logger": ...}, "the section logger is missing"),
        ({"val.val_freq": ...}, "val.val_freq is missing"),
        ({"path.pretrain_network_t": ...}, "path.pretrain_network_t is missing"),
        ({"train.distill_opt": ...}, "train.distill_opt is missing"),
        ({"train.distill_opt.type": "CDS"}, "train.distill_opt.type 'CDS' is unknown; did you mean CSD?"),
        ({"train.distill_opt.weights": ...}, "train.distill_opt.weights is missing"),
        ({"train.distill_opt.weights.spatial": "0.1"}, "weights.spatial is '0.1': input should be a valid number"),
        ({"train.distill_opt.weights.spatial": -0.1}, "weights.spatial: a weight is -0.1, expected 0 or more"),
        ({"train.distill_opt.weights.temporal.end": -1.0}, "weights.temporal.end is -1.0"),
        ({"train.distill_opt.num_scale": "3"}, "num_scale is '3'"),
        ({"train.distill_opt.weights.temporal.schedule": "lin"}, "weights.temporal: schedule 'lin' is unknown"),
        ({"train.distill_opt.weights.temporal.start": ...}, "weights.temporal.start is missing"),
        ({"train.distill_opt.weights.temporal.end": "0"}, "weights.temporal.end is '0'"),
        ({"train.distill_opt.weights.temporal.iters": ...}, "weights.temporal: linear needs iters"),
        ({"train.distill_opt.weights.spatial": {"balance": 0}}, "spatial.balance is 0: input should be greater than 0"),
        ({"train.distill_opt.weights.spatial": {"balance": 0.3, "iters": 9}}, "weights.spatial.iters is unknown"),
        ({"train.distill_opt.weights.spatial": {"balance": 0.3, "until": 0}}, "weights.spatial.until is 0"),
        (
            {"train.distill_opt.weights.spatial": {"balance": 0.3}, "train.pixel_opt.loss_weight": 0.0},
            "weights.spatial: balance needs a reconstruction loss",
        ),
        ({"train.distill_opt.teachers": {"t": 1.0}}, "distill_opt.teachers: teacher 't2' has no weight"),
        ({"train.distill_opt.teachers.t3": 1.0}, "distill_opt.teachers: teacher 't3' is unknown"),
        ({"train.distill_opt.taps.teacher.t3": ["conv7"]}, "taps.teacher.t3 is unknown; did you mean t"),
        ({"path.pretrain_network_t2": ...}, "path.pretrain_network_t2 is missing"),
        ({"path.pretrain_network_t3": "x.pth"}, "network_t3 is missing, but other keys belong to that teacher"),
        ({"interface_t3": {}}, "network_t3 is missing"),
        ({"interfac_t2": {}}, "interfac_t2 is unknown; did you mean interface_t2?"),
        ({"interface_t2.layout": "windows"}, "interface_t2.layout is 'windows'"),
        ({"network_t1": {}}, "network_t1 is unknown; did you mean network_t"),
        ({"network_t2": None}, "network_t2 is missing"),
        ({"network_t2.preset": 1}, "network_t2.preset is 1"),
        ({"train.health": "yes"}, "train.health is 'yes'"),
        ({"train.distill_opt.fidelity": "papr"}, "fidelity is 'papr': input should be 'paper' or 'released'"),
        (
            {"train.distill_opt": {"type": "SRKD", "weights": {"maps": 1.0}, "fidelity": "paper"}},
            "distill_opt.fidelity is unknown",
        ),
        ({"train.pixel_opt": ...}, "train.pixel_opt is missing"),
        ({"train.pixel_opt.scale_weights": 1}, "scale_weights is 1"),
        ({"train.ldl_opt": {"type": "L1Loss"}}, "train.ldl_opt: models of csd-plugin train with pixel_opt, perceptual"),
        ({"network_d": {"type": "VGGStyleDiscriminator"}}, "network_d: models of csd-plugin have no discriminator"),
        ({"path.pretrain_network_d": "d.pth"}, "path.pretrain_network_d: models of csd-plugin have no discriminator"),
        ({"train.optim_d": {"type": "Adam", "lr": 0.1}}, "train.optim_d: models of csd-plugin have no discriminator"),
        (
            {"train.gan_opt": {"type": "GANLoss"}},
            "train.gan_opt: models of csd-plugin have no discriminator; remove it",
        ),
        ({"train.fix_flow": 5000}, "train.fix_flow: models of csd-plugin freeze layers by train.layers"),
        ({"val.flip_seq": True}, "val.flip_seq: models of csd-plugin validate frames as they are; remove it"),
        ({"train.optim_g.lr": "1e-4"}, "optim_g.lr is '1e-4': input should be a valid number; YAML reads 1e-4 as"),
        ({"train.optim_g.lr": -1.0}, "optim_g.lr is -1.0"),
        ({"train.total_iter": "2e4"}, "write !!float 2e4"),
        ({"train.ema_decay": 1.0}, "ema_decay is 1.0: input should be less than 1"),
        ({"train.grad_clip": -1}, "grad_clip is -1"),
        ({"train.autocast": "int8"}, "autocast is 'int8': input should be 'bf16' or 'fp16'"),
        ({"datasets.train.gt_size": 0}, "datasets.train.gt_size is 0"),
        ({"datasets.train.scale_range": [0.4]}, "scale_range"),
        ({"datasets.train.scale_range": ["1e-1", 2]}, "scale_range.0 is '1e-1'"),
        ({"datasets.train.prefetch_mode": "cpu"}, "prefetch_mode is 'cpu'"),
        ({"datasets.train.split": "training"}, "split is 'training': input should be 'train', 'test' or 'real'"),
        ({"datasets.val.frame_range": 3}, "frame_range is 3"),
        ({"val.batch_size": 0}, "val.batch_size is 0"),
        ({"network_g.reducing": 4}, "network_g.reducing is 4"),
    ],
    ids=str,
)
def test_wrong_values_are_told_with_their_place(changes, words):
    assert words in message(changed(full_options(), changes))


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_what_is_no_option_file_is_refused(content):
    with pytest.raises(CSDError, match=r"x.yml: not an option file"):
        check_file(content, "x.yml")


def test_checking_changes_nothing():
    options = parsed(full_options())
    before = copy.deepcopy(options)
    check_options(options, "x.yml")
    assert options == before


def test_stage_1_needs_no_teacher():
    options = train_options(Path("data"))
    check_file(options, "x.yml")
    check_options(parsed(options), "x.yml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"datasets.val_2.name": "v"}, "datasets.val_2.name: 'v' is also the name of datasets.val;"),
        (
            {"val.metrics": {"x": {"type": "calculate_psnr", "crop_border": 0, "better": "Lower"}}},
            "x.better is 'Lower'",
        ),
        (
            {"val.metrics": {"rgb/psnr": {"type": "calculate_psnr", "crop_border": 0}}},
            "this name is taken by what is always measured",
        ),
        ({"train.distill_opt.ema_decay": 0.5}, "ema_decay has no effect unless cells is averaged"),
        ({"train.distill_opt.collapse_fraction": 0.9}, "unless cells is joint_until_collapsed"),
        ({"train.distill_opt.weights": {"spatial": {"balance": 1e300}, "temporal": 0.1}}, "balance"),
        ({"train.distill_opt.weights": {"spatial": {"schedule": "constant", "start": 1e30}, "temporal": 0.1}}, "start"),
    ],
    ids=str,
)
def test_what_would_be_ignored_or_wrong_is_told(changes, words, tmp_path):
    from csd_plugin import registration
    from csd_plugin.models.preflight import check_run
    from csd_plugin.options.problems import Problems

    registration.install()
    options = full_options()
    options["datasets"]["val_2"] = {**options["datasets"]["val"], "name": "w"}
    options = parsed(changed(options, changes))
    for key, content in options["datasets"].items():
        content["phase"] = key.split("_")[0]
    problems = Problems("")
    find_problems(options, problems)
    with pytest.raises(CSDError) as caught:
        check_run(options, problems)
    assert words in str(caught.value)
