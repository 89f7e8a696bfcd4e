"""The table of data sets. A data set is one file in this folder and one line here.

A class takes BasicSR's dict of options. Its `options_class` is the dataclass that describes them (`options`), by which
option files are checked. Other packages add their own: see `extensions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csd_plugin.tables import Table

if TYPE_CHECKING:
    from torch.utils.data import Dataset

DATASETS: Table[type[Dataset]] = Table(
    {
        "PairedVideoDataset": "csd_plugin.data.datasets.paired_video:PairedVideoDataset",
        "RenderedRainDataset": "csd_plugin.data.datasets.rendered_rain:RenderedRainDataset",
        "ResidentVideoDataset": "csd_plugin.data.datasets.resident_video:ResidentVideoDataset",
        "PairedVideoTestDataset": "csd_plugin.data.datasets.paired_video:PairedVideoTestDataset",
    }
)
