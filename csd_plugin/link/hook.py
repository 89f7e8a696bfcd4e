"""`csd link --hook`: one line in the environment's site-packages, by which every Python there waits for BasicSR."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from csd_plugin import atomic
from csd_plugin.errors import CSDError

NAME = "csd_plugin_hook.pth"
"""Read in the order of names: after the files by which installers make the plugin's own folder known."""
# One line is what Python runs. What is printed by an error here would be printed by every program.
LINE = r'import sys; exec("try:\n import csd_plugin.link.startup\nexcept (ImportError, OSError):\n pass")' + "\n"


def hook_file() -> Path:
    """Where the line is, or would be, of the Python that runs this."""
    return Path(sysconfig.get_path("purelib")) / NAME


def set_hook() -> bool:
    """Write the line; whether it was new. Raises CSDError."""
    if is_set():
        return False
    try:
        atomic.write_text(hook_file(), LINE)
    except OSError as error:
        raise _read_only(error) from error
    return True


def remove_hook() -> bool:
    """Remove the line; whether it was there. Raises CSDError."""
    there = hook_file().exists()
    try:
        hook_file().unlink(missing_ok=True)
    except OSError as error:
        raise _read_only(error) from error
    return there


def is_set() -> bool:
    """Whether the line is there, and is this version's."""
    return hook_file().is_file() and hook_file().read_text(encoding="utf-8", errors="replace") == LINE


def _read_only(error: OSError) -> CSDError:
    return CSDError(
        f"{hook_file()}: cannot be changed ({error.strerror}); use a virtual environment, or `csd link PATH`"
    )
