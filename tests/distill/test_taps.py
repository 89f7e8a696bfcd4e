"""Features by hooks: what is captured, through which wrappers, and what a wrong path says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from csd_plugin.distill.taps import FeatureTap
from csd_plugin.errors import CSDError


class Net(nn.Module):
    """(B, 3, T, H, W) -> (B, 3, T, H, W), with a layer that is never run and one that gives a tuple."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(3, 4, 1), nn.ReLU())
        self.split = Split()
        self.tail = nn.Conv3d(4, 3, 1)
        self.unused = nn.Identity()

    def forward(self, x):
        feature, _ = self.split(x=self.body(x))
        return self.tail(feature)


class Split(nn.Module):
    def forward(self, x):
        return x, x


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, AveragedModel])
def test_input_is_captured_through_wrappers_with_its_graph(net, wrap):
    wrapped = wrap(net)
    inner = net if wrap is not AveragedModel else wrapped.module
    tap = FeatureTap(wrapped, "tail")
    x = torch.rand(2, 3, 1, 5, 4)
    wrapped(x)
    feature = tap.take()
    assert torch.equal(feature, inner.body(x).squeeze(2))
    feature.sum().backward()
    assert inner.body[0].weight.grad.abs().sum() > 0


def test_output_and_keyword_input(net):
    x = torch.rand(1, 3, 1, 5, 4)
    with FeatureTap(net, "body.0", "output") as before, FeatureTap(net, "split") as after:
        net(x)
        assert torch.equal(before.take().relu(), after.take())


def test_longer_time_stays(net):
    with FeatureTap(net, "tail") as tap:
        net(torch.rand(1, 3, 2, 5, 4))
        assert tap.take().shape == (1, 4, 2, 5, 4)


def test_each_forward_pass_is_taken_once(net):
    tap = FeatureTap(net, "tail")
    net(torch.rand(1, 3, 1, 5, 4))
    tap.take()
    copy.deepcopy(net)  # no graph is left behind
    with pytest.raises(CSDError, match="did not run"):
        tap.take()


def test_removed_tap_captures_nothing(net):
    with FeatureTap(net, "tail") as tap:
        pass
    net(torch.rand(1, 3, 1, 5, 4))
    assert not net.tail._forward_pre_hooks
    with pytest.raises(CSDError, match="did not run"):
        tap.take()


def test_wrong_path_names_the_nearest(net):
    with pytest.raises(CSDError, match=r"'tial': Net has no such layer; nearest: tail"):
        FeatureTap(net, "tial")
    with pytest.raises(CSDError, match="no such layer"):
        FeatureTap(net, "")


def test_layers_that_give_no_tensor(net):
    with FeatureTap(net, "unused") as unused, FeatureTap(net, "split", "output") as split:
        net(torch.rand(1, 3, 1, 5, 4))
        with pytest.raises(CSDError, match=r"'unused'.*did not run"):
            unused.take()
        with pytest.raises(CSDError, match="is a tuple, not a tensor"):
            split.take()


def test_unknown_kind(net):
    with pytest.raises(CSDError, match="input, output"):
        FeatureTap(net, "tail", "inputs")


def test_activations_in_place_do_not_change_what_was_captured():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1))
    x = torch.rand(1, 3, 5, 4) - 0.5
    with FeatureTap(net, "0", "output") as after, FeatureTap(net, "1") as before:
        net(x)
        expected = net[0](x)
        assert (expected < 0).any()
        assert torch.equal(after.take(), expected)
        assert torch.equal(before.take(), expected)


def test_a_change_in_place_that_no_layer_declares_is_told():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Identity()

        def forward(self, x):
            x = self.body(x + 1)
            x += 1
            return x

    net = Adds()
    with FeatureTap(net, "body", "output") as tap:
        net(torch.rand(1, 3, 5, 4))
        with pytest.raises(CSDError, match="changes its output in place"):
            tap.take()
