"""The frames of a window: indices, and one function that slices a tensor.

A clip of N frames carries L targets in its middle (N - L even). A network of T frames (T odd) sees, for
each target, the T frames centred on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csd_plugin.errors import CSDError


def reflect_indices(center: int, num_frame: int, length: int) -> list[int]:
    """Indices of the `num_frame` frames around `center` in a clip of `length`, reflected at its ends.

    The end frames are not repeated: -1 becomes 1. Clips shorter than the window are reflected repeatedly; a clip of
    one frame gives that frame.

    Raises:
        CSDError: an even `num_frame`, or a centre outside the clip.
    """
    check_odd(num_frame)
    if not 0 <= center < length:
        raise CSDError(f"frame {center} is outside a clip of {length} frames: give one of 0 .. {length - 1}")
    period = max(2 * (length - 1), 1)
    radius = num_frame // 2
    folded = (i % period for i in range(center - radius, center + radius + 1))
    return [min(i, period - i) if length > 1 else 0 for i in folded]


def clip_starts(length: int, num_frame: int) -> range:
    """The first frames of all runs of `num_frame` consecutive frames in a clip of `length`; empty if there is none."""
    return range(max(length - num_frame + 1, 0))


def target_slice(num_frame: int, num_target: int) -> slice:
    """The slice of the `num_target` middle frames of `num_frame`. Raises CSDError if there is no such middle."""
    if not 1 <= num_target <= num_frame or (num_frame - num_target) % 2:
        raise CSDError(
            f"a clip of num_frame={num_frame} frames has no middle of num_target={num_target}: "
            f"num_frame - num_target must be even and not negative (e.g. num_frame: {max(num_target, 1) + 6})"
        )
    first = (num_frame - num_target) // 2
    return slice(first, first + num_target)


def window_slice(num_input: int, num_target: int, num_frame: int) -> slice:
    """The frames of a clip of `num_input` that the windows of all its targets cover together.

    Raises CSDError if a window of `num_frame` extends beyond the clip.
    """
    check_odd(num_frame)
    targets = target_slice(num_input, num_target)
    radius = num_frame // 2
    if radius > targets.start:
        raise CSDError(
            f"the network needs {num_frame} frames, but a clip of {num_input} with {num_target} targets gives windows "
            f"of {2 * targets.start + 1} at most: set num_frame of the data set to {num_target + num_frame - 1} or more"
        )
    return slice(targets.start - radius, targets.stop + radius)


def slice_windows(clip: Tensor, num_target: int, num_frame: int) -> Tensor:
    """(B, N, 3, H, W) -> (B*L, T, 3, H, W): one centred window of T = `num_frame` for each of L = `num_target` targets.

    The targets of a clip are consecutive. Only the result is copied; it is always new memory.
    """
    covered = clip[:, window_slice(clip.shape[1], num_target, num_frame)]
    windows = covered.unfold(1, num_frame, 1).movedim(-1, 2)
    return windows.clone(memory_format=torch.contiguous_format).flatten(0, 1)


def join_windows(windows: Tensor) -> Tensor:
    """(L, T, 3, H, W) -> (1, L + T - 1, 3, H, W): the clip that `slice_windows` cuts into these windows.

    The windows' centres must be consecutive frames of one clip; beyond its ends, the frames are reflected ones.
    """
    radius = windows.shape[1] // 2
    return torch.cat([windows[0, :radius], windows[:, radius], windows[-1, radius + 1 :]])[None]


def check_odd(num_frame: int) -> None:
    """Raises CSDError if a window of `num_frame` has no centre."""
    if num_frame < 1 or num_frame % 2 == 0:
        raise CSDError(f"a window of num_frame={num_frame} has no centre: give an odd number")
