"""Two commands do not write to one output at the same time, on one machine or on several that share its folder."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csd_plugin.atomic import hidden_name
from csd_plugin.errors import CSDError, at

_MARK = ".csd_lock"

_Release = Callable[[], None]


class _Taken(Exception):
    """Somebody else has the lock."""


@contextmanager
def alone(output: Path, *, wait: bool = False) -> Iterator[None]:
    """Inside, no other process has the same output, by whatever spelling.

    Where one has it now, raises CSDError, or waits for its end.

    The lock is the system's, which ends it with its process, however that ends. It is on a hidden, empty file beside
    the output, which all who can write there meet at; the file is gone where nobody has the lock, but for one of a
    process that was killed, which the next one removes. Where no file can be made there, or be locked, it is
    among temporary files: those of one user with the same TMPDIR meet at it. Raises CSDError where something else is
    in the place of these.
    """
    real = Path(os.path.realpath(output))
    try:
        try:
            release = _beside(real, wait)
        except OSError:
            release = _held(_folder() / f"{_digest(real)}.lock", wait)
    except _Taken as error:
        raise CSDError(
            f"{output}: another command is writing there now; wait until it has ended, or give another output"
        ) from error
    try:
        yield
    finally:
        release()


def _beside(output: Path, wait: bool) -> _Release:
    """Take the lock in the output's folder, or in the nearest one above it that is there. Raises OSError and _Taken.

    The folders on the way may be made at any time. A command that looks later then finds its place further down, and
    looks for those who have come before them in the folders above.
    """
    while True:
        *missing, folder = _up_to_a_folder(output)
        release = _held(_file(folder, output), wait)
        try:
            if missing and missing[-1].is_dir():  # it was made before the lock was there: not all would see the lock
                release()
                continue
            for above in folder.parents:
                with suppress(OSError):  # of folders that may not be looked into
                    if os.path.lexists(left := _file(above, output)):
                        _held(left, wait)()
        except BaseException:
            release()
            raise
        return release


def _up_to_a_folder(output: Path) -> list[Path]:
    """The folders above an output, from its own on, up to the first that is there. Raises OSError without any."""
    way = []
    for parent in output.parents:
        way.append(parent)
        if parent.is_dir():
            return way
    raise FileNotFoundError(output)


def _file(folder: Path, output: Path) -> Path:
    """The file for the lock of an output in one of the folders above it."""
    name = output.name if folder == output.parent else _digest(output.relative_to(folder))[:16]
    return folder / hidden_name(name, _MARK)


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def _folder() -> Path:
    """Where the locks are that cannot be beside their outputs, made if need be.

    Everyone can tell its name, and take it before us.
    """
    user = os.getuid() if hasattr(os, "getuid") else None  # on Windows temporary files are each user's own
    folder = Path(tempfile.gettempdir(), f"csd_plugin_locks{'' if user is None else user}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or user not in (None, found.st_uid):
        raise CSDError(f"{folder}: is not a folder of yours, which the locks are kept in; remove it, or set TMPDIR")
    return folder


# ---------------------------------------------------------------------- one file
def _held(file: Path, wait: bool) -> _Release:
    """Make the file if need be, and lock it; what is returned ends that, and removes it. Raises OSError and _Taken."""
    return _held_on_windows(file, wait) if os.name == "nt" else _held_on_posix(file, wait)


def _held_on_windows(file: Path, wait: bool) -> _Release:
    from filelock import FileLock, Timeout  # which removes its file

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
        except OSError as error:  # this file system has no locks, so that nobody has this one
            if is_new:
                file.unlink(missing_ok=True)
            os.close(handle)
            raise at(file, error) from error
        except BaseException:  # while it waits
            os.close(handle)
            raise
        os.close(handle)  # who had it has removed it

    owner = os.getpid()

    def release() -> None:
        if os.getpid() != owner:  # a fork of it, which has the lock as long as its owner
            return
        with suppress(OSError):
            if _is_still(file, handle) and not os.fstat(handle).st_size:  # what has content is somebody else's
                file.unlink()
        os.close(handle)

    return release


def _opened(file: Path) -> tuple[int, bool]:
    """A handle of the file, and whether it was made now. Raises OSError, as where something else is in its place."""
    safely = os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        with suppress(FileExistsError):
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | safely, 0o666)
            with suppress(OSError):
                os.fchmod(handle, 0o666)  # other users of the folder lock it as well; NFS asks for the right to write
            return handle, True
        with suppress(FileNotFoundError):  # it has just been removed
            try:
                return os.open(file, os.O_RDWR | safely), False
            except PermissionError:
                return os.open(file, os.O_RDONLY | safely), False


def _is_still(file: Path, handle: int) -> bool:
    """Whether the file has its name, which another one may have by now."""
    try:
        return os.path.samestat(os.lstat(file), os.fstat(handle))
    except FileNotFoundError:
        return False
