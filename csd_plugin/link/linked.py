"""The functions that the files of `csd link`, and its import hook, call. Neither raises anything.

A program may use the toolbox without us: any failure here is one line that says what to do, and the program continues.
"""

from __future__ import annotations

import sys
import traceback

from csd_plugin.errors import CSDError, first_line
from csd_plugin.extras import needed_by
from csd_plugin.versions import check_versions

_said: set[str] = set()
_refused = False
"""Whether preparing the imports failed, which was then reported."""


def prepare_imports() -> None:
    """`compat.prepare_imports`, before the toolbox is imported, or early in its import."""
    global _refused
    _refused = True
    try:
        check_versions("it", toolbox=True)
        with needed_by("it"):
            from csd_plugin import compat

            compat.prepare_imports()
        _refused = False
    except Exception as error:
        _say(error)


def activate() -> None:
    """`csd_plugin.activate()`, which may be called in the middle of the toolbox's own import."""
    if _refused:
        return
    try:
        check_versions("it", toolbox=True)
        with needed_by("it"):
            from csd_plugin.activation import activate

            activate(extensions=False)
    except Exception as error:
        _say(error)


def _say(error: Exception) -> None:
    """Report once per process, however many files and hooks call this."""
    line = f"csd-plugin is not active: {_fault(error)}"
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr, flush=True)


def _fault(error: Exception) -> str:
    """What failed, even if the error's message does not say it, and what to do; during an update by pip, a package may
    look broken."""
    if isinstance(error, CSDError):
        return first_line(error)
    cause = first_line(error)
    if not isinstance(error, ImportError):
        last = traceback.extract_tb(error.__traceback__)[-1]
        cause = f"{type(error).__name__}: {cause} ({last.filename}, line {last.lineno})"
    return f"{cause}; if pip is running, start again when it has ended, else install csd-plugin and what it needs again"
