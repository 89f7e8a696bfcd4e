"""Runs a case in a process of its own, and judges what has happened."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forks import end_with

if TYPE_CHECKING:
    from malicious.ground import Ground

REFUSED, TRACEBACK, ACCEPTED, RAN, ESCAPED, MEMORY, SLOW = OUTCOMES = (
    "refused", "traceback", "accepted", "ran code", "got out", "memory", "slow"
)  # fmt: skip
MOST_MEMORY = 2**31
SECONDS, PATIENCE = 30, 180
"""Of a processor, and by the clock: the machine may be busy, and who waits for a pipe uses no processor."""


@dataclass(frozen=True)
class Case:
    """A command line, and what it reads; `secret` must not be found in what it writes."""

    name: str
    command: list[str]
    out: Path


def judge(ground: Ground, case: Case, written_to: Path | None = None, seconds: int = SECONDS) -> tuple[str, str, int]:
    """(outcome, what was printed, bytes of memory at most). The command may write to this folder: the case's."""
    ground.marker.unlink(missing_ok=True)
    own = written_to or ground.bad
    before = tree(ground.folder, own)
    log = ground.folder / "log"
    pid = os.fork()
    if pid == 0:
        end_with(lambda: limited(case.command, seconds), log)
    _, status, usage = os.wait4(pid, 0)
    said = log.read_text(errors="replace")
    log.unlink()
    memory = usage.ru_maxrss * 1024
    if ground.marker.exists():
        outcome = RAN
    elif tree(ground.folder, own) != before or ground.secret.read_bytes() in written(ground, case):
        outcome = ESCAPED
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU):
        outcome = SLOW
    elif memory > MOST_MEMORY or "not enough memory" in said:
        outcome = MEMORY
    elif "Traceback" in said or os.WIFSIGNALED(status):
        outcome = TRACEBACK
    elif (os.WEXITSTATUS(status) == 2 and "error: " in said) or reported(case, said):
        outcome = REFUSED
    else:
        outcome = ACCEPTED if os.WEXITSTATUS(status) == 0 else TRACEBACK
    return outcome, said, memory


def reported(case: Case, said: str) -> bool:
    """Whether a command that lists problems, and whose status is 0 then too, has listed a file of the case."""
    _, found, listed = said.partition(" found:\n")
    return case.command[0] == "data" and bool(found) and f"  {case.out}/" in listed


def written(ground: Ground, case: Case) -> set[bytes]:
    """What lies in the folder of results; what a case itself has brought is elsewhere."""
    folders = (ground.bad / "data", ground.bad / "out")
    if case.command[0] not in ("prepare", "derain"):
        return set()
    return {path.read_bytes() for folder in folders for path in folder.rglob("3.png") if path.is_file()}


def tree(folder: Path, without: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if without not in (path, *path.parents)}


def limited(command: Sequence[str], seconds: int) -> int:
    """In a child process: the command, with bounds of time and memory."""
    signal.alarm(PATIENCE)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    # what is asked for beyond this fails, before the machine suffers
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MOST_MEMORY, used + 2 * MOST_MEMORY))
    return start(command)


def start(command: Sequence[str]) -> int:
    from csd_plugin import test, train
    from csd_plugin.cli import main as csd

    launchers = {"csd_plugin.test": test, "csd_plugin.train": train}
    if command[0] in launchers:
        os.chdir(Path(command[2]).parent)
        sys.argv = list(command)
        return launchers[command[0]].main()
    return csd(command)


def warm_up() -> None:
    """Import what the commands do, once for all the processes."""
    import importlib

    import torch

    from csd_plugin import compat, registration

    torch.set_num_threads(1)
    registration.install()
    compat.repair_launch()
    for module in ("csd_plugin.test", "csd_plugin.train", "basicsr.test", "basicsr.train", "onnxruntime"):
        importlib.import_module(module)
    for job in ("adapt", "bench", "inspect", "table", "derain", "export", "figure", "prepare", "data", "rain", "score"):
        importlib.import_module(f"csd_plugin.cli.{job}")
