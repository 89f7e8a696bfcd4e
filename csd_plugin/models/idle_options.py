"""Options that have no effect in this run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csd_plugin.devices import gpus_of
from csd_plugin.distill.average import average_warnings
from csd_plugin.distill.schedule import is_gradual
from csd_plugin.options.checks import distils


def idle_options(opt: Mapping[str, Any]) -> list[str]:
    """Warnings, one line each: averages and warm-ups too long for `total_iter` steps, a graph that records nothing."""
    train_opt = opt["train"]
    warmup, total = train_opt.get("warmup_iter", -1), train_opt["total_iter"]
    lines = average_warnings(train_opt)
    if warmup >= total and not train_opt.get("max_seconds"):
        lines.append(
            f"train.warmup_iter {int(warmup):,} does not end before total_iter {int(total):,}: the learning rate "
            f"hardly reaches optim_g.lr; use a tenth of the steps or less"
        )
    if train_opt.get("cuda_graph") and not gpus_of(opt["num_gpu"]):
        lines.append("train.cuda_graph has no effect without a GPU")
    elif train_opt.get("cuda_graph") and distils(opt) and opt["logger"]["print_freq"] == 1:
        lines.append(
            "train.cuda_graph has no effect with logger.print_freq 1: logged steps of a distillation are not replayed"
        )
    elif train_opt.get("cuda_graph") and distils(opt) and (moving := _moving(train_opt["distill_opt"]["weights"])):
        lines.append(
            f"train.cuda_graph records nothing while weights change ({moving}); only steps of equal weights are"
        )
    return lines


def _moving(weights: Mapping[str, Any]) -> str:
    """The terms whose weights change in every step, for a time."""
    return ", ".join(term for term, weight in weights.items() if isinstance(weight, Mapping) and is_gradual(weight))
