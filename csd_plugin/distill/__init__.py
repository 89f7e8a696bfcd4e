"""The table of objectives. An objective is one file in this folder, with a subclass of `interface.Objective`, and one
line here; its name is then a `train.distill_opt.type`. Other packages add their own: see `extensions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csd_plugin.tables import Table

if TYPE_CHECKING:
    from csd_plugin.distill.interface import Objective

OBJECTIVES: Table[type[Objective]] = Table(
    {
        "CSD": "csd_plugin.distill.csd:CSD",
        "SRKD": "csd_plugin.distill.srkd:SRKD",
        "STD": "csd_plugin.distill.std:STD",
        "FAKD": "csd_plugin.distill.fakd:FAKD",
        "CRD": "csd_plugin.distill.crd:CRD",
        "OutputDistillation": "csd_plugin.distill.output:OutputDistillation",
        "TeacherTruthBlend": "csd_plugin.distill.blend:TeacherTruthBlend",
        "Combined": "csd_plugin.distill.combined:Combined",
    }
)
