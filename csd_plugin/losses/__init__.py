"""The table of losses between a network's frame and the truth. A loss is one file in this folder and one line here."""

from __future__ import annotations

from torch import nn

from csd_plugin.tables import Table

LOSSES: Table[type[nn.Module]] = Table({"PyramidSSIMLoss": "csd_plugin.losses.ssim:PyramidSSIMLoss"})
