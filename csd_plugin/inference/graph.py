"""Exports a network as an ONNX graph for graph runtimes. Only here does a network leave torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from csd_plugin.archs.interface import KINDS, kind_of
from csd_plugin.errors import CSDError, first_line
from csd_plugin.extras import needed_by
from csd_plugin.inference.facts import Facts
from csd_plugin.inference.folding import MIN_FILLED, fold

OPSET = 18
INPUT, OUTPUT = "window", "frame"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Computing(nn.Module):
    """A network that computes in `dtype`: (B, T, 3, H, W) -> (B, 3, H, W), or the same shape for sequences; float32.

    T is `num_seen`, the frames of its window that it uses.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_frame = int(network.num_frame)  # type: ignore[arg-type]
        self.num_seen = int(getattr(network, "num_seen", self.num_frame))
        self.gives_clip = KINDS[kind_of(network)].gives_clip
        self.size_divisor = int(getattr(network, "size_divisor", 1))
        self.network = network.to(dtype)
        self.dtype = dtype

    def forward(self, window: Tensor) -> Tensor:
        return self.network(window.to(self.dtype)).float()


def ready(network: nn.Module, dtype: torch.dtype = torch.float32, least: float = MIN_FILLED) -> Computing:
    """A copy in its fastest exact form, which computes in `dtype`; `least` as in `fold`, by default for graphs."""
    return Computing(fold(network, least), dtype).eval()


def dynamic_program(network: Computing) -> torch.export.ExportedProgram:
    """The network's graph for any batch size, height and width. Raises CSDError if torch finds none."""
    with _refusals(network), _quiet(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        return torch.export.export(network, _example(network), dynamic_shapes=_dynamic(network))


def to_onnx(network: Computing, facts: Facts, *, opset: int = OPSET) -> bytes:
    """An ONNX model of the network with dynamic batch, height and width, and its facts as metadata.

    Input 'window' and output 'frame' are float32, whatever the precision of the network.

    Raises:
        CSDError: the packages for it are not installed, the network computes in bfloat16, which no runtime supports
            in ONNX, or torch cannot write it, at all or in this opset.
    """
    with needed_by("a network as ONNX"):
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it

    if network.dtype == torch.bfloat16:
        raise CSDError(
            "an ONNX model must compute in fp32 or fp16, as runtimes lack bf16 layers; OpenVINO converts by itself"
        )
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest:
        raise CSDError(f"ONNX opset {opset} is unknown to the installed onnx {onnx.__version__}; give up to {newest}")
    with _refusals(network), _quiet(), torch.autocast("cpu", enabled=False):
        exported = torch.onnx.export(
            network,
            _example(network),
            dynamic_shapes=_dynamic(network),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    if exported is None:
        raise CSDError("torch could not write this network as ONNX")
    model = exported.model_proto
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != opset:  # torch writes its own opset and keeps it if the conversion fails
        raise CSDError(
            f"this network cannot be written in ONNX opset {opset}, but only in {written}; "
            f"give an opset from 16 to {newest}, or none for {OPSET}"
        )
    for node in model.graph.node:  # each node names its place in our source, with paths of this machine
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.helper.set_model_props(model, facts.to_metadata())
    onnx.checker.check_model(model)
    return model.SerializeToString()


@contextlib.contextmanager
def _refusals(network: Computing) -> Iterator[None]:
    """Inside, errors of torch's exporter, which have many classes and pages of text, become one line with the cause."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = first_line(cause) if isinstance(cause, Exception) else type(cause).__name__
        raise CSDError(
            f"torch cannot write {type(network.network).__name__} as a graph for frames of any size ({reason}); "
            f"decisions by values or sizes, as in `if` and `assert`, cannot be in a graph"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, drop the exporter's progress, warnings and tracebacks; the result is checked afterwards."""
    disabled = logging.root.manager.disable
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _example(network: Computing) -> tuple[Tensor]:
    height, width = 17 * network.size_divisor, 19 * network.size_divisor
    return (torch.zeros(2, network.num_seen, 3, height, width),)  # sizes of 0 and 1 would become constants


def _dynamic(network: Computing) -> tuple[dict[int, torch.export.Dim]]:
    batch, frames, height, width = (torch.export.Dim(name) for name in ("batch", "frames", "height", "width"))
    if network.size_divisor > 1:
        height, width = network.size_divisor * height, network.size_divisor * width  # type: ignore[operator]
    return ({0: batch, 3: height, 4: width} | ({1: frames} if network.gives_clip else {}),)
