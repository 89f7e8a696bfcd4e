"""Judges what a hostile file has done to the command that read it."""

from __future__ import annotations

import os
from pathlib import Path

from malicious.ground import Case, Ground
from malicious.running import MOST_MEMORY, run

REFUSED, TRACEBACK, ACCEPTED, RAN, ESCAPED, MEMORY, SLOW = OUTCOMES = (
    "refused", "traceback", "accepted", "ran code", "got out", "memory", "slow"
)  # fmt: skip


def judge(ground: Ground, case: Case) -> tuple[str, str, int]:
    """(outcome, what was printed, bytes of memory at most). The command may write to the folder of cases alone."""
    ground.marker.unlink(missing_ok=True)
    before = tree(ground.folder, ground.bad)
    ended = run(case.command, ground.folder / "log")
    if ground.marker.exists():
        outcome = RAN
    elif tree(ground.folder, ground.bad) != before or ground.secret.read_bytes() in written(ground, case):
        outcome = ESCAPED
    elif ended.was_slow:
        outcome = SLOW
    elif ended.memory > MOST_MEMORY or "not enough memory" in ended.said:
        outcome = MEMORY
    elif "Traceback" in ended.said or os.WIFSIGNALED(ended.status):
        outcome = TRACEBACK
    elif (os.WEXITSTATUS(ended.status) == 2 and "error: " in ended.said) or reported(case, ended.said):
        outcome = REFUSED
    else:
        outcome = ACCEPTED if os.WEXITSTATUS(ended.status) == 0 else TRACEBACK
    return outcome, ended.said, ended.memory


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
