"""Larger networks that compute what a small one did."""

from __future__ import annotations

import grow_network
import pytest
import torch

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.errors import CSDError


def alive(network):
    """With weights that are not those of its start, which adds next to nothing to the frame."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return network


SMALL = {
    "teacher": lambda: SLDNet(preset="teacher", num_feat=4),
    "student2": lambda: SLDNet(preset="student2", num_feat=4),
    "student3": lambda: SLDNet(preset="student3", num_feat=4),
    "half": lambda: HalfNet(num_frame=3, num_feat=4, num_pair=3, num_deep=2),
    "flat": lambda: HalfNet(num_frame=3, num_feat=4, num_pair=2),
    "causal": lambda: HalfNet(preset="causal", num_feat=4),
    "branches": lambda: HalfNet(num_frame=1, num_feat=4, num_pair=2, num_deep=1, branches=True),
}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *((name, {"num_feat": 7}) for name in SMALL),
        *(("half", {"num_pair": pairs, "num_deep": 2 + pairs % 2}) for pairs in (4, 5, 6, 9)),
        ("flat", {"num_feat": 5, "num_pair": 5}),
        ("causal", {"num_feat": 5, "num_pair": 7, "num_deep": 4}),
    ],
)
def test_it_computes_the_same_and_all_of_it_learns(name, given):
    small = alive(SMALL[name]())
    large = grow_network.grown(small, given)
    assert all(getattr(large, key) == value for key, value in given.items())
    window = torch.rand(2, small.num_frame, 3, 12, 20)
    with torch.no_grad():
        expected, before = small(window), window[:, small.num_frame // 2]
        assert torch.allclose(large(window), expected, atol=1e-5) and not torch.allclose(expected, before, atol=1e-2)
    optimizer = torch.optim.Adam(large.parameters(), lr=1e-2)
    start = [weight.clone() for weight in large.parameters()]
    for _ in range(3):  # what sees new channels learns in the first step, what makes them later
        optimizer.zero_grad()
        (large(window) - torch.rand_like(expected)).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(weight, first) for weight, first in zip(large.parameters(), start, strict=True))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("half", {"num_feat": 3}, "--num-feat 3: the network has 4; give a larger number"),
        ("half", {"num_deep": 1}, "--num-deep 1: the network has 2"),
        ("flat", {"num_deep": 1}, "--num-deep 1: the network has 0"),
        ("teacher", {"num_pair": 8}, "--num-pair: SLDNet cannot grow in this number"),
        ("half", {}, "nothing grows"),
        ("half", {"num_feat": 4, "num_pair": 3}, "nothing grows"),
        ("half", {"num_feat": 4096, "num_pair": 100}, r"would have 33,\S+ parameters, more than 1,000,000,000"),
    ],
)
def test_what_it_cannot_become(name, given, message):
    with pytest.raises(CSDError, match=message):
        grow_network.grown(SMALL[name](), given)


def test_other_networks_do_not_grow():
    with pytest.raises(CSDError, match="PReNet cannot grow"):
        grow_network.grown(PReNet(), {})


def test_the_command(tmp_path, capsys):
    out = tmp_path / "grown.pth"
    assert grow_network.main(["tiny", str(out), "--num-feat", "20", "--num-deep", "4"]) == 0
    said = capsys.readouterr().out
    grown = load_network(out)
    assert said == f"{out}: {sum(p.numel() for p in grown.parameters()):,} parameters, grown from 73,820\n"
    assert (grown.num_feat, grown.num_pair, grown.num_deep) == (20, 1, 4)
    before = out.read_bytes()
    for wrong in ([str(out), str(out)], ["tiny", str(tmp_path)], ["tiny", ""]):
        assert grow_network.main([*wrong, "--num-feat", "24"]) == 2
        assert capsys.readouterr().err.endswith("already exists; give the name of a new file\n")
    assert out.read_bytes() == before
    assert grow_network.main(["tiny", str(tmp_path / "no/grown.pth"), "--num-feat", "24"]) == 2
    assert grow_network.main(["tinny", str(tmp_path / "new.pth"), "--num-feat", "24"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "no/grown.pth" in errors[0] and "tinny" in errors[1]
    for flag, value in (
        ("--num-feat", "9" * 20),
        ("--num-pair", "0"),
        ("--seed", "9" * 20),
    ):
        with pytest.raises(SystemExit):
            grow_network.main(["tiny", str(tmp_path / "new.pth"), flag, value])
        assert flag in capsys.readouterr().err
