"""Processes that begin with torch and what else takes seconds to import: forks of one process that has it.

Nothing of ours, of the toolbox or of torchvision is loaded in them: what they import of these is imported anew. What is
about the start of Python itself, or about signals to a whole session, takes `subprocess`.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

SERVER = """
import gc, importlib, json, os, runpy, signal, sys, traceback, types
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ImportError:  # an extra that is not installed
        pass
import torch
torch.set_num_threads(1)
assert not {"csd_plugin", "basicsr", "torchvision"} & {name.split(".")[0] for name in sys.modules}
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[2]  # what one child compiles the next ones load
given = os.environ.copy()
ours = [entry for entry in sys.path if entry]
gc.collect()
gc.freeze()


def begin(job):
    signal.alarm(job["timeout"])
    for stream, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_APPEND
        os.dup2(os.open(job[name], flags), stream)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), *(open(i, "w", closefd=False) for i in (1, 2))
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    added = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    kind, what, *arguments = job["arguments"]
    first = os.path.dirname(os.path.abspath(what)) if kind == "script" else os.getcwd() if kind == "-m" else ""
    before = [entry for entry in given.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [first, *added, *(entry for entry in ours if entry not in before)]
    sys.argv = [what if kind != "-c" else "-c", *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)
    else:
        runpy.run_path(what, run_name="__main__")


def end(job):
    status = 1
    try:
        begin(job)
        status = 0
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        else:
            status = left.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        import atexit
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 255)


print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, dict):
        answer = os.fork()
        if not answer:
            end(asked)
    else:
        answer = os.waitstatus_to_exitcode(os.waitpid(*asked, 0)[1])
    print(answer, flush=True)
"""
PRELOADED = [
    "cv2",
    "numpy",
    "pydantic",
    "torch",
    "torch._dynamo",
    "torch._functorch.config",
    "torch.utils.data",
    "yaml",
    "scipy.ndimage",
    "scipy.special",
    "scipy.stats",
    "setuptools",
    "PIL.Image",
    "av",
    "tqdm",
    "lmdb",
]


@cache
def _server() -> subprocess.Popen[str]:
    folder = tempfile.TemporaryDirectory()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, json.dumps(PRELOADED), folder.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder.name,
    )

    def stop() -> None:
        server.communicate()
        folder.cleanup()

    atexit.register(stop)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return server


def _ask(what: dict[str, Any] | list[int]) -> int:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(what) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


class Child:
    """One of them, with what tests use of `subprocess.Popen`."""

    def __init__(self, arguments: tuple[Any, ...], environment: Mapping[str, str], cwd: Path, timeout: int) -> None:
        self.args = [str(word) for word in arguments]
        self.returncode: int | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._output = {name: Path(self._folder.name) / name for name in ("stdout", "stderr")}
        for path in self._output.values():
            path.touch()
        job = {name: str(path) for name, path in self._output.items()} | {"stdin": os.devnull}
        words = self.args if self.args[0] in ("-c", "-m") else ["script", *self.args]
        job |= {"arguments": words, "environment": dict(environment), "cwd": str(cwd), "timeout": timeout}
        self.pid = _ask(job)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written, when it has ended; its own `timeout` counts."""
        if self.returncode is None:
            self.returncode = _ask([self.pid])
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in self._output.values())
        return out, err


def begin(
    *arguments: Any, cwd: Path | None = None, environment: Mapping[str, str] | None = None, timeout: int = 300
) -> Child | subprocess.Popen[str]:
    """Start what `python ARGUMENTS` would: -c CODE, -m MODULE or a script, and arguments of its own.

    Args:
        environment: in place of this process's.
        timeout: in seconds, after which it is killed.
    """
    environment = os.environ if environment is None else environment
    where = Path.cwd() if cwd is None else cwd
    if hasattr(os, "fork"):
        return Child(arguments, environment, where, timeout)
    command = [sys.executable, *map(str, arguments)]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=where, env=dict(environment), text=True, **piped)  # type: ignore[call-overload]


def python(*arguments: Any, **how: Any) -> subprocess.CompletedProcess[str]:
    """The same, when it has ended."""
    child = begin(*arguments, **how)
    out, err = child.communicate()
    assert child.returncode is not None
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)
