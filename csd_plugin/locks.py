"""Locks that keep two commands from writing to one output, on one machine or on several that share its folder."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csd_plugin.atomic import hidden_name
from csd_plugin.errors import CSDError, at, cannot_write

_MARK = ".csd_lock"

_Release = Callable[[], None]


class _Taken(Exception):
    """Another process has the lock."""


@contextmanager
def alone(output: Path, *, wait: bool = False) -> Iterator[None]:
    """Inside, no other process can lock the same output, however its path is spelled.

    If another process has the lock now, raises CSDError, or waits until it is released.

    The operating system releases the lock when its process ends, however it ends. The lock is on a hidden, empty file
    beside the output, so it works between all users who can write there. The file is removed with the lock; one that a
    killed process leaves is removed by the next process. If no file can be made or locked there, the lock is in the
    folder of temporary files, and works between processes of one user with the same TMPDIR. Raises CSDError if
    something else is in the place of that folder, or if neither place can be written to.

    Args:
        output: a file or folder, which need not exist.
        wait: for another process, instead of raising.
    """
    real = Path(os.path.realpath(output))
    try:
        try:
            release = _beside(real, wait)
        except OSError as refused:
            release = _elsewhere(output, real, wait, refused)
    except _Taken as error:
        raise CSDError(
            f"{output}: another command is writing there now; wait until it ends, or give another output"
        ) from error
    try:
        yield
    finally:
        release()


def _beside(output: Path, wait: bool) -> _Release:
    """Take the lock in the output's folder, or in the nearest existing folder above it. Raises OSError and _Taken.

    Folders in between may be made at any time. A later command then locks further down, so it also checks the folders
    above for locks taken before.
    """
    while True:
        *missing, folder = _up_to_a_folder(output)
        release = _held(_file(folder, output), wait)
        try:
            if missing and missing[-1].is_dir():  # made before we had the lock, so others may not see it
                release()
                continue
            for above in folder.parents:
                with suppress(OSError):  # folders that we may not look into
                    if os.path.lexists(left := _file(above, output)):
                        _held(left, wait)()
        except BaseException:
            release()
            raise
        return release


def _elsewhere(output: Path, real: Path, wait: bool, refused: OSError) -> _Release:
    """Take the lock in the folder of temporary files. If that is impossible, too, raises the reason that matters.

    Args:
        refused: why it cannot be beside the output.
    """
    try:
        return _held(_folder() / f"{_digest(real)}.lock", wait)
    except OSError as error:
        if not os.access(real if real.is_dir() else _up_to_a_folder(real)[-1], os.W_OK):
            raise cannot_write(output, refused) from error
        raise


def _up_to_a_folder(output: Path) -> list[Path]:
    """The folders above an output, from its own up to the first that exists. Raises OSError if none does."""
    way = []
    for parent in output.parents:
        way.append(parent)
        if parent.is_dir():
            return way
    raise FileNotFoundError(output)


def _file(folder: Path, output: Path) -> Path:
    """The lock file of an output, in one of the folders above it."""
    name = output.name if folder == output.parent else _digest(output.relative_to(folder))[:16]
    return folder / hidden_name(name, _MARK)


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def _folder() -> Path:
    """The folder for locks that cannot be beside their outputs; made if needed.

    Its name can be predicted, so another user may have made it first. Raises CSDError then.
    """
    user = os.getuid() if hasattr(os, "getuid") else None  # on Windows every user has a folder of temporary files
    folder = Path(tempfile.gettempdir(), f"csd_plugin_locks{'' if user is None else user}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or user not in (None, found.st_uid):
        raise CSDError(
            f"{folder}: not a folder of yours, but locks are kept there; remove it, or set TMPDIR to another folder"
        )
    return folder


# ---------------------------------------------------------------------- one file
def _held(file: Path, wait: bool) -> _Release:
    """Make the file if needed and lock it; the result unlocks and removes it. Raises OSError and _Taken."""
    return _held_on_windows(file, wait) if os.name == "nt" else _held_on_posix(file, wait)


def _held_on_windows(file: Path, wait: bool) -> _Release:
    from filelock import FileLock, Timeout  # it removes its file itself

    lock = FileLock(file)
    try:
        lock.acquire(blocking=wait)
    except Timeout as error:
        raise _Taken from error
    return lock.release


def _held_on_posix(file: Path, wait: bool) -> _Release:
    import fcntl

    while True:
        handle, is_new = _opened(file)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_still(file, handle):
                break
        except BlockingIOError as error:
            os.close(handle)
            raise _Taken from error
        except OSError as error:  # this file system has no locks, so nobody can hold this one
            if is_new:
                file.unlink(missing_ok=True)
            os.close(handle)
            raise at(file, error) from error
        except BaseException:  # an interrupt during the wait
            os.close(handle)
            raise
        os.close(handle)  # its last owner has removed it

    owner = os.getpid()

    def release() -> None:
        if os.getpid() != owner:  # a forked child: the lock is its parent's to release
            return
        with suppress(OSError):
            if _is_still(file, handle) and not os.fstat(handle).st_size:  # a file with content is not a lock
                file.unlink()
        os.close(handle)

    return release


def _opened(file: Path) -> tuple[int, bool]:
    """A handle of the file, and whether we made it. Raises OSError, also if something else is in its place."""
    safely = os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        with suppress(FileExistsError):
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | safely, 0o666)
            with suppress(OSError):
                os.fchmod(handle, 0o666)  # for the folder's other users; NFS grants locks only to those who may write
            return handle, True
        with suppress(FileNotFoundError):  # it has just been removed
            try:
                return os.open(file, os.O_RDWR | safely), False
            except PermissionError:
                return os.open(file, os.O_RDONLY | safely), False


def _is_still(file: Path, handle: int) -> bool:
    """Whether the name still belongs to this file, and not to a newer one."""
    try:
        return os.path.samestat(os.lstat(file), os.fstat(handle))
    except FileNotFoundError:
        return False
