"""Lets BasicSR, and packages that import it or torchvision, be imported whatever versions of them there are."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_torchvision_schemas: list[Any] = []  # a Library unregisters its operators when it is collected


def prepare_imports() -> None:
    """Make `import basicsr` work: with torchvision without its compiled part, and with torchvision >= 0.17."""
    import_torchvision()
    name = "torchvision.transforms.functional_tensor"  # BasicSR 1.4.2 imports it; torchvision moved it in 0.17
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        alias = ModuleType(name)
        alias.rgb_to_grayscale = importlib.import_module("torchvision.transforms.functional").rgb_to_grayscale  # type: ignore[attr-defined]
        sys.modules[name] = alias


def import_torchvision() -> None:
    """Import torchvision; where its compiled operators cannot load, declare the two schemas its Python part needs."""
    schemas = {
        "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    }
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if not any(f"operator torchvision::{name} does not exist" in str(error) for name in schemas):
            raise
    import torch  # here, so that this module is quick to import

    library = torch.library.Library("torchvision", "FRAGMENT")
    for (
        name,
        schema,
    ) in schemas.items():  # before any second import, whose registrations would make a third one fail (torch 2.11)
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _torchvision_schemas.append(library)
    for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[module]  # the failed import left half-made modules behind
    importlib.import_module("torchvision")
