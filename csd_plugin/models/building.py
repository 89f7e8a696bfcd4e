"""Finds and builds what options name, like BasicSR, but a mistake is reported in one line with its key."""

from __future__ import annotations

import difflib
import dis
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from basicsr import archs
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from csd_plugin import compat
from csd_plugin.archs.interface import Interface, declared_interface, interface_of, interface_section
from csd_plugin.distill.settings import teacher_labels
from csd_plugin.distill.trial import is_ours
from csd_plugin.errors import CSDError, first_line, out_of_memory, refused_by_disk, suggestion, type_in_words
from csd_plugin.models.mixing import keywords_of
from csd_plugin.options.checks import distils

_OF_CONSTRUCTORS = (
    TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, OSError, LookupError, AttributeError,
    ImportError,
)  # fmt: skip
"""The errors of constructors for options that they cannot use, or if something is missing; includes CSDError."""


def network_names(opt: Mapping[str, Any]) -> list[str]:
    """`network_g`, and for distillation the teachers."""
    return ["network_g", *(f"network_{label}" for label in teacher_labels(opt) if distils(opt))]


def build_networks(opt: Mapping[str, Any]) -> tuple[dict[str, nn.Module], dict[str, Interface]]:
    """`network_g`, and for distillation the teachers, built from their options, with their interfaces.

    Raises CSDError for a network that cannot be built, or does not state how it is called.
    """
    networks = {name: build_network(opt[name], name) for name in network_names(opt)}
    return networks, {name: build_interface(network, opt, name) for name, network in networks.items()}


def build_network(content: dict[str, Any], where: str) -> nn.Module:
    """Build like the toolbox's build_network, which would start the logger before its file is known."""
    cls = find_type(ARCH_REGISTRY, content.get("type"), f"{where}.type")
    network: nn.Module = construct(cls, keywords_of(content), where)
    try:
        check_sizes(network, "but optimizer, average and checks need it before")
        _check_savable(network)
    except CSDError as error:
        raise CSDError(f"{where}: {error}") from error
    return network


def build_interface(network: nn.Module, opt: Mapping[str, Any], name: str) -> Interface:
    """How a network is called. Raises CSDError if nobody says it, or if a network of ours is to enlarge frames."""
    try:
        interface = interface_of(network, declared_interface(opt, name))
    except CSDError as error:
        raise CSDError(f"{name}: {error} in the section {interface_section(name)}") from error
    if interface.scale > 1 and is_ours(network):
        raise CSDError(
            f"{name}: frames from {type(network).__name__} are as large as its input, but the file's scale is "
            f"{interface.scale}; set scale: 1, or use a network for super-resolution"
        )
    return interface


def find_metrics(val: Mapping[str, Any]) -> dict[str, Any]:
    """The registered metric for each name in the section `val`. Raises CSDError for types that are not registered."""
    return {
        name: find_type(METRIC_REGISTRY, content.get("type"), f"val.metrics.{name}.type")
        for name, content in (val.get("metrics") or {}).items()
    }


def find_type(known: Any, name: Any, where: str) -> Any:
    """The entry of a toolbox registry, or a dict, with this name; the toolbox's own error would be a traceback."""
    names = list(known.keys())
    full = full_name(known, name)
    if full not in names:
        raise CSDError(f"{where}: {name!r} is unknown{suggestion(name, names)}")
    return known.get(full)


def full_name(known: Any, name: Any) -> Any:
    """The name under which a toolbox registry, or a dict, has an entry; unchanged if it has none.

    The registries also find `NAME_basicsr` by `NAME`, but print a line then that looks like an error.
    """
    names = list(known.keys())
    with_suffix = f"{name}_basicsr"
    return with_suffix if name not in names and with_suffix in names else name


def toolbox_network(content: Mapping[str, Any]) -> nn.Module:
    """The toolbox's `build_network`, for options that were checked; its class is found without a line on the screen."""
    network: nn.Module = archs.build_network({**content, "type": full_name(ARCH_REGISTRY, content["type"])})
    return network


def construct(cls: type, keywords: dict[str, Any], where: str) -> Any:
    """An instance. Raises CSDError for keywords that the class does not take, or values of the wrong type."""
    try:
        inspect.signature(cls).bind(**keywords)
    except TypeError as error:
        raise CSDError(f"{where}: {error}; check its keys") from error
    named = [name for name, one in inspect.signature(cls).parameters.items() if one.kind is not one.VAR_KEYWORD]
    for key in ignored_keys(cls, keywords):
        if difflib.get_close_matches(key, named, 1, cutoff=0.8):
            raise CSDError(f"{where}.{key}: {cls.__name__} takes it and never reads it{suggestion(key, named)}")
    with as_mistakes(where), compat.without_log(), compat.named_downloads():
        return cls(**keywords)


def ignored_keys(cls: type, keywords: Mapping[str, Any]) -> list[str]:
    """The keywords that a constructor takes as `**rest` and never reads, like SwinIR's; none where that is unclear."""
    code = getattr(cls.__init__, "__code__", None)  # type: ignore[misc]
    parameters = inspect.signature(cls).parameters
    rest = next((name for name, one in parameters.items() if one.kind is one.VAR_KEYWORD), "")
    if code is None or rest not in code.co_varnames or rest in code.co_cellvars or "locals" in code.co_names:
        return []
    if any(step.argval == rest for step in dis.get_instructions(code)):
        return []
    return [key for key in keywords if key not in parameters or key == rest]


@contextmanager
def as_mistakes(where: str, looked_up: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Inside, turn errors of constructors, also of other packages, into CSDErrors that begin with the key.

    looked_up: options that they get as one dict, in which a key may be missing.
    """
    try:
        yield
    except _OF_CONSTRUCTORS as error:
        if out_of_memory(error):
            raise
        text, advice = first_line(error), "; check its values"
        if isinstance(error, CSDError):
            text, advice = str(error), ""
        elif isinstance(error, ImportError):
            advice = "; install what it needs"
        elif isinstance(error, OSError) and refused_by_disk(error):
            text, advice = refused_by_disk(error), ""
        elif isinstance(error, KeyError) and looked_up is not None and error.args[0] not in looked_up:
            where = f"{where}.{error.args[0]}"
            text, advice = f"{looked_up['type']} needs it, but it is missing", "; give it"
        elif isinstance(error, LookupError):  # its message is only the key
            text = f"{type(error).__name__}: {text}"
        raise CSDError(f"{where}: {text}{advice}") from error


def check_sizes(module: nn.Module, why: str) -> None:
    """Raise CSDError for weights of lazy modules."""
    for name in (name for name, value in module.state_dict().items() if is_lazy(value)):
        raise CSDError(
            f"{type(module).__name__}: {name} is lazy: it gets its size from the first batch, {why}; use a layer with "
            f"sizes, such as Conv2d for LazyConv2d"
        )


def _check_savable(network: nn.Module) -> None:
    """Raise CSDError for an extra state that is no tensor: checkpoints are read as tensors alone."""
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise CSDError(
                f"{type(network).__name__}: {name} is {type_in_words(value)}, and checkpoints hold tensors alone; let "
                f"get_extra_state return a tensor"
            )
