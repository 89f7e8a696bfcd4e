"""Our classes and metrics in the toolbox's registries: one line each, nowhere else. And those of other packages.

An installed package adds networks to the toolbox's registries, objectives to `distill.objective.OBJECTIVES` and so on
in a function without arguments that its metadata name as an entry point of the group `csd_plugin`:

    [project.entry-points.csd_plugin]
    mine = "my_package:register"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from csd_plugin import compat
from csd_plugin.errors import CSDError

GROUP = "csd_plugin"
_extended: set[tuple[str, str]] = set()


def install() -> None:
    """Make our networks, data sets, losses, metrics and models known to BasicSR. May be called again.

    Raises:
        CSDError: a class of another package already has one of our names.
    """
    compat.prepare_imports()
    from basicsr.utils.registry import (
        ARCH_REGISTRY,
        DATASET_REGISTRY,
        LOSS_REGISTRY,
        METRIC_REGISTRY,
        MODEL_REGISTRY,
    )

    compat.repair_toolbox()

    from csd_plugin.archs.halfnet import HalfNet
    from csd_plugin.archs.prenet import PReNet
    from csd_plugin.archs.s2vd import S2VD
    from csd_plugin.archs.sldnet import SLDNet
    from csd_plugin.data.paired_video import PairedVideoDataset, PairedVideoTestDataset
    from csd_plugin.data.rendered_rain import RenderedRainDataset
    from csd_plugin.data.resident_video import ResidentVideoDataset
    from csd_plugin.losses.ssim import PyramidSSIMLoss
    from csd_plugin.metrics.registered import calculate_lpips, calculate_warping_error

    _register(ARCH_REGISTRY, SLDNet)
    _register(ARCH_REGISTRY, PReNet)
    _register(ARCH_REGISTRY, S2VD)
    _register(ARCH_REGISTRY, HalfNet)
    _register(DATASET_REGISTRY, PairedVideoDataset)
    _register(DATASET_REGISTRY, PairedVideoTestDataset)
    _register(DATASET_REGISTRY, RenderedRainDataset)
    _register(DATASET_REGISTRY, ResidentVideoDataset)
    _register(LOSS_REGISTRY, PyramidSSIMLoss)
    _register(METRIC_REGISTRY, calculate_lpips)
    _register(METRIC_REGISTRY, calculate_warping_error)

    from csd_plugin.models.distill_model import DistillModel
    from csd_plugin.models.video_derain_model import VideoDerainModel

    _register(MODEL_REGISTRY, VideoDerainModel)
    _register(MODEL_REGISTRY, DistillModel)


def extend() -> None:
    """After `install`, call the functions of other packages, each once in a process. CSDError where one fails."""
    for point in entry_points(group=GROUP):
        _extend(point)


def _extend(point: EntryPoint) -> None:
    if (point.name, point.value) in _extended:
        return
    try:
        point.load()()
    except (ImportError, AttributeError, TypeError, KeyError, AssertionError) as error:  # the registries assert
        raise CSDError(
            f"the package behind the entry point {point.name} = {point.value} cannot be registered "
            f"({type(error).__name__}: {error}); mend or uninstall it"
        ) from error
    _extended.add((point.name, point.value))


def _register(registry, cls: Any) -> None:
    present = dict(iter(registry)).get(cls.__name__)
    if present is None:
        registry.register(cls)
    elif present is not cls:
        raise CSDError(
            f"the toolbox already has a {cls.__name__}, from {present.__module__}; remove one of the two plugins"
        )
