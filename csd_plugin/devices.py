"""Where tensors live, by name."""

from __future__ import annotations

import torch

from csd_plugin.errors import CSDError, first_line


def pick_device(device: str | torch.device) -> torch.device:
    """'auto' -> CUDA where there is one, else the CPU. Raises CSDError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise CSDError(f"device {device!r} is unknown; give cpu, cuda, cuda:1, or auto") from error
    if chosen.type == "cpu" and chosen.index:  # torch takes any number
        raise CSDError(f"device {device!r} does not exist; give cpu, which means all of them")
    try:
        torch.zeros(1, device=chosen).item()  # which 'meta' cannot, as it computes nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch may be built without that kind
        raise CSDError(f"device {device!r} cannot be used ({first_line(error)}); try 'cpu'") from error
    return chosen
