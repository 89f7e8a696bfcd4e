"""Makes a torch that finds no GPU believe in some, far enough for tensors to say that they are on one and for autograd
to go through them: a device guard and hooks that do nothing, in C++.

To be installed before the first backward pass of a process, because autograd starts its threads for devices then.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path

SOURCE = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

using Guard = c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>;
template <> thread_local c10::DeviceIndex Guard::current_device_ = 0;
template <> thread_local std::array<c10::StreamId, c10::impl::kFakeGuardImplMaxDevices> Guard::current_streams_ = {};

namespace at {
struct PretendHooks final : CUDAHooksInterface {
  PretendHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 8; }
  int getNumGPUs() const override { return 8; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void deviceSynchronize(DeviceIndex) const override {}
};
}

extern "C" bool install() {
  auto& slot = c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)];
  slot.store(new Guard());  // of a torch that was built with CUDA too, whose own counts no GPU
  auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  if (!hooks->hasCUDA()) new (hooks) at::PretendHooks(at::CUDAHooksArgs{});  // no data, only a table of functions
  return at::detail::getCUDAHooks().hasCUDA();
}
"""


class CannotBuild(RuntimeError):
    """There is no compiler, or this torch has other headers; the message says which."""


def build(folder: Path) -> Path:
    """Compile the library, about three seconds. Raises CannotBuild."""
    if shutil.which("g++") is None:
        raise CannotBuild("the pretend GPU needs a C++ compiler (g++)")
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch, library = Path(spec.origin).parent, folder / "guard.so"
    paths = [f"-I{torch}/include", f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib"]
    command = ["g++", "-O1", "-shared", "-fPIC", "-std=c++20", "-x", "c++", "-", *paths, "-Wl,--no-as-needed"]
    built = subprocess.run(
        [*command, "-ltorch_cpu", "-lc10", "-o", str(library)], input=SOURCE, text=True, capture_output=True
    )
    if built.returncode:
        raise CannotBuild(f"the pretend GPU does not compile with this torch: {built.stderr.strip()[-300:]}")
    return library


def install(library: Path) -> None:
    """For the rest of this process."""
    importlib.import_module("torch")  # first: the libraries of a torch built with CUDA bring a guard of their own
    function = ctypes.CDLL(str(library)).install
    function.restype = ctypes.c_bool
    assert function()
