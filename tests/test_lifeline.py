"""Whatever a command starts ends with it, when the command is killed without a chance to clean up."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from toolbox import train_options

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "csd_plugin"
CSD = [sys.executable, "-m", "csd_plugin"]


def processes_of(group: int) -> set[int]:
    """The living processes of a session, by Linux's own account."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == group and state not in "ZX":
            found.add(int(folder.name))
    return found


LONGEST = 600
"""Seconds that only what would wait for ever takes; on a busy machine, a training starts in more than a minute."""


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def kill_and_look(command: list[str], cwd: Path, children: int, begun) -> None:
    """Start it, SIGKILL it once `begun()` and it has so many children; they must all end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True, **quiet) as process:
        try:
            there = lambda: begun() and len(processes_of(process.pid)) > children  # noqa: E731
            wait_for(lambda: process.poll() is not None or there(), f"{command} starts nothing")
            assert process.poll() is None, f"{command} has ended by itself"
            process.kill()
            process.wait()
            wait_for(lambda: not processes_of(process.pid), "something is still running")
        finally:
            for left in processes_of(process.pid):
                os.kill(left, signal.SIGKILL)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc to see what is running")


@linux
def test_workers_end_with_a_killed_command(tmp_path):
    """`csd rain --jobs 2`, with work for hours; prepare, verify, LMDB builds and `csd data` have the same pool."""
    for clip in ("a", "b"):
        (tmp_path / "clean" / clip).mkdir(parents=True)
        for number in range(150):
            frame = np.full((240, 320, 3), 90, np.uint8)
            cv2.imwrite(str(tmp_path / "clean" / clip / f"{number:03d}.png"), frame)
    parts = tmp_path / "out" / "Dataset_Training_Synthetic"
    command = [*CSD, "rain", "clean", "out", "--jobs", "2", "--variants", "999"]
    kill_and_look(command, tmp_path, 2, lambda: len(list(parts.glob(".*_Rain_*.part"))) > 1)


@linux
def test_a_training_and_its_loader_end_with_a_killed_table(tmp_path, tiny_rain):
    options = train_options(tiny_rain, **{"datasets.train.num_worker_per_gpu": 1, "train.total_iter": 10**6})
    (tmp_path / "train.yml").write_text(yaml.safe_dump(options))
    (tmp_path / "matrix.yml").write_text("{name: t, runs: t, base: train.yml, rows: {a: {}}}")
    log = tmp_path / "results" / "t_runs" / "logs" / "t_a.log"
    command = [*CSD, "table", "matrix.yml"]
    kill_and_look(command, tmp_path, 2, lambda: log.is_file() and "iter:" in log.read_text())


# A command of a terminal, which it works in until that is closed.
IN_A_TERMINAL = """
import fcntl, signal, sys, termios
from pathlib import Path
from csd_plugin.lifeline import Terminated, endings_interrupt
from csd_plugin.unread import ending_quietly

def work():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    try:
        with endings_interrupt():
            print("begun", flush=True)
            signal.pause()
    except Terminated as ended:
        for stream in (sys.stdout, sys.stderr):
            print("putting away", file=stream, flush=True)
        Path(sys.argv[1]).write_text(signal.Signals(ended.number).name)
    return 0

sys.exit(ending_quietly(work))
"""


def test_a_command_whose_terminal_is_closed_puts_its_work_away(tmp_path):
    pty = pytest.importorskip("pty", reason="terminals of POSIX")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, str(tmp_path / "kept")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    assert os.read(ours, 1000).startswith(b"begun")
    os.close(ours)
    assert process.wait(LONGEST) == 0 and (tmp_path / "kept").read_text() == "SIGHUP"


def test_processes_are_started_in_ways_that_end_them():
    """Pools are `data.workers.Processes`; commands start within a `lifeline`. Torch's loaders see to themselves."""
    wrong, files = [], sorted(PACKAGE.rglob("*.py"))
    assert files
    for path in files:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            pooled = name in ("ProcessPoolExecutor", "Pool", "Process", "get_context", "fork", "system")
            if pooled and path != PACKAGE / "data" / "workers.py":
                wrong.append(f"{path}: {name}")
            starts = isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("subprocess.", "os.spawn"))
            if starts and not any(ast.unparse(keyword.value) == "line_to_us" for keyword in node.keywords):
                wrong.append(f"{path}:{node.lineno}: outside a lifeline")
    assert not wrong, "\n".join(wrong)
