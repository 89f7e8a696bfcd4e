"""A GPU for machines without one: tensors that say they are on cuda:0, and whose numbers lie on the CPU.

Inside `PretendGPU()` torch.cuda looks like one GPU, or several. Every operation of torch is checked for operands on two
devices, and counted as a launch; what makes the host wait for the device, or carries data between them, is noted with
the line of code that asked for it. It cannot see numerics of GPU libraries, real streams, memory, or Triton.
`guard.install` must have been called.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CPU = torch.device("cpu")

#: Operations that launch nothing: they make room, look at the same numbers otherwise, or only note something.
NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        *("alias", "detach", "lift_fresh", "set_.source_Tensor", "is_same_size", "_unsafe_view", "record_stream"),
        *("empty_like", "empty.memory_format", "empty_strided", "new_empty", "new_empty_strided"),
        "_local_scalar_dense",
    )
)
COPIES = frozenset(("aten::copy_", "aten::_to_copy", "aten::_copy_from_and_resize"))
INDEXING = frozenset(
    f"aten::{name}" for name in ("index.Tensor", "_unsafe_index.Tensor", "index_put", "index_put_", "_index_put_impl_")
)
#: The host needs to know what comes out, for a shape or a decision.
WAITING = frozenset(
    f"aten::{name}"
    for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")
)
CONVOLUTIONS = frozenset(("aten::convolution", "aten::convolution_backward"))

_gpu: PretendGPU | None = None


class Event(NamedTuple):
    """kind: `wait`, `to device, waiting`, `to device`, `to host`. part: what `PretendGPU.part` was. line: of ours."""

    kind: str
    operation: str
    part: str
    line: str


class GPUTensor(torch.Tensor):
    """numbers: the CPU tensor that holds them."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, index: int = 0) -> GPUTensor:
        assert type(numbers) is not GPUTensor
        return torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            layout=numbers.layout,
            device=torch.device("cuda", index),
            requires_grad=False,
        )

    def __init__(self, numbers: torch.Tensor, index: int = 0) -> None:
        self.numbers = numbers

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"GPUTensor({self.numbers!r})"

    def __tensor_flatten__(self) -> tuple[list[str], int]:
        """With its counterpart, what nn.Module.to wants of tensors that are more than their data."""
        return ["numbers"], self.device.index

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], index: int, size: Any, stride: Any) -> GPUTensor:
        return GPUTensor(inner["numbers"], index)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """torch.save and pickle: as a CPU tensor, which is what `map_location` makes of it."""
        if _gpu is not None:
            _gpu.note("to host", "pickle")
        return self.detach().numbers.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = GPUTensor(self.detach().numbers.clone(), self.device.index)
            is_parameter = getattr(self, "_is_param", False)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
            memo[id(self)].requires_grad_(self.requires_grad)
        return memo[id(self)]

    def record_stream(self, stream: Any) -> None:
        """Of no use where nothing runs ahead; torch's own takes streams of its own alone."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


def tensors_in(what: Any) -> Iterator[torch.Tensor]:
    """Those of an operation's arguments or results, which are lists, tuples and dicts; torch's pytree takes longer."""
    if isinstance(what, torch.Tensor):
        yield what
    elif isinstance(what, (list, tuple)):
        for part in what:
            yield from tensors_in(part)
    elif isinstance(what, dict):
        for part in what.values():
            yield from tensors_in(part)


def replaced(what: Any, kind: type[torch.Tensor], change: Callable[[Any], Any]) -> Any:
    """The same, with tensors of this kind changed."""
    if isinstance(what, kind):
        return change(what)
    if isinstance(what, (list, tuple)):
        return type(what)([replaced(part, kind, change) for part in what])
    if isinstance(what, dict):
        return {name: replaced(part, kind, change) for name, part in what.items()}
    return what


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if not torch.is_inference_mode_enabled():
        return run(func, args, kwargs)
    with torch.inference_mode(False), torch.no_grad():  # wrappers made in inference mode could be no views of others
        return run(func, args, kwargs)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: checked, noted, computed on the CPU, its results on the device that a GPU would leave them on."""
    name = func.name()
    tensors = list(tensors_in((args, kwargs)))
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, GPUTensor)]
    target = device_of(kwargs)
    if on_gpu and name not in COPIES:
        check_devices(name, args, tensors, on_gpu)
    if name == "aten::copy_":
        stays = isinstance(args[0], GPUTensor)
    else:
        stays = bool(on_gpu) if target is None else target.type == "cuda"
    if _gpu is not None:
        _gpu.observe(name, args, kwargs, on_gpu, tensors, stays)

    plain_args, plain_kwargs = replaced((args, kwargs), GPUTensor, lambda tensor: tensor.numbers)
    if target is not None and target.type == "cuda":
        plain_kwargs["device"] = CPU
    if stays:
        plain_kwargs.pop("pin_memory", None)
    out = compute(func, name, plain_args, plain_kwargs, on_gpu)
    if _gpu is not None and (stays or on_gpu):
        _gpu.count(func, name, tensors, out)
    if not stays:
        return out

    index = (target.index if target is not None and target.type == "cuda" else None) or (
        on_gpu[0].device.index if on_gpu else 0
    )
    wrapped = replaced(out, torch.Tensor, lambda t: t if isinstance(t, GPUTensor) else GPUTensor(t, index))
    if name == "aten::_to_copy" or not (on_gpu or name == "aten::copy_"):
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def check_devices(name: str, args: Any, tensors: list[torch.Tensor], on_gpu: list[GPUTensor]) -> None:
    """As a GPU's kernels do: all operands on one device; single numbers may be the host's, where torch takes them."""
    others = [tensor for tensor in tensors if not isinstance(tensor, GPUTensor)]
    wrong = [t for t in others if t.dim() > 0 and not (name in INDEXING and t is not args[0])]
    if name in ("aten::cat", "aten::stack"):
        wrong = others
    if wrong or len({tensor.device for tensor in on_gpu}) > 1:
        found = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {found}")


def compute(func: Any, name: str, args: Any, kwargs: dict[str, Any], on_gpu: list[GPUTensor]) -> Any:
    """On the CPU. Convolutions in 16 bits as tensor cores do them, sums in float32; a CPU's library errs there."""
    if name in FUSED:
        return FUSED[name](*args, **kwargs)
    halves = [t.dtype for t in on_gpu if t.dtype in (torch.bfloat16, torch.float16)]
    if name not in CONVOLUTIONS or not halves:
        return func(*args, **kwargs)
    out = func(*replaced(args, torch.Tensor, torch.Tensor.float), **kwargs)
    return replaced(out, torch.Tensor, lambda tensor: tensor.to(halves[0]))


def fused_lstm(gates: Any, others: Any, previous: Any, *biases: Any) -> Any:
    """As CUDA's kernel: (rows, 4 * hidden) twice, gates in the order i f g o -> hidden, cell and gates, activated."""
    assert not any(bias is not None for bias in biases)
    i, f, g, o = (gates + others).chunk(4, dim=1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cell = f * previous + i * g
    return o * cell.tanh(), cell, torch.cat([i, f, g, o], dim=1)


def fused_lstm_backward(grad_hidden: Any, grad_cell: Any, previous: Any, cell: Any, gates: Any, has_bias: bool) -> Any:
    assert not has_bias
    i, f, g, o = gates.chunk(4, dim=1)
    through = 0 if grad_cell is None else grad_cell
    grad_o = torch.zeros_like(o)
    if grad_hidden is not None:
        through = through + grad_hidden * o * (1 - cell.tanh().square())
        grad_o = grad_hidden * cell.tanh() * o * (1 - o)
    grads = through * g * i * (1 - i), through * previous * f * (1 - f), through * i * (1 - g.square()), grad_o
    return torch.cat(grads, dim=1), through * f, torch.empty(0)


def convolution_relu(x: Any, weight: Any, bias: Any, *how: Any) -> Any:
    return convolution_add_relu(x, weight, None, 1.0, bias, *how)


def convolution_add_relu(x: Any, weight: Any, other: Any, alpha: Any, bias: Any, *how: Any) -> Any:
    """As cuDNN's: summed in float32 and rounded once."""
    stride, padding, dilation, groups = how
    terms = (None if value is None else value.float() for value in (x, weight, bias))
    out = torch.ops.aten.convolution(*terms, stride, padding, dilation, False, [0] * len(stride), groups)
    return (out if other is None else out + alpha * other.float()).relu().to(x.dtype)


#: What a CPU has no kernel of.
FUSED = {
    "aten::_thnn_fused_lstm_cell": fused_lstm,
    "aten::_thnn_fused_lstm_cell_backward_impl": fused_lstm_backward,
    "aten::cudnn_convolution_relu": convolution_relu,
    "aten::cudnn_convolution_add_relu": convolution_add_relu,
}


def device_of(kwargs: dict[str, Any]) -> torch.device | None:
    return None if kwargs.get("device") is None else torch.device(kwargs["device"])


def is_view(func: Any) -> bool:
    aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
    return bool(func._schema.returns) and any(not alias.is_write for alias in aliases)


class Stream:
    """Of a device that does everything at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = torch.device("cuda", 0)

    def wait_stream(self, other: Stream) -> None:
        pass

    def synchronize(self) -> None:
        assert _gpu is not None
        _gpu.note("wait", "stream")


class PretendGPU(TorchDispatchMode):
    """events: waits and transfers. launches: operation -> how often. moved: part -> bytes read and written.

    part: what the next operations are counted for; tests may set it.
    """

    def __init__(self, devices: int = 1) -> None:
        super().__init__()
        self.devices = devices
        self.part = "all"
        self._patched: list[tuple[Any, str, Any]] = []
        self.forget()

    def forget(self) -> None:
        """What was counted."""
        self.events: list[Event] = []
        self.launches: Counter[str] = Counter()
        self.by_part: dict[str, Counter[str]] = {}
        self.moved: Counter[str] = Counter()

    @property
    def waits(self) -> list[Event]:
        """What made the host wait until the device had nothing left to do."""
        return [event for event in self.events if event.kind != "to device"]

    def note(self, kind: str, operation: str) -> None:
        self.events.append(Event(kind, operation, self.part, line_of_ours()))

    def observe(
        self, name: str, args: Any, kwargs: dict[str, Any], on_gpu: list[GPUTensor], tensors: list[Any], stays: bool
    ) -> None:
        """Note an operation that waits, or crosses between host and device."""
        by_mask = name in INDEXING and any(leaf.dtype in (torch.bool, torch.uint8) for leaf in tensors_in(args[1]))
        if on_gpu and (name in WAITING or by_mask):
            self.note("wait", name)
        elif name in COPIES and on_gpu and not stays:
            self.note("to host", name)
        elif name in COPIES and stays and not isinstance(args[1 if name == "aten::copy_" else 0], GPUTensor):
            unwaiting = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
            self.note("to device" if unwaiting else "to device, waiting", name)

    def count(self, func: Any, name: str, tensors: list[torch.Tensor], out: Any) -> None:
        if name in NO_KERNEL or is_view(func):
            return
        self.launches[name] += 1
        self.by_part.setdefault(self.part, Counter())[name] += 1
        self.moved[self.part] += sum(t.numel() * t.element_size() for t in (*tensors, *tensors_in(out)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = device_of(kwargs)
        given = tensors_in((args, kwargs))
        if (target is not None and target.type == "cuda") or any(isinstance(tensor, GPUTensor) for tensor in given):
            return dispatch(func, args, kwargs)
        return func(*args, **kwargs)

    def __enter__(self) -> PretendGPU:
        global _gpu
        torch._C._ensureCUDADeviceGuardSet()
        self._lift = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        answers = [(torch.cuda, name, value) for name, value in self._of_torch_cuda().items()]
        for owner, name, value in [*answers, (torch.backends.cudnn, "version", lambda: None)]:
            self._patched.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        _updated_together().append(GPUTensor)
        _gpu = self
        super().__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        global _gpu
        super().__exit__(*exc_info)
        _gpu = None
        _updated_together().remove(GPUTensor)
        for owner, name, value in reversed(self._patched):
            setattr(owner, name, value)
        self._patched.clear()
        torch._C._set_only_lift_cpu_tensors(self._lift)

    def _of_torch_cuda(self) -> dict[str, Any]:
        """What torch.cuda answers."""
        current, facts = threading.local(), SimpleNamespace(name="pretend", major=9, minor=0, total_memory=80 * 2**30)

        def set_device(device: Any) -> None:
            current.index = device if isinstance(device, int) else torch.device(device).index or 0

        return {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "_lazy_init": lambda: None,
            "device_count": lambda: self.devices,
            "current_device": lambda: getattr(current, "index", 0),
            "set_device": set_device,
            "synchronize": lambda *_: self.note("wait", "synchronize"),
            "empty_cache": lambda: None,
            "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda state, device="cuda": None,
            "manual_seed": lambda seed: None,
            "manual_seed_all": lambda seed: None,
            "get_device_name": lambda *_: facts.name,
            "get_device_capability": lambda *_: (facts.major, facts.minor),
            "get_device_properties": lambda *_: facts,
            "is_bf16_supported": lambda *_, **__: True,
            "is_current_stream_capturing": lambda: False,
            "device": lambda _: nullcontext(),
            "get_sync_debug_mode": lambda: 0,
            "set_sync_debug_mode": lambda _: None,
            "set_stream": lambda _: None,
            "Stream": Stream,
            "current_stream": lambda *_: Stream(),
            "stream": lambda stream: nullcontext(),
        }


def _updated_together() -> list[type]:
    """Kinds of tensors that optimizers update in one launch, not one by one."""
    return importlib.import_module("torch.optim.optimizer")._foreach_supported_types


def line_of_ours() -> str:
    """`file:line function` of the package or the toolbox that is at work."""
    frame = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if "csd_plugin" in code.co_filename or "basicsr" in code.co_filename:
            return f"{code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return "torch"
