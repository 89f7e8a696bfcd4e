"""Devices by name: one that cannot compute here is refused at once; and what is said and set for how they compute."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from csd_plugin import devices
from csd_plugin.devices import exact_float32, forked_random, gpus_of, half_precision_warnings, pick_device
from csd_plugin.errors import CSDError
from csd_plugin.inference.precision import computes_bf16


@pytest.mark.parametrize("name", ["", "-1", "cuda:-1", "cuda:9999", "cuda:1e30", "cpu:-3", "cpu:99", "meta", "mps:77"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(CSDError, match="device") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_the_cpu_is_always_there():
    assert [pick_device(name).type for name in ("cpu", "cpu:0", torch.device("cpu"))] == ["cpu"] * 3


class TwoGPUs:
    """What this module asks torch.cuda, answered as by two GPUs of which the main thread has chosen the second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, capability=(9, 0), cudnn=None, version=None) -> None:
        self.forked: list[list[int]] = []
        main = threading.get_ident()
        for name, answer in {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 2,
            "current_device": lambda: 1 if threading.get_ident() == main else 0,
            "get_device_capability": lambda device=None: capability,
            "get_device_name": lambda device=None: "a GPU",
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
        monkeypatch.setattr(torch, "__version__", version or torch.__version__)


def test_drawn_numbers_of_the_gpu_in_use_alone_are_kept(monkeypatch):
    TwoGPUs(monkeypatch)
    forked = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: forked.append(devices) or torch.no_grad())
    with forked_random():
        pass
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with forked_random():
        pass
    assert forked == [[1], []]


def test_what_is_drawn_inside_changes_no_later_number():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    def seed():
        torch.manual_seed(1), np.random.seed(1), random.seed(1)

    seed()
    expected = draw()
    seed()
    with forked_random():
        draw()
    assert draw() == expected


def test_auto_is_one_gpu_for_one_process(monkeypatch):
    assert [gpus_of(number) for number in ("auto", 0, 3)] == [int(torch.cuda.is_available()), 0, 3]
    TwoGPUs(monkeypatch)
    assert [gpus_of(number) for number in ("auto", 0, 3)] == [1, 0, 3]


def test_float32_is_exact_inside_whatever_was_set_before():
    x, weight = torch.rand(8, 64, 64), torch.rand(64, 64)
    exact = (x.double() @ weight.double()).float()
    before = [getattr(owner, name) for owner, name, _ in devices._rounding()]
    torch.set_float32_matmul_precision("medium")
    try:
        rounding = [getattr(owner, name) for owner, name, _ in devices._rounding()]
        with exact_float32():
            inside = [getattr(owner, name) for owner, name, _ in devices._rounding()]
            assert torch.allclose(x @ weight, exact, rtol=1e-6, atol=1e-5)
        assert inside == [value for _, _, value in devices._rounding()]
        assert [getattr(owner, name) for owner, name, _ in devices._rounding()] == rounding
    finally:
        torch.set_float32_matmul_precision("highest")
    assert [getattr(owner, name) for owner, name, _ in devices._rounding()] != rounding or rounding == before


def test_float32_is_exact_until_the_last_thread_is_outside():
    """One thread comes in while another is inside, which leaves first."""

    def now():
        return [getattr(owner, name) for owner, name, _ in devices._rounding()]

    first, second = exact_float32(), exact_float32()
    torch.set_float32_matmul_precision("medium")
    try:
        rounding = now()
        with ThreadPoolExecutor(1) as thread:
            first.__enter__()
            exact = now()
            thread.submit(second.__enter__).result()
            first.__exit__(None, None, None)
            assert now() == exact != rounding
            thread.submit(second.__exit__, None, None, None).result()
        assert now() == rounding
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_a_gpu_does_slowly_in_16_bits_is_said(monkeypatch):
    gpu, flat, deep = torch.device("cuda:1"), nn.Conv2d(3, 3, 3), nn.Sequential(nn.Conv3d(3, 3, 3))
    TwoGPUs(monkeypatch, capability=(7, 5), cudnn=91002, version="2.9.1+cu128")
    [emulated, slow] = half_precision_warnings([flat, deep], torch.bfloat16, gpu)
    assert "a GPU has no bf16" in emulated and "cuDNN 9.10" in slow and "cuDNN 9.15" in slow
    assert half_precision_warnings([flat], torch.float16, gpu) == []
    assert half_precision_warnings([deep], torch.bfloat16, torch.device("cpu")) == []
    for capability, cudnn, version in (((8, 0), 91500, "2.9.1"), ((9, 0), 91002, "2.8.0"), ((9, 0), 91002, "2.10.0")):
        TwoGPUs(monkeypatch, capability=capability, cudnn=cudnn, version=version)
        assert half_precision_warnings([deep], torch.bfloat16, gpu) == []


def test_bf16_that_a_gpu_emulates_does_not_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    for capability, native in (((7, 5), False), ((8, 0), True)):
        TwoGPUs(monkeypatch, capability=capability)
        assert computes_bf16(torch.device("cuda:1")) == native
    assert not computes_bf16(torch.device("mps"))
