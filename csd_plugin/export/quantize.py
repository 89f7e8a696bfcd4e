"""Converts an ONNX model to 8-bit integers, by ONNX Runtime's static post-training quantisation."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from csd_plugin.errors import cannot_write
from csd_plugin.extras import needed_by
from csd_plugin.inference.graph import INPUT


def quantise(model: bytes, windows: Iterable[Tensor]) -> bytes:
    """The model with its inner convolutions in int8: weights per channel, activations per tensor.

    The first and the last convolution are not changed: the frame itself, which needs 8 bits of precision, goes through
    them, and they cost little.

    Args:
        windows: (B, T, 3, H, W) float32; the range of every activation is measured on them.

    Raises:
        CSDError: ONNX Runtime or onnx is not installed, or the temporary folder cannot be written.
    """
    with needed_by("int8"):
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Windows(CalibrationDataReader):
        def __init__(self) -> None:
            self._windows = iter(windows)

        def get_next(self) -> dict | None:
            window = next(self._windows, None)
            return None if window is None else {INPUT: window.numpy()}

    graph = onnx.load_model_from_string(model)
    convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    with _scratch() as folder, _quiet():
        path = folder / "int8.onnx"
        quantize_static(
            graph,
            path,
            Windows(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu", "Add"],
            nodes_to_exclude=[convolutions[0], convolutions[-1]],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantised = onnx.load_model(path)
    onnx.helper.set_model_props(quantised, {entry.key: entry.value for entry in graph.metadata_props})
    return quantised.SerializeToString()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder. Raises CSDError, naming it as it is not the output, if it cannot be written."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()), error) from error


@contextlib.contextmanager
def _quiet():
    """Inside, drop the advice to preprocess, which to_onnx has done."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
