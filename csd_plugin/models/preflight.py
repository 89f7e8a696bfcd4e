"""Mistakes that can be seen before a run writes anything: data, windows and checkpoints against the networks."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY
from torch import nn

from csd_plugin import options
from csd_plugin.archs.checkpoint import load_weights, read_state_dict
from csd_plugin.errors import CSDError


def check_run(opt: dict[str, Any]) -> None:
    """Find the data, build the networks, and load what they start from.

    Raises:
        CSDError: the first thing that would stop the run: a wrong root, an empty folder, a window longer than
            the clips, a checkpoint that does not exist or does not fit.
    """
    if opt.get("model_type") not in options.MODELS:
        return
    with torch.random.fork_rng():  # the run itself must draw the numbers that it would draw without this check
        networks = {key: _build_network(opt[key]) for key in ("network_g", "network_t") if key in opt}
    for key, content in opt["datasets"].items():
        if content.get("type") not in options.DATASETS:
            continue
        reach = content["num_frame"] - content.get("num_target", 1) + 1
        for name, network in networks.items():
            if name == "network_t" and not opt["is_train"]:
                continue
            if network.num_frame > reach:
                raise CSDError(
                    f"datasets.{key}: num_frame {content['num_frame']} with num_target {content.get('num_target', 1)} "
                    f"gives windows of {reach} frames, {name} needs {network.num_frame}; "
                    f"set num_frame to at least {content['num_frame'] + network.num_frame - reach}"
                )
        DATASET_REGISTRY.get(content["type"])(content)

    resumes = opt["auto_resume"] or opt["path"].get("resume_state")
    for name, network in networks.items():
        path = opt["path"].get(f"pretrain_{name}")
        if path and not (resumes and name == "network_g"):
            param_key = opt["path"].get(f"param_key_{name.removeprefix('network_')}")
            state = read_state_dict(path, param_key, fallback=True)
            strict = opt["path"].get(f"strict_load_{name.removeprefix('network_')}", True)
            load_weights(network, state, source=f"path.pretrain_{name}: {path}", strict=strict)


def _build_network(content: dict[str, Any]) -> nn.Module:
    """As the toolbox's build_network, which would start the log before its file is known."""
    keywords = {key: value for key, value in content.items() if key != "type"}
    return ARCH_REGISTRY.get(content["type"])(**keywords)
