"""Several processes that train one student: if one dies or fails, all end, with a line that names it.

Collectives wait for every process. A lost process, especially on another host, would be noticed only after their
timeout, which has to be long, and without its name. So a thread of each process writes heartbeats to the store through
which the processes have met, and reads those of the others; it ends its process wherever that waits.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch.distributed as dist

from csd_plugin.distill.processes import are_several, leave_the_others
from csd_plugin.errors import CSDError, announce, first_line, out_of_memory, put_into_summary
from csd_plugin.stopping import Stopped

T = TypeVar("T")

TIME_LIMIT = timedelta(hours=1)
"""Timeout of a collective and of the start: longer than what rank 0 does alone while the others wait."""
STATUS = 2
"""Exit status of a process that ends because of another one."""

_BEAT = 2.0
"""Seconds between two heartbeats."""
_SILENT = 15
"""Rounds without a heartbeat after which a process counts as dead: half a minute, as a busy machine may delay one."""
_SUSPECT = 3
"""The same after a failed collective."""
_GRACE = 20.0
"""Seconds in which a process may end by itself after an error."""
_WELL = "well"
"""The last heartbeat of a process that has ended normally."""
_END = "end"
"""The store's key for the line with which the job ends."""


class Member(NamedTuple):
    """A process of the job, as it is named in messages."""

    rank: int
    host: str
    process: int

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.process})"


def _named(members: Sequence[Member]) -> str:
    return f"{', '.join(map(str, members))} {'has' if len(members) == 1 else 'have'}"


class Peers:
    """The processes of a job, as one of them sees them.

    Args:
        store: for these processes alone, over a connection of its own, as others may block.
        place: the store's address, for messages.
        members: all processes, by rank.
        rank: this process's rank.
        node: a label that all processes of a host share.
        resume: the flag that resumes the job, for messages.
    """

    def __init__(
        self,
        store: dist.Store,
        place: str,
        members: Sequence[Member],
        rank: int,
        node: str,
        resume: str = "--auto_resume",
    ) -> None:
        self.members, self.me = list(members), members[rank]
        self._store, self._place, self._node, self._resume = store, place, node, resume
        self._signs, self._silent = [""] * len(members), [0] * len(members)
        self._rounds, self._end, self._is_lost = 0, "", False
        self._suspicious = False
        self._leaving = threading.Event()
        self._give_sign("0")

    def start(self) -> None:
        """Watch the others until `leave` or `fail`. Call it once every process has its `Peers`."""
        for target in (self._exchange, self._watch):
            threading.Thread(target=target, daemon=True).start()

    def find_cause(self) -> None:
        """After a failed collective: end this process if another process is the cause."""
        self._suspicious = True
        self._leaving.wait((_SUSPECT + 4) * _BEAT)

    def fail(self, line: str) -> None:
        """Say why this process ends, so that the others end as well; one process of each host prints the line."""
        self._leaving.set()
        deadline = threading.Timer(_GRACE, os._exit, (STATUS,))  # the calls below may wait for the others
        deadline.daemon = True
        deadline.start()
        self._tell(f"{self.me}: {line}")
        time.sleep(2 * _BEAT)  # the store may end with this process

    def leave(self) -> None:
        """Say that this process has ended normally; rank 0 waits for the others."""
        if self._leaving.is_set():
            return
        try:
            self._give_sign(_WELL)
            for _ in range(10 * _SILENT if self.me.rank == 0 else 0):  # the store may end with it
                if all(sign == _WELL for sign in self._read_signs()):
                    break
                time.sleep(_BEAT / 10)
        except RuntimeError:  # the store is gone, and so are the others
            pass
        self._leaving.set()

    # ------------------------------------------------------------------ threads
    def _exchange(self) -> None:
        """Write and read heartbeats. Nothing else may be done here, as a lost host blocks this thread."""
        try:
            while not self._leaving.is_set():
                self._give_sign(str(self._rounds + 1))
                signs = self._read_signs()
                for rank, (before, now) in enumerate(zip(self._signs, signs, strict=True)):
                    self._silent[rank] = self._silent[rank] + 1 if now == before else 0
                self._signs = signs
                if self._store.check([_END]):
                    self._end = self._store.get(_END).decode()
                self._rounds += 1
                self._leaving.wait(_BEAT)
        except RuntimeError:
            self._is_lost = True

    def _watch(self) -> None:
        rounds = unanswered = 0
        while not self._leaving.wait(_BEAT):
            rounds, unanswered = self._rounds, unanswered + 1 if self._rounds == rounds else 0
            line = self._end or self._cause(unanswered)
            if line and not self._leaving.is_set():
                self._tell(line)
                os._exit(STATUS)

    def _cause(self, unanswered: int) -> str:
        """The line about a missing process; empty if none is missing."""
        rounds = _SUSPECT if self._suspicious else _SILENT
        rest = f"this job ends; {self._resume} resumes it from its last saved state"
        if self._is_lost or unanswered >= rounds:
            self._is_lost = True
            first = self.members[0]
            beside = [member for member in self.members if member.host == first.host != self.me.host]
            return f"{_named(beside or [first])} died, or torchrun there, or cannot be reached ({self._place}); {rest}"
        found = list(zip(self.members, self._signs, self._silent, strict=True))
        for member, sign, silent in found:
            if sign == _WELL and (self._suspicious or (member.rank == 0 and silent >= rounds)):
                return f"{member} has left before the others; {rest}"
        if any(sign != _WELL and silent >= rounds for _, sign, silent in found):
            # all processes of a lost host fall silent, though not in the same round
            lost = [member for member, sign, silent in found if sign != _WELL and silent > rounds // 2]
            return f"{_named(lost)} died, or cannot be reached; {rest}"
        return ""

    # ------------------------------------------------------------------ the store
    def _give_sign(self, sign: str) -> None:
        self._store.set(f"sign{self.me.rank}", sign)

    def _read_signs(self) -> list[str]:
        return [sign.decode() for sign in self._store.multi_get([f"sign{member.rank}" for member in self.members])]

    def _tell(self, line: str) -> None:
        """Send a line to the others, and print it if this is the first process of its host to do so."""
        put_into_summary(line)
        first: list[bool] = []
        asking = threading.Thread(target=lambda: first.append(self._publish(line)), daemon=True)
        if not self._is_lost:
            asking.start()
            asking.join(_BEAT)  # the store may not answer
        if first[0] if first else os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {line}", file=sys.stderr, flush=True)

    def _publish(self, line: str) -> bool:
        """Publish the line; whether this is the first process of its host to do so."""
        try:
            self._store.compare_set(_END, "", line)
            return self._store.add(f"told{self._node}", 1) == 1
        except RuntimeError:  # torch's error for a store that is gone
            return os.environ.get("LOCAL_RANK", "0") == "0"


_peers: Peers | None = None


def watch(resume: str = "--auto_resume") -> None:
    """Start watching. Every process calls this after torch.distributed has started; does nothing for a single process.

    Args:
        resume: the flag that resumes such a job, for messages.
    """
    global _peers
    atexit.register(leave)
    if not are_several() or dist.get_world_size() == 1:
        return
    rank, address, port = dist.get_rank(), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun keeps its store when it restarts processes
    name = of_the_first(uuid.uuid4().hex)
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=20))
    members = of_all(Member(rank, socket.gethostname(), os.getpid()))
    node = os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or socket.gethostname()
    _peers = Peers(dist.PrefixStore(name, store), f"{address}:{port}", members, rank, node, resume)
    dist.barrier()
    _peers.start()


def leave() -> None:
    """Stop watching. Call it before the interpreter exits, which may otherwise abort threads of the process group."""
    if _peers is not None:
        _peers.leave()
    leave_the_others()


def fail(line: str) -> None:
    """Print an error line; the first of several processes that fails names itself, and ends the others."""
    if _peers is None:
        announce(line)
    else:
        _peers.fail(line)


def stopped(end: Stopped) -> int:
    """The exit status of a process that a signal has ended; the others are told, unless they end with it."""
    if not end.together and are_several():
        fail(signal.Signals(end.code - 128).name)
    return end.code


def report(kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
    """For `ExitStack.push`: an unexpected error ends the other processes, too."""
    if _peers is not None and isinstance(error, Exception):
        _peers.fail(f"{type(error).__name__}: {first_line(error)}")


@contextmanager
def explained() -> Iterator[None]:
    """If a collective fails inside because another process is gone, end this one with a line that names it."""
    try:
        yield
    except RuntimeError as error:
        if _peers is not None and not out_of_memory(error):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to the others; the line comes first
            _peers.find_cause()
        raise


# ---------------------------------------------------------------------- what they agree on
def of_the_first(value: T) -> T:
    """The first process's value, in all of them."""
    if not are_several():
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def of_all(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if not are_several():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check_same(values: Mapping[str, object]) -> None:
    """Raise CSDError, in all processes, for the first value that differs between them.

    Mappings are compared key by key. File locations may differ: keys called `dataroot..` or `clips`.
    """
    first, *others = of_all(dict(_flat(values)))
    for rank, other in enumerate(others, start=1):
        for name in dict.fromkeys([*first, *other]):
            if first.get(name) != other.get(name):
                raise CSDError(
                    f"{name} is {first.get(name)!r} for rank 0 and {other.get(name)!r} for rank {rank}; give all hosts "
                    f"the same options and data"
                )


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """`section.key` and its value, for everything that is not a mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif not (key.startswith("dataroot") or key == "clips"):
            yield f"{prefix}{key}", value
