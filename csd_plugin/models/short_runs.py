"""What does not fit a run of few steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csd_plugin.distill.average import average_warnings


def short_run_warnings(train_opt: Mapping[str, Any]) -> list[str]:
    """What is odd about the section `train` of a run of `total_iter` steps, a line each."""
    warmup, total = train_opt.get("warmup_iter", -1), train_opt["total_iter"]
    lines = average_warnings(train_opt)
    if warmup >= total and not train_opt.get("max_seconds"):
        lines.append(
            f"train.warmup_iter {warmup:,g} is not over after total_iter {total:,g} steps: the learning rate "
            f"never gets to optim_g.lr; a tenth of the steps or less fits"
        )
    return lines
