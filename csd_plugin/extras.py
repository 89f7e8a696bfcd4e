"""What only some jobs need, packages and a folder for temporary files: what is reported if it is missing."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from csd_plugin.errors import CSDError, announce, first_line, refused_by_disk
from csd_plugin.versions import check_versions

_ALWAYS = ("PIL", "av", "cv2", "filelock", "jinja2", "lmdb", "numpy", "safetensors", "torch", "tqdm")
"""The dependencies of pyproject.toml, by the names under which they are imported."""
_EXTRAS = {
    "train": ("mmengine", "pydantic", "scipy", "tensorboard", "yaml"),
    "archives": ("libarchive", "rarfile"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino",),
    "figures": ("matplotlib",),
    "metrics": ("lpips", "mmeval"),
}
"""Its extras, likewise."""
_IN_SOURCES = {module: f"pip install '.[{extra}]'" for extra, modules in _EXTRAS.items() for module in modules}
_IN_SOURCES |= dict.fromkeys(_ALWAYS, "pip install .")
_COMMANDS = dict.fromkeys(("torchvision", "basicsr"), "python -m csd_plugin.install_basicsr")


_LAUNCHERS = (*_ALWAYS, *_COMMANDS, *_EXTRAS["train"])
"""What training and testing with the toolbox need, in the order in which it is to be installed."""


_NOT_MAPPED = "failed to map segment from shared object"
"""What the system's loader says of a library that does not fit into memory; torch's alone take gigabytes of it."""


@contextmanager
def needed_by(job: str, others: Iterable[str] = ()) -> Iterator[None]:
    """Around imports or a whole job: raise CSDError, with what to do, for a missing or broken package.

    Args:
        others: modules that the job also needs; missing ones are named in the same line.
    """
    try:
        yield
    except ImportError as error:
        if _NOT_MAPPED in str(error):
            raise CSDError(
                f"{job}: not enough memory to load the libraries ({first_line(error)}): free some, or raise the limit "
                f"(ulimit -v)"
            ) from error
        module = (error.name or "").partition(".")[0]
        if module not in _COMMANDS and module not in _IN_SOURCES:
            raise
        if not isinstance(error, ModuleNotFoundError):
            raise CSDError(
                f"{job} needs the package {module}, which cannot be imported ({error}): {_commands([module])}"
            ) from error
        missing = [other for other in others if other == module or not _is_there(other)] or [module]
        plural = "s" * (len(missing) > 1)
        raise CSDError(f"{job} needs the package{plural} {', '.join(missing)}: {_commands(missing)}") from error


def _is_there(module: str) -> bool:
    with suppress(ImportError):
        return importlib.util.find_spec(module) is not None
    return False


def _commands(modules: Iterable[str]) -> str:
    """The commands that install them, each once."""
    commands = [
        _COMMANDS.get(module) or f"{_IN_SOURCES[module]} in the folder of csd-plugin's sources" for module in modules
    ]
    return "; ".join(dict.fromkeys(commands))


def check_temporary_folder() -> None:
    """Raise CSDError if no temporary file can be made: torch makes some as soon as it trains or exports."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise CSDError(refused_by_disk(error)) from error


@contextmanager
def or_exit(job: str) -> Iterator[None]:
    """`needed_by` for the imports of the launchers, where nobody catches errors: the process ends with status 2.

    The same happens if a version is too old, or if no temporary file can be made.
    """
    try:
        check_versions(job, toolbox=True)
        check_temporary_folder()
        with needed_by(job, _LAUNCHERS):
            yield
    except CSDError as error:
        announce(str(error))
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        announce("interrupted")
        raise SystemExit(130) from None
