"""`csd bench infer` and `growth`: what they count is right, and their reports are complete. No time is asserted."""

from __future__ import annotations

import functools
import json
import sys
from fractions import Fraction

import pytest
import torch
import warm
from torch import nn

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.prenet import PReNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.bench.measure import MatrixRate, in_turns
from csd_plugin.bench.operations import operations
from csd_plugin.bench.speed import find_network
from csd_plugin.cli import main
from csd_plugin.inference.int8 import computes_int8
from csd_plugin.weights import NETWORKS


@torch.no_grad()
def products_that_count(network: SLDNet) -> Fraction:
    """Slowly, for each pixel: every weight of every convolution by how many of its products in time meet a frame."""
    window, total = torch.zeros(1, network.num_frame, 3, 8, 8), 0

    def count(layer: nn.Conv3d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        frames = torch.ones(1, 1, inputs[0].shape[2])
        taps = torch.ones(1, 1, layer.kernel_size[0])
        met = nn.functional.conv1d(frames, taps, padding=layer.padding[0]).sum().item()
        total += layer.weight[:, :, 0].numel() * met

    hooks = [layer.register_forward_hook(count) for layer in network.children()]
    network(window)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("preset", ["teacher", "student1", "student2"])
def test_useful_operations(preset):
    network = SLDNet(preset=preset)
    counted = operations(network)
    assert counted.useful == products_that_count(network)
    # The paper's count has the products with the padding in time too, and the bias.
    paper = {"teacher": 127_603_359_744, "student1": 5_761_449_984, "student2": 2_810_232_832}[preset]
    assert counted.useful < counted.folded < paper / 128**2


def test_operations_of_images():
    student = operations(SLDNet(preset="student3"))
    assert (
        student.useful
        == student.folded
        == sum(p.numel() for p in SLDNet(preset="student3").parameters() if p.dim() > 1)
    )
    one, six = (operations(PReNet(num_stage=stages)).useful for stages in (1, 6))
    assert six == 6 * one


def test_names_mean_presets_before_shipped_networks_before_files(tmp_path, monkeypatch):
    """A preset is untrained; a shipped network of another name has its weights; else it is a checkpoint's path."""
    state = load_network(NETWORKS["realtime"].path).state_dict()
    monkeypatch.setitem(NETWORKS, "another", NETWORKS["realtime"])
    assert all(torch.equal(state[name], value) for name, value in find_network("another").state_dict().items())
    assert not torch.equal(find_network("realtime").head.weight, state["head.weight"])
    monkeypatch.chdir(tmp_path)
    torch.save({"params": SLDNet(preset="student2", num_feat=5).state_dict()}, "mine.pth")
    assert find_network("mine.pth").num_feat == 5


def test_turns_and_the_machines_rate():
    order: list[str] = []
    actions = {name: lambda name=name: order.append(name) for name in "ab"}
    times = in_turns(actions, 3, "test", before=lambda name: order.append(f"before {name}"))
    assert order == ["a", "b"] + ["before a", "a", "before b", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert MatrixRate().measure() > 1e8


def test_ctrl_c_leaves_the_whole_rounds_before_it():
    calls, times, said = [], {}, []

    def action(name: str) -> None:
        calls.append(name)
        if len(calls) == 8:  # the last of the third timed round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_turns({name: lambda name=name: action(name) for name in "ab"}, 5, "test", times=times, say=said.append)
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert len(said) == 1 and said[0].startswith("test: 5 rounds, about ")


def test_an_interrupted_benchmark_keeps_its_whole_rounds(tmp_path, capsys, monkeypatch):
    report, rounds = tmp_path / "infer.json", []

    def measure(self):
        rounds.append(len(rounds))
        if len(rounds) == 5:
            raise KeyboardInterrupt
        return 1e9

    monkeypatch.setattr(MatrixRate, "measure", measure)
    arguments = ["--networks", "student2", "--backends", "plain", "torch", "--sizes", "24x16", "32x24"]
    assert main(["bench", "infer", *arguments, "--rounds", "9", "--json", str(report)]) == 130
    content = json.loads(report.read_text())
    assert [(len(row["seconds"]), len(row["rates"])) for row in content["rows"]] == [(2, 2)] * 2 and content["stopped"]
    shown = capsys.readouterr()
    assert shown.out.count("| 24x16 |") == 2 and "matrix products" in shown.out and "interrupted" in shown.err


def test_infer_reports(tmp_path, capsys):
    torch.save(
        {"params": SLDNet(num_frame=3, num_feat=3, num_pair=2, num_transition=2, reducing=(4, 7)).state_dict()},
        tmp_path / "n.pth",
    )
    report = tmp_path / "infer.json"
    threads = torch.get_num_threads()
    arguments = ["--networks", str(tmp_path / "n.pth"), "--backends", "plain", "torch", "torch:bf16", "--rounds", "2"]
    assert (
        main(["bench", "infer", *arguments, "--sizes", "24x16", "32x24", "--threads", "1", "2", "--json", str(report)])
        == 0
    )
    assert torch.get_num_threads() == threads
    rows = json.loads(report.read_text())["rows"]
    assert len(rows) == 3 * 2 * 2
    assert all(len(row["seconds"]) == len(row["rates"]) == 2 and row["reached"] > 0 for row in rows)
    assert all(row["faster"] == 1 for row in rows if row["backend"] == "plain")
    shown = capsys.readouterr().out
    assert report.with_suffix(".md").read_text().strip() in shown and "matrix products: fp32" in shown
    assert shown.count("\n| ") == 1 + 12
    if "matplotlib" in sys.modules:
        assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    for wrong, message in (
        (["--networks", "student9"], "is not a file and not one of teacher"),
        (["--backends", "abacus"], "expected plain, compiled or one of torch"),
        (["--backends", "plain:int4"], "one of fp32, bf16, fp16, int8"),
        (["--backends", "plain:int8"], "int8 is computed by torch alone, as torch:int8"),
        (["--networks", "student2", "--backends", "torch:int8"], "int8 is for networks of type HalfNet"),
        (["--device", "cuda:99"], "cannot be used"),
        (["--json", str(tmp_path / "no" / "a.json")], "make it first"),
    ):
        assert main(["bench", "infer", *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not computes_int8(), reason="torch has no int8 convolutions here")
def test_int8_is_timed_against_int8(tmp_path, capsys):
    report = tmp_path / "infer.json"
    arguments = ["--networks", "tiny", "--backends", "torch:int8", "--sizes", "24x16", "--rounds", "2"]
    assert main(["bench", "infer", *arguments, "--json", str(report)]) == 0
    (row,) = json.loads(report.read_text())["rows"]
    assert row["backend"] == "torch:int8" and row["reached"] > 0
    assert "matrix products: int8" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [("infer", "--sizes"), ("realtime", "--sizes"), ("growth", "--size")])
def test_a_size_that_is_none_is_refused(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *flags, "640"])
    assert f"argument {flags[1]}: '640': expected WIDTHxHEIGHT" in capsys.readouterr().err


def test_torch_is_timed_where_no_video_can_be_read():
    """On a machine with a GPU that lacks PyAV."""
    program = """
import sys
sys.modules["av"] = None  # what imports it fails
from csd_plugin.cli import main
sys.exit(main(["bench", "infer", "--networks", "tiny", "--backends", "plain", "torch:bf16", *sys.argv[1:]]))
"""
    done = warm.python("-c", program, "--sizes", "24x16", "--rounds", "1")
    assert done.returncode == 0 and "| torch:bf16 |" in done.stdout, done.stderr


def test_batches_and_compiled_networks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # without a compiler
    report, sizes = tmp_path / "infer.json", ["--sizes", "24x16", "--rounds", "1"]
    backends = ["plain", "plain:bf16", "compiled:bf16"]
    arguments = ["--networks", "student2", "--backends", *backends, "--batch", "3", "--json", str(report)]
    assert main(["bench", "infer", *arguments, *sizes]) == 0
    content = json.loads(report.read_text())
    assert [row["backend"] for row in content["rows"]] == backends and content["batch"] == 3
    assert "fp32" in capsys.readouterr().out.splitlines()[-3]


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> str:
    """A checkpoint of a network at half resolution that sees three frames of its window of five."""
    path = tmp_path_factory.mktemp("causal") / "causal.pth"
    network = HalfNet(preset="causal", num_feat=4, num_pair=1, num_deep=1)
    torch.save({"params": network.state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_frames_of_any_size_are_timed(runtime, causal, capsys):
    """Of 1x1 too: networks of half the resolution get whole cells, as `csd derain` gives them."""
    for module in () if runtime == "torch" else (runtime, "onnxscript"):
        pytest.importorskip(module)
    arguments = ["--networks", causal, "--backends", runtime, "--sizes", "1x1", "3x2", "--rounds", "1"]
    assert main(["bench", "infer", *arguments]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count(f"| {runtime} |") == 2


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_network_that_sees_part_of_its_window_is_timed_in_every_runtime(runtime, causal, capsys):
    for module in (runtime, "onnxscript"):
        pytest.importorskip(module)
    arguments = ["--networks", causal, "--backends", "plain", runtime, "--sizes", "16x12", "--rounds", "1"]
    assert main(["bench", "infer", *arguments]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count(f"| {runtime} |") == 1


def test_growth_reports(tmp_path, capsys):
    report = tmp_path / "growth.json"
    options = ["--size", "24x16", "--frames", "2", "--steps", "2"]
    assert main(["bench", "growth", "--network", "student2", *options, "--json", str(report)]) == 0
    pixels, frames = json.loads(report.read_text())["points"]
    assert (pixels["width"] * pixels["height"], frames["frames"]) == (2 * 24 * 16, 4)
    assert all(point["peak"] >= point["before"] > 10 and point["seconds"] > 0 for point in (pixels, frames))
    assert main(["bench", "growth", "--network", "student9", *options]) == 2
    assert "--networks student9" in capsys.readouterr().err
