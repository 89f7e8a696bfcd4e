"""Two commands of one machine do not write to one output at the same time."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csd_plugin.errors import CSDError


@contextmanager
def alone(output: Path, *, wait: bool = False) -> Iterator[None]:
    """Inside, no other process has the same output, by whatever spelling.

    Where one has it now, raises CSDError, or waits for its end. Raises CSDError, too, where something else is in the
    place of the locks.

    The lock is the system's, which ends it with its process, however that ends; its file is with other temporary ones,
    so that nothing is left next to the output.
    """
    from filelock import FileLock, Timeout  # `csd link` works in environments without anything, to say what is missing

    name = hashlib.sha256(os.fsencode(os.path.realpath(output))).hexdigest()
    lock = FileLock(_folder() / f"{name}.lock")
    try:
        lock.acquire(blocking=wait)
    except Timeout as error:
        raise CSDError(
            f"{output}: another command is writing there now; wait until it has ended, or give another output"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _folder() -> Path:
    """Where the locks are, made if need be. Everyone can tell its name, and take it before us."""
    user = os.getuid() if hasattr(os, "getuid") else None  # on Windows temporary files are each user's own
    folder = Path(tempfile.gettempdir(), f"csd_plugin_locks{'' if user is None else user}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or user not in (None, found.st_uid):
        raise CSDError(f"{folder}: is not a folder of yours, which the locks are kept in; remove it, or set TMPDIR")
    return folder
