"""Our classes and metrics in the toolbox's registries: one line each, nowhere else."""

from __future__ import annotations

from typing import Any

from csd_plugin import compat


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

    from csd_plugin.archs.prenet import PReNet
    from csd_plugin.archs.s2vd import S2VD
    from csd_plugin.archs.sldnet import SLDNet
    from csd_plugin.data.paired_video import PairedVideoDataset, PairedVideoTestDataset
    from csd_plugin.data.rendered_rain import RenderedRainDataset
    from csd_plugin.losses.ssim import PyramidSSIMLoss
    from csd_plugin.metrics.registered import calculate_lpips, calculate_warping_error

    _register(ARCH_REGISTRY, SLDNet)
    _register(ARCH_REGISTRY, PReNet)
    _register(ARCH_REGISTRY, S2VD)
    _register(DATASET_REGISTRY, PairedVideoDataset)
    _register(DATASET_REGISTRY, PairedVideoTestDataset)
    _register(DATASET_REGISTRY, RenderedRainDataset)
    _register(LOSS_REGISTRY, PyramidSSIMLoss)
    _register(METRIC_REGISTRY, calculate_lpips)
    _register(METRIC_REGISTRY, calculate_warping_error)

    from csd_plugin.models.distill_model import DistillModel
    from csd_plugin.models.video_derain_model import VideoDerainModel

    _register(MODEL_REGISTRY, VideoDerainModel)
    _register(MODEL_REGISTRY, DistillModel)


def _register(registry, cls: Any) -> None:
    present = dict(iter(registry)).get(cls.__name__)
    if present is None:
        registry.register(cls)
    elif present is not cls:
        from csd_plugin.errors import CSDError

        raise CSDError(
            f"the toolbox already has a {cls.__name__}, from {present.__module__}; remove one of the two plugins"
        )
