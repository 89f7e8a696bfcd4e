"""Where tensors live, by name, and how exactly a device computes."""

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
"""By the number of a tensor's axes."""
_FIXED_CUDNN = 91500
"""9.15, as torch.backends.cudnn.version() gives it."""


def pick_device(device: str | torch.device) -> torch.device:
    """'auto' -> CUDA where there is one, else the CPU. Raises CSDError for a device that is not there.

    A GPU comes with its number: 'cuda' alone is another one in every thread that has chosen its own.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise CSDError(f"device {device!r} is unknown; give cpu, cuda, cuda:1, or auto") from error
    if chosen.type == "cpu" and chosen.index:  # torch takes any number
        raise CSDError(f"device {device!r} does not exist; give cpu, which means all of them")
    try:
        probe = torch.zeros(1, device=chosen)
        probe.item()  # which 'meta' cannot, as it computes nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch may be built without that kind
        raise CSDError(f"device {device!r} cannot be used ({first_line(error)}); try 'cpu'") from error
    return probe.device


def gpus_of(num_gpu: int | str) -> int:
    """GPUs of one process by an option file's `num_gpu`: 'auto' is one where there is one, else 0 for the CPU."""
    return int(torch.cuda.is_available()) if num_gpu == "auto" else int(num_gpu)


@contextmanager
def forked_random() -> Iterator[None]:
    """What is drawn inside changes no later random number: of Python, numpy and torch, on the CPU and on the GPU that
    this thread uses.

    torch's fork_rng alone starts every GPU of the machine, and warns where there are several.
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
    """float32 is multiplied as float32 inside, by convolutions and matrix products of all devices.

    By default torch lets a GPU's convolutions round to TF32, ten bits; `torch.set_float32_matmul_precision` lets
    matrix products do so, and a CPU's round to bf16. Torch has one such setting for all threads: it is what it was once
    all of them are outside.
    """
    _exactness.enter()
    try:
        yield
    finally:
        _exactness.leave()


class _Exactness:
    """How many are inside `exact_float32`, in all threads, and what was set before the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, str, Any]] = []
        if hasattr(os, "register_at_fork"):  # a child has no thread that would unlock it
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
    """(where, the setting's name there, its exact value) of all that may round float32."""
    backends: Any = torch.backends  # whose parts depend on the version
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    if hasattr(cuda.matmul, "fp32_precision"):  # torch 2.9; reading its older switches fails once these are used
        operations = [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv]
        return [(operation, "fp32_precision", "ieee") for operation in operations]
    return [(cudnn, "allow_tf32", False), (cuda.matmul, "allow_tf32", False)]


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that makes each of its tensors once, and keeps the latest 64, for whoever asks next.

    They serve a training, also where the first to ask is in inference mode. What is made for code that is compiled,
    or inside transforms of `torch.func` and a `FakeTensorMode`, is of use there alone, and not kept.
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
    """Weights of convolutions in the layout of tensor cores. In 16 bits those that lie otherwise, and their gradients,
    are brought from one into the other each time; what a convolution gives follows its weights."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            layer.to(memory_format=_CHANNELS_LAST[layer.weight.dim()])  # type: ignore[call-overload]


def gpu_has_bf16(device: torch.device) -> bool:
    """Whether this GPU multiplies bf16: CUDA's do since Ampere. torch's own answer counts emulation in.

    Of other kinds nobody says so, and they count as not.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE


def half_precision_warnings(networks: Iterable[nn.Module], dtype: torch.dtype, device: torch.device) -> list[str]:
    """What is slow about these networks in bf16 or fp16 on this device, a line each."""
    if device.type != "cuda":
        return []
    lines = []
    if dtype == torch.bfloat16 and not gpu_has_bf16(device):
        name = torch.cuda.get_device_name(device)
        lines.append(f"{name} has no bf16 (GPUs have since Ampere): torch emulates it, slowly; use fp16, or float32")
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
