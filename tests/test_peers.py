"""Processes that watch each other, without a launcher that would end them: each is on a host of its own, as it were."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import warm

from csd_plugin import compat, peers
from csd_plugin.errors import CSDError

ROOT = Path(__file__).resolve().parents[1]

# As many rounds as always, but of hundredths of a second. The processes work until something ends them.
PROCESS = """
import os, signal, sys, time
import torch.distributed as dist
from csd_plugin import peers
from csd_plugin.errors import CSDError

peers._BEAT = 0.04
rank, way = int(os.environ["RANK"]), sys.argv[1]
dist.init_process_group("gloo", timeout=peers.TIME_LIMIT)
peers.watch()
print("joined", flush=True)
{act}
"""


def launch(act: str, way: str, folder: Path, count: int = 2) -> list[warm.Child]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = folder / "process.py"
    script.write_text(PROCESS.format(act=act))
    processes = []
    for rank in range(count):
        names = {"RANK": rank, "GROUP_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {key: str(value) for key, value in names.items()} | {"PYTHONPATH": paths}
        environment.pop("LOCAL_RANK", None)
        processes.append(warm.begin(script, way, environment=environment))
    return processes


def ended(process: warm.Child) -> tuple[int, list[str]]:
    """Its status, and the error lines that it has printed."""
    _, said = process.communicate(timeout=120)
    return process.returncode, [line for line in said.splitlines() if line.startswith("error: ")]


DYING = """
if rank == int(sys.argv[1][-1]):
    os.kill(os.getpid(), signal.SIGKILL if way.startswith("killed") else signal.SIGSTOP)
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize("way", ["killed1", "killed0", "stopped1", "stopped0"])
def test_a_process_that_dies_is_named_and_ends_the_others(tmp_path, way):
    """They are not waiting for it: nothing but its silence shows. The store of all is in the process of rank 0."""
    processes = launch(DYING, way, tmp_path)
    victim, survivor = processes[int(way[-1])], processes[1 - int(way[-1])]
    try:
        status, [line] = ended(survivor)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    assert status == 2
    assert f"rank {way[-1]} (host {socket.gethostname()}, process {victim.pid})" in line
    assert "died" in line and "--auto_resume" in line


HOST = """
if rank:
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    time.sleep(0.1)
"""


def test_all_processes_of_a_host_that_dies_are_named(tmp_path):
    survivor, *victims = launch(HOST, "", tmp_path, count=3)
    status, [line] = ended(survivor)
    names = [f"rank {rank} (host {socket.gethostname()}, process {p.pid})" for rank, p in enumerate(victims, start=1)]
    for victim in victims:
        victim.communicate()
    assert status == 2 and line.startswith(f"error: {names[0]}, {names[1]} have died")


COLLECTIVE = """
import torch
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
with peers.explained():
    while True:
        dist.all_reduce(torch.zeros(1))
"""


def test_a_failed_collective_is_explained(tmp_path):
    survivor, victim = launch(COLLECTIVE, "", tmp_path)
    status, [line] = ended(survivor)
    victim.communicate()
    name = f"rank 1 (host {socket.gethostname()}, process {victim.pid})"
    assert status == 2 and line.startswith(f"error: {name} has died")


FAILING = """
if rank == 1:
    peers.fail("the frame x.png is damaged") if way == "said" else sys.exit(peers.report(OSError, OSError("no"), None))
    sys.exit(2)
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize(("way", "words"), [("said", "the frame x.png is damaged"), ("not expected", "OSError: no")])
def test_the_error_of_one_is_the_line_of_all_hosts(tmp_path, way, words):
    processes = launch(FAILING, way, tmp_path)
    for status, lines in map(ended, processes):
        assert lines == [f"error: rank 1 (host {socket.gethostname()}, process {processes[1].pid}): {words}"]
        assert status == 2 or way == "not expected"


ALIKE = """
try:
    peers.check_same({"train": {"lr": rank if way == "differ" else 0, "dataroot": rank}})
except CSDError as error:
    os.environ["GROUP_RANK"] = "0"
    peers.fail(str(error))
    sys.exit(2)
assert peers.of_the_first(rank + 5) == 5
time.sleep(0.3 * rank)  # the first waits for the other, which needs its store
"""


def test_what_differs_between_hosts_is_said(tmp_path):
    results = [ended(process) for process in launch(ALIKE, "differ", tmp_path)]
    assert [status for status, _ in results] == [2, 2]
    lines = {line.partition("): ")[2] for _, lines in results for line in lines}
    assert lines == {"train.lr is 0 for rank 0 and 1 for rank 1; give all hosts the same options and data"}


def test_those_that_end_as_they_should_say_nothing(tmp_path):
    processes = launch(ALIKE, "same", tmp_path)
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0 and "error" not in said, said


SLURM = """
import os
from csd_plugin import compat
import torch.distributed as dist

compat.init_dist("slurm", port={port})
print(dist.get_rank(), dist.get_world_size(), dist.get_backend(), os.environ["MASTER_ADDR"], os.environ["LOCAL_RANK"])
"""


def test_srun_s_variables_join_processes(tmp_path):
    """With a scontrol that knows one host. No cluster was tried."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames local[1-2]" ] && printf "localhost\\nother\\n"\n')
    scontrol.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "local[1-2]", "SLURM_NODEID": "0"}
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "MASTER_ADDR", "MASTER_PORT")}
    processes = [
        warm.begin(
            *("-c", SLURM.format(port=port)),
            environment=clean | paths | slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        out, error = process.communicate(timeout=120)
        assert out == f"{rank} 2 gloo localhost {rank}\n", error


@pytest.mark.parametrize(("is_srun", "words"), [(False, "srun, which sets SLURM_PROCID"), (True, "MASTER_ADDR")])
def test_slurm_that_is_not_there_is_one_line(is_srun, words, monkeypatch):
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_NODELIST"):
        monkeypatch.setenv(name, "0")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")  # so that what is set on the way is taken back
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("PATH", "")
    if not is_srun:
        monkeypatch.delenv("SLURM_PROCID")
    with pytest.raises(CSDError, match=words):
        compat.init_dist("slurm", port=1)
    assert os.environ["MASTER_PORT"] == ("1" if is_srun else "0")


def test_tensors_of_cpus_go_by_gloo_where_there_are_gpus(monkeypatch):
    called = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", called.append)
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda allow_none: "spawn")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: called.append(backend))
    monkeypatch.setattr(peers, "watch", lambda: None)
    compat.init_dist("pytorch")
    assert called == [1, "cpu:gloo,cuda:nccl"]
