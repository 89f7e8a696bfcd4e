"""A slice of training: what starts from which weights, what fits into a GPU, and what is left of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import yaml

from csd_plugin.archs import halfnet, sldnet
from csd_plugin.archs.checkpoint import load_weights, read_state_dict

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("realtime", "tiny", "causal", "wide")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("gpu_slice", ROOT / "tools/gpu_slice.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_slice"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def slice_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network(tool, row, **facts):
    return tool.Network(row, row, {}, {}, **facts)


def test_the_matrix_has_the_networks_of_today(tool):
    rows = yaml.safe_load(tool.MATRIX.read_text())["rows"]
    presets = {row: content["set"]["network_g"]["preset"] for row, content in rows.items()}
    assert set(presets) == {*sldnet.PRESETS, *halfnet.PRESETS} and all(row == name for row, name in presets.items())


@pytest.mark.parametrize("row", SHIPPED)
def test_networks_go_on_from_the_weights_that_ship(tool, tmp_path, row):
    start = tool.start_of(row, tmp_path, cpu=False)
    assert start == ROOT / f"csd_plugin/weights/{row}.pth"
    network = halfnet.HalfNet(preset=row)
    assert load_weights(network, read_state_dict(start, "params"), source=str(start)) == []


def test_weights_of_the_slice_before_come_first(tool, tmp_path):
    (tmp_path / "wide.pth").touch()
    assert tool.start_of("wide", tmp_path, cpu=False) == tool.start_of("wide", tmp_path, cpu=True)
    assert tool.start_of("wide", tmp_path, cpu=False) == tmp_path / "wide.pth"
    assert tool.start_of("teacher", tmp_path, cpu=False) is None
    assert tool.start_of("tiny", tmp_path, cpu=True) is None  # narrow networks cannot take what ships


@pytest.mark.parametrize(
    ("room", "started"),
    [(100, "abcd"), (42, "abd"), (41, "ab"), (15.9, "d"), (3, "")],
)
def test_networks_are_started_in_order_as_long_as_the_gpu_has_room(tool, capsys, room, started):
    """Each needs 1.2 times what its step does, 2 GiB for its clips and 1 for itself: 16, 21, 27 and 4.2 GiB."""
    facts = {"a": 13 / 1.2, "b": 18 / 1.2, "c": 24 / 1.2, "d": 1.0}
    networks = [network(tool, row, memory=memory) for row, memory in facts.items()]
    assert "".join(one.row for one in tool.fitting(networks, room, 2.0)) == started
    left_out = [one.row for one in networks if one.note.startswith("left out: needs")]
    assert "".join(left_out) == "".join(row for row in facts if row not in started)
    assert all(f"{row} left out" in capsys.readouterr().out for row in left_out[:1])


def test_the_room_is_what_the_gpu_says(tool, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 80 * 2**30))
    assert tool.free_memory() == 3


def test_weights_come_back_of_what_trained_and_of_what_did_not(tool, slice_folder):
    trained, waited, new = network(tool, "trained"), network(tool, "waited"), network(tool, "new")
    waited.start = slice_folder / "before.pth"
    torch.save({"params": {"a": torch.tensor(1.0)}}, waited.start)
    models, states = trained.folder / "models", trained.folder / "training_states"
    models.mkdir(parents=True), states.mkdir()
    for name, value in (("latest", 2.0), ("7", 3.0)):  # stopped, in a slice that resumed one that had ended
        torch.save(
            {"params": {"a": torch.tensor(0.0)}, "params_ema": {"a": torch.tensor(value)}}, models / f"net_g_{name}.pth"
        )
    torch.save({"seconds": 12.5}, states / "7.state")
    table = tool.write_results([trained, waited, new], 60)
    kept = {file.stem: torch.load(file)["params"]["a"].item() for file in (slice_folder / "weights").iterdir()}
    assert kept == {"trained": 3.0, "waited": 1.0}
    assert "| trained | 7 |" in table and "| new | 0 |" in table
    assert tool.seconds_before(trained) == 12.5 and tool.seconds_before(new) == 0
