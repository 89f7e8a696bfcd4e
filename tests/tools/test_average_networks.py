"""Networks averaged weight by weight."""

from __future__ import annotations

import average_networks
import pytest
import torch

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.sldnet import SLDNet


@pytest.fixture
def files(tmp_path):
    """Three networks of one size with random weights."""
    paths = []
    for number in range(3):
        torch.manual_seed(number)
        network = SLDNet(preset="student2", num_feat=4)
        with torch.no_grad():
            for weight in network.parameters():
                weight.normal_()
        paths.append(str(tmp_path / f"{number}.pth"))
        torch.save({"params": network.state_dict()}, paths[-1])
    return paths


def test_each_weight_is_the_mean(files, tmp_path, capsys):
    assert average_networks.main([*files, str(tmp_path / "out.pth")]) == 0
    assert "the average of 3 networks" in capsys.readouterr().out
    states = [torch.load(file, weights_only=True)["params"] for file in files]
    average = torch.load(tmp_path / "out.pth", weights_only=True)["params"]
    assert average.keys() == states[0].keys()
    for name, value in average.items():
        assert torch.allclose(value, torch.stack([state[name] for state in states]).mean(0), atol=1e-6)
    assert isinstance(load_network(tmp_path / "out.pth"), SLDNet)


def test_a_network_that_is_given_twice_counts_twice(files, tmp_path):
    assert average_networks.main([files[0], files[0], files[1], str(tmp_path / "mean.pth")]) == 0
    one, other, mean = (load_network(path).state_dict() for path in (*files[:2], str(tmp_path / "mean.pth")))
    for name, value in mean.items():
        torch.testing.assert_close(value, (2 * one[name] + other[name]) / 3)


def test_branches_are_merged_first(tmp_path):
    networks = {}
    for number, branches in enumerate((True, False)):
        torch.manual_seed(number)
        networks[str(number)] = HalfNet(preset="tiny", branches=branches)
    merged = networks["0"].merged().state_dict()
    average = average_networks.averaged([*networks.items()]).state_dict()
    for name, value in networks["1"].state_dict().items():
        assert torch.allclose(average[name].double(), (merged[name].double() + value) / 2, atol=1e-6)


def test_mistakes_are_one_line(files, tmp_path, capsys):
    other = tmp_path / "other.pth"
    torch.save({"params": SLDNet(preset="student2", num_feat=5).state_dict()}, other)
    for given, words in (
        ([files[0], tmp_path / "out.pth"], "one network has no average"),
        ([files[0], other, tmp_path / "out.pth"], "are networks of different kinds or sizes"),
        ([files[0], "tiny", tmp_path / "out.pth"], "are networks of different kinds or sizes"),
        (["realtime", "causal", tmp_path / "out.pth"], "are networks of different kinds or sizes"),  # of equal shapes
        ([files[0], files[1], files[2]], "already exists; give the name of a new file"),
        ([files[0], tmp_path / "gone.pth", tmp_path / "out.pth"], "gone.pth"),
    ):
        assert average_networks.main(list(map(str, given))) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
        assert not (tmp_path / "out.pth").exists()
