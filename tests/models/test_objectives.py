"""Every objective in a training run, on features of one or several layers of any family of networks."""

from __future__ import annotations

import pytest
import torch
from toolbox import changed, distill_options, method

from csd_plugin.archs.s2vd import S2VD
from csd_plugin.distill import OBJECTIVES
from csd_plugin.distill.objective import build_objective
from csd_plugin.errors import CSDError

OTHERS = sorted(set(OBJECTIVES) - {"CSD"})


def options_of(data, teacher, objective, **changes):
    weights = dict.fromkeys(build_objective(method(objective)).terms, 0.5)
    section = {**method(objective), "weights": weights}
    return distill_options(data, teacher, **{"train.total_iter": 1, "train.distill_opt": section} | changes)


@pytest.mark.parametrize("name", OTHERS)
def test_every_objective_trains(launcher, tiny_rain, tiny_teacher, name):
    assert launcher.train(options_of(tiny_rain, tiny_teacher, name)) == 0
    model = launcher.models[-1]
    terms = {term: float(model.log_dict[f"l_{term}"]) for term in model.teachers[0].objective.terms}
    assert all(value > 0 for value in terms.values())
    assert float(model.log_dict["l_distill"]) == pytest.approx(0.5 * sum(terms.values()), rel=1e-5)
    optimized = {id(p) for p in model.optimized_parameters()}
    assert optimized == {id(p) for net in (model.net_g, model.teachers[0].objective) for p in net.parameters()}


def test_std_resumes(launcher, tiny_rain, tiny_teacher):
    options = options_of(tiny_rain, tiny_teacher, "STD", **{"train.total_iter": 2})
    assert launcher.train(options) == 0
    launcher.models[-1].teachers[0].objective.freeze.frozen.fill_(True)
    launcher.models[-1].save(0, 2)
    assert launcher.train(changed(options, {"train.total_iter": 3}), "--auto_resume") == 0
    first, second = (model.teachers[0].objective.cell.state_dict() for model in launcher.models)
    assert launcher.models[-1].teachers[0].objective.freeze.frozen
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_of_several_depths_are_averaged_over_time(launcher, tiny_rain, tiny_teacher):
    taps = {"student": ["conv2", "conv7", "conv22"], "teacher": ["conv3:output", "conv7", "conv22"]}
    options = options_of(tiny_rain, tiny_teacher, "SRKD", **{"train.optim_g.lr": 1e-30})
    options["train"]["distill_opt"]["taps"] = taps
    assert launcher.train(options) == 0
    model = launcher.models[-1]

    expected = 0.0
    for student_layer, teacher_layer in zip(*taps.values(), strict=True):
        maps = []
        for network, layer, width in ((model.net_g, student_layer, 3), (model.teachers[0].network, teacher_layer, 7)):
            module, _, kind = layer.partition(":")
            seen = []
            handle = network.get_submodule(module).register_forward_hook(
                lambda _, args, output, kind=kind, seen=seen: seen.append(output if kind else args[0])
            )
            for clip in model.lq:  # two targets in the middle of eight frames
                for center in (3, 4):
                    network(clip[None, center - width // 2 : center + width // 2 + 1])
            handle.remove()
            maps.append(torch.stack([feature.mean(dim=2)[0].mean(dim=0).square() for feature in seen]))
        expected += (maps[0] - maps[1]).detach().square().mean().item()
    assert float(model.log_dict["l_maps"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("taps", "words"),
    [
        ({"student": ["conv99"]}, "'conv99': SLDNet has no such layer; nearest: conv9"),
        ({"teacher": ["conv22:outputs"]}, "input, output"),
        ({"student": []}, "taps.student"),
        ({"techer": ["conv22"]}, "techer"),
    ],
)
def test_wrong_taps_are_told_before_anything_is_written(launcher, tiny_rain, tiny_teacher, capsys, taps, words):
    options = distill_options(tiny_rain, tiny_teacher)
    options["train"]["distill_opt"]["taps"] = taps
    assert launcher.train(options) == 2
    assert words in capsys.readouterr().err
    assert launcher.written() == []


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("CSD", {"num_scale": 9}, "train.distill_opt: CSD: a feature of 24x24 is too small for 9 scales"),
        ("FAKD", {"pool": 64}, "train.distill_opt: FAKD: features are smaller than pool 64"),
        ("FAKD", {"pool": 1, "max_gib": 1e-6}, "more than max_gib 1e-06"),
        ("CRD", {"pool": 64}, "train.distill_opt: CRD: features are smaller than pool 64"),
        (
            "CRD",
            {"taps": {"teacher": ["conv1"]}},
            "the student's feature has 4 channels, the teacher's has 3; give `ad",
        ),
        ("CRD", {"taps": {"teacher": ["conv1"], "adapters": ["resize"]}}, "4 channels, the teacher's has 3"),
        ("STD", {"taps": {"student": ["conv7", "conv22"], "teacher": ["conv7", "conv22"]}}, "STD: needs 1 feature(s)"),
    ],
)
def test_features_that_it_would_refuse_are_told_before_anything_is_written(
    launcher, tiny_rain, tiny_teacher, capsys, name, changes, words
):
    options = options_of(tiny_rain, tiny_teacher, name)
    options["train"]["distill_opt"] |= changes
    assert launcher.train(options) == 2
    assert words in capsys.readouterr().err
    assert launcher.written() == []


def test_contrast_is_learned_through_an_adapter(launcher, tiny_rain, tiny_teacher):
    options = options_of(tiny_rain, tiny_teacher, "CRD")
    options["train"]["distill_opt"]["taps"] = {"teacher": ["conv1"], "adapters": ["conv1x1"]}
    assert launcher.train(options) == 0
    assert launcher.models[-1].teachers[0].objective.convs[0].weight.grad.any()


def test_a_network_of_sequences_teaches_and_learns(launcher, tiny_rain, tiny_teacher):
    small = {"type": "S2VD", "num_feat": 4, "num_block": 1}
    checkpoint = launcher.folder / "s2vd.pth"
    torch.save(S2VD(num_feat=4, num_block=1).state_dict(), checkpoint)
    taught = options_of(tiny_rain, checkpoint, "SRKD", network_t=small)
    assert launcher.train(taught) == 0
    assert float(launcher.models[-1].log_dict["l_maps"]) > 0
    assert launcher.train(options_of(tiny_rain, tiny_teacher, "SRKD", name="learns", network_g=small)) == 0
    assert launcher.models[-1].net_g.head[0].conv.weight.grad.any()


def test_adapters_bridge_widths_and_sizes_and_learn_beside_the_student(launcher, tiny_rain, capsys):
    checkpoint = launcher.folder / "s2vd.pth"
    torch.save(S2VD(num_feat=5, num_block=1).state_dict(), checkpoint)
    options = options_of(tiny_rain, checkpoint, "FAKD", network_t={"type": "S2VD", "num_feat": 5, "num_block": 1})
    taps = {"student": ["conv22"], "teacher": ["body.0"]}  # half the size
    options["train"]["distill_opt"]["taps"] = taps
    assert launcher.train(options) == 2
    words = "FAKD: at input scale 1 the student's feature is 2x2x4x24x24 and the teacher's 2x2x5x12x12"
    assert words in capsys.readouterr().err
    assert launcher.written() == ["s2vd.pth"]
    options["train"]["distill_opt"]["taps"] = taps | {"adapters": ["conv1x1", "resize"]}
    assert launcher.train(changed(options, {"name": "adapted"})) == 0

    model = launcher.models[-1]
    assert not any(name.startswith("health/scale") for name in model.log_dict)  # the convolutions see to that
    convs = {
        name: value
        for name, value in model.teachers[0].objective.state_dict().items()
        if name.startswith(("convs.", "gain"))
    }
    assert convs["convs.0.weight"].shape == (5, 4, 1, 1)
    assert model.teachers[0].objective.convs[0].weight.grad.any()
    assert set(launcher.weights("objective_latest", "adapted")) == set(convs)
    assert set(launcher.weights("net_g_latest", "adapted")) == set(model.net_g.state_dict())
    assert {id(p) for p in model.teachers[0].objective.parameters()} <= {id(p) for p in model.optimized_parameters()}


def test_features_of_a_sequence_are_those_of_its_targets():
    from csd_plugin.archs.interface import Captured, Interface

    layout = Interface(num_frame=5, kind="sequence")
    captured = torch.arange(7.0).view(1, 1, 7, 1, 1).expand(2, 3, 7, 4, 4)
    frames_second, flat = captured.transpose(1, 2), captured.transpose(1, 2).flatten(0, 1)
    for form in (captured, frames_second, flat):
        features = layout.features(Captured((form,)), batch=2, num_target=3, layer="tail")
        assert features.shape == (2, 3, 3, 4, 4)
        assert features[0, :, 0, 0, 0].tolist() == [2, 3, 4]
    with pytest.raises(CSDError, match=r"'tail': a tensor of shape \(2, 3, 7, 4, 4\).* 2 x 2 targets"):
        layout.features(Captured((captured,)), batch=2, num_target=2, layer="tail")


@pytest.mark.parametrize("shape", [(6, 4, 5, 5), (6, 4, 3, 5, 5), (6, 3, 4, 5, 5), (18, 4, 5, 5)])
def test_features_of_windows_are_averaged_over_what_time_they_have(shape):
    from csd_plugin.archs.interface import Captured, Interface

    window, captured = Interface(num_frame=3, kind="window"), torch.rand(shape)
    features = window.features(Captured((captured,)), batch=2, num_target=3, layer="tail")
    assert features.shape == (2, 3, 4, 5, 5)
    frames = {(18, 4, 5, 5): captured[3:6], (6, 4, 5, 5): captured[1:2]}.get(shape)
    time = 0 if shape[1] == 3 else 1  # before the channels, or after
    expected = captured[1].mean(dim=time) if frames is None else frames.mean(dim=0)
    torch.testing.assert_close(features[0, 1], expected)
    with pytest.raises(CSDError, match="holds no feature"):
        window.features(Captured((torch.rand(6, 4),)), batch=2, num_target=3, layer="tail")
