"""Fills MMEngine's registries: our tables, those of other packages, and the parts that connect them to MMEngine."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from csd_plugin import extensions
from csd_plugin.archs import NETWORKS
from csd_plugin.data.datasets import DATASETS as OUR_DATASETS
from csd_plugin.data.datasets.options import TrainingOptions
from csd_plugin.data.datasets.sampler import ClipSampler
from csd_plugin.distill import OBJECTIVES
from csd_plugin.integrate.mmengine.hook import DistillHook
from csd_plugin.integrate.mmengine.metric import DerainingMetric
from csd_plugin.integrate.mmengine.model import CSDDistiller
from csd_plugin.integrate.mmengine.registries import DATASETS, HOOKS, METRICS, MODELS, SAMPLERS, taking_options
from csd_plugin.integrate.mmengine.stopping import StoppingHook
from csd_plugin.losses import LOSSES
from csd_plugin.options.checks import check_dataset


def register() -> None:
    """Register our tables with MMEngine.

    May be called again after other packages have added to our tables.

    Raises:
        CSDError: a class of another package cannot be loaded.
    """
    for fault in extensions.load():
        raise fault
    for table in (NETWORKS, OBJECTIVES, LOSSES):
        for name in table:
            MODELS.register_module(name, force=True, module=table[name])  # type: ignore[index]
    for name, dataset in OUR_DATASETS.items():
        check = functools.partial(_check, name, issubclass(dataset.options_class, TrainingOptions))  # type: ignore[attr-defined]
        DATASETS.register_module(name, force=True, module=taking_options(dataset, check))  # type: ignore[arg-type]
    MODELS.register_module(force=True, module=CSDDistiller)
    SAMPLERS.register_module(force=True, module=ClipSampler)
    METRICS.register_module(force=True, module=DerainingMetric)
    for hook in (DistillHook, StoppingHook):
        HOOKS.register_module(force=True, module=hook)


def _check(name: str, trains: bool, content: Mapping[str, Any]) -> None:
    """Check like for option files, without the options for BasicSR's loader, which a config sets elsewhere."""
    loader = {"batch_size_per_gpu": 1, "num_worker_per_gpu": 0} if trains else {}
    check_dataset({"name": name, "type": name, **loader, **content}, f"dataset {name}")
