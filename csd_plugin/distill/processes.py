"""What several processes that train one student have to agree on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ReduceOp


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes of a run; with one process, the tensor itself."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    total = values.clone()
    distributed.all_reduce(total, op=ReduceOp.SUM)
    return total / distributed.get_world_size()
