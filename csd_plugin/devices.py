"""Where tensors live, by name."""

from __future__ import annotations

import torch

from csd_plugin.errors import CSDError


def pick_device(device: str | torch.device) -> torch.device:
    """'auto' -> CUDA where there is one, else the CPU. Raises CSDError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise CSDError(f"device {device!r} is unknown; give cpu, cuda, cuda:1, or auto") from error
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CSDError(f"device {device!r} cannot be used ({reason}); try 'cpu'") from error
    return chosen
