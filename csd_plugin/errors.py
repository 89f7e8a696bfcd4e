"""The exception that users see as a single line, and the lines for errors of disks, memory and data loaders."""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class CSDError(ValueError):
    """A mistake in the user's input, which the user can fix.

    `str(error)` is one line: what is wrong, where (file, key, clip, frame), and what to do.
    The command lines print it without a traceback and exit with status 2.
    """


def type_in_words(value: object) -> str:
    """What a value is, for messages: 'a list', 'an Image', 'None'."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def path_of(value: object, expected: str) -> Path:
    """A path that a caller has given. Raises CSDError, with what is `expected`, for anything but a str or path."""
    if isinstance(value, str | os.PathLike) and isinstance(given := os.fspath(value), str):
        return Path(given)
    raise CSDError(f"{type_in_words(value)} is not a path: give {expected}")


def one_line(error: CSDError) -> str:
    """The line to print, also where torch's data loader has wrapped a worker's error in its traceback."""
    return str(error).strip().splitlines()[-1].removeprefix(f"{CSDError.__module__}.{CSDError.__qualname__}: ")


def first_line(error: Exception) -> str:
    """The first line of another library's error, or its type if it has no message."""
    in_parts = len(error.args) > 1 and all(isinstance(part, str) for part in error.args)
    text = "".join(error.args) if in_parts else str(error)  # a comma too many between two literals
    return (text.strip().splitlines() or [type(error).__name__])[0]


def refused_by_disk(error: OSError) -> str:
    """The line to print if a disk is full, read-only, faulty, gone or not permitted, or for any other error of a file.

    Empty for an error that names no file and does not come from a disk.
    """
    if "No usable temporary directory" in str(error):
        return "no folder for temporary files can be written to; set TMPDIR to one that can"
    advice = _DISK.get(error.errno or 0)
    if advice is None and error.filename is None:
        return ""
    advice = advice or "check what is there, or give another place"
    about_target = error.errno in (*_IN_THE_WAY, *FULL)  # of two names, as where a file is copied
    file = error.filename2 if about_target and error.filename2 else error.filename
    where = f"{os.fsdecode(file)}: " if file else ""
    return f"{where}{str(error.strerror or error).lower()}; {advice}"


def at(path: Path, error: OSError) -> OSError:
    """The same error with a file's name, which the error of a disk that fills up during writing lacks."""
    return OSError(error.errno, error.strerror, str(path))


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a disk that has no room."""
_WRONG_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTEMPTY)
_NO_ROOM, _GONE = "make room there, and run again", "check that its disk is there, and run again"
_DISK = {
    **dict.fromkeys(FULL, _NO_ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "check its permissions, or give another place"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT), _GONE),
    **dict.fromkeys(_WRONG_PATH, "check the path"),
    **dict.fromkeys(_IN_THE_WAY, "remove what is there, or give another place"),
    errno.EBUSY: "end what uses it, or give another place",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "too many files are open; raise the limit (ulimit -n)"),
}


def cannot_write(path: Path, error: OSError) -> CSDError:
    """The error to raise if a file or folder could not be written: the place, the reason, and what to do about it."""
    reason, advice = error.strerror or error, _DISK.get(error.errno or 0, "give another place")
    blocked = Path(os.fsdecode(error.filename)) if error.errno == errno.EEXIST and error.filename else None
    if blocked and not blocked.is_dir():  # a file of the user's, or /dev/null: nothing to remove
        reason = f"{'it' if blocked == path else blocked} is there already, and is not a folder"
        advice = "give another place"
    return CSDError(f"{path}: cannot be written ({reason}); {advice}")


def out_of_memory(error: Exception) -> str:
    """The line to print if Python, numpy, a GPU or torch's allocator ran out of memory; else empty.

    The CPU allocator raises a plain RuntimeError, which only its message identifies.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not any(words in text for words in _NO_MEMORY):
        return ""
    return f"not enough memory ({first_line(error)}); use smaller frames, batches or networks"


@contextmanager
def graphs_apart() -> Iterator[None]:
    """Inside, a backward pass through the graph of an earlier batch, which is used up, is a CSDError."""
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise CSDError(
            "the student keeps something of one batch, such as a hidden state, and computes the next one's gradients "
            "through it: detach what it keeps, or let its forward begin anew at each call"
        ) from error


def lost_loader(error: BaseException | None) -> str:
    """The line to print if a data loader's process was killed; else empty. Only the message of the error shows it."""
    said, one = "", error
    while one is not None:  # torch raises in a signal handler, in the middle of whatever runs
        said, one = f"{said} {one}", one.__cause__ or one.__context__
    if not re.search(r"DataLoader worker .* (exited unexpectedly|is killed)", said) and not _cut_off(error):
        return ""
    found = re.search(r"is killed by signal: ([\w ]+)", said)
    signal = found[1] if found else ""
    causes = {
        "Bus error": "a file of the data set was cut short while it was read, or the shared memory of this machine "
        "(/dev/shm) is full",
        "Killed": "the machine may have run out of memory: use fewer workers (num_worker_per_gpu), or a smaller "
        "cache_mb",
    }
    cause = causes.get(signal, "the machine may have run out of memory, or something else has ended it")
    return f"a process that loads data has ended{f' ({signal.lower()})' if signal else ''}: {cause}"


def _cut_off(error: BaseException | None) -> bool:
    """Whether a process that was to hand over a tensor is gone, before torch has heard of its end."""
    frames = traceback.walk_tb(error.__traceback__) if isinstance(error, ConnectionError) else ()
    return any(str(frame.f_globals.get("__name__")).startswith("torch.multiprocessing.") for frame, _ in frames)


def odd_name(error: UnicodeEncodeError) -> str:
    """The line to print if a library refuses a file's name because it is not valid UTF-8; empty for other errors."""
    if not re.search("[\udc80-\udcff]", error.object):
        return ""
    name = error.object if len(error.object) < _LONGEST_SHOWN else f"{error.object[:_LONGEST_SHOWN]}.."
    shown = " ".join(name.split()).encode(errors="backslashreplace").decode()
    return f"{shown}: the name is not valid UTF-8, which is not supported here; rename it"


def users_line(error: Exception) -> str:
    """The line to print for an error caused by the user, a disk or a lack of memory; empty for other errors."""
    if isinstance(error, CSDError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return odd_name(error)
    if isinstance(error, RuntimeError) and re.search(r"determine (the )?home directory", str(error)):
        return "a library looks for your home folder, and there is none; set HOME to a folder"
    known = refused_by_disk(error) if isinstance(error, OSError) else out_of_memory(error)
    return known or lost_loader(error)


def announce(line: str) -> None:
    """Print the line with which a launcher ends."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    put_into_summary(line)


def put_into_summary(line: str) -> None:
    """Pass the line to torchrun, so that its traceback ends with it; without torchrun do nothing."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        message = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": message}), encoding="utf-8")


NOT_SERVED = (RuntimeError, AttributeError, TypeError)
"""What a private operation of torch raises: if a device or size is not supported, if this version of torch lacks it, or
if it takes other arguments there."""
_LONGEST_SHOWN = 300
"""Characters of a name in a message."""
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Storage size calculation overflowed")


def suggestion(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: '; did you mean NEAREST?', or the list of known names."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known) or 'none'}"
