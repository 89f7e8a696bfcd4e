"""Symbolic links in folders of frames: a stranger's folder must not make a file from elsewhere part of a result."""

from __future__ import annotations

import os
from pathlib import Path

from csd_plugin.errors import CSDError

FOLLOW = "CSD_FOLLOW_LINKS"
"""An environment variable: 1 for folders whose links the user has made."""


def leads_out(path: Path, root: Path) -> bool:
    """Whether `path`, below `root`, is a link to something that is not; `root` itself may be one."""
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def refuse_way_out(path: Path, root: Path) -> Path:
    """The path, or CSDError where `leads_out` and $CSD_FOLLOW_LINKS is not 1."""
    if os.environ.get(FOLLOW) != "1" and leads_out(path, root):
        raise CSDError(
            f"{path}: a link that leads out of {root}, to {os.path.realpath(path)}: if it is yours, set {FOLLOW}=1, or "
            f"put a copy in its place"
        )
    return path
