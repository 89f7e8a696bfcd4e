"""Networks that come with the package: name -> checkpoint in this folder."""

from __future__ import annotations

from pathlib import Path

from csd_plugin.errors import CSDError

SHIPPED: dict[str, str] = {}
DEFAULT = "student1"


def find_checkpoint(model: str | None) -> Path:
    """The checkpoint that `model` means: a shipped network's name, or a path; None is the default network.

    Raises CSDError where there is none.
    """
    name = DEFAULT if model is None else model
    if name in SHIPPED:
        return Path(__file__).with_name(SHIPPED[name])
    if model is not None and Path(model).exists():
        return Path(model)
    missing = "no --model is given" if model is None else f"there is no checkpoint {model}"
    shipped = f"the networks {', '.join(SHIPPED)} come with it" if SHIPPED else "no network comes with this version yet"
    raise CSDError(
        f"{missing}, and {shipped}; give the path of one, e.g. experiments/NAME/models/net_g_latest.pth "
        f"as `python -m csd_plugin.train -opt FILE.yml` writes it"
    )
