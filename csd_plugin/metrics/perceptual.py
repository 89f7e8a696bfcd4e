"""LPIPS, which rates how different two images look to a network: the `lpips` package, with the user's weights.

Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018, version 0.1 with
AlexNet. The package holds the weights of its linear layers; AlexNet's are torchvision's file. Nothing is downloaded.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from csd_plugin.errors import CSDError
from csd_plugin.extras import needed_by
from csd_plugin.metrics.image_quality import Image
from csd_plugin.metrics.metric import Metric, View

ALEXNET = "alexnet-owt-7be5be79.pth"
"""The name of torchvision's file."""

_LEAST = 32
"""Pixels that an image needs to each side for all of AlexNet's layers."""


class PerceptualDistance(Metric):
    """LPIPS of a result and its truth. weights: as for `LPIPS`."""

    title, decimals = "LPIPS", 4
    needs_truth = True
    uses_torchvision = True
    function = "calculate_lpips"

    def __init__(self, *, weights: str | Path | None = None) -> None:
        self._distance = LPIPS(Path(weights) if weights else None)

    def check_size(self, height: int, width: int) -> None:
        if min(height, width) < _LEAST:
            raise CSDError(
                f"frames of {width}x{height} are too small for LPIPS, which needs {_LEAST}x{_LEAST}; leave lpips out, "
                f"or score larger frames"
            )

    def __call__(self, view: View) -> float | None:
        assert view.truth is not None
        return self._distance(view.result, view.truth)


class LPIPS:
    """distance(a, b) of two images (H, W, 3) uint8 RGB of equal size: 0 for identical ones, lower is better.

    Args:
        weights: torchvision's file of AlexNet; by default the one in torch's download cache.

    Raises:
        CSDError: lpips or torchvision is missing, or the file does not exist or holds something else.
    """

    def __init__(self, weights: Path | None = None) -> None:
        path = find_weights(weights)
        with needed_by("LPIPS"):
            import lpips
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it calls torchvision in an outdated way
            self._network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        _load_alexnet(self._network.net, path)

    @torch.no_grad()
    def __call__(self, a: Image, b: Image) -> float:
        """Raises CSDError if the images differ in size or are too small."""
        if a.shape != b.shape or min(a.shape[:2]) < _LEAST:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (a, b))
            raise CSDError(f"LPIPS compares images of equal size, at least {_LEAST}x{_LEAST}; these are {sizes}")
        return float(self._network(_tensor(a), _tensor(b)))


def find_weights(weights: Path | None) -> Path:
    """The file of AlexNet's weights. Raises CSDError that says how to give it."""
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if path.is_file():
        return path
    if weights:
        raise CSDError(f"{weights} does not exist; give torchvision's {ALEXNET}")
    raise CSDError(
        f"LPIPS needs torchvision's {ALEXNET}, which is not downloaded: "
        f"put it into {path.parent}, or give its path (csd score --lpips-weights, val.metrics: weights)"
    )


def _load_alexnet(slices: torch.nn.Module, path: Path) -> None:
    """Load torchvision's weights, 'features.3.weight' .., into those of lpips, 'slice2.3.weight' .."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: content[f"features.{name.split('.', 1)[1]}"] for name in slices.state_dict()}
        slices.load_state_dict(state)
    except (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError) as error:
        raise CSDError(f"{path} does not hold torchvision's AlexNet; give {ALEXNET}") from error


def _tensor(image: Image) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
