"""`python -m csd_plugin.install_basicsr [pip's options]`: installs BasicSR 1.4.2 beside the torch that is there.

`pip install basicsr` alone fails or does too much: BasicSR's setup.py needs torch, which an isolated build lacks; its
torchvision replaces a torch of another version; and on Python 3.13 and later the setup.py ends in
`KeyError: '__version__'`. Here pip builds it in this environment, keeps torch, and runs setup.py as older Pythons did.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from csd_plugin.errors import announce
from csd_plugin.lifeline import lifeline
from csd_plugin.versions import TOOLBOX

_COMMAND = "python -m csd_plugin.install_basicsr"
_START_OF_BUILD = """
import builtins, sys

plain = builtins.exec


def exec_in_caller(source, /, globals=None, locals=None, *, closure=None):
    if globals is None:
        caller = sys._getframe(1)
        globals, locals = caller.f_globals, caller.f_locals
    plain(source, globals, locals, closure=closure)


builtins.exec = exec_in_caller
"""
"""Python runs this first in the build. Since 3.13 (PEP 667), what `exec` sets in a function is lost; setup.py reads its
version from there."""


def main(options: list[str]) -> int:
    """Install it; return pip's exit status, or 2 after one line on stderr."""
    if {"-h", "--help"} & set(options):
        print(__doc__)
        return 0
    if importlib.util.find_spec("pip") is None:
        announce(f"{_COMMAND} needs pip, which this environment lacks: run python -m ensurepip first")
        return 2
    try:
        torch = metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        announce(f"{_COMMAND} needs torch, which is not installed: run pip install torch first")
        return 2
    builders = [name for name in ("setuptools", "wheel") if importlib.util.find_spec(name) is None]
    if builders and (status := _pip_install([*options, *builders], dict(os.environ))):
        return status
    wanted = [f"torch=={torch}", "torchvision", f"basicsr=={TOOLBOX['basicsr']}"]
    with TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(_START_OF_BUILD, encoding="utf-8")
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        return _pip_install([*options, "--no-build-isolation", *wanted], os.environ | {"PYTHONPATH": path})


def _pip_install(arguments: list[str], environment: dict[str, str]) -> int:
    with lifeline(environment) as line_to_us:
        return subprocess.run([sys.executable, "-m", "pip", "install", *arguments], **line_to_us).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
