"""Symbolic links in folders of frames: an untrusted folder must not bring in files from elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from csd_plugin.errors import CSDError

FOLLOW = "CSD_FOLLOW_LINKS"
"""An environment variable: 1 allows links out of folders, for users who have made the links themselves."""


def leads_out(path: Path, root: Path) -> bool:
    """Whether `path`, which is below `root`, resolves to a place outside of it; `root` itself may be a link."""
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def refuse_way_out(path: Path, root: Path) -> Path:
    """The path; raises CSDError if it `leads_out` and $CSD_FOLLOW_LINKS is not 1."""
    if os.environ.get(FOLLOW) != "1" and leads_out(path, root):
        raise CSDError(
            f"{path}: a link that leads out of {root}, to {os.path.realpath(path)}: if it is yours, set {FOLLOW}=1, or "
            f"replace it with a copy"
        )
    return path
