"""Features by hooks: what is captured, through which wrappers, and what a wrong path says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel

from csd_plugin.distill.taps import FeatureTap, listening, quiet, tap_layers
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


def one(tap):
    """The feature of a layer that ran once, its axis of one frame left out."""
    [feature] = tap.take().calls
    return feature.squeeze(2) if feature.ndim == 5 else feature


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
    feature = one(tap)
    assert torch.equal(feature, inner.body(x).squeeze(2))
    feature.sum().backward()
    assert inner.body[0].weight.grad.abs().sum() > 0


def test_output_and_keyword_input(net):
    x = torch.rand(1, 3, 1, 5, 4)
    with FeatureTap(net, "body.0", "output") as before, FeatureTap(net, "split") as after:
        net(x)
        assert torch.equal(one(before).relu(), one(after))


def test_longer_time_stays(net):
    with FeatureTap(net, "tail") as tap:
        net(torch.rand(1, 3, 2, 5, 4))
        assert one(tap).shape == (1, 4, 2, 5, 4)


def test_each_forward_pass_is_taken_once(net):
    tap = FeatureTap(net, "tail")
    net(torch.rand(1, 3, 1, 5, 4))
    one(tap)
    copy.deepcopy(net)  # no graph is left behind
    with pytest.raises(CSDError, match="did not run"):
        one(tap)


def test_removed_tap_captures_nothing_and_keeps_nothing(net):
    with FeatureTap(net, "tail") as tap:
        net(torch.rand(1, 3, 1, 5, 4))
    with pytest.raises(CSDError, match="did not run"):
        one(tap)
    net(torch.rand(1, 3, 1, 5, 4))
    assert not net.tail._forward_pre_hooks
    with pytest.raises(CSDError, match="did not run"):
        one(tap)


def test_wrong_path_names_the_nearest(net):
    with pytest.raises(CSDError, match=r"'tial': Net has no such layer; nearest: tail"):
        FeatureTap(net, "tial")
    with pytest.raises(CSDError, match="no such layer"):
        FeatureTap(net, "")


def test_five_layers_are_named_and_how_to_see_them_all(net):
    with pytest.raises(CSDError) as caught:
        FeatureTap(torch.compile(net, backend="eager"), "body.3")
    names, _, rest = str(caught.value).split("nearest: ")[1].partition("; ")
    assert names.split(", ")[0].startswith("body") and len(names.split(", ")) == 5
    assert set(names.split(", ")) < {name for name, _ in net.named_modules() if name}
    assert rest == "with one of these there, csd inspect FILE --layers lists all 6"
    with pytest.raises(CSDError, match=r"nearest: [^;]*$"):
        FeatureTap(nn.Sequential(*(nn.Identity() for _ in range(5))), "5")


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


def test_a_layer_whose_name_has_a_colon_is_tapped():
    net = nn.Sequential(nn.ModuleDict({"a:b": nn.Identity()}))
    assert [(tap.path, tap.kind) for tap in tap_layers(net, ["0.a:b", "0.a:b:output"])] == [
        ("0.a:b", "input"),
        ("0.a:b", "output"),
    ]
    with pytest.raises(CSDError, match="input, output, not 'c'"):
        tap_layers(net, ["0.a:c"])


def test_activations_in_place_do_not_change_what_was_captured():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1))
    x = torch.rand(1, 3, 5, 4) - 0.5
    with FeatureTap(net, "0", "output") as after, FeatureTap(net, "1") as before:
        net(x)
        captured = one(after), one(before)
        expected = net[0](x)
        assert (expected < 0).any()
        assert all(torch.equal(feature, expected) for feature in captured)


@pytest.mark.parametrize("kind", ["input", "output"])
def test_gradients_pass_activations_in_place(kind):
    """Around every layer of a network, in place or not, the same feature and the same gradients."""

    def network(inplace):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 1), nn.ReLU(inplace), nn.Conv2d(4, 4, 1), nn.LeakyReLU(0.1, inplace)]
        return nn.Sequential(*layers, nn.Conv2d(4, 3, 1))

    x = torch.rand(2, 3, 5, 4) - 0.5
    for layer in "1234" if kind == "input" else "0123":
        results = []
        for inplace in (False, True):
            net = network(inplace)
            with FeatureTap(net, layer, kind) as tap:
                (net(x).mean() + one(tap).square().mean()).backward()
            results.append([p.grad for p in net.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("order", "backend"),
    [
        ("tapped first", "aot_eager"),
        ("compiled first", "aot_eager"),
        ("run first", "aot_eager"),
        ("run first", "eager"),
        ("tapped inside", "aot_eager"),
    ],
)
def test_compiled_networks_are_tapped_whatever_comes_first(net, order, backend):
    """Code that torch.compile has compiled without the tap's hook would go on without it."""
    plain = copy.deepcopy(net)
    x = torch.rand(2, 3, 1, 5, 4)
    taps = [FeatureTap(net, "tail")] if order == "tapped first" else []
    compiled = torch.compile(net, backend=backend)
    if order == "run first":
        compiled(x)
    if not taps:
        taps.append(FeatureTap(net if order == "tapped inside" else compiled, "tail"))
    for _ in range(2):
        compiled(x)
        feature = one(taps[0])
        with FeatureTap(plain, "tail") as tap:
            plain(x)
            torch.testing.assert_close(feature, one(tap))
    feature.square().mean().backward()
    assert net.body[0].weight.grad.abs().sum() > 0

    taps[0].remove()
    compiled(x)
    with pytest.raises(CSDError, match="did not run"):
        one(taps[0])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_changes_in_place_in_compiled_networks_do_not_change_what_was_captured(backend):
    compiled = torch.compile(Adds(), backend=backend)
    x = torch.rand(1, 3, 5, 4)
    with FeatureTap(compiled, "body", "output") as tap:
        assert torch.equal(compiled(x), x + 2)
        assert torch.equal(one(tap), x + 1)


def test_an_average_of_the_network_does_not_disturb_its_tap(net):
    """A copy takes hooks with it; what the copy sees must not become the network's feature."""
    x = torch.rand(2, 3, 1, 5, 4)
    with FeatureTap(net, "tail") as tap:
        averaged = AveragedModel(net)
        for weight in averaged.parameters():
            weight.data.zero_()
        net(x)
        averaged(x)
        assert torch.equal(one(tap), net.body(x).squeeze(2))


def test_gradients_of_a_feature_reach_the_exchange_of_data_parallel_processes(net, tmp_path):
    """A loss on the tapped feature alone: its gradients are averaged over processes, as if it were an output's."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        exchanged = []
        wrapped.register_comm_hook(None, _counting(exchanged))
        with FeatureTap(wrapped, "tail") as tap:
            output = wrapped(torch.rand(2, 3, 1, 5, 4))
            (0 * output.mean() + one(tap).square().mean()).backward()
        assert sum(exchanged) == sum(p.numel() for p in net.parameters())
        assert net.body[0].weight.grad.abs().sum() > 0
    finally:
        distributed.destroy_process_group()


def _counting(exchanged):
    """A communication hook that notes how many numbers each bucket exchanges."""

    def hook(_, bucket):
        exchanged.append(bucket.buffer().numel())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    return hook


class Adds(nn.Module):
    """Changes a layer's output in place, and has no layer that declares it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Identity()

    def forward(self, x):
        x = self.body(x + 1)
        x += 1
        return x


def test_a_change_in_place_that_no_layer_declares_is_told():
    net = Adds()
    with FeatureTap(net, "body", "output") as tap:
        net(torch.rand(1, 3, 5, 4))
        with pytest.raises(CSDError, match="changes its output in place"):
            one(tap)


@pytest.mark.parametrize("inplace", [False, True])
def test_tensors_of_inference_mode_are_captured_as_they_were(inplace):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace)) if inplace else Adds()
    layer = "0" if inplace else "body"
    x = torch.rand(1, 3, 5, 4) - 0.5
    with FeatureTap(net, layer, "output") as tap, torch.inference_mode():
        net(x)
        assert torch.equal(one(tap), net[0](x) if inplace else x + 1)


def test_quiet_taps_capture_only_where_they_listen(net):
    x = torch.rand(1, 3, 1, 5, 4)
    taps = quiet([FeatureTap(net, "tail")])
    net(x)
    with listening(taps):
        with pytest.raises(CSDError, match="did not run"):
            one(taps[0])
        net(x)
        assert torch.equal(one(taps[0]), net.body(x).squeeze(2))
        net(x)
    with pytest.raises(CSDError, match="did not run"):
        one(taps[0])


def test_runs_of_a_layer_in_one_pass_are_kept_in_order():
    layer = nn.Conv2d(3, 4, 1)
    net = Frames(layer)
    x = torch.rand(2, 5, 3, 4, 4)
    with FeatureTap(net, "layer", "output") as tap:
        for _ in range(2):
            net(x)
            calls = tap.take().calls
            assert all(torch.equal(a, b) for a, b in zip(calls, map(layer, x.unbind(1)), strict=True))
            tap.forget()


@pytest.mark.parametrize(("layer", "volumetric"), [("body.0", True), ("tail", True), ("body.1", False)])
def test_layers_of_torch_for_volumes_say_so(net, layer, volumetric):
    with FeatureTap(net, layer) as tap:
        net(torch.rand(1, 3, 2, 5, 4))
        assert tap.take().volumetric == volumetric


class Frames(nn.Module):
    """One frame of a sequence after the other."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.stack([self.layer(frame) for frame in x.unbind(1)], dim=1)
