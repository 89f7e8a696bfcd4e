"""Two functions for each kind of file: from a ready network to a file, and from the file to something that computes.

Both directions are here, so that a written file can be run as by its users.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from csd_plugin.digests import file_digest
from csd_plugin.errors import first_line
from csd_plugin.extras import needed_by
from csd_plugin.inference.backends import WEIGHTS_DIGEST, OnnxRuntimeBackend, OpenVINOBackend, weights_of
from csd_plugin.inference.facts import Facts
from csd_plugin.inference.graph import Computing, dynamic_program, to_onnx

Run = Callable[[Tensor], Tensor]
"""(B, T, 3, H, W) -> (B, 3, H, W), both float32."""
_ASKED_FOR = 2**20
"""Bytes: more than can still be free on a disk that was too full for the rest of a file."""


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        write: (network, facts, opset, path) -> None.
        open: the written file, ready to run.
        precisions: those that the network can compute in.
        title: the kind's name for people.
        sign: pattern of the beginning of such a file.
        write_int8: (quantised ONNX model, path) -> None; None without int8.
        has_opset: whether the opset matters to its readers.
    """

    write: Callable[[Computing, Facts, int, Path], None]
    open: Callable[[Path], Run]
    precisions: tuple[str, ...]
    title: str
    sign: bytes
    write_int8: Callable[[bytes, Path], None] | None = None
    has_opset: bool = False


def write_onnx(network: Computing, facts: Facts, opset: int, path: Path) -> None:
    """Write an ONNX graph with the facts as metadata."""
    save_onnx(to_onnx(network, facts, opset=opset), path)


def save_onnx(model: bytes, path: Path) -> None:
    path.write_bytes(model)


def open_onnx(path: Path) -> Run:
    """The written file in ONNX Runtime, on the CPU."""
    return OnnxRuntimeBackend(path, "fp32", "cpu")


def write_openvino(network: Computing, facts: Facts, opset: int, path: Path) -> None:
    onnx_to_openvino(to_onnx(network, facts, opset=opset), path)


def onnx_to_openvino(model: bytes, path: Path) -> None:
    """Write IR: `path` (.xml) and the weights next to it (.bin), in the model's precision.

    The .xml identifies its weights, as OpenVINO accepts any file of that size. Raises OSError.
    """
    with needed_by("OpenVINO IR"):
        import openvino

    def save() -> None:
        try:
            openvino.save_model(graph, path, compress_to_fp16=False)
        except RuntimeError as error:
            raise _reason(path, error) from error

    graph = openvino.Core().read_model(model, b"")
    save()
    graph.set_rt_info(file_digest(weights_of(path)), ["framework", WEIGHTS_DIGEST])
    save()


def _reason(path: Path, error: RuntimeError) -> OSError:
    """Why a library could not write: it only says "iostream error" about a disk, so this tries again to find out."""
    try:
        with path.open("ab") as file:
            file.write(bytes(_ASKED_FOR))
    except OSError as reason:
        return reason
    return OSError(0, first_line(error))


def open_openvino(path: Path) -> Run:
    """The written file in OpenVINO, on the CPU."""
    return OpenVINOBackend(path, "fp32", "cpu")


def write_program(network: Computing, facts: Facts, opset: int, path: Path) -> None:
    """Write torch.export's own format, with the facts as its extra file 'metadata.json'."""
    program = dynamic_program(network)
    for node in program.graph.nodes:  # they name lines of our source, with paths of this machine
        node.meta.pop("stack_trace", None)
    metadata = json.dumps(facts.to_metadata(), indent=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # folded weights are views of one another's storage
        file = io.BytesIO()  # if a write to a disk fails in the middle, torch's writer ends the whole process
        torch.export.save(program, file, extra_files={"metadata.json": metadata})
    path.write_bytes(file.getvalue())  # not a view: if writing fails, Python 3.12.1 crashes with one


def open_program(path: Path) -> Run:
    with path.open("rb") as file:  # torch accepts only names in valid UTF-8
        program = torch.export.load(file).module()

    def run(window: Tensor) -> Tensor:
        with torch.inference_mode():
            return program(window)

    return run


FORMATS = {
    ".onnx": Format(write_onnx, open_onnx, ("fp32", "fp16", "int8"), "ONNX", rb"\x08", save_onnx, has_opset=True),
    ".xml": Format(
        write_openvino, open_openvino, ("fp32", "fp16", "int8"), "OpenVINO IR", rb".*<net\b", onnx_to_openvino
    ),
    ".pt2": Format(write_program, open_program, ("fp32", "bf16", "fp16"), "torch.export", rb"PK\x03\x04"),
}
