"""torch's exporter to ONNX, which takes seconds a graph, run once for the same network and the same arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

PLAIN = (bool, int, float, str, tuple, type(None), torch.dtype)


def once(export: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.onnx.export`, which remembers the model of each network and what is asked for. What fails runs again."""
    models: dict[str, Any] = {}

    def exported(network: nn.Module, example: tuple[torch.Tensor, ...], **how: Any) -> Any:
        key = _digest(network, [(x.shape, x.dtype) for x in example], how)
        if key not in models:
            _operators_once()
            made = export(network, example, **how)
            if made is None:
                return None
            models[key] = deepcopy(made.model_proto)
        return SimpleNamespace(model_proto=deepcopy(models[key]))

    return exported


@cache
def _operators_once() -> None:
    """The exporter reads the sources of some hundred operators for each graph; here for the first one."""
    with suppress(ImportError, AttributeError):  # of torch's inside: without it, graphs take longer
        from torch.onnx._internal.exporter import _registration

        library = _registration.onnxscript_apis
        library.get_torchlib_ops = cache(library.get_torchlib_ops)


def _digest(network: nn.Module, *asked: Any) -> str:
    """Of all that the graph can follow from: classes, their numbers, weights, arguments, and the modes of torch."""
    modes = (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    parts = []
    for name, module in network.named_modules():
        numbers = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN)}
        parts.append((name, type(module), id(type(module).forward), numbers, len(module._forward_hooks)))
    digest = hashlib.sha256(repr((parts, modes, asked)).encode())
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        digest.update(repr((name, value.dtype, value.shape, value.stride())).encode())
        digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
