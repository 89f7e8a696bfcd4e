"""The runtimes of networks: one class each, all called the same way. `open_backend` picks one.

All use torch's number of threads (OMP_NUM_THREADS, torch.set_num_threads).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from csd_plugin.archs.bf16_conv3d import repair_bf16_conv3d
from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.devices import exact_float32, pick_device
from csd_plugin.digests import file_digest
from csd_plugin.errors import CSDError, first_line, path_of
from csd_plugin.extras import needed_by
from csd_plugin.inference.blocks import WHITE, BlockPath
from csd_plugin.inference.facts import Facts, study
from csd_plugin.inference.folding import ALL_FILLED, fold
from csd_plugin.inference.graph import DTYPES, INPUT, ready, to_onnx
from csd_plugin.inference.int8 import Int8HalfNet, computes_int8
from csd_plugin.inference.trials import as_it_is

INT8 = "int8"
GRAPH_SUFFIXES = (".onnx", ".xml")
"""Files that `csd export` writes and `Derainer` accepts in place of a checkpoint."""
WEIGHTS_DIGEST = "weights_sha256"
"""The entry of an .xml file's metadata that identifies its .bin file."""
INCOMPLETE = "<!-- <net>: csd export was stopped before this file and its .bin were complete; export it again -->\n"
"""The text of an .xml file while its .bin is replaced. It begins like a file that `csd export` may replace."""


class Backend(Protocol):
    """A network, ready on a device.

    Attributes:
        prefers_pairs: one window alone takes much longer than half of two together.
        blocks: a faster path for integer frames, if there is one.
        own_precision: the precision that the file fixes, in words; empty if the requested one is used.
    """

    name: str
    facts: Facts
    device: torch.device
    prefers_pairs: bool
    blocks: BlockPath | None
    own_precision: str

    def __call__(self, window: Tensor) -> Tensor:
        """(B, T, 3, H, W) float32 in [0, 1] -> (B, 3, H, W), or (B, T, 3, H, W) of sequences, not clamped; on `device`.

        T is `facts.num_seen`. Heights and widths are multiples of `facts.divisor`.
        """


class TorchBackend:
    """The network in torch, in its fastest exact form, on the CPU or CUDA, in any of the three precisions."""

    name = "torch"
    own_precision = ""

    def __init__(self, network: nn.Module, precision: str, device: str | torch.device) -> None:
        self.device = pick_device(device)
        if precision == "fp16" and self.device.type == "cpu":
            raise CSDError("torch has no fast fp16 on CPUs; use precision bf16, or a GPU")
        self.facts = study(network)
        self.network = ready(network, DTYPES[precision], ALL_FILLED).to(self.device)
        still_plain = any(isinstance(layer, nn.Conv3d) for layer in self.network.modules())
        on_cpu = self.device.type == "cpu"
        if still_plain and on_cpu and precision == "bf16":
            repair_bf16_conv3d()
        self.prefers_pairs = on_cpu and still_plain
        self.blocks: BlockPath | None = None
        if on_cpu and hasattr(network, "forward_blocks"):
            in_pixels: Any = fold(network.for_pixels(WHITE), ALL_FILLED)  # type: ignore[operator]
            in_pixels = in_pixels.to(self.device, DTYPES[precision])
            self.blocks = BlockPath(in_pixels, self.facts, DTYPES[precision])

    def __call__(self, window: Tensor) -> Tensor:
        # 16-bit layers round anyway; in fp32 nothing may be rounded
        with as_it_is(), exact_float32():
            return self.network(window)


class Int8Backend:
    """A network of the half-resolution family in 8-bit integers, in torch on the CPU.

    Raises:
        CSDError: it is of another family, the device is not a CPU, or torch cannot compute so on it.
    """

    name = "torch"
    own_precision = ""
    prefers_pairs = False

    def __init__(self, network: nn.Module, device: str | torch.device) -> None:
        if not isinstance(network, HalfNet):
            raise CSDError(
                f"int8 is for networks of type HalfNet, not {type(network).__name__}; use another precision, or "
                f"`csd export --int8`"
            )
        self.device = torch.device("cpu") if device == "auto" else pick_device(device)
        if self.device.type != "cpu":
            raise CSDError(f"int8 runs on the CPU, not on {device}; use --device cpu, or another precision")
        if not computes_int8():
            raise CSDError("torch has no int8 convolutions for this CPU, or they overflow; use another precision")
        self.facts = study(network)
        self.network = Int8HalfNet(network)
        self.blocks: BlockPath | None = BlockPath(self.network, self.facts, torch.uint8)

    def __call__(self, window: Tensor) -> Tensor:
        with as_it_is():
            return self.network(window)


class OnnxRuntimeBackend:
    """An ONNX model, or a network turned into one, in ONNX Runtime. Its precision is the model's.

    Raises:
        CSDError: ONNX Runtime is not installed, cannot use the device, or cannot run the model.
    """

    name = "onnxruntime"
    prefers_pairs = False
    blocks: BlockPath | None = None

    def __init__(self, network: nn.Module | Path | bytes, precision: str, device: str | torch.device) -> None:
        runtime = _import("onnxruntime")
        cuda = "CUDAExecutionProvider" in runtime.get_available_providers()
        self.device = torch.device("cpu")  # where frames are kept; the runtime copies them to its own device
        wanted = torch.device("cuda" if cuda else "cpu") if device == "auto" else torch.device(device)
        if wanted.type == "cuda" and not cuda:
            raise CSDError("this ONNX Runtime has no support for CUDA; install onnxruntime-gpu, or use --device cpu")
        provider: Any = "CPUExecutionProvider"
        if wanted.type == "cuda":  # as exact as the CPU, on the requested GPU
            provider = ("CUDAExecutionProvider", {"device_id": str(wanted.index or 0), "use_tf32": "0"})
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads sleep
        options.log_severity_level = 3
        self.own_precision = "the precision of its file" if isinstance(network, Path) else ""
        model = _onnx_bytes(network, precision)
        self._made_of = (network if isinstance(network, Path) else model, precision, device)
        self._source = source = str(network) if isinstance(network, Path) else "the network"
        self._errors = tuple(_runtime_errors(runtime))
        try:
            self._session = runtime.InferenceSession(model, options, providers=[provider])
        except self._errors as error:
            raise CSDError(f"{source} is not an ONNX model that runs ({first_line(error)}); export it again") from error
        if wanted.type == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise CSDError(f"ONNX Runtime cannot use {wanted} and would compute on the CPU; try --device cpu")
        self.facts = Facts.from_metadata(self._session.get_modelmeta().custom_metadata_map, source)
        _refuse_fixed(self._session.get_inputs()[0].shape, source)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies open the file, or the model's bytes, again, as the runtime's objects cannot be copied."""
        return type(self), self._made_of

    def __call__(self, window: Tensor) -> Tensor:
        try:
            return torch.from_numpy(self._session.run(None, {INPUT: window.contiguous().numpy()})[0])
        except self._errors as error:  # including a lack of memory
            raise CSDError(f"{self._source}: ONNX Runtime failed to run it ({first_line(error)})") from error


class OpenVINOBackend:
    """OpenVINO IR, an ONNX model, or a network turned into one, in OpenVINO on the CPU.

    Raises:
        CSDError: OpenVINO is not installed, the device is not a CPU, or the model cannot be run.
    """

    name = "openvino"
    prefers_pairs = False
    blocks: BlockPath | None = None

    def __init__(self, network: nn.Module | Path | bytes, precision: str, device: str | torch.device) -> None:
        openvino = _import("openvino")
        if device != "auto" and torch.device(device).type != "cpu":
            raise CSDError(f"OpenVINO runs on the CPU here, not on {device}; use --device cpu, or another backend")
        self.device = torch.device("cpu")
        core = openvino.Core()
        self._source = source = str(network) if isinstance(network, Path) else "the network"
        try:
            if isinstance(network, Path) and network.suffix.lower() == ".xml":
                _check_weights(network)
                model = core.read_model(network)
            else:
                network = network if isinstance(network, Path) else _onnx_bytes(network, "fp32")
                model = core.read_model(_onnx_bytes(network, "fp32"), b"")
            self._made_of = (network, precision, device)
            # OpenVINO itself computes fp16 in bf16 if the CPU has only that.
            how = {
                "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
            }
            quantised = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
            self.own_precision = f"int8 where its file says so, else {precision}" if quantised else ""
            self._request = core.compile_model(model, "CPU", how).create_infer_request()
            self._in_use = threading.Lock()  # an inference request computes one window at a time
        except RuntimeError as error:
            raise CSDError(
                f"{source} is not a model that OpenVINO can run ({_last_line(error)}); export it again"
            ) from error
        self.facts = Facts.from_metadata(_openvino_metadata(model), source)
        sides = model.inputs[0].get_partial_shape()
        _refuse_fixed([side.get_length() if side.is_static else None for side in sides], source)

    def __reduce__(self) -> tuple[Any, ...]:
        """Like that of `OnnxRuntimeBackend`."""
        return type(self), self._made_of

    def __call__(self, window: Tensor) -> Tensor:
        with self._in_use:
            try:
                self._request.infer([window.contiguous().numpy()], share_inputs=True)
            except RuntimeError as error:
                raise CSDError(f"{self._source}: OpenVINO failed to run it ({_last_line(error)})") from error
            return torch.from_numpy(np.array(self._request.get_output_tensor().data, np.float32))


def _refuse_fixed(shape: Sequence[object], source: str) -> None:
    """Raise CSDError if the sizes of a graph's input, (B, T, 3, H, W), are numbers: other tools have fixed them."""
    fixed = {name: shape[axis] for name, axis in {"batch": 0, "height": -2, "width": -1}.items()}
    if any(isinstance(size, int) for size in fixed.values()):
        sizes = ", ".join(f"{name} {size}" for name, size in fixed.items() if isinstance(size, int))
        raise CSDError(
            f"{source}: its input is fixed to {sizes}: leave these free, as in the files of `csd export`; frames are "
            f"computed in parts of several sizes"
        )


def _last_line(error: Exception) -> str:
    """OpenVINO's own message, which follows lines of its source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def weights_of(graph: Path) -> Path:
    """The file in which OpenVINO keeps the weights of a graph, .xml."""
    return graph.with_suffix(".bin")


def _check_weights(graph: Path) -> None:
    """Raise CSDError for weights that are missing, damaged or another graph's: OpenVINO accepts any.

    Files that `csd export` wrote before 27 November 2026 do not identify their weights.
    """
    weights, content = weights_of(graph), graph.read_bytes()
    if not content.lstrip().startswith(b"<"):  # another kind of model, several of which OpenVINO reads
        return
    if content == INCOMPLETE.encode():
        raise CSDError(f"{graph}: csd export was stopped before it was complete; export it again")
    if not weights.is_file():
        raise CSDError(f"{weights}, the weights of {graph}, is missing: put it back next to it, or export it again")
    said = re.search(rb'<%s value="([0-9a-f]{64})"' % WEIGHTS_DIGEST.encode(), content)
    if said and said[1].decode() != file_digest(weights):
        raise CSDError(
            f"{weights} does not hold the weights of {graph}: it is damaged, or another network's; export it again"
        )


BACKENDS: dict[str, Callable[[Any, str, str | torch.device], Backend]] = {
    "torch": TorchBackend,
    "onnxruntime": OnnxRuntimeBackend,
    "openvino": OpenVINOBackend,
}


def open_backend(
    network: str | Path | nn.Module,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    device: str | torch.device = "auto",
) -> Backend:
    """Make a network ready to run.

    'auto' is OpenVINO for its own files (.xml), ONNX Runtime for .onnx, or OpenVINO if that is not installed,
    and torch for everything else. On CPUs, all three take the same time in fp32, as all reach the machine's limit of
    multiplications (`csd bench infer` shows it); torch starts at once and needs no other package.

    Args:
        network: a checkpoint, an exported .onnx or .xml, or a module with `num_frame`.
        backend: 'auto' or a name in `BACKENDS`.
        precision: 'fp32', 'bf16' or 'fp16', of the layers; in torch on a CPU also 'int8'. ONNX Runtime uses that of
            its model.

    Raises:
        CSDError: the file is unreadable, or the backend is not installed or does not support the file, the precision or
            the device.
    """
    if precision not in (*DTYPES, INT8):
        raise CSDError(f"precision is {precision!r}, expected one of {', '.join((*DTYPES, INT8))}")
    if backend not in (*BACKENDS, "auto"):
        raise CSDError(f"backend is {backend!r}, expected auto or one of {', '.join(BACKENDS)}")
    if not isinstance(network, nn.Module):
        network = path_of(network, "the path of a checkpoint, find_checkpoint() of csd_plugin.weights, or a network")
    suffix = "" if isinstance(network, nn.Module) else network.suffix.lower()
    if isinstance(network, nn.Module):
        model: nn.Module | Path = network
    elif not (network.is_file() if suffix in GRAPH_SUFFIXES else network.exists()):
        of_a_name = f", or give find_checkpoint({str(network)!r}) of csd_plugin.weights if it ships with csd"
        raise CSDError(f"{network} does not exist; check the path{'' if suffix else of_a_name}")
    elif suffix in GRAPH_SUFFIXES:
        model = network
    else:
        model = load_network(network)

    if precision == INT8:
        if isinstance(model, Path):
            raise CSDError(
                f"{model}: give the checkpoint to compute in int8, or write this file by `csd export --int8`"
            )
        if backend not in ("torch", "auto"):
            raise CSDError(f"int8 is computed by torch here, not by {backend}; leave the backend out")
        return Int8Backend(model, device)
    if backend == "auto":
        backend = {".xml": "openvino", ".onnx": _runtime_for_onnx()}.get(suffix, "torch")
    takes = {".xml": ("openvino",), ".onnx": ("onnxruntime", "openvino")}.get(suffix, tuple(BACKENDS))
    if backend not in takes:
        raise CSDError(f"{network} runs in {' or '.join(takes)}, not in {backend}; give a checkpoint to run it there")
    if backend == "onnxruntime" and isinstance(model, Path) and precision != "fp32":
        raise CSDError(
            f"{model}: ONNX Runtime computes in the precision of the file, not in {precision}; export it in the one "
            f"you need, and leave the precision out here"
        )
    return BACKENDS[backend](model, precision, device)


def _import(module: str) -> Any:
    """A runtime's module. Raises CSDError saying how to install it."""
    with needed_by("this backend"):
        return importlib.import_module(module)


def _runtime_for_onnx() -> str:
    installed = importlib.util.find_spec
    return "onnxruntime" if installed("onnxruntime") or not installed("openvino") else "openvino"


def _onnx_bytes(network: nn.Module | Path | bytes, precision: str) -> bytes:
    if isinstance(network, bytes):
        return network
    if isinstance(network, Path):
        return network.read_bytes()
    facts = study(network)
    return to_onnx(ready(network, DTYPES[precision]), facts)


def _openvino_metadata(model: Any) -> dict[str, str]:
    """The ONNX metadata, which OpenVINO keeps with the model, also in its own files."""
    info = model.get_rt_info()
    return {key: str(value.value) for key, value in info["framework"].items()} if "framework" in info else {}


def _runtime_errors(runtime: Any) -> list[type[Exception]]:
    """The errors of ONNX Runtime for a model that it cannot run."""
    errors = runtime.capi.onnxruntime_pybind11_state
    names = ("Fail", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "InvalidArgument", "RuntimeException")
    return [getattr(errors, name) for name in names]
