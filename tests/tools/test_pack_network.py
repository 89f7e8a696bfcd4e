"""Shipping networks: what is packed loads everywhere, and a change of the catalogue is whole or none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pack_network
import pytest
import torch
from synthetic import moving_scene, rain_on, write_image

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.s2vd import S2VD
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.metrics.results import write
from csd_plugin.metrics.scores import Scores
from csd_plugin.weights import packing, read_catalogue, read_left

TEXTS = ["what=a narrow student", "trained_on=noise", "recipe=none", "license=Apache-2.0"]


@pytest.fixture
def pack(tmp_path):
    """The tool, run on a folder that ships a student already; gives its status."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "networks.json").write_text('{"rainy": {}, "networks": {}}')

    def run(*arguments: object) -> int:
        return pack_network.main([str(argument) for argument in arguments], folder)

    run.module, run.folder = pack_network, folder
    return run


@pytest.fixture
def checkpoint(tmp_path):
    """Averaged weights beside others, as training leaves them."""
    torch.manual_seed(2)
    averaged, plain = (SLDNet(preset="student2", num_feat=5).state_dict() for _ in range(2))
    torch.save({"params": plain, "params_ema": averaged}, tmp_path / "net_g_latest.pth")
    return tmp_path / "net_g_latest.pth"


@pytest.fixture
def clip(tmp_path):
    scene = moving_scene(5, 32, 40, 0)
    for name, frames in (("rain", rain_on(scene, 1)), ("truth", scene)):
        for number, frame in enumerate(frames):
            write_image(tmp_path / name / f"{number}.png", frame)
    return tmp_path / "rain", tmp_path / "truth"


def scored(folder: Path, *clips: str) -> Path:
    scores = Scores()
    for clip in clips:
        for number in (1, 2):
            scores.add(clip, str(number), moving_scene(1, 16, 16, 0)[0], moving_scene(1, 16, 16, number)[0])
    return write(folder, "-".join(clips), scores, {"network": "x", "dataset": "y"})


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_network_is_packed_with_its_facts(pack, checkpoint, tmp_path, capsys):
    validation, a1 = scored(tmp_path, "walk", "street"), scored(tmp_path, "a1")
    (tmp_path / "facts.yml").write_text("what: a student\n  of two lines\ntrained_on: noise\nrecipe: r\nlicence: l\n")
    scores = ("--score", f"validation={validation}", f"a1={a1}")
    arguments = (checkpoint, "narrow", "--facts", tmp_path / "facts.yml", "--fact", "recipe=none", *scores)
    assert pack(*arguments) == 0
    said = capsys.readouterr().out
    assert "csd derain uses narrow, --fast narrow" in said and "has no scores" not in said

    (network,) = read_catalogue(pack.folder)[0].values()
    assert (network.what, network.recipe, network.preset) == ("a student of two lines", "none", "student2")
    assert network.license == "l"  # under the key that older files of facts have
    assert network.numbers["num_feat"] == 5 and network.stored_as == "fp32"
    average = json.loads(validation.read_text())["average"]["rgb"]
    assert network.scores["validation"]["rgb"]["psnr"] == pytest.approx(average["psnr"], abs=1e-4)
    assert (network.scores["a1"]["clips"], network.scores["a1"]["frames"]) == (["a1"], 2)
    content = torch.load(pack.folder / "narrow.pth", weights_only=True)
    assert same(content["params"], torch.load(checkpoint, weights_only=True)["params_ema"])
    assert content["facts"]["scores"] == network.scores

    assert pack(*arguments) == 0
    assert read_catalogue(pack.folder)[0]["narrow"].sha256 == network.sha256  # the same again, byte for byte


def test_other_facts_need_no_other_checkpoint(pack, checkpoint, tmp_path):
    assert pack(checkpoint, "narrow", "--fact", *TEXTS, "--score", f"a1={scored(tmp_path, 'a1')}") == 0
    before = read_catalogue(pack.folder)[0]["narrow"]
    assert pack(pack.folder / "narrow.pth", "narrow", "--fact", "recipe=another") == 0
    after = read_catalogue(pack.folder)[0]["narrow"]
    assert (after.recipe, after.what, after.scores) == ("another", before.what, before.scores)
    assert same(load_network(pack.folder / "narrow.pth").state_dict(), load_network(checkpoint).state_dict())
    # other weights do not inherit scores
    assert pack(checkpoint, "narrow", "--fact", *TEXTS) == 0
    assert read_catalogue(pack.folder)[0]["narrow"].scores == {}


@pytest.mark.parametrize("allowed, stored", [(1.0, torch.float16), (0.0, torch.float32)])
def test_fp16_where_it_costs_nothing(pack, checkpoint, clip, monkeypatch, capsys, allowed, stored):
    monkeypatch.setattr("csd_plugin.weights.packing.FREE_DB", allowed)
    assert pack(checkpoint, "narrow", "--fact", *TEXTS, "--check", *clip) == 0
    assert "fp16 moves the PSNR by 0.0" in capsys.readouterr().out
    state = torch.load(pack.folder / "narrow.pth", weights_only=True)["params"]
    assert {value.dtype for value in state.values()} == {stored}

    loaded, weights = load_network(pack.folder / "narrow.pth").state_dict(), load_network(checkpoint).state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert same(loaded, {key: value.to(stored).float() for key, value in weights.items()})
    assert pack(pack.folder / "narrow.pth", "narrow") == 0  # what is fp16 stays so, unasked
    assert read_catalogue(pack.folder)[0]["narrow"].stored_as == {torch.float16: "fp16", torch.float32: "fp32"}[stored]


def test_an_infinite_score_is_a_text_in_the_catalogue(pack, checkpoint, tmp_path):
    scores = Scores()
    frame = np.zeros((16, 16, 3), np.uint8)
    scores.add("b1", "00001", frame, frame)
    equal = write(tmp_path, "equal", scores, {"network": "x", "dataset": "validation"})
    assert pack(checkpoint, "narrow", "--fact", *TEXTS, "--score", f"validation={equal}") == 0

    def refuse(word):
        raise AssertionError(word)

    content = json.loads((pack.folder / "networks.json").read_text(), parse_constant=refuse)
    assert content["networks"]["narrow"]["scores"]["validation"]["rgb"]["psnr"] == "inf"
    network = read_catalogue(pack.folder)[0]["narrow"]
    assert network.validated == math.inf
    assert pack(pack.folder / "narrow.pth", "narrow") == 0  # scores of the checkpoint itself
    assert read_catalogue(pack.folder)[0]["narrow"].scores == network.scores


@pytest.mark.parametrize(
    "facts", [3, {"what": 3}, {"what": "a\0"}, {"scores": []}, {"scores": {"a1": 3}}, {"scores": {"a1": {"rgb": 1}}}]
)
def test_strange_facts_in_a_checkpoint_are_one_line(pack, checkpoint, capsys, facts):
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"facts": facts}, checkpoint)
    assert pack(checkpoint, "narrow", "--fact", *TEXTS) == 2
    error = capsys.readouterr().err
    assert f"{checkpoint}: facts" in error and len(error.splitlines()) == 1


def test_the_model_cards_table_follows(pack, checkpoint, tmp_path):
    card = pack.folder / "MODEL_CARD.md"
    card.write_text("before\n{}\nold\n{}\nafter\n".format(*packing.MARKS))
    rain = scored(tmp_path, "a1")
    assert pack(checkpoint, "narrow", "--fact", *TEXTS) == pack("--rainy", f"a1={rain}") == 0
    text = card.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| `narrow` | a narrow student |" in text
    psnr = json.loads(rain.read_text())["average"]["rgb"]["psnr"]
    assert f"| {psnr:.2f} / " in text.splitlines()[-3]


def test_a_network_that_ships_no_longer(pack, checkpoint, capsys):
    for name in ("one", "two"):
        assert pack(checkpoint, name, "--fact", *TEXTS) == 0
    assert pack("--remove", "one") == 0
    assert list(read_catalogue(pack.folder)[0]) == ["two"] and not (pack.folder / "one.pth").exists()
    assert read_left(pack.folder)["one"].what == "a narrow student"  # its facts stay
    assert pack(checkpoint, "one", "--fact", *TEXTS) == 0  # and it may come back
    assert list(read_left(pack.folder)) == [] and pack("--remove", "one") == 0
    assert pack("--remove", "two") == 2
    assert "no network would be left" in capsys.readouterr().err
    assert (pack.folder / "two.pth").exists()


@pytest.mark.parametrize("network", [PReNet(num_feat=4), HalfNet(preset="tiny", num_feat=4), S2VD(num_feat=4)])
def test_every_network_of_the_table_can_be_packed(pack, clip, network, tmp_path):
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    assert pack(tmp_path / "net.pth", "packed", "--check", *clip, "--fact", *TEXTS) == 0
    packed = read_catalogue(pack.folder)[0]["packed"]
    assert packed.preset == {"HalfNet": "tiny"}.get(type(network).__name__, type(network).__name__)
    again = type(network)(**packed.numbers)
    assert again.state_dict().keys() == network.state_dict().keys()
    assert packed.parameters == sum(p.numel() for p in network.parameters())


def test_scores_of_other_frames_are_said_not_to_compare(pack, checkpoint, tmp_path, capsys):
    for name, clips in (("one", ["v1"]), ("two", ["v1", "v2"])):
        assert "not scored on the same frames" not in capsys.readouterr().out
        score = f"validation={scored(tmp_path / name, *clips)}"
        assert pack(checkpoint, name, "--score", score, "--fact", *TEXTS) == 0
    assert "note: validation: one, two were not scored on the same frames" in capsys.readouterr().out


def test_mistakes_are_one_line_and_change_nothing(pack, checkpoint, tmp_path, capsys):
    assert pack(checkpoint, "narrow", "--fact", *TEXTS) == 0
    odd = SLDNet(num_frame=1, num_feat=4, num_pair=1, num_transition=0, reducing=())
    torch.save({"params": odd.state_dict()}, tmp_path / "odd.pth")
    (tmp_path / "facts.yml").write_text("licens: x\n")
    walk, a1 = scored(tmp_path, "walk"), scored(tmp_path, "a1")
    before = {path.name: path.read_bytes() for path in pack.folder.iterdir()}
    capsys.readouterr()
    for arguments, message in (
        ((checkpoint, "narrow"), "'what' is missing"),
        ((checkpoint, "Narrow!", "--fact", *TEXTS), "no name for a network"),
        ((checkpoint,), "no name for a network"),
        ((tmp_path / "odd.pth", "odd", "--fact", *TEXTS), "layers match no preset"),
        ((tmp_path / "no.pth", "no", "--fact", *TEXTS), "there is no checkpoint"),
        ((checkpoint, "narrow", "--fact", "recip=x"), "did you mean recipe?"),
        ((checkpoint, "narrow", "--facts", tmp_path / "facts.yml"), "did you mean license?"),
        ((checkpoint, "narrow", "--facts", tmp_path / "no.yml"), "cannot be read"),
        ((checkpoint, "narrow", "--fact", *TEXTS, "--score", f"validation={a1}"), "the clip a1 belongs to a1"),
        ((checkpoint, "narrow", "--fact", *TEXTS, "--score", f"a1={walk}"), "the clip a1 belongs to a1"),
        (("--remove", "narow"), "did you mean narrow?"),
    ):
        assert pack(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert {path.name: path.read_bytes() for path in pack.folder.iterdir()} == before
