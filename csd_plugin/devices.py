"""Devices by name, their precision, and constants on them."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csd_plugin.errors import CSDError, first_line
from csd_plugin.versions import under_transforms

_AMPERE = (8, 0)
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By a tensor's number of dimensions."""
_FIXED_CUDNN = 91500
"""cuDNN 9.15, as torch.backends.cudnn.version() gives it."""


def pick_device(device: str | torch.device) -> torch.device:
    """The device of this name; 'auto' is CUDA if there is a GPU, else the CPU. Raises CSDError if it is not available.

    The result for a GPU has an index, as plain 'cuda' means each thread's current GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise CSDError(f"device {device!r} is unknown; give cpu, cuda, cuda:1, or auto") from error
    if chosen.type == "cpu" and chosen.index:  # torch accepts any index
        raise CSDError(f"device {device!r} does not exist; give cpu, which means all of them")
    try:
        probe = torch.zeros(1, device=chosen)
        probe.item()  # fails for 'meta', which computes nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch may be built without support for it
        raise CSDError(f"device {device!r} cannot be used ({first_line(error)}); try 'cpu'") from error
    return probe.device


def gpus_of(num_gpu: int | str) -> int:
    """The GPUs of one process for an option file's `num_gpu`: 'auto' is 1 if there is a GPU, else 0 for the CPU."""
    return int(torch.cuda.is_available()) if num_gpu == "auto" else int(num_gpu)


@contextmanager
def forked_random() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch at the end, on the CPU and on this thread's GPU.

    torch's own fork_rng initialises every GPU of the machine, and warns if there are several.
    """
    in_use = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=in_use):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, convolutions and matrix products of float32 compute in full float32, on all devices.

    By default torch lets a GPU's convolutions round to TF32 (10 bits of mantissa);
    `torch.set_float32_matmul_precision` lets matrix products do the same, and those of a CPU round to bf16. Torch has
    one such setting for all threads: it is restored once all of them have left.
    """
    _exactness.enter()
    try:
        yield
    finally:
        _exactness.leave()


class _Exactness:
    """Counts the users of `exact_float32` in all threads, and holds the settings from before the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, str, Any]] = []
        if hasattr(os, "register_at_fork"):  # a forked child lacks the thread that would release the lock
            os.register_at_fork(
                before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._lock.release
            )

    def enter(self) -> None:
        with self._lock:
            places = _rounding()
            if not self._inside:
                self._before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
            for owner, name, exact in places:
                setattr(owner, name, exact)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for owner, name, value in self._before:
                    setattr(owner, name, value)


_exactness = _Exactness()


@cache
def _rounding() -> list[tuple[Any, str, Any]]:
    """(owner, attribute, exact value) of every setting that lets float32 be rounded."""
    backends: Any = torch.backends  # its attributes depend on the version
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    if hasattr(cuda.matmul, "fp32_precision"):  # torch 2.9; reading the old switches fails once these are used
        operations = [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv]
        return [(operation, "fp32_precision", "ieee") for operation in operations]
    return [(cudnn, "allow_tf32", False), (cuda.matmul, "allow_tf32", False)]


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache a function that makes tensors: each is made once per set of arguments, and the latest 64 are kept.

    They can be used in training even if the first caller was in inference mode. Tensors made while code is compiled,
    or inside transforms of `torch.func` or a `FakeTensorMode`, are usable only there, and are not kept.
    """

    @lru_cache(maxsize=64)
    def kept(*key: Any) -> Tensor:
        with torch.inference_mode(False):
            return make(*key)

    @wraps(make)
    def get(*key: Any) -> Tensor:
        if torch.compiler.is_compiling() or under_transforms() or type(torch.empty(0)) is not Tensor:
            return make(*key)
        return kept(*key)

    return get


def use_channels_last(network: nn.Module) -> None:
    """Convert the weights of convolutions to channels-last, the layout of tensor cores, in place.

    In 16 bits, weights and gradients in another layout are converted at every call. The layout of a convolution's
    output follows its weights.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            layer.to(memory_format=_CHANNELS_LAST[layer.weight.dim()])  # type: ignore[call-overload]


def gpu_has_bf16(device: torch.device) -> bool:
    """Whether this GPU multiplies bf16 in hardware, as NVIDIA's do since Ampere. torch's own answer includes emulation.

    False for other kinds of GPU, which cannot be asked.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE


def half_precision_warnings(networks: Iterable[nn.Module], dtype: torch.dtype, device: torch.device) -> list[str]:
    """Warnings, one line each, about what is slow for these networks in bf16 or fp16 on this device."""
    if device.type != "cuda":
        return []
    lines = []
    if dtype == torch.bfloat16 and not gpu_has_bf16(device):
        name = torch.cuda.get_device_name(device)
        lines.append(
            f"{name} has no bf16 (GPUs have it since Ampere), and torch emulates it slowly; use fp16, or float32"
        )
    cudnn = torch.backends.cudnn.version() or 0
    in_3d = any(isinstance(layer, nn.Conv3d) for network in networks for layer in network.modules())
    if in_3d and torch.__version__.startswith("2.9.") and cudnn < _FIXED_CUDNN:
        found = f"{cudnn // 10000}.{cudnn // 100 % 100}"
        lines.append(
            f"torch {torch.__version__} with cuDNN {found} computes 3-D convolutions in 16 bits without cuDNN, many "
            f"times slower and in more memory: install cuDNN 9.15 (pip install -U nvidia-cudnn-cu12, or -cu13), or "
            f"another torch"
        )
    return lines
