"""`csd link --hook`: one line in site-packages, which adds our classes whenever this Python imports BasicSR."""

from __future__ import annotations

import inspect
import sysconfig
from pathlib import Path

from csd_plugin import atomic
from csd_plugin.errors import CSDError
from csd_plugin.link.standalone import call_linked, wait_for_toolbox

NAME = "csd_plugin_hook.pth"
"""Python runs the lines of such files when it starts."""


def _line() -> str:
    """The line, as Python runs single lines. It does not import csd-plugin, which may be updated or removed later."""
    functions = "\n\n".join(inspect.getsource(function) for function in (call_linked, wait_for_toolbox))
    text = f"# Written by csd-plugin; `csd link --hook --undo` removes it.\n{functions}\nwait_for_toolbox()\n"
    return f"import sys; exec({text!r}, {{'__name__': 'csd_plugin_hook'}})\n"


LINE = _line()


def hook_file() -> Path:
    """The path of the file with the line, whether it exists or not, for this Python."""
    return Path(sysconfig.get_path("purelib")) / NAME


def set_hook() -> bool:
    """Write the line. Returns whether it was new. Raises CSDError if it cannot be written."""
    if is_set():
        return False
    try:
        atomic.write_text(hook_file(), LINE)
    except OSError as error:
        raise _read_only(error) from error
    return True


def remove_hook() -> bool:
    """Remove the line. Returns whether it was there. Raises CSDError if it cannot be removed."""
    there = hook_file().exists()
    try:
        hook_file().unlink(missing_ok=True)
    except OSError as error:
        raise _read_only(error) from error
    return there


def is_set() -> bool:
    """Whether the line exists, and is this version's."""
    return hook_file().is_file() and hook_file().read_text(encoding="utf-8", errors="replace") == LINE


def _read_only(error: OSError) -> CSDError:
    return CSDError(
        f"{hook_file()}: cannot be changed ({error.strerror}); use a virtual environment, or `csd link PATH`"
    )
