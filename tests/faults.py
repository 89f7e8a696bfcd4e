"""Disks that fail at a chosen moment: a process whose writes another one may refuse, whoever makes them.

The kernel asks the watching process at every system call that writes (seccomp's user notification), so that C libraries
are met as Python's own files are: LMDB, FFmpeg, OpenCV, torch. It needs Linux 5.5 or newer on x86-64, no rights and no
compiler.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from forks import end_with

OPEN, WRITE, RENAME, MKDIR, LINK, SYNC, SIZE = OPERATIONS = ("open", "write", "rename", "mkdir", "link", "sync", "size")

# By system call: the operation, the argument that holds the file, and for paths the argument that holds the folder
# that they are relative to, None for the current one.
_CALLS: dict[int, tuple] = {
    1: (WRITE, 0), 18: (WRITE, 0), 20: (WRITE, 0), 296: (WRITE, 0), 328: (WRITE, 0), 40: (WRITE, 0), 326: (WRITE, 2),
    74: (SYNC, 0), 75: (SYNC, 0), 77: (SIZE, 0), 285: (SIZE, 0),
    2: (OPEN, 0, None), 85: (OPEN, 0, None), 257: (OPEN, 1, 0),
    82: (RENAME, 1, None), 264: (RENAME, 3, 2), 316: (RENAME, 3, 2), 83: (MKDIR, 0, None), 258: (MKDIR, 1, 0),
    86: (LINK, 1, None), 265: (LINK, 3, 2), 88: (LINK, 1, None), 266: (LINK, 2, 1),
}  # fmt: skip
_SECCOMP = 317
_FLAGS = {2: 1, 257: 2}
"""The argument that holds the flags, of calls that open."""

_FILTER, _NEW_LISTENER, _NO_NEW_PRIVILEGES = 1, 8, 38
_ASK, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_QUESTION, _ANSWER = struct.Struct("<QIIiIQ6Q"), struct.Struct("<QqiI")
_MADE_UP = re.compile(
    r"(?<=^/tmp/)\w{8}$|(?<=[/.])tmp\w{8}\b|(?<=/ort\.quant\.)\w{8}\b|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,}"
)
"""What names have that are different each time: tempfile's, onnxruntime's, UUIDs and digests."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Write:
    """A system call that writes: what it does, to which file, and the how-manieth it is of its kind."""

    operation: str
    path: Path
    place: str
    """The path below the watched folder, its numbers and made-up names left out."""
    number: int = 0

    @property
    def kind(self) -> tuple[str, str]:
        return self.operation, self.place

    def __str__(self) -> str:
        return f"{self.operation} {self.place} #{self.number}"


@dataclass
class Disk:
    """What a disk answers, and what it has been asked.

    at: the kind and number of the write that fails first; None for a disk without faults.
    error: the number of the error; a full disk (ENOSPC) and one without permission (EACCES) stay what they are.
    """

    at: tuple[tuple[str, str], int] | None = None
    error: int = errno.ENOSPC
    asked: list[Write] = field(default_factory=list)
    failed: Write | None = None
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def answer(self, operation: str, path: Path, place: str, creates: bool) -> int:
        """0, or the number of the error."""
        kind = (operation, place)
        self._counts[kind] += 1
        write = Write(operation, path, place, self._counts[kind])
        self.asked.append(write)
        if self.failed is None and self.at == (kind, write.number):
            self.failed = write
            return self.error
        return self.error if self.failed is not None and self._still_refuses(operation, creates) else 0

    def _still_refuses(self, operation: str, creates: bool) -> bool:
        needs_entry = operation in (MKDIR, LINK) or (operation == OPEN and creates)
        if self.error == errno.EACCES:
            return needs_entry
        return self.error == errno.ENOSPC and (needs_entry or operation == WRITE)


@dataclass(frozen=True)
class Ended:
    """How a process has ended: its status as a shell has it, and all that it has printed."""

    status: int
    said: str
    disk: Disk


def why_not() -> str:
    """Why there are no such disks here; empty where there are."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "needs Linux on x86-64"
    try:
        return "" if run_on(Disk(), lambda: 7, Path("/nowhere"), Path(os.devnull)).status == 7 else "no seccomp here"
    except OSError as error:
        return f"the kernel gives no seccomp listener ({error.strerror})"


def run_on(disk: Disk, function: Callable[[], int], folder: Path, log: Path, seconds: float = 900) -> Ended:
    """Call a function in a forked process, what is below `folder` being on `disk`; its output goes to `log`.

    Whatever processes it starts are on the disk, too, and are ended with it. Raises OSError where there is no seccomp.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        end_with(lambda: _watched(function, theirs), log)
    theirs.close()
    try:
        message, listeners, _, _ = socket.recv_fds(ours, 1, 1)
        if not listeners:
            os.waitpid(pid, 0)
            raise OSError(message[0] if message else errno.EPERM, os.strerror(message[0] if message else errno.EPERM))
        try:
            status = _watch(pid, listeners[0], disk, Path(os.path.realpath(folder)), time.monotonic() + seconds)
        finally:
            os.close(listeners[0])
    finally:
        ours.close()
    return Ended(status, log.read_text(errors="replace"), disk)


def _watched(function: Callable[[], int], theirs: socket.socket) -> int:
    """In the child: the function, once its writes are asked for."""
    os.setsid()
    try:
        listener = _listen()
    except OSError as error:
        theirs.send(bytes([error.errno or errno.EPERM]))
        return 1
    socket.send_fds(theirs, [b"\0"], [listener])
    os.close(listener)
    theirs.close()
    return function()


def _listen() -> int:
    """From now on the kernel asks whoever has this descriptor, for this process and those that it starts."""
    program = [(0x20, 0, 0, 0)]  # the number of the call
    for number in _CALLS:
        if number in _FLAGS:  # opened for writing only
            program += [(0x15, 0, 3, number), (0x20, 0, 0, 16 + 8 * _FLAGS[number]), (0x45, 0, 1, _WRITING)]
            program += [(0x06, 0, 0, _ASK), (0x20, 0, 0, 0)]
        else:
            program += [(0x15, 0, 1, number), (0x06, 0, 0, _ASK)]
    program.append((0x06, 0, 0, _ALLOW))
    code = b"".join(struct.pack("<HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener = libc.syscall(_SECCOMP, _FILTER, _NEW_LISTENER, ctypes.c_char_p(header))
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return listener


def _watch(pid: int, listener: int, disk: Disk, folder: Path, deadline: float) -> int:
    """Answer until the process has ended; its status."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        if [events for _, events in poll.poll(50) if events & select.POLLIN]:
            _answer_one(listener, disk, folder)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended and time.monotonic() < deadline:
            continue
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if not ended:
            status = os.waitpid(pid, 0)[1]
        return os.waitstatus_to_exitcode(status) % 256


def _answer_one(listener: int, disk: Disk, folder: Path) -> None:
    question = bytearray(_QUESTION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, question)
    except OSError:  # its thread has ended meanwhile
        return
    identity, thread, _, call, _, _, *arguments = _QUESTION.unpack(question)
    operation, position, *at = _CALLS[call]
    path = _path_of(thread, arguments, position, at[0] if at else None) if at else _link(thread, arguments[position])
    error = 0
    if path is not None and path.is_relative_to(folder):
        creates = operation == OPEN and not os.path.lexists(path)
        error = disk.answer(operation, path, place_of(path.relative_to(folder)), creates)
    with suppress(OSError):  # as above
        fcntl.ioctl(listener, _SEND, _ANSWER.pack(identity, 0, -error, 0 if error else _CONTINUE))


def _link(thread: int, descriptor: int) -> Path | None:
    try:
        return Path(f"/proc/{thread}/fd/{descriptor & 0xFFFFFFFF}").readlink()
    except OSError:
        return None


def _path_of(thread: int, arguments: list[int], position: int, at: int | None) -> Path | None:
    try:
        with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
            memory.seek(arguments[position])
            text = b""
            while b"\0" not in text and len(text) < 4096:
                text += memory.read(min(256, 4096 - (arguments[position] + len(text)) % 4096))
        path = Path(os.fsdecode(text.partition(b"\0")[0]))
        here = at is None or arguments[at] & 0xFFFFFFFF == 0xFFFFFF9C  # AT_FDCWD
        base = Path(f"/proc/{thread}/cwd").readlink() if here else _link(thread, arguments[at or 0])
        whole = path if base is None else base / path
        return Path(os.path.realpath(whole.parent), whole.name)
    except OSError:
        return None


def place_of(path: Path) -> str:
    """The path without numbers and made-up names: writes of one place are of one kind."""
    return re.sub(r"\d+", "#", _MADE_UP.sub("*", f"/{path.as_posix()}")[1:])
