"""Registers our tables of classes, and those of other packages, in the toolbox's registries."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

from csd_plugin import compat, extensions
from csd_plugin.archs import NETWORKS
from csd_plugin.errors import CSDError
from csd_plugin.options import sections

PREFIX = "CSD_"
"""The prefix of a class of ours whose own name is taken by another package."""

logger = logging.getLogger(__name__)


def install() -> None:
    """Register our networks, data sets, losses, metrics and models with BasicSR. May be called again.

    If a class of another package has one of our names, now or later, our class gives way: it becomes `CSD_NAME`.
    """
    compat.prepare_imports()
    from basicsr.utils.registry import MODEL_REGISTRY, Registry

    compat.repair_toolbox()
    _give_way(Registry)
    for registry, rows in _tables():
        for _, obj in filter(_has_ours, rows):
            _register(registry, obj)

    from csd_plugin.models.distill_model import DistillModel
    from csd_plugin.models.video_derain_model import VideoDerainModel

    _register(MODEL_REGISTRY, VideoDerainModel)
    _register(MODEL_REGISTRY, DistillModel)


def extend() -> None:
    """After `install`, register what other packages have added to our tables. Raises CSDError."""
    for fault in extensions.load():
        raise fault
    for registry, rows in _tables():
        for name, obj in rows:
            _register_theirs(registry, name, obj)


def _tables() -> Iterator[tuple[Any, list[tuple[str, Any]]]]:
    """A registry of BasicSR's, and the names and objects that our table has for it. Raises CSDError."""
    from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY

    from csd_plugin.data.datasets import DATASETS
    from csd_plugin.losses import LOSSES
    from csd_plugin.metrics import METRICS
    from csd_plugin.metrics.registered import as_function

    for name, dataset in DATASETS.items():
        if not hasattr(dataset, "options_class"):
            raise CSDError(f"{dataset.__module__}: the data set {name} needs an options_class; see data/datasets")
    # lists, as a class that gives way is renamed in its table
    yield ARCH_REGISTRY, list(NETWORKS.items())
    yield DATASET_REGISTRY, list(DATASETS.items())
    yield LOSS_REGISTRY, list(LOSSES.items())
    yield METRIC_REGISTRY, [(each.function, as_function(each)) for each in METRICS.values() if each.function]


def _register_theirs(registry: Any, name: str, obj: Any) -> None:
    """Register what another package has put into a table of ours. Raises CSDError if the name is taken."""
    present = dict(iter(registry))
    if any(known is obj for known in present.values()):
        return
    if name in present:
        raise CSDError(f"{obj.__module__}: BasicSR has another {name}; rename it, or uninstall the package")
    registry._do_register(name, obj)


def _register(registry: Any, cls: Any) -> None:
    """Register a class or function of ours under its name, or under `CSD_NAME` if that is taken."""
    present = dict(iter(registry))
    if any(known is cls for known in present.values()):
        return
    if cls.__name__ in present:
        _rename(registry, cls, present[cls.__name__])
    else:
        registry.register(cls)


def _give_way(registries: Any) -> None:
    """Let another package register a class under a name of ours; otherwise importing that package would fail."""
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
    sections.rename(ours.__name__, name)
    logger.warning(
        "%s in BasicSR's registry of type %r belongs to %s; csd-plugin's is %s: write that in option files",
        *(ours.__name__, registry._name, owner.__module__, name),
    )


def _has_ours(row: tuple[str, Any]) -> bool:
    return _is_ours(row[1])


def _is_ours(obj: Any) -> bool:
    return obj.__module__.startswith("csd_plugin.")
