"""What is called by the files that `csd link` writes, and by its import hook. Neither function raises anything.

A program may use the toolbox without us: whatever fails here is one line that says what to do, and the program goes on.
"""

from __future__ import annotations

import sys
import traceback

from csd_plugin.errors import CSDError, first_line
from csd_plugin.extras import needed_by
from csd_plugin.versions import check_versions

_said: set[str] = set()
_refused = False
"""Whether the imports could not be prepared; it has been told then."""


def prepare_imports() -> None:
    """Before the toolbox is imported, or early in it: `compat.prepare_imports`."""
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
    """`csd_plugin.activate()`, also in the middle of the toolbox's own import."""
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
    """Once in a process, however many files and hooks call."""
    line = f"csd-plugin is not active: {_fault(error)}"
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr, flush=True)


def _fault(error: Exception) -> str:
    """What failed, where that is not in its words, and what to do. A package that pip exchanges now may look broken."""
    if isinstance(error, CSDError):
        return first_line(error)
    cause = first_line(error)
    if not isinstance(error, ImportError):
        last = traceback.extract_tb(error.__traceback__)[-1]
        cause = f"{type(error).__name__}: {cause} ({last.filename}, line {last.lineno})"
    return f"{cause}; if pip is running, start again when it has ended, else install csd-plugin and what it needs again"
