"""Checkpoints of every kind load; what is none, or would run code, is refused in one line."""

from __future__ import annotations

import pickle
import random
import sys

import pytest
import torch
from torch import nn

from csd_plugin.archs import NETWORKS
from csd_plugin.archs.checkpoint import load_network, load_optimizer, load_weights, read_state_dict
from csd_plugin.archs.sldnet import PRESETS, SLDNet
from csd_plugin.errors import CSDError


@pytest.fixture
def network():
    return SLDNet(preset="student2", num_feat=4)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"three_dim_model": state, "epoch": 99, "optimizer": {"lr": 1e-4, "name": "Adam"}},
        lambda state: {"params": state},
        lambda state: {"params_ema": state, "params": {name: value + 1 for name, value in state.items()}},
        lambda state: state,
        lambda state: dict(state),
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"params": prefixed("module.", state)},
        lambda state: prefixed("module.module.", state),
        lambda state: {"params": prefixed("_orig_mod.", state)},
        lambda state: prefixed("module._orig_mod.module.", state),
        lambda state: {"state_dict": prefixed("network.", state), "epoch": 3},
        lambda state: {"n_averaged": torch.tensor(7)} | prefixed("module.", state),
        lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
    ],
    ids=[
        *("authors", "toolbox", "averaged first", "bare", "dict", "wrapped", "wrapped toolbox", "wrapped twice"),
        *("compiled", "compiled and wrapped twice", "lightning", "averaged", "the only entry of weights"),
    ],
)
def test_every_form_of_checkpoint_loads(tmp_path, network, wrap):
    torch.save(wrap(network.state_dict()), tmp_path / "net.pth")
    assert same(read_state_dict(tmp_path / "net.pth"), network.state_dict())
    assert same(load_network(tmp_path / "net.pth").state_dict(), network.state_dict())


def test_a_part_of_a_trainers_file_loads_under_any_name(network):
    state, names = network.state_dict(), list(network.state_dict())
    of_trainer = prefixed("net_g.model.", state) | {"loss.weight": torch.ones(2)}
    other = SLDNet(preset="student2", num_feat=4)
    assert load_weights(other, of_trainer, source="a.pth") == []
    assert same(other.state_dict(), state)
    with pytest.raises(CSDError, match=r"a.pth: has extra, unknown to the network \(0 missing, 1 unexpected in all\)"):
        load_weights(other, of_trainer | {"net_g.model.extra": torch.ones(2)}, source="a.pth")
    assert load_weights(other, of_trainer | prefixed("again.", state), source="a.pth") == []
    twice = prefixed("online.", state) | prefixed("average.", {name: value + 1 for name, value in state.items()})
    with pytest.raises(CSDError, match=r"a.pth: it has the network's weights more than once, as 'online.' and"):
        load_weights(other, twice, source="a.pth")
    with pytest.raises(CSDError, match=r"a.pth: lacks .* unexpected in all"):
        load_weights(other, prefixed("model.", {name: state[name] for name in names[1:]}), source="a.pth")


@pytest.mark.parametrize(
    "hold",
    [
        lambda state: prefixed("model.", state) | {"loss.weight": torch.ones(2)},
        lambda state: prefixed("net.module._orig_mod.", state),
        lambda state: prefixed("kd.student.", state) | {"kd.objectives.t.w": torch.ones(2)},
        lambda state: prefixed("kd.student.", state) | {"kd.objectives.t.w": torch.ones(2)} | prefixed("model.", state),
        lambda state: (
            prefixed("student.", state)
            | prefixed("distiller.student.", state)
            | {"distiller.objectives.t.w": torch.ones(2)}
        ),
        lambda state: prefixed("student.", state) | prefixed("net.", state),
    ],
    ids=["part", "wrapped part", "distiller", "distiller and student", "known names of both", "twice the same"],
)
def test_a_network_is_known_by_its_weights_under_any_name(tmp_path, network, hold):
    """As a LightningModule names it; its student is often there twice, as its own part and in the `Distiller`."""
    torch.save({"state_dict": hold(network.state_dict()), "epoch": 3}, tmp_path / "last.ckpt")
    assert same(load_network(tmp_path / "last.ckpt").state_dict(), network.state_dict())


def test_of_different_networks_in_a_file_none_is_chosen(tmp_path, network):
    teacher = SLDNet(preset="teacher", num_feat=4).state_dict()
    state = prefixed("student.", network.state_dict()) | prefixed("teacher.", teacher)
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    refused_network = (
        r"last.ckpt: it has the network's weights more than once, as 'student.' and 'teacher.'; save those"
    )
    with pytest.raises(CSDError, match=refused_network):
        load_network(tmp_path / "last.ckpt")


def test_what_keeps_a_file_from_being_read_is_named(tmp_path, network):
    torch.save({"state_dict": network.state_dict(), "hyper_parameters": {"root": tmp_path}}, tmp_path / "last.ckpt")
    with pytest.raises(
        CSDError, match=r"more than tensors and plain data \(pathlib\.(_local\.)?(Posix|Windows)Path\), so"
    ):
        load_network(tmp_path / "last.ckpt")


def test_entries_that_could_be_the_weights_are_named(tmp_path, network):
    torch.save({"model": network.state_dict(), "model_ema": network.state_dict()}, tmp_path / "net.pth")
    with pytest.raises(CSDError, match=r"holds no state dict of tensors; .*; it has model, model_ema$"):
        read_state_dict(tmp_path / "net.pth")
    assert same(read_state_dict(tmp_path / "net.pth", "model_ema"), network.state_dict())


def test_random_numbers_go_on_as_if_nothing_had_been_loaded(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "net.pth")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_network(tmp_path / "net.pth")
    assert torch.equal(torch.rand(2), expected)


def test_a_class_that_cannot_take_others_weights_is_named(tmp_path, monkeypatch):
    class Hasty(nn.Module):
        @staticmethod
        def numbers_from_state(state):
            return {"num_feat": len(state["conv.weight"])}

    monkeypatch.setattr(NETWORKS, "_rows", {"Hasty": Hasty})
    torch.save({"params": {"other.weight": torch.zeros(3)}}, tmp_path / "net.pth")
    with pytest.raises(CSDError, match=r"Hasty\.numbers_from_state fails .*'conv.weight'; let it return None"):
        load_network(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_safetensors_load_by_their_content(tmp_path, network, name, prefix):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(prefixed(prefix, network.state_dict()), tmp_path / name)
    assert same(read_state_dict(tmp_path / name, "params_ema", fallback=True), network.state_dict())
    assert same(load_network(tmp_path / name).state_dict(), network.state_dict())
    whole = (tmp_path / name).read_bytes()
    for length in (0, 5, 9, 100, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        refused(tmp_path / name, *(["cut short or damaged"] if name.endswith(".safetensors") else []))


def test_safetensors_without_the_package_say_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "net.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    refused(tmp_path / "net.safetensors", "needs the package safetensors", "pip install . in the folder of csd-plugin")


class Holder(torch.nn.Module):
    """A network whose own names begin as a wrapper's do."""

    def __init__(self):
        super().__init__()
        self.network, self.head = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "_orig_mod.module."])
def test_names_that_only_look_like_a_wrappers_load_too(tmp_path, prefix):
    first, second = Holder(), Holder()
    torch.save(prefixed(prefix, first.state_dict()), tmp_path / "net.pth")
    assert load_weights(second, read_state_dict(tmp_path / "net.pth"), source="net.pth") == []
    assert same(first.state_dict(), second.state_dict())
    assert load_weights(first, prefixed(prefix, second.state_dict()), source="memory") == []


def test_names_stay_apart_where_a_prefix_alone_tells_them_apart(tmp_path):
    state = {"conv.weight": torch.zeros(1), "module.conv.weight": torch.ones(1)}
    torch.save(state, tmp_path / "net.pth")
    assert same(read_state_dict(tmp_path / "net.pth"), state)


def named(*names):
    return {name: torch.full((1,), float(number)) for number, name in enumerate(names)}


@pytest.mark.parametrize("prefix", ["", "module.", "distiller.", "module.distiller."])
@pytest.mark.parametrize("others", [(), ("objectives.t.cell.weight",), ("objectives.t.w", "reconstruction.seen")])
def test_of_a_distillers_weights_the_students_are_taken(tmp_path, prefix, others):
    state = prefixed(prefix, named("student.conv.weight", "student.tail.bias", *others)) | {"n_averaged": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    assert same(read_state_dict(tmp_path / "net.pth"), named("conv.weight", "tail.bias"))
    if "distiller." in prefix:  # what holds it may have weights of its own
        torch.save({"state_dict": state | named("metric.seen")}, tmp_path / "net.pth")
        assert same(read_state_dict(tmp_path / "net.pth"), named("conv.weight", "tail.bias"))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("others", [("tail",), ("teacher", "objectives"), ("body", "reconstruction")])
def test_a_network_may_have_a_part_that_is_called_student(tmp_path, prefix, others):
    def network():
        return nn.ModuleDict({name: nn.Linear(2, 3) for name in ("student", *others)})

    first, second = network(), network()
    torch.save({"params": prefixed(prefix, first.state_dict())}, tmp_path / "net.pth")
    assert load_weights(second, read_state_dict(tmp_path / "net.pth"), source="net.pth") == []
    assert same(first.state_dict(), second.state_dict())


def test_the_authors_old_file_format_loads(tmp_path, network):
    torch.save({"three_dim_model": network.state_dict()}, tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    assert same(read_state_dict(tmp_path / "net.pth"), network.state_dict())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_network_is_rebuilt_from_its_file_alone(tmp_path, preset):
    network = SLDNet(preset=preset, num_feat=5)
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    loaded = load_network(tmp_path / "net.pth")
    assert not loaded.training
    assert same(loaded.state_dict(), network.state_dict())
    assert loaded.num_frame == network.num_frame


class Scaled(SLDNet):
    """The layers of SLDNet, which takes them for its own, and one parameter more."""

    def __init__(self, **numbers) -> None:
        super().__init__(**numbers)
        self.gain = torch.nn.Parameter(torch.tensor(2.0))

    @staticmethod
    def numbers_from_state(state):
        return SLDNet.numbers_from_state(state) if "gain" in state else None


def test_of_networks_that_take_a_file_for_theirs_the_one_that_it_fits_is_built(tmp_path, monkeypatch, network):
    torch.save({"params": Scaled(preset="student2", num_feat=5).state_dict()}, tmp_path / "net.pth")
    with pytest.raises(CSDError, match="has gain, unknown to the network"):
        load_network(tmp_path / "net.pth")
    monkeypatch.setitem(NETWORKS._rows, "Scaled", Scaled)
    loaded = load_network(tmp_path / "net.pth")
    assert type(loaded) is Scaled and loaded.gain == 2
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    assert type(load_network(tmp_path / "net.pth")) is SLDNet


def test_the_entry_can_be_named(tmp_path, network):
    averaged = SLDNet(preset="student2", num_feat=4).state_dict()
    torch.save({"params": network.state_dict(), "params_ema": averaged}, tmp_path / "net.pth")
    assert same(read_state_dict(tmp_path / "net.pth", "params"), network.state_dict())
    assert same(read_state_dict(tmp_path / "net.pth", "other", fallback=True), averaged)
    with pytest.raises(CSDError, match=r"no entry 'other'; it has params, params_ema"):
        read_state_dict(tmp_path / "net.pth", "other")


pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_that_would_run_code_does_not(tmp_path, network, new_format):
    content = {"params": network.state_dict(), "extra": Evil(tmp_path / "ran")}
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=new_format)
    refused(tmp_path / "net.pth", "holds more than")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    refused(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


def refused(path, *words):
    with pytest.raises(CSDError) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in (path.name, *words))


@pytest.mark.parametrize("length", [0, 1, 10, 100, 1000, 0.5, 0.9, -1])
@pytest.mark.parametrize("new_format", [True, False])
def test_truncated_files_are_refused(tmp_path, network, length, new_format):
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth", _use_new_zipfile_serialization=new_format)
    data = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(data[: int(len(data) * length) if isinstance(length, float) else length])
    refused(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "content, words",
    [
        ([1, 2], ["list"]),
        ({"params": {}}, ["no state dict"]),
        ({"iter": 3, "epoch": 1}, ["no state dict"]),
        ({"params": {"conv1.weight": 3}}, ["no state dict"]),
    ],
)
def test_files_without_weights_are_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", *words)


def test_what_is_not_there_or_no_file_is_refused(tmp_path):
    refused(tmp_path / "net.pth", "does not exist")
    refused(tmp_path, "is a folder")
    (tmp_path / "net.pth").write_text("not a checkpoint")
    refused(tmp_path / "net.pth")


def test_a_checkpoint_of_another_size_names_the_layer_and_changes_nothing(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    other = SLDNet(preset="student2", num_feat=6).state_dict()
    with pytest.raises(
        CSDError, match=r"teacher.pth: conv\d+\.\w+ has shape \(.*6.*\), but the network expects \(.*4.*\)"
    ):
        load_weights(network, other, source="teacher.pth")
    deeper = SLDNet(preset="student1", num_feat=4).state_dict()
    with pytest.raises(CSDError, match=r"conv7\.weight has shape"):
        load_weights(network, deeper, source="teacher.pth")
    fewer = {name: value for name, value in before.items() if not name.startswith("conv13")}
    with pytest.raises(CSDError, match=r"lacks conv13.bias \(2 missing, 0 unexpected"):
        load_weights(network, fewer, source="net.pth")
    with pytest.raises(CSDError, match="has extra"):
        load_weights(network, before | {"extra": torch.zeros(1)}, source="net.pth")
    assert same(network.state_dict(), before)
    assert load_weights(network, fewer, source="net.pth", strict=False) == ["conv13.bias", "conv13.weight"]


def test_an_option_file_is_not_taken_for_a_damaged_checkpoint(tmp_path):
    (tmp_path / "student.yml").write_text("name: student\n")
    with pytest.raises(CSDError, match=r"student\.yml is an option file; give the checkpoint of its run, experiments/"):
        load_network(tmp_path / "student.yml")


class Spectral(nn.Module):
    def __init__(self, dtype=torch.cfloat):
        super().__init__()
        self.gain = nn.Parameter(torch.randn(3, dtype=dtype))


def test_complex_weights_and_what_an_optimizer_keeps_of_them_load(tmp_path):
    first, second = Spectral(), Spectral()
    optimizers = [torch.optim.Adam(network.parameters()) for network in (first, second)]
    first.gain.abs().sum().backward()
    optimizers[0].step()
    torch.save({"params": first.state_dict()}, tmp_path / "net.pth")
    torch.save(optimizers[0].state_dict(), tmp_path / "1.state")
    load_weights(second, read_state_dict(tmp_path / "net.pth"), source="net.pth")
    load_optimizer(optimizers[1], torch.load(tmp_path / "1.state"))
    assert same(first.state_dict(), second.state_dict())
    assert same(*(optimizer.state_dict()["state"][0] for optimizer in optimizers))
    with pytest.raises(CSDError, match=r"net\.pth: gain has complex numbers; .* option files"):
        load_network(tmp_path / "net.pth")


@pytest.mark.parametrize("dtypes", [(torch.cfloat, torch.float), (torch.float, torch.cfloat)])
def test_complex_weights_are_not_taken_for_real_ones(dtypes):
    there, here = map(Spectral, dtypes)
    before = here.gain.clone()
    with pytest.raises(CSDError, match=r"net\.pth: gain has \w+ numbers, but the network expects \w+ ones"):
        load_weights(here, there.state_dict(), source="net.pth")
    assert torch.equal(here.gain, before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool])
def test_weights_of_a_quantized_network_are_not_taken_for_fractions(network, dtype):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = before | {"conv1.weight": before["conv1.weight"].to(dtype)}
    with pytest.raises(CSDError, match=r"net\.pth: conv1\.weight has whole numbers \(\w+\), .* the one that it was"):
        load_weights(network, state, source="net.pth")
    assert same(network.state_dict(), before)


def test_less_than_half_of_a_network_is_anothers(network):
    own = network.state_dict()
    before = {name: value.clone() for name, value in own.items()}
    for kept in (0, 1, len(own) // 2 - 1):
        part = {name: value + 1 for name, value in list(own.items())[:kept]} | {"body.0.weight": torch.zeros(1)}
        with pytest.raises(
            CSDError, match=rf"net.pth: it has only {kept} of the network's {len(own)} tensors; it begins"
        ):
            load_weights(network, part, source="net.pth", strict=False)
        assert same(network.state_dict(), before)
    half = {name: value + 1 for name, value in list(own.items())[: len(own) // 2]}
    assert len(load_weights(network, half, source="net.pth", strict=False)) == len(own) // 2
    assert torch.equal(network.conv1.weight, before["conv1.weight"] + 1)


def test_a_file_of_another_family_is_refused(tmp_path):
    torch.save({"params": {"head.weight": torch.zeros(3)}}, tmp_path / "net.pth")
    advice = "test others by an option file .csd_plugin.test., or add them by numbers_from_state"
    with pytest.raises(CSDError, match=rf"weights belong to no known network; .* SLDNet, PReNet, S2VD.*; {advice}"):
        load_network(tmp_path / "net.pth")


@pytest.mark.parametrize("new_format", [True, False])
def test_damaged_files_load_or_are_refused_in_one_line(tmp_path, network, new_format):
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth", _use_new_zipfile_serialization=new_format)
    whole = (tmp_path / "net.pth").read_bytes()
    rng = random.Random(0)
    refusals = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3, 30])):
            damaged[rng.randrange(min(len(damaged), rng.choice([300, 3000])))] = rng.randrange(256)
        (tmp_path / "damaged.pth").write_bytes(damaged)
        try:
            read_state_dict(tmp_path / "damaged.pth")
        except CSDError as error:
            refusals += 1
            assert "damaged.pth" in str(error) and "\n" not in str(error)
    assert refusals > 50


@pytest.mark.parametrize("before", [torch.contiguous_format, torch.channels_last])
def test_what_an_optimizer_keeps_lies_in_memory_as_its_weights_do(before, tmp_path):
    """A run may go on with another device or precision, by which weights lie otherwise; fused steps go by the bytes."""
    after = torch.channels_last if before == torch.contiguous_format else torch.contiguous_format
    torch.manual_seed(0)
    gradient = torch.randn(4, 3, 3, 3)

    def learner(memory_format, fused):
        layer = nn.Conv2d(3, 4, 3, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.arange(108.0).view(4, 3, 3, 3))
        layer.to(memory_format=memory_format)
        return layer.weight, torch.optim.Adam([layer.weight], lr=0.1, fused=fused)

    def step(weight, optimizer, scale):
        weight.grad = torch.empty_like(weight).copy_(scale * gradient)
        optimizer.step()

    weight, optimizer = learner(before, fused=False)
    step(weight, optimizer, 1.0)
    torch.save(optimizer.state_dict(), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth")
    ours, resumed = learner(after, fused=True)
    with torch.no_grad():
        ours.copy_(weight)
    load_optimizer(resumed, state)
    for optimizer_, weight_ in ((optimizer, weight), (resumed, ours)):
        step(weight_, optimizer_, -0.5)
    torch.testing.assert_close(ours, weight)
    assert all(value.stride() == ours.stride() for value in resumed.state[ours].values() if value.dim())


@pytest.mark.parametrize(("name", "value"), [("conv1.bias", torch.nan), ("conv22.weight", torch.inf)])
def test_weights_that_are_not_finite_are_refused_with_their_file(tmp_path, network, name, value):
    state = {key: weight.clone() for key, weight in network.state_dict().items()}
    state[name].view(-1)[0] = value
    torch.save({"params": state}, tmp_path / "broken.pth")
    with pytest.raises(CSDError, match=rf"broken\.pth: its weight {name} holds NaN or infinity; use another"):
        load_network(tmp_path / "broken.pth")
    before = {key: weight.clone() for key, weight in network.state_dict().items()}
    with pytest.raises(CSDError, match=rf"as {len(state)} of its {len(state)} tensors do; use another checkpoint"):
        load_weights(network, {key: torch.full_like(weight, value) for key, weight in state.items()}, source="x.pth")
    assert all(torch.equal(weight, before[key]) for key, weight in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64])
def test_weights_are_looked_at_in_the_networks_type_of_numbers(dtype):
    network, values = nn.Linear(2, 2, bias=False), torch.tensor([[0.5, 1.0], [2.0, -4.0]])
    load_weights(network, {"weight": values.to(dtype)}, source="x.pth")
    assert torch.equal(network.weight, values)
    values[0, 0] = torch.nan
    for broken in (values.to(dtype), values.double().nan_to_num(nan=1e300)):
        with pytest.raises(CSDError, match=r"x\.pth: its weight weight holds NaN or infinity"):
            load_weights(network, {"weight": broken}, source="x.pth")


def test_a_mask_may_hold_infinity_where_the_networks_own_does():
    masked = nn.BatchNorm2d(2)
    masked.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    load_weights(masked, nn.Module.state_dict(masked), source="x.pth")
    for name, value in {"mask": torch.tensor([torch.nan, 0.0]), "running_var": torch.tensor([1.0, torch.inf])}.items():
        with pytest.raises(CSDError, match=f"x.pth: its weight {name} holds NaN or infinity"):
            load_weights(masked, {**masked.state_dict(), name: value}, source="x.pth")
