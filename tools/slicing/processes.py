"""Processes that have imported everything already, and how they end."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slicing.networks import Network

#: Processes are forks of one that has imported these and has touched no GPU: so many of them begin at once.
PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ("csd_plugin.train", "csd_plugin.test", "csd_plugin.models.probe", "csd_plugin.data.rain.renderer")


def prepare_processes() -> None:
    """Begin to import, beside this process, what all of them need."""
    PROCESSES.set_forkserver_preload(list(PRELOADED))
    importlib.import_module("multiprocessing.forkserver").ensure_running()


def start(target: Callable[..., None], *arguments: Any, log: Path | None) -> Any:
    """A process that has imported everything already. log: the file for its output; None: this process's output."""
    child = PROCESSES.Process(target=in_child, args=(target, arguments, log))
    child.start()
    return child


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function, called in such a process, as this one must not import anything slow."""
    with PROCESSES.Pool(1) as pool:
        return pool.apply(function, arguments)


def in_child(target: Callable[..., None], arguments: Sequence[Any], log: Path | None) -> None:
    if log is not None:
        with log.open("a", encoding="utf-8") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # a loader's workers would import everything anew
    threading.Thread(target=end_with_parent, daemon=True).start()
    target(*arguments)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def launch(job: str, network: Network, options: Mapping[str, Any]) -> Any:
    """`csd_plugin.train` or `.test` of this network, with one thread: on a busy machine several wait for each other."""
    import yaml

    file, log = Path("options", f"{network.row}_{job}.yml"), Path("logs", f"{network.row}.log")
    for path in (file, log):
        path.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(dict(options), sort_keys=False), encoding="utf-8")
    return start(launched, job, str(file), time.monotonic(), log=log.resolve())


def launched(job: str, file: str, began: float) -> None:
    import torch

    torch.set_num_threads(1)
    module = importlib.import_module(f"csd_plugin.{job}")
    trains = job == "train"
    sys.argv = [f"csd_plugin.{job}", "-opt", file, *(["--auto_resume"] if trains else [])]
    sys.exit(module.main(began) if trains else module.main())


def last_error(network: Network) -> str:
    lines = Path("logs", f"{network.row}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "no output")


def wait(children: Iterable[Any], until: float) -> None:
    """Wait for all children, but not beyond this time."""
    for child in children:
        child.join(max(until - time.monotonic(), 0.0))


def stop(children: Iterable[Any], until: float) -> list[Any]:
    """Tell children that are still running to end, and kill them at `until`. Returns those that had to be told."""
    late = [child for child in children if child.is_alive()]
    for child in late:
        child.terminate()
    wait(late, until)
    for child in late:
        child.kill()
        child.join()
    return late


def end_children() -> None:
    """End children that are still running when this process ends, and the process that forks them."""
    stop(multiprocessing.active_children(), time.monotonic() + 2)
    server = getattr(importlib.import_module("multiprocessing.forkserver"), "_forkserver", None)
    number = getattr(server, "_forkserver_pid", None)  # which looks for its starter's end only when it has imported
    if number is not None:
        os.kill(number, signal.SIGKILL)
