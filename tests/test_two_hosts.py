"""A training on two hosts: network namespaces, joined by a cable that the test can cut."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from toolbox import changed, distill_options

ROOT = Path(__file__).resolve().parents[1]
FIRST = "10.213.77.1"
PORT = 29533

# As many rounds as always, but of a fifth of a second.
TRAIN = """
import sys
from csd_plugin import peers, train

peers._BEAT = 0.2
sys.exit(train.main())
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts:
    """Two, by number; `cut` takes the cable away without a word to anybody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"csd{number}{uuid.uuid4().hex[:6]}" for number in range(2)]
        self._begun: list[subprocess.Popen] = []

    def build(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ends = [f"{name}v" for name in self.names]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(self.names, ends, strict=True), start=1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "address", "add", f"10.213.77.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def begin(self, number: int, *flags: str) -> subprocess.Popen[str]:
        """torchrun on this host."""
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(number), "--nproc_per_node", "1"]
        meeting = ["--master_addr", FIRST, "--master_port", str(PORT)]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"{self.names[number]}v"}
        command = [sys.executable, *torchrun, *meeting, "train.py", "--launcher", "pytorch", "-opt", "options.yml"]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], *command, *flags],
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._begun.append(process)
        return process

    def cut(self, number: int) -> None:
        ip("-n", self.names[number], "link", "set", f"{self.names[number]}v", "down")

    def remove(self) -> None:
        for process in self._begun:
            process.kill()
            process.communicate()
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
                for pid in map(int, pids):
                    os.kill(pid, signal.SIGKILL)
                ip("netns", "delete", name)


@pytest.fixture
def hosts(tmp_path) -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces: ip (iproute2) is not installed")
    hosts = Hosts(tmp_path)
    try:
        hosts.build()
    except subprocess.CalledProcessError as error:
        hosts.remove()
        pytest.skip(f"no network namespaces may be made here: {error.stderr.strip()}")
    (tmp_path / "train.py").write_text(TRAIN)
    yield hosts
    hosts.remove()


def test_two_hosts_train_the_student_of_one_until_a_cable_is_cut(hosts, tiny_rain, tiny_teacher, tmp_path, launcher):
    """Then each host ends, with a line that names what it has lost, though no connection has been closed."""
    options = distill_options(tiny_rain, tiny_teacher, **{"train.optim_g": {"type": "SGD", "lr": 0.003}})
    options["datasets"]["train"]["dataset_enlarge_ratio"] = 2000
    assert launcher.train(changed(options, {"name": "one", "train.total_iter": 4})) == 0

    options["datasets"]["train"]["batch_size_per_gpu"] = 1
    options["train"]["total_iter"] = 2000
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    first, second = hosts.begin(0), hosts.begin(1)
    for line in first.stderr:
        if re.search(r"iter: +5,", line):
            hosts.cut(1)
            break
    _, said = first.communicate(timeout=200)
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: rank 1 \(host .*\) has died, or cannot be reached", line), line
    assert first.returncode != 0
    _, said = second.communicate(timeout=200)
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rank 0 (host ") and f"cannot be reached ({FIRST}:{PORT})" in line
    assert second.returncode != 0

    for file in ("net_g_4.pth", "objective_4.pth"):
        one, two = (torch.load(tmp_path / "experiments" / name / "models" / file) for name in ("one", "run"))
        for key in one:
            for name, weight in one[key].items():
                torch.testing.assert_close(two[key][name], weight, rtol=1e-4, atol=1e-6)
