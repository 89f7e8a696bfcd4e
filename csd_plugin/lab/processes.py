"""A matrix's trainings in several processes each: how torchrun starts them, and the share of each.

The option file of a run remains that of one process, whose batch is divided. So a run may be resumed with another
number of processes, and rows stay comparable however they were trained.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from csd_plugin.errors import CSDError

_BATCH, _PARTS = "batch_size_per_gpu", "accumulate"
_SHUTDOWN = 600
"""Seconds that torchrun gives a training to end its step, or its current validation, and to save."""


def share_of(options: Mapping[str, Any], processes: int) -> dict[str, int]:
    """`section.key` -> value, for what differs in each of several processes: its part of the batch.

    Raises CSDError for a batch that cannot be divided evenly.
    """
    if processes == 1:
        return {}
    batch, parts = options["datasets"]["train"][_BATCH], options["train"].get(_PARTS, 1)
    if batch % processes:
        fitting = [str(count) for count in range(1, batch + 1) if batch % count == 0]
        raise CSDError(
            f"datasets.train.{_BATCH} is {batch}, the whole batch, and cannot be shared by {processes} processes; give "
            f"--nproc-per-node {', '.join(fitting[:-1]) + ' or ' if fitting[:-1] else ''}{fitting[-1]}"
        )
    share = {f"datasets.train.{_BATCH}": batch // processes}
    return share | ({f"train.{_PARTS}": -(-parts // processes)} if parts > 1 else {})


def training(file: Path, options: Mapping[str, Any], processes: int) -> list[str]:
    """The command that trains with this option file, or resumes what was begun."""
    flags = ["-opt", str(file), "--auto_resume"]
    if processes == 1:
        return [sys.executable, "-m", "csd_plugin.train", *flags]
    forced = [f"{key.replace('.', ':')}={value}" for key, value in share_of(options, processes).items()]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    module = ["-m", "csd_plugin.train", "--launcher", "pytorch", *flags, "--force_yml", *forced]
    return [sys.executable, "-m", *torchrun, *module]


def environment(processes: int) -> dict[str, str]:
    """The environment in which processes can import this package, even from a checkout, and share the processors."""
    root = str(Path(__file__).resolve().parents[2])
    found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    if processes > 1:  # by default, torchrun gives each process one thread
        found.setdefault("OMP_NUM_THREADS", str(_threads(processes)))
        found.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SHUTDOWN))
    return found


@contextmanager
def one_of(processes: int) -> Iterator[None]:
    """Inside, use the processor threads of one of several processes."""
    before = torch.get_num_threads()
    if processes > 1:
        torch.set_num_threads(_threads(processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _threads(processes: int) -> int:
    return max((os.cpu_count() or 1) // processes, 1)
