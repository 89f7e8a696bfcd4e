"""Networks that come with the package: name -> checkpoint in this folder."""

from __future__ import annotations

from pathlib import Path

from csd_plugin.errors import CSDError

SHIPPED = {"student2": "student2.pth", "student2_csd": "student2_csd.pth", "teacher32": "teacher32.pth"}
DEFAULT = "student2"  # the best student on the validation clips, see MODEL_CARD.md


def find_checkpoint(model: str | None) -> Path:
    """The checkpoint that `model` means: a shipped network's name, or a path; None is the default network.

    Raises CSDError where there is none.
    """
    name = DEFAULT if model is None else model
    if name in SHIPPED:
        return Path(__file__).with_name(SHIPPED[name])
    if Path(name).exists():
        return Path(name)
    raise CSDError(
        f"there is no checkpoint {model}; give the path of one, e.g. experiments/NAME/models/net_g_latest.pth, "
        f"or a network that comes with this package: {', '.join(SHIPPED)}"
    )
