"""The table of metrics. A metric is one file in this folder, with a subclass of `metric.Metric`, and one line here; its
name can then be given to `csd score --metrics`. Other packages add their own: see `extensions`.

PSNR and SSIM, which are computed for every frame with a truth, are part of the protocols (`protocols`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csd_plugin.tables import Table

if TYPE_CHECKING:
    from csd_plugin.metrics.metric import Metric

METRICS: Table[type[Metric]] = Table(
    {
        "niqe": "csd_plugin.metrics.niqe:NIQE",
        "lpips": "csd_plugin.metrics.perceptual:PerceptualDistance",
        "warping": "csd_plugin.metrics.warping:WarpingError",
    }
)
WITHOUT_TRUTH = ("niqe", "warping")
"""The metrics for frames without a truth, unless others are requested."""
