"""Toolboxes and projects on disk that can get a file of ours: what they are, and what they need."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from csd_plugin.errors import CSDError
from csd_plugin.lifeline import lifeline
from csd_plugin.versions import OPTIONS_OF_TODAY

MODELS, ARCHS = "models/csd_model.py", "archs/csd_arch.py"
"""The files to write. The toolbox imports all files in these folders whose names end in `_model.py` and `_arch.py`."""
_OPTIONS = "def ordered_yaml"
"""A part of `utils/options.py` in every BasicSR."""


@dataclass(frozen=True)
class Tree:
    """A package that imports all `models/*_model.py`: BasicSR's own, a fork's, or that of a project built on BasicSR.

    Attributes:
        package: its folder.
        toolbox: whether it is BasicSR itself or a fork; else it is a project that imports BasicSR.
    """

    package: Path
    toolbox: bool

    def __str__(self) -> str:
        if not self.toolbox:
            return f"the project {self.package.name} in {self.package}"
        return f"BasicSR{self._version()} in {self.package}"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it needs: also ARCHS if `functional_tensor` is imported before the models."""
        return (MODELS, ARCHS) if self.toolbox and self._wants_functional_tensor() else (MODELS,)

    @property
    def installed(self) -> bool:
        """Whether a package manager has put it there, and no version control has it."""
        return not {"site-packages", "dist-packages"}.isdisjoint(self.package.parts)

    def fault(self) -> str:
        """Why importing it in a new process does not register our models; empty if it does."""
        is_package = (self.package / "__init__.py").exists()
        folder, name = (self.package.parent, f"{self.package.name}.models") if is_package else (self.package, "models")
        return import_fault(name, folder)

    def _version(self) -> str:
        for file in (self.package / "version.py", self.package.parent / "VERSION"):
            found = re.search(r"\d+(\.\d+)+", _text(file))
            if found:
                return f" {found[0]}"
        return ""

    def _wants_functional_tensor(self) -> bool:
        """Whether it imports what torchvision 0.17 has moved. Its networks are imported before its data sets."""
        data = self.package / "data" / "degradations.py"
        scans = _scans(self.package / "archs" / "__init__.py", "_arch.py")
        return scans and "functional_tensor" in _text(data)


def find_tree(path: Path | None = None) -> Tree:
    """A toolbox or project on disk.

    Args:
        path: the package, or the folder above it; None for the one that `import basicsr` finds.

    Raises:
        CSDError: there is none, more than one, or one that is too old.
    """
    if path is None:
        spec = importlib.util.find_spec("basicsr")
        if spec is None or spec.origin is None:
            raise CSDError("no BasicSR is installed here; give the folder of your clone or project: csd link PATH")
        path = Path(spec.origin).parent
    if not path.is_dir():
        raise CSDError(f"{path}: {'not a folder' if path.exists() else 'does not exist'}; give your clone or project")
    path = path.resolve()
    inside = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    found = [path] if _is_scanned(path) else [folder for folder in inside if _is_scanned(folder)]
    if not found:
        raise CSDError(f"{path}: no BasicSR, and no project built on it: no models/__init__.py imports *_model.py")
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise CSDError(f"{path}: more than one package imports its *_model.py ({names}); give the folder of one")
    package = found[0]
    options, registry = _text(package / "utils" / "options.py"), (package / "utils" / "registry.py").is_file()
    toolbox = registry or _OPTIONS in options  # a project may have its own utils
    if toolbox and not (registry and OPTIONS_OF_TODAY in options):
        raise CSDError(f"{package}: this BasicSR is too old (no registries or --force_yml); use 1.4.2 or newer")
    return Tree(package, toolbox)


def import_fault(name: str, folder: Path | None = None) -> str:
    """Why importing a module in a new process does not register our models; empty if it does.

    Args:
        name: the module's.
        folder: where Python should look for it first.
    """
    folders = [str(folder)] if folder else []
    command = [sys.executable, "-c", _IMPORT, name, *folders]
    with lifeline() as line_to_us:
        run = subprocess.run(command, cwd=sys.prefix, capture_output=True, text=True, check=False, **line_to_us)
    lines = run.stderr.strip().splitlines()
    if run.returncode == 0:
        return ""
    if run.returncode == _UNKNOWN:
        said = [line for line in lines if line.startswith("csd-plugin")]
        return said[-1] if said else "this Python only finds csd-plugin in the current folder; install csd-plugin"
    reason = lines[-1] if lines else f"exit status {run.returncode}"
    cure = next((cure for words, cure in _CURES.items() if words in reason), "")
    return f"import {name} fails ({reason}){cure}"


_UNKNOWN = 3
_IMPORT = f"""
import importlib, sys
sys.path[:0] = sys.argv[2:]
importlib.import_module(sys.argv[1])
from basicsr.utils.registry import MODEL_REGISTRY
sys.exit(0 if any(cls.__module__.startswith("csd_plugin.") for _, cls in MODEL_REGISTRY) else {_UNKNOWN})
"""
_CURES = {  # the first that fits
    "operator torchvision::": "; `csd link --hook` repairs a torchvision without its compiled part",
    "functional_tensor": "; link the BasicSR that it imports as well (`csd link`), or use `csd link --hook`",
    ".version'": "; a clone's setup.py makes its version.py: run `python setup.py --version` there",
    "No module named 'basicsr": "; install BasicSR: python -m csd_plugin.install_basicsr",
}


def _is_scanned(folder: Path) -> bool:
    return _scans(folder / "models" / "__init__.py", "_model.py")


def _scans(init: Path, ending: str) -> bool:
    """Whether a package's `__init__` imports its files of this ending."""
    text = _text(init)
    return ending in text and "import_module" in text


def _text(file: Path) -> str:
    """Of a file; empty where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
