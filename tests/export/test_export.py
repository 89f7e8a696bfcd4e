"""What `csd export` writes gives torch's frames, in other runtimes and without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.atomic import refuse_strangers
from csd_plugin.cli import main
from csd_plugin.errors import CSDError
from csd_plugin.export import export as module
from csd_plugin.export.export import export_network
from csd_plugin.export.quantize import quantise
from csd_plugin.export.writers import FORMATS, onnx_to_openvino
from csd_plugin.inference.backends import open_backend
from csd_plugin.inference.runner import Derainer
from csd_plugin.weights import DEFAULT, NETWORKS

pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")


@pytest.fixture(scope="module")
def network() -> SLDNet:
    torch.manual_seed(0)
    return SLDNet(preset="student2", num_feat=4).eval()


@pytest.fixture(scope="module")
def windows() -> list[torch.Tensor]:
    return [torch.rand(1, 3, 3, 20, 28, generator=torch.Generator().manual_seed(i)) for i in range(4)]


@pytest.fixture(scope="module")
def onnx_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "student.onnx"
    export_network(network, path, license="CC BY 4.0")
    return path


def test_onnx_runs_where_this_package_cannot_be_imported(network, onnx_file, tmp_path):
    window = torch.rand(2, 3, 3, 25, 34)
    np.save(tmp_path / "window.npy", window.numpy())
    code = f"""
import sys
sys.modules["csd_plugin"] = sys.modules["torch"] = None
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(onnx_file)!r})
facts = session.get_modelmeta().custom_metadata_map
window = np.load("window.npy")
assert window.shape[1] == int(facts["num_frame"])
np.save("frame.npy", session.run(None, {{"window": window}})[0])
print(facts["preset"], facts["license"], facts["padding"], sep="|")
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-1000:]
    preset, license, padding = run.stdout.strip().split("|")
    assert (preset, license) == ("SLDNet", "CC BY 4.0") and padding.startswith("time: reflect")
    with torch.no_grad():
        assert np.abs(np.load(tmp_path / "frame.npy") - network(window).numpy()).max() < 1e-5


def test_sizes_are_dynamic_and_no_path_of_this_machine_is_inside(onnx_file):
    import onnx

    model = onnx.load(onnx_file)
    dims = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    ]
    assert dims == [["batch", 3, 3, "height", "width"], ["batch", 3, "height", "width"]]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 14 and kinds.count("Transpose") <= 1  # folded throughout
    assert b"csd_plugin/" not in onnx_file.read_bytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[HalfNet, Path]:
    """A network at half resolution and its file."""
    torch.manual_seed(0)
    network, path = HalfNet(preset="tiny").eval(), tmp_path_factory.mktemp("small") / "student.onnx"
    export_network(network, path)
    return network, path


def fixed(path: Path, folder: Path, monkeypatch) -> Path:
    """The file for windows of 32x24, as docs/recipes.md makes it."""
    import onnxruntime
    from onnxruntime.tools import make_dynamic_shape_fixed as tool

    one_size, done = folder / "fixed.onnx", folder / "student_32x24.onnx"
    words = ["--input_name", "window", "--input_shape", "1,3,3,24,32", str(path), str(one_size)]
    monkeypatch.setattr(sys, "argv", ["tool", *words])
    tool.make_dynamic_shape_fixed_helper()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(done)
    onnxruntime.InferenceSession(one_size, options)
    return done


@pytest.mark.parametrize("sizes", ["any", "one"])
def test_opencv_reads_the_file_too(small, tmp_path, monkeypatch, sizes):
    network, path = small
    if sizes == "any" and int(cv2.__version__.split(".")[0]) < 5:
        pytest.skip("OpenCV 4 needs one size")
    reader = cv2.dnn.readNetFromONNX(str(path if sizes == "any" else fixed(path, tmp_path, monkeypatch)))
    window = torch.rand(1, 3, 3, 24, 32)
    reader.setInput(window.numpy())
    with torch.no_grad():
        assert np.abs(reader.forward() - network(window).numpy()).max() < 1e-5


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_for_one_size_has_few_operators_and_is_no_file_of_ours(small, tmp_path, monkeypatch, backend):
    import onnx

    pytest.importorskip(backend, reason="the extra is not installed")
    path = fixed(small[1], tmp_path, monkeypatch)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert kinds == {"Conv", "Relu", "Add", "Reshape", "Transpose", "Gather", "DepthToSpace"}
    with pytest.raises(CSDError, match="its input is fixed to batch 1, height 24, width 32: leave these free"):
        open_backend(path, backend=backend)
    assert open_backend(small[1], backend=backend).facts.num_frame == 3


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def program(request, network, tmp_path_factory):
    """The precision, what is said of a file, and the file."""
    folder = tmp_path_factory.mktemp("program")
    output = folder / ("s.pt2" if sys.platform != "linux" else os.fsdecode(b"\xff.pt2"))  # no UTF-8
    done = export_network(network, output, precision=request.param)
    return request.param, done, output.rename(folder / "s.pt2")


def test_torch_export_computes_the_same(network, program):
    precision, done, path = program
    assert done.max_difference < (1e-5 if precision == "fp32" else 0.05)
    assert done.windows == 3 and done.num_bytes == path.stat().st_size
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["num_frame"] == "3"
    window = torch.rand(1, 3, 3, 16, 22)
    with torch.no_grad():
        assert (program(window) - network(window)).abs().max() < (1e-5 if precision == "fp32" else 0.05)
    with zipfile.ZipFile(path) as archive:
        assert not any(b"csd_plugin/" in archive.read(name) for name in archive.namelist())


def test_a_program_is_not_taken_for_a_checkpoint(program):
    with pytest.raises(CSDError, match=r"s\.pt2 is a program for torch\.export\.load, and is not run here"):
        Derainer(program[2])


def test_openvino_ir(network, tmp_path):
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    export_network(network, tmp_path / "s.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.bin", "s.xml"]
    clip = np.random.default_rng(0).integers(0, 256, (3, 21, 30, 3), np.uint8)
    given, expected = Derainer(tmp_path / "s.xml")(clip), Derainer(network, device="cpu")(clip)
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(given, expected, strict=True)) <= 1


def test_openvino_ir_on_a_full_disk_is_one_line(onnx_file, tmp_path):
    """OpenVINO says "iostream error" of it."""
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = onnx_file.read_bytes()
    line = r"/s\.xml: cannot be written \(File too large\); make room there, and run again$"
    with pytest.raises(CSDError, match=line), module._beside(tmp_path / "s.xml") as draft:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            onnx_to_openvino(model, draft)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_pair_of_files_is_replaced_as_a_whole(tmp_path, monkeypatch):
    replace = Path.replace

    def interrupted(draft, path):
        replace(draft, path)
        monkeypatch.setattr(Path, "replace", replace)
        raise KeyboardInterrupt

    for name in ("s.xml", "s.bin"):
        (tmp_path / name).write_text("older")
    with pytest.raises(KeyboardInterrupt), module._beside(tmp_path / "s.xml") as draft:
        draft.write_text("new")
        draft.with_suffix(".bin").write_text("new")
        monkeypatch.setattr(Path, "replace", interrupted)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"s.xml": "new", "s.bin": "new"}


class Killed(BaseException):
    """Where a process ends at once, nothing of ours runs any more."""


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("moves", [1, 2])
def test_an_export_that_is_killed_leaves_no_mixed_pair(network, tmp_path, monkeypatch, earlier, moves):
    """Whatever reads the .xml fails, instead of taking another network's weights; and it can be exported again."""
    openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    path, replace, left = tmp_path / "s.xml", Path.replace, [moves]
    if earlier:
        path.write_text("<net/>")
        path.with_suffix(".bin").write_text("earlier")

    def killed(draft, place):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return replace(draft, place)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed), module._beside(path) as draft:
        draft.write_text("<net/>")
        draft.with_suffix(".bin").write_text("new")
    monkeypatch.undo()
    with pytest.raises(CSDError, match=r"s\.xml: csd export was stopped before it was complete; export it again"):
        Derainer(path)
    with pytest.raises(RuntimeError):
        openvino.Core().read_model(path)
    refuse_strangers(path, FORMATS[".xml"].sign, [path.with_suffix(".bin")])


def test_a_pair_that_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "s.xml").write_text("older")
    (tmp_path / "s.bin").mkdir()  # cannot be replaced by a file
    for there in (True, False):
        with pytest.raises(CSDError, match=r"s\.xml: cannot be written"), module._beside(tmp_path / "s.xml") as draft:
            draft.write_text("new")
            draft.with_suffix(".bin").write_text("new")
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["s.xml"] * there
        if there:
            assert (tmp_path / "s.xml").read_text() == "older"
            (tmp_path / "s.xml").unlink()


def test_openvino_ir_knows_its_weights(network, tmp_path):
    """OpenVINO takes any .bin file that is long enough, and computes with it."""
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    export_network(network, tmp_path / "s.xml")
    weights, other = (tmp_path / "s.bin").read_bytes(), tmp_path / "moved.xml"
    (tmp_path / "s.xml").rename(other)
    with pytest.raises(CSDError, match=r"moved\.bin, the weights of .*moved\.xml, is missing: put it back"):
        Derainer(other)
    other.with_suffix(".bin").write_bytes(weights)
    Derainer(other)
    for wrong in (weights[:-1] + bytes([weights[-1] ^ 1]), weights + b"more", bytes(len(weights)), weights[:100], b""):
        other.with_suffix(".bin").write_bytes(wrong)
        with pytest.raises(CSDError, match=r"moved\.bin does not hold the weights of .*moved\.xml"):
            Derainer(other)
    other.with_suffix(".bin").write_bytes(weights)
    other.write_text(other.read_text()[:3000])
    with pytest.raises(CSDError, match=r"moved\.xml is not a model that OpenVINO can run \((?!Exception from)"):
        Derainer(other)


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    with pytest.raises(CSDError, match=r"a\.bin is damaged|a\.bin cannot be read"):
        Derainer(tmp_path / "a.bin")
    (tmp_path / "a.xml").touch()
    with pytest.raises(CSDError, match=r"a\.bin holds the weights of .*a\.xml; give .*a\.xml"):
        Derainer(tmp_path / "a.bin")


def test_int8_reports_what_it_costs(network, windows, tmp_path):
    done = export_network(network, tmp_path / "s.onnx", precision="int8", calibration=windows[:2], windows=windows[2:])
    assert 25 < done.psnr < 70 and done.windows == 2
    import onnx

    kinds = [node.op_type for node in onnx.load(tmp_path / "s.onnx").graph.node]
    assert kinds.count("QuantizeLinear") > 12
    assert Derainer(tmp_path / "s.onnx").num_frame == 3  # the metadata are there
    with pytest.raises(CSDError, match="give a clip with --calibrate"):
        export_network(network, tmp_path / "t.onnx", precision="int8")


def test_a_temporary_folder_that_is_gone_is_not_the_output(windows, onnx_file, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(CSDError, match=r"/gone: cannot be written \("):
        quantise(onnx_file.read_bytes(), windows)


HALF = {
    "causal, one level": {"num_frame": 5, "num_feat": 4, "num_pair": 1, "num_deep": 0, "causal": True},
    "two levels with branches": {"num_frame": 3, "num_feat": 4, "num_pair": 2, "num_deep": 1, "branches": True},
}


@pytest.mark.parametrize(
    ("name", "precision", "form"),
    [
        *((*kind, form) for form in HALF for kind in (("s.onnx", "fp32"), ("s.xml", "fp32"), ("s.onnx", "int8"))),
        ("s.pt2", "bf16", "two levels with branches"),  # the others begin with what this writes
    ],
)
def test_networks_at_half_resolution_export_like_the_others(form, name, precision, tmp_path):
    if name.endswith(".xml"):
        pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    torch.manual_seed(0)
    network = HalfNet(**HALF[form]).eval()
    torch.nn.init.normal_(network.tail.weight, std=0.02)
    windows = [torch.rand(1, network.num_seen, 3, 24, 28) for _ in range(2)]
    calibration = windows if precision == "int8" else ()
    done = export_network(network, tmp_path / name, precision=precision, calibration=calibration)
    assert done.facts.num_future == network.num_future and done.psnr > 25
    if precision == "fp32":
        clip = np.random.default_rng(0).integers(0, 256, (4, 22, 30, 3), np.uint8)
        given, expected = Derainer(tmp_path / name), Derainer(network, device="cpu")
        pushed = [len(given.push(frame)) for frame in clip]
        assert pushed == [int(network.num_future == 0), 1, 1, 1]
        assert max(np.abs(a.astype(int) - b).max() for a, b in zip(given(clip), expected(clip), strict=True)) <= 1


def opset_of(path) -> int:
    import onnx

    return next(entry.version for entry in onnx.load(path).opset_import if not entry.domain)


def test_fp16_halves_the_file_in_a_newer_opset_too(network, onnx_file, tmp_path):
    done = export_network(network, tmp_path / "s.onnx", precision="fp16", opset=20)
    assert done.num_bytes < 0.8 * onnx_file.stat().st_size
    assert 0 < done.max_difference < 0.01
    assert opset_of(tmp_path / "s.onnx") == 20 and Derainer(tmp_path / "s.onnx").num_frame == 3


@pytest.mark.parametrize("precision, opset", [("fp32", 16), ("int8", 16), ("fp32", None)])
def test_the_opset_is_the_one_that_was_asked_for(network, windows, tmp_path, precision, opset):
    calibration = windows if precision == "int8" else []
    export_network(network, tmp_path / "s.onnx", precision=precision, opset=opset, calibration=calibration)
    assert opset_of(tmp_path / "s.onnx") == (opset or 18)
    assert Derainer(tmp_path / "s.onnx").num_frame == 3


def test_a_setting_that_would_be_ignored_is_refused(network, tmp_path, capsys):
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    (tmp_path / "rain").mkdir()
    for number in range(3):
        cv2.imwrite(str(tmp_path / "rain" / f"{number}.png"), np.zeros((24, 32, 3), np.uint8))
    for output, options, message in (
        ("s.onnx", ["--opset", "11"], "cannot be written in ONNX opset 11, but only in 18; give an opset from 16 to"),
        ("s.onnx", ["--opset", "99"], "ONNX opset 99 is unknown to the installed onnx"),
        ("s.pt2", ["--opset", "17"], "torch.export has no ONNX opset; leave --opset out"),
        ("s.xml", ["--opset", "17"], "OpenVINO IR has no ONNX opset; leave --opset out"),
        ("s.onnx", ["--calibrate", str(tmp_path / "rain")], "--calibrate is for int8, but fp32 was asked for"),
    ):
        assert main(["export", str(tmp_path / "net.pth"), str(tmp_path / output), *options]) == 2
        shown = capsys.readouterr()
        assert message in shown.err and len(shown.err.strip().splitlines()) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pth", "rain"]


def test_a_file_that_computes_something_else_is_not_kept(network, tmp_path, monkeypatch):
    form = module.FORMATS[".pt2"]._replace(
        write=lambda network, facts, opset, path: path.write_text("new"),
        open=lambda path: lambda window: window[:, 1] * 0.5,
    )
    monkeypatch.setitem(module.FORMATS, ".pt2", form)
    (tmp_path / "s.pt2").write_text("older")
    with pytest.raises(CSDError, match=r"frames differ from torch's by up to .* nothing was written"):
        export_network(network, tmp_path / "s.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["s.pt2"] and (tmp_path / "s.pt2").read_text() == "older"


class Fixed(torch.nn.Module):
    """Computes a size as Python's number, which an exported file keeps."""

    num_frame = 1

    def __init__(self):
        super().__init__()
        self.tail = torch.nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, window):
        batch, _, _, height, width = window.shape
        grey = torch.zeros(batch, 1, int(height / 1.0), int(width / 1.0))
        return self.tail(torch.cat([window[:, 0], grey], dim=1))


def test_a_file_that_runs_on_one_size_alone_is_not_kept_and_its_cause_is_said(tmp_path, capfd):
    with pytest.raises(CSDError) as error:
        export_network(Fixed().eval(), tmp_path / "fixed.onnx")
    line = str(error.value)
    assert (
        line.startswith(f"{tmp_path / 'fixed.onnx'}: its input is fixed to height 17, width 19: leave")
        and ".part" not in line
    )
    assert line.endswith("the forward of Fixed computes by int(..) or round(..) stay those of one frame: use //")
    assert not list(tmp_path.iterdir())


class Own(torch.nn.Module):
    """Somebody's network of one frame."""

    num_frame = 1
    merged = False  # HalfNets have a method of this name

    def __init__(self):
        super().__init__()
        self.tail = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, window):
        return self.tail(window[:, 0])


class Decides(Own):
    def forward(self, window):
        assert float(window.max()) <= 1
        return super().forward(window)


class InPlace(Own):
    def forward(self, window):
        return super().forward(window.mul_(2).sub_(1))


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_network_that_torch_cannot_write_is_one_line(tmp_path, capfd, ending):
    with pytest.raises(CSDError) as error:
        export_network(Decides().eval(), tmp_path / f"decides{ending}")
    line = str(error.value)
    assert line.startswith("torch cannot write Decides as a graph for frames of any size (") and "\n" not in line
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""


@pytest.mark.parametrize("cls", [Own, InPlace])
def test_networks_of_others_are_written_as_they_are(tmp_path, cls):
    assert export_network(cls().eval(), tmp_path / "own.onnx").max_difference < 1e-5


def test_command_line_exports_and_derains(network, tmp_path, capsys):
    torch.save({"params": network.state_dict()}, tmp_path / "net.pth")
    (tmp_path / "rain").mkdir()
    for number, image in enumerate(np.random.default_rng(1).integers(0, 256, (5, 22, 30, 3), np.uint8)):
        cv2.imwrite(str(tmp_path / "rain" / f"{number}.png"), image)
    rain, checkpoint, output = str(tmp_path / "rain"), str(tmp_path / "net.pth"), str(tmp_path / "net.onnx")
    assert main(["export", checkpoint, output, "--check", rain]) == 0
    shown = capsys.readouterr().out
    assert "ONNX, SLDNet, window of 3, fp32" in shown and "4 windows: largest difference" in shown
    for model, folder in ((output, "a"), (checkpoint, "b")):
        assert main(["derain", rain, str(tmp_path / folder), "--model", model, "--device", "cpu"]) == 0
    for number in range(5):
        a, b = (cv2.imread(str(tmp_path / folder / f"{number}.png")) for folder in ("a", "b"))
        assert np.abs(a.astype(int) - b).max() <= 1

    for arguments, message in (
        ((output.replace("onnx", "tflite"),), "cannot export to '.tflite'"),
        ((output, "--dtype", "bf16"), "ONNX can be written in fp32, fp16, int8, not in bf16"),
        ((str(tmp_path / "no" / "net.onnx"),), "does not exist; make it first"),
    ):
        assert main(["export", checkpoint, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("options, license", [([], NETWORKS[DEFAULT].license), (["--license", "mine"], "mine")])
def test_the_license_of_a_network_that_comes_with_the_package_goes_along(monkeypatch, tmp_path, options, license):
    def exported(network, path, **keywords):
        assert keywords["license"] == license
        raise CSDError("far enough")

    monkeypatch.setattr(module, "export_network", exported)
    assert main(["export", DEFAULT, str(tmp_path / "x.onnx"), *options]) == 2
