"""Runs a command in a process of its own, with bounds of time and memory."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forks import end_with

MOST_MEMORY = 2**31
SECONDS, PATIENCE = 30, 180
"""Of a processor, and by the clock: the machine may be busy, and who waits for a pipe uses no processor."""


@dataclass(frozen=True)
class Finished:
    """How a command has ended: its status as `os.wait` gives it, what it printed, and its memory at most, in bytes."""

    status: int
    said: str
    memory: int

    @property
    def was_slow(self) -> bool:
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) in (signal.SIGALRM, signal.SIGXCPU)


def run(command: Sequence[str], log: Path, seconds: int = SECONDS) -> Finished:
    """Run a command line in a child process. log: a file for what it prints, removed at the end."""
    pid = os.fork()
    if pid == 0:
        end_with(lambda: limited(command, seconds), log)
    _, status, usage = os.wait4(pid, 0)
    said = log.read_text(errors="replace")
    log.unlink()
    return Finished(status, said, usage.ru_maxrss * 1024)


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
