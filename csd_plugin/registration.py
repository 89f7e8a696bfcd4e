"""Our classes and metrics in the toolbox's registries: one line each, nowhere else. And those of other packages.

An installed package adds networks to the toolbox's registries, objectives to `distill.objective.OBJECTIVES` and so on
in a function without arguments that its metadata name as an entry point of the group `csd_plugin`:

    [project.entry-points.csd_plugin]
    mine = "my_package:register"
"""

from __future__ import annotations

import functools
import logging
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from csd_plugin import compat, options
from csd_plugin.errors import CSDError

GROUP = "csd_plugin"
PREFIX = "CSD_"
"""Of a class of ours whose own name is another package's."""

logger = logging.getLogger(__name__)
_extended: set[tuple[str, str]] = set()


def install() -> None:
    """Make our networks, data sets, losses, metrics and models known to BasicSR. May be called again.

    A name that a class of another package has, or takes later, is that package's: ours is then `CSD_NAME`.
    """
    compat.prepare_imports()
    from basicsr.utils.registry import (
        ARCH_REGISTRY,
        DATASET_REGISTRY,
        LOSS_REGISTRY,
        METRIC_REGISTRY,
        MODEL_REGISTRY,
        Registry,
    )

    compat.repair_toolbox()
    _give_way(Registry)

    from csd_plugin.archs.halfnet import HalfNet
    from csd_plugin.archs.prenet import PReNet
    from csd_plugin.archs.s2vd import S2VD
    from csd_plugin.archs.sldnet import SLDNet
    from csd_plugin.data.datasets.paired_video import PairedVideoDataset, PairedVideoTestDataset
    from csd_plugin.data.datasets.rendered_rain import RenderedRainDataset
    from csd_plugin.data.datasets.resident_video import ResidentVideoDataset
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
            f"({type(error).__name__}: {error}); fix or uninstall it"
        ) from error
    _extended.add((point.name, point.value))


def _register(registry: Any, cls: Any) -> None:
    """A class or function of ours under its name, or under `CSD_NAME` where another has that."""
    present = dict(iter(registry))
    if any(known is cls for known in present.values()):
        return
    if cls.__name__ in present:
        _rename(registry, cls, present[cls.__name__])
    else:
        registry.register(cls)


def _give_way(registries: Any) -> None:
    """Let a class of another package take a name of ours, which else is an error while that package is imported."""
    register = registries._do_register
    if hasattr(register, "__wrapped__"):
        return

    @functools.wraps(register)
    def wrapper(self: Any, name: str, obj: Any, *suffix: Any, **keywords: Any) -> None:
        ours = self._obj_map.get(name)
        if ours is not None and _is_ours(ours) and not _is_ours(obj):
            del self._obj_map[name]
            _rename(self, ours, obj)
        register(self, name, obj, *suffix, **keywords)

    registries._do_register = wrapper


def _rename(registry: Any, ours: Any, owner: Any) -> None:
    name = PREFIX + ours.__name__
    registry._do_register(name, ours)
    options.rename(ours.__name__, name)
    logger.warning(
        "%s in BasicSR's registry of type %r is that of %s; csd-plugin's is %s: write that in option files",
        *(ours.__name__, registry._name, owner.__module__, name),
    )


def _is_ours(cls: Any) -> bool:
    return cls.__module__.startswith("csd_plugin.")
