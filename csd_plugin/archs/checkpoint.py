"""Reads checkpoint files as tensors, and as networks. Files are read as data only: they cannot run code."""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from csd_plugin import extensions
from csd_plugin.archs import NETWORKS
from csd_plugin.atomic import replacing
from csd_plugin.errors import CSDError, at, cannot_write, first_line, type_in_words
from csd_plugin.extras import needed_by

DAMAGED = (
    RuntimeError, ValueError, EOFError, LookupError, AssertionError, AttributeError, TypeError, OSError, struct.error,
    zipfile.BadZipFile, NotImplementedError,
)  # fmt: skip
"""The errors of torch's reader for files that are cut short or modified, whose content it trusts."""

PARAM_KEYS = ("params_ema", "params", "three_dim_model", "state_dict")
"""The entries that may hold the weights, best first: the toolbox's averaged and plain weights, the authors' dict, those
of Lightning, MMEngine and others."""

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|network)\.)+")
"""Prefixes that data parallel, torch.compile, averages and trainers put before a network's names."""
_OF_DISTILLER = re.compile(r"^((?:[^.]+\.)*?)(student|objectives|reconstruction)\.")
"""The pattern of all weight names of a `Distiller`: the name under which a model holds it, and its part."""
_HOLDER = re.compile(r"(?:(?:module|_orig_mod|distiller)\.)*")
"""Names of a `Distiller` in wrappers and models: what they hold is one, even without objectives."""
_NO_WEIGHT = "n_averaged"
"""The name of the counter in torch's AveragedModel."""

SAFETENSORS = ".safetensors"
MOST_BYTES = 2**31
"""The largest checkpoint or training state; those of this field are a hundred times smaller."""


def read_state_dict(path: str | Path, param_key: str | None = None, *, fallback: bool = False) -> dict[str, Tensor]:
    """The weights in a checkpoint: name -> tensor, on the CPU, without the prefixes of wrappers.

    Reads the toolbox's files (`params_ema`, `params`), the authors' (`three_dim_model`), MMEngine's (`state_dict`),
    bare state dicts, and the same in safetensors. Of a `Distiller`'s weights, the student's are returned.

    Args:
        param_key: the entry to read; by default the first of `PARAM_KEYS` that exists.
        fallback: if the file lacks `param_key`, read the default entry instead of raising.

    Raises:
        CSDError: the file does not exist, is not a checkpoint, lacks the entry, or holds more than data.
    """
    return weights_in(load_plain(path, "checkpoint"), str(path), param_key, fallback=fallback)


def weights_in(content: Any, path: str, param_key: str | None = None, *, fallback: bool = False) -> dict[str, Tensor]:
    """`read_state_dict` for the content of a checkpoint.

    Args:
        content: the file's content, as torch's reader returns it.
        path: the file, for messages.
        param_key, fallback: as for `read_state_dict`.

    Raises:
        CSDError: the content has no state dict of tensors, or no entry `param_key`.
    """
    state = entry_in(content, path, param_key, fallback=fallback)
    names = _of_student(state)
    names.pop(_NO_WEIGHT, None)
    bare = _without_wrappers(names.values())
    return {bare[short]: state[name] for name, short in names.items()}


def entry_in(content: Any, path: str, param_key: str | None = None, *, fallback: bool = False) -> dict[str, Tensor]:
    """`weights_in` with all names as in the file, for content that is not a network in a wrapper."""
    if not isinstance(content, Mapping):
        raise CSDError(f"checkpoint {path} holds {type_in_words(content)}, expected a dict of tensors")

    there = ", ".join(map(str, list(content)[:8])) or "nothing"
    key = entry_name(content, param_key, fallback=fallback)
    if key is not None:
        if key not in content:
            raise CSDError(f"checkpoint {path} has no entry {key!r}; it has {there}")
        content = content[key]
    if not _is_state(content):
        raise CSDError(
            f"checkpoint {path} holds no state dict of tensors; expected one of the keys {', '.join(PARAM_KEYS)}; it "
            f"has {there}"
        )
    return {str(name): value for name, value in content.items()}


def entry_name(content: Mapping[str, Any], param_key: str | None = None, *, fallback: bool = False) -> str | None:
    """The entry of a checkpoint that `weights_in` reads; None if the file is a single state dict.

    Without any of `PARAM_KEYS` it is the only entry that holds a state dict, whatever its name.
    """
    if param_key is not None and (param_key in content or not fallback):
        return param_key
    known = next((key for key in PARAM_KEYS if key in content), None)
    others = [key for key, value in content.items() if _is_state(value)]
    return others[0] if known is None and len(others) == 1 else known


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(map(is_plain, value.values()))


def is_plain(value: Any) -> bool:
    """Whether it is a tensor whose values are all stored: a file can claim any shape with a few bytes."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _of_student(names: Iterable[str]) -> dict[str, str]:
    """The student's names, if the names are those of a `Distiller`, or of a model that holds one; else all of them.

    Each with the name that it has in the student. Other parts of the model, such as the student once more, are
    left out. A network may itself have a part `student`: then its other parts are not those of a distiller.
    """
    names = list(names)
    parts = {name: match for name in names if (match := _OF_DISTILLER.match(name))}
    whole = {match[1] for match in parts.values() if match[2] == "objectives"}
    of_students = {match[1] for match in parts.values() if match[2] == "student"}
    # without objectives, only the holder's name tells that it is one
    holders = of_students & whole or {holder for holder in of_students if _HOLDER.fullmatch(holder)}
    if len(holders) == 1:
        [holder] = holders
        inside = [name for name in names if name.startswith(holder) and name != _NO_WEIGHT]
        if all(name in parts and parts[name][1] == holder for name in inside):
            return {name: name[parts[name].end() :] for name in inside if parts[name][2] == "student"}
    return {name: name for name in names}


def _without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Name -> the name without wrappers' prefixes; unchanged if two names would become equal."""
    bare = {name: _WRAPPERS.sub("", name) for name in names}
    return bare if len(set(bare.values())) == len(bare) else {name: name for name in bare}


def load_plain(path: str | Path, what: str) -> Any:
    """The content of a file of torch.save or safetensors, as data only, on CPU. `what` begins CSDError's message."""
    path = Path(path)
    if path.is_dir():
        raise CSDError(f"{what} {path} is a folder; name a file in it")
    if not path.is_file():
        raise CSDError(f"{what} {path} does not exist; check the path")
    if path.stat().st_size > MOST_BYTES:
        raise CSDError(f"{what} {path} has more than {MOST_BYTES >> 30} GB, so it is not loaded; is it the right file?")
    if _is_safetensors(path):
        return _load_safetensors(path, what)
    try:
        _check_archive(path, what)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # other ones are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except CSDError:
        raise
    except pickle.UnpicklingError as error:  # torch's own message suggests running the code
        other = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
        raise _mistaken(path, what) or CSDError(
            f"{what} {path} is damaged, or holds more than tensors and plain data{f' ({other[1]})' if other else ''}, "
            f"so it is not loaded; use another copy, or save it again as a plain state dict"
        ) from error
    except DAMAGED as error:
        cut = CSDError(f"{what} {path} cannot be read: it is cut short or damaged; use another copy")
        raise _mistaken(path, what) or cut from error


def _mistaken(path: Path, what: str) -> CSDError | None:
    """The error for a file of `csd export` or an option file, which are not checkpoints; None for other files."""
    graph = path.with_suffix(".xml")
    if path.suffix.lower() == ".bin" and graph.is_file():
        return CSDError(f"{what} {path} holds the weights of {graph}; give {graph}")
    if path.suffix.lower() == ".pt2":
        return CSDError(
            f"{what} {path} is a program for torch.export.load, and is not run here; export .onnx or .xml, or give the "
            f"checkpoint"
        )
    if path.suffix.lower() in (".yml", ".yaml"):
        return CSDError(
            f"{what} {path} is an option file; give the checkpoint of its run, experiments/NAME/models/net_g_latest.pth"
        )
    return None


def save_plain(content: Any, path: Path, *, synced: bool = False) -> None:
    """Save a checkpoint or state; it appears complete or not at all, see `replacing`. Raises OSError, with its name."""
    try:
        with replacing(path, synced=synced) as draft:
            draft.write_bytes(as_file(content))
    except OSError as error:
        raise at(path, error) from error


def save_network(network: nn.Module, path: Path) -> None:
    """Save a network's weights as a checkpoint. Raises CSDError if it cannot be written."""
    try:
        save_plain({"params": network.state_dict()}, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def as_file(content: Any) -> bytes:
    """The bytes that torch.save writes, independent of the file's name.

    Other code writes them to the disk: torch's writer puts the file's name into the file, and if a write fails in the
    middle, it ends the whole process.
    """
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()  # not a view: if writing fails, Python 3.12.1 crashes with one


def _check_archive(path: Path, what: str) -> None:
    """Compare a file of torch.save with its stored checksums, which torch's own reader ignores.

    torch.save does not compress: a file that claims to unpack to more than its size is a bomb. Files from before torch
    1.6 are not archives, and have no checksums.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise CSDError(f"{what} {path} is not as torch.save writes files, so it is not loaded; save it again")
        damaged = archive.testzip()
    if damaged is not None:
        raise CSDError(f"{what} {path} is damaged: {damaged} is not what was saved; use another copy")


def _is_safetensors(path: Path) -> bool:
    """Whether it is such a file, by its name or its start: the length of a JSON text, then that text."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:  # torch's reader will raise it again
        return False
    length = int.from_bytes(head[:8], "little")
    return path.suffix.lower() == SAFETENSORS or (head[8:] == b"{" and length < path.stat().st_size)


def _load_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    with needed_by(f"reading {path}"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CSDError(f"{what} {path} cannot be read: it is cut short or damaged; use another copy") from error


def load_weights(network: nn.Module, state: Mapping[str, Tensor], *, source: str, strict: bool = True) -> list[str]:
    """Load a state dict into a network. If it does not fit, raise CSDError with the reason; the network is unchanged.

    The error is also raised for weights that are NaN or infinite, which a network would pass on to every frame.
    Prefixes of wrappers are ignored on both sides, and so is that of the network in a trainer's file (`model.`). Lazy
    modules get the sizes of the file, or none.

    Args:
        state: name -> tensor.
        source: begins the messages.
        strict: all names must match. Otherwise half of the network's must, as fewer belong to another network.

    Returns:
        The names of the tensors that the state dict lacks.
    """
    own = network.state_dict()
    full = {bare: name for name, bare in _without_wrappers(own).items()}
    bare_names = _without_wrappers(state)
    state = {full.get(bare_names[name], name): value for name, value in state.items()}
    lazy = {name for name, value in own.items() if is_lazy(value)}
    state = _of_part(state, own.keys() - lazy, source)
    for name in own:
        if name in state and name not in lazy and own[name].shape != state[name].shape:
            raise CSDError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, but the network expects "
                f"{tuple(own[name].shape)}; the checkpoint is for another size: make the network's options match it"
            )
        if name in state and own[name].is_complex() != state[name].is_complex():  # torch would drop the imaginary part
            there, here = ("complex", "real") if state[name].is_complex() else ("real", "complex")
            raise CSDError(
                f"{source}: {name} has {there} numbers, but the network expects {here} ones; the checkpoint is for "
                f"another network: make the network's options match it"
            )
        if name in state and own[name].is_floating_point() and not _has_fractions(state[name]):
            raise CSDError(
                f"{source}: {name} has whole numbers ({str(state[name].dtype).removeprefix('torch.')}), but the "
                f"network expects fractions; the checkpoint is of a quantized network: take the one that it was made of"
            )
    missing, unexpected = sorted(own.keys() - state.keys() - lazy), sorted(state.keys() - own.keys())
    if strict and (missing or unexpected):
        what = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, unknown to the network"
        raise CSDError(
            f"{source}: {what} ({len(missing)} missing, {len(unexpected)} unexpected in all); "
            f"the checkpoint is for another network: make the network's options match it"
        )
    matched = len(own) - len(missing)
    if 2 * matched < len(own):
        raise CSDError(
            f"{source}: it has only {matched} of the network's {len(own)} tensors; it begins with {next(iter(state))}, "
            f"the network with {next(iter(own))}: the checkpoint is for another network; make the network's options "
            f"match it"
        )
    _check_values(network, state, source)
    network.load_state_dict(dict(state), strict=False)
    return missing


def _check_values(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raise CSDError if a tensor holds NaN or infinity, in the network's type of numbers.

    A buffer may hold it where the network's own does: a mask.
    """
    learned, bad = {name for name, _ in network.named_parameters()}, []
    own = {name: value for name, value in network.state_dict().items() if name in state}
    for name, value in own.items():
        broken = ~state[name].to(value.dtype).isfinite()
        if name not in learned and not is_lazy(value) and broken.any():
            broken &= value.isfinite().to(broken.device)
        bad += [name] if broken.any() else []
    if bad:
        count = f", as {len(bad)} of its {len(own)} tensors do" if len(bad) > 1 else ""
        raise CSDError(
            f"{source}: its weight {bad[0]} holds NaN or infinity{count}; use another checkpoint, such as one that its "
            f"training saved earlier"
        )


def _has_fractions(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _of_part(state: Mapping[str, Tensor], names: Collection[str], source: str) -> Mapping[str, Tensor]:
    """The weights of one part, where all of a network's names are in a state dict behind its name; else all of it.

    Raises CSDError where they are there more than once, and differ.
    """
    if not names or any(name in state for name in names):
        return state
    first = min(names)
    prefixes = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    parts = {prefix: _part(state, prefix) for prefix in prefixes if all(f"{prefix}{name}" in state for name in names)}
    return parts[_only(parts, source)] if parts else state


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without this beginning."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _only(parts: Mapping[str, Mapping[str, Tensor]], source: str) -> str:
    """The prefix of a file's only network, the first of several equal ones. Raises CSDError if they differ."""
    (prefix, part), *others = parts.items()
    for _, other in others:
        if part.keys() != other.keys() or not all(torch.equal(part[name], other[name]) for name in part):
            raise CSDError(
                f"{source}: it has the network's weights more than once, as {' and '.join(map(repr, parts))}; save "
                f"those of one as a state dict of their own"
            )
    return prefix


def check_finite(network: nn.Module, source: str) -> None:
    """Raise CSDError, which begins with `source`, for a network whose weights hold NaN or infinity."""
    for name, weight in network.state_dict().items():
        if not is_lazy(weight) and weight.is_floating_point() and not weight.isfinite().all():
            raise CSDError(f"{source}: its weight {name} holds NaN or infinity; use another checkpoint")


def load_network(path: str | Path, param_key: str | None = None) -> nn.Module:
    """A trained network of one of `NETWORKS`, in eval mode; its numbers are read off the weights. Raises CSDError.

    Does not change torch's random state.
    """
    with torch.random.fork_rng(devices=()):  # layers are initialised randomly
        return _load_network(path, param_key)


def _load_network(path: str | Path, param_key: str | None) -> nn.Module:
    state = read_state_dict(path, param_key)
    for name in (name for name, value in state.items() if value.is_complex()):  # runtimes only support real numbers
        raise CSDError(
            f"checkpoint {path}: {name} has complex numbers; networks with such weights are trained and tested by "
            f"option files (csd_plugin.train, csd_plugin.test) only"
        )
    network, faults = network_of(state), []
    if network is None or not _fits(network, state):  # other packages are imported only if they are needed
        faults = list(extensions.load())
        network = network_of(state)
    if network is None and (parts := _networks_within(state)):
        state = _part(state, _only(parts, f"checkpoint {path}"))
        network = network_of(state)
    if network is None:
        known = ", ".join(name for name, cls in NETWORKS.items() if hasattr(cls, "numbers_from_state"))
        also = "".join(f"; {fault}" for fault in faults)
        raise CSDError(
            f"checkpoint {path}: its weights belong to no known network; known: {known}; test others by an option file "
            f"(csd_plugin.test), or add them by numbers_from_state (docs/toolboxes.md){also}"
        )
    load_weights(network, state, source=f"checkpoint {path}")
    return network.eval()


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load the `state_dict` of a similar optimizer, read from a file, into this one. Raises CSDError."""
    try:
        check_kind(optimizer, state)
        optimizer.load_state_dict(state)
        kept = [
            (p, name, value)
            for group in optimizer.param_groups
            for p in group["params"]
            for name, value in optimizer.state[p].items()
        ]
    except CSDError:
        raise
    except DAMAGED as error:
        raise CSDError(f"its optimizer's state does not fit {type(optimizer).__name__}: {first_line(error)}") from error
    for parameter, name, value in kept:
        if not isinstance(value, Tensor):
            continue
        if is_lazy(parameter):
            raise CSDError("its optimizer has a lazy weight whose size is in no file; is objective_N.pth missing?")
        if not (is_plain(value.cpu()) and _of_weight(value.shape, parameter.shape)):
            raise CSDError(f"its optimizer has a tensor {tuple(value.shape)} for a weight {tuple(parameter.shape)}")
        if value.shape == parameter.shape and value.stride() != parameter.stride():
            # fused optimizers need the state in the memory layout, device and precision of the weight
            optimizer.state[parameter][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_kind(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Raise CSDError if the `state_dict` is of an optimizer of another kind, by the names of its settings."""
    for group, was in zip(optimizer.param_groups, state["param_groups"], strict=False):
        if was.keys() - group.keys() and group.keys() - was.keys():
            raise CSDError(f"it was saved by an optimizer other than {type(optimizer).__name__}")


def _of_weight(shape: torch.Size, weight: torch.Size) -> bool:
    """Whether an optimizer may keep such a tensor for a weight: one number, or one per element, row or column."""
    return not shape or (len(shape) == len(weight) and all(a in (1, b) for a, b in zip(shape, weight, strict=True)))


def network_of(state: Mapping[str, Tensor]) -> nn.Module | None:
    """The network of the table to which a state dict belongs, with random weights; None if it belongs to none.

    If several classes accept it, as layers often have the same names, the first one with the same tensors is used.
    """
    claimed = None
    for cls in NETWORKS.values():
        numbers = _numbers_from(cls, state)
        if numbers is not None:
            network = cls(**numbers)
            if _fits(network, state):
                return network
            claimed = network if claimed is None else claimed
    return claimed


def _networks_within(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Prefix -> weights of each known network that a trainer holds under a name, `model.`, in part of a state dict."""
    parts = {}
    for prefix in dict.fromkeys(name[: dot.end()] for name in state for dot in re.finditer(r"\.", name)):
        part = _part(state, prefix)
        network = network_of(part)
        if network is not None and _fits(network, part):
            parts[prefix] = part
    return parts


def _numbers_from(cls: type[nn.Module], state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """`cls.numbers_from_state`, if the class has it. Raises CSDError if that fails for other networks' weights."""
    if not hasattr(cls, "numbers_from_state"):
        return None
    try:
        return cls.numbers_from_state(state)
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CSDError(
            f"{cls.__module__}.{cls.__qualname__}.numbers_from_state fails for weights that may be another network's: "
            f"{first_line(error)}; let it return None for them"
        ) from error


def _fits(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    return network.state_dict().keys() == state.keys()
