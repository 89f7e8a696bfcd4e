"""What is left of a slice: scores, weights and a table."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slicing.clips import DATA, VALIDATING, VALIDATION
from slicing.networks import Network
from slicing.processes import last_error, launch


def test(networks: Sequence[Network], until: float) -> None:
    """Those that have weights, on whole frames of the validation clips; as many at once as there are processors."""
    for network in networks:  # scores of earlier slices are not those of these weights
        result_of(network).unlink(missing_ok=True)
    waiting = [network for network in networks if network.newest is not None]
    if not (DATA / VALIDATING).is_dir():
        waiting = []
    running: dict[str, tuple[Network, Any]] = {}
    at_once = os.cpu_count() or 1
    while (waiting or running) and time.monotonic() < until:
        while waiting and len(running) < at_once:
            network = waiting.pop(0)
            options = network.test | {"path": network.test["path"] | {"pretrain_network_g": str(network.newest)}}
            running[network.row] = network, launch("test", network, options)
        for row, (network, child) in list(running.items()):
            child.join(0.02)
            if child.exitcode is not None:
                del running[row]
                if child.exitcode:
                    add_note(network, f"test failed: {last_error(network)}")
    for network, child in running.values():
        child.kill()
        child.join()
        add_note(network, "not tested: no time was left")
    for network in waiting:
        add_note(network, "not tested: no time was left")


def result_of(network: Network) -> Path:
    return Path("results", network.name, "validation.json")


def add_note(network: Network, note: str) -> None:
    network.note = "; ".join(filter(None, (network.note, note)))


def keep_weights(networks: Sequence[Network]) -> None:
    """By row, for the next slice too. A network that has not trained keeps those that it would have started from.

    Those that are there already, of a slice before in this folder, stay until the new ones are whole.
    """
    import torch

    from csd_plugin.atomic import remove_drafts, replacing

    Path("weights").mkdir(exist_ok=True)
    remove_drafts(Path("weights"))  # they would travel, too
    for network in networks:
        kept = Path("weights", f"{network.row}.pth")
        if network.newest is not None:
            weights = torch.load(network.newest, map_location="cpu", weights_only=True)
            with replacing(kept) as draft:
                torch.save({"params": weights.get("params_ema", weights["params"])}, draft)
        elif network.start is not None:
            with replacing(kept) as draft:
                shutil.copyfile(network.start, draft)


def write_table(networks: Sequence[Network], length: float, note: str = "") -> str:
    """`table.md`; returns it. note: for networks that have none."""
    from csd_plugin.atomic import write_text

    lines = [
        f"A slice of {length:g} s; PSNR in dB / SSIM of the luma on {', '.join(VALIDATION)}.",
        "",
        "| network | steps | of this slice | ms of a step alone | validation | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for network in networks:
        score, results = "-", result_of(network)
        if results.is_file():
            from csd_plugin.metrics.results import load_results

            found = load_results(results).scores.summary()
            score = f"{found['nturain_y/psnr']:.2f} / {found['nturain_y/ssim']:.4f}"
        alone, steps = f"{1e3 * network.step:.1f}" if network.step else "-", network.steps
        new = steps - network.before
        lines.append(f"| {network.row} | {steps:,} | {new:,} | {alone} | {score} | {network.note or note} |")
    text = "\n".join(lines)
    write_text(Path("table.md"), text + "\n")
    return text
