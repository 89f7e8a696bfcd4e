"""The oldest Python and packages that this code runs with, and the error for older ones.

`docs/troubleshooting.md` lists the tested versions; `pyproject.toml` has the same numbers for pip.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata

from csd_plugin.errors import CSDError

PYTHON = "3.11"
OLDEST = {"av": "18.1", "numpy": "1.26", "torch": "2.4"}
"""What the whole package needs."""
TOOLBOX = {"basicsr": "1.4.2", "torchvision": "0.19"}
"""What training with BasicSR needs in addition."""
OPTIONS_OF_TODAY = "_postprocess_yml_value"
"""What `basicsr.utils.options` has since 1.3.4.2: a clone without it is too old. Clones are not installed packages."""


def check_versions(job: str, *, toolbox: bool = False) -> None:
    """Raise CSDError for the first package that is too old. Missing packages are reported where they are imported."""
    if _numbers(sys.version) < _numbers(PYTHON):
        raise CSDError(f"{job} needs Python {PYTHON} or newer, and this is {sys.version.split()[0]}")
    for name, oldest in {**OLDEST, **(TOOLBOX if toolbox else {})}.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        # None after an interrupted pip, which had not yet written the version
        if found is not None and _numbers(found) < _numbers(oldest):
            raise CSDError(
                f"{job} needs {name} {oldest} or newer, and {found} is installed: pip install '{name}>={oldest}'"
            )


def under_transforms() -> bool:
    """Whether transforms of `torch.func` (`grad`, `vmap`, ..) are active; torch has no public name for it."""
    import torch  # here, as this module checks torch before it is imported

    return torch._C._are_functorch_transforms_active()


def keep_graphs() -> None:
    """Let compiled networks run backward through a graph more than once, as others can; torch 2.4 always allows it.

    What was compiled before is compiled again at its next call.
    """
    import torch  # here, as this module checks torch before it is imported
    from torch._functorch import config

    if getattr(config, "donated_buffer", False):
        config.donated_buffer = False
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 4, 1) of '2.4.1+cpu'."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))
