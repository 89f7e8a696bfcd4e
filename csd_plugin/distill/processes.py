"""Agreement between several processes that train one student."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ReduceOp


def are_several() -> bool:
    """Whether this process is one of those that torch.distributed has joined."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def leave_the_others() -> None:
    """Leave the process group. Call it before the interpreter exits, which may otherwise abort the group's threads."""
    if are_several():
        torch.distributed.destroy_process_group()


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes of a run; with one process, the tensor itself."""
    if not are_several():
        return values
    total = values.clone()
    torch.distributed.all_reduce(total, op=ReduceOp.SUM)
    return total / torch.distributed.get_world_size()
