"""Packages that only some jobs need: what is reported if one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from csd_plugin.errors import CSDError, announce
from csd_plugin.versions import check_versions

_ALWAYS = ("PIL", "av", "cv2", "filelock", "jinja2", "lmdb", "numpy", "safetensors", "torch", "tqdm")
"""The dependencies of pyproject.toml, by the modules that their packages hold."""
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
_COMMANDS = {
    "torchvision": "pip install torchvision, the version that goes with your torch",
    "basicsr": "pip install --no-build-isolation basicsr==1.4.2",  # its setup.py needs torch
}


@contextmanager
def needed_by(job: str) -> Iterator[None]:
    """Around imports, or a whole job: a package that is missing, or broken, is a CSDError that says what to do."""
    try:
        yield
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module in _COMMANDS:
            command = _COMMANDS[module]
        elif module in _IN_SOURCES:
            command = f"{_IN_SOURCES[module]} in the folder of csd-plugin's sources"
        else:
            raise
        fault = "" if isinstance(error, ModuleNotFoundError) else f", which cannot be imported ({error})"
        raise CSDError(f"{job} needs the package {module}{fault}: {command}") from error


@contextmanager
def or_exit(job: str) -> Iterator[None]:
    """`needed_by` while the toolbox and ours are imported, where nobody catches errors: the process ends with status 2.

    So it does where versions are too old.
    """
    try:
        check_versions(job, toolbox=True)
        with needed_by(job):
            yield
    except CSDError as error:
        announce(str(error))
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        announce("interrupted")
        raise SystemExit(130) from None
