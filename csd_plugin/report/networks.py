"""The networks that come with the package, and those that can be trained, so that a person can choose one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from csd_plugin import extensions
from csd_plugin.archs import untrained
from csd_plugin.archs.complexity import FRAME_SIZE
from csd_plugin.archs.interface import KINDS, interface_of
from csd_plugin.devices import pick_device
from csd_plugin.errors import CSDError
from csd_plugin.inference.runner import Derainer
from csd_plugin.plain import as_json_has_it
from csd_plugin.report.text import aligned, counted, markdown, three_digits
from csd_plugin.weights import FOLDER, RAINY, SETS, Network, Score, best_of, fastest_of

_RATE = 25
"""The usual frame rate of videos, in frames per second."""
_PROTOCOLS = {"nturain_y": "luma", "rgb": "RGB"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trainable:
    """A network that option files can name, with random weights.

    Attributes:
        type, preset: of `network_g`; preset is None for a class without presets.
        numbers: the preset's keywords of the constructor.
        parameters: their number.
        num_frame, layout: its interface, see `archs.interface`.
        package: the package it comes from.
    """

    type: str
    preset: str | None
    numbers: dict[str, Any]
    parameters: int
    num_frame: int
    layout: str
    package: str


def trainable() -> list[Trainable]:
    """The presets of `archs.NETWORKS`, including other packages'; one that cannot be built causes a warning."""
    for fault in extensions.load():
        logger.warning("%s", fault)
    found = []
    for one in untrained():
        try:
            network = one.cls(**one.numbers)
            interface = interface_of(network)
        except CSDError as error:
            logger.warning("%s: %s", one.name, error)
            continue
        parameters = sum(p.numel() for p in network.parameters())
        package = one.cls.__module__.partition(".")[0]
        found.append(
            Trainable(
                one.network, one.preset, dict(one.numbers), parameters, interface.num_frame, interface.kind, package
            )
        )
    return found


def seconds_a_frame(networks: Mapping[str, Network]) -> dict[str, float]:
    """Name -> seconds per frame of `FRAME_SIZE` on this machine now, from a trial of one network of each kind.

    In the precision that `csd derain` uses.
    """
    alike = {name: json.dumps(network.numbers, sort_keys=True) for name, network in networks.items()}
    tried = {key: networks[name].path for name, key in alike.items()}
    timing = tqdm(tried.items(), desc="timing", unit="network", disable=None)
    seconds = {key: Derainer(path, precision="auto").seconds_a_frame(*FRAME_SIZE) for key, path in timing}
    return {name: seconds[key] for name, key in alike.items()}


def as_text(
    networks: Mapping[str, Network],
    rainy: Mapping[str, Score],
    seconds: Mapping[str, float],
    others: Sequence[Trainable] = (),
) -> str:
    """A table, how to read it, and below it the networks that can be trained.

    Args:
        networks, rainy: the catalogue of `weights`.
        seconds: name -> seconds per frame of `FRAME_SIZE`.
        others: the result of `trainable`.
    """
    best, fastest = best_of(networks), fastest_of(networks)
    rows = [["network", "parameters", "frames", "s/frame", *SETS, "what it is"]]
    for name, network in networks.items():
        scores = [_score(network.scores.get(which), "nturain_y") for which in SETS]
        size = [f"{network.parameters:,}", str(network.numbers["num_frame"]), three_digits(seconds[name])]
        rows.append([name, *size, *scores, network.what])
    rows.append(["rainy input", "", "", "", *(_score(rainy.get(which), "nturain_y") for which in SETS), ""])
    width, height = FRAME_SIZE
    keep_up = [name for name in networks if seconds[name] * _RATE <= 1]
    return "\n".join(
        [
            *aligned(rows, left=(0, len(rows[0]) - 1)),
            "",
            f"csd derain uses {best}, the best on the validation clips; with --fast, {fastest}.",
            f"s/frame: measured on this machine, now: {width}x{height}, {_computer()}, as csd derain computes. Fast "
            f"enough for {_RATE} frames per second: {', '.join(keep_up) or 'none'}.",
            "Scores: PSNR in dB / SSIM of the luma, as in the published tables"
            + "".join(f"; {which}: {_about(rainy[which])}" for which in SETS if which in rainy)
            + ".",
            f"Files: {FOLDER}/NAME.pth; how they were trained: MODEL_CARD.md there, or --json.",
            *(_what_trains(others) if others else ()),
        ]
    )


def _what_trains(others: Sequence[Trainable]) -> list[str]:
    rows = [["type", "preset", "parameters", "frames", "package"]]
    for one in others:
        frames = str(one.num_frame) + (" at least" if KINDS[one.layout].gives_clip else "")
        rows.append([one.type, one.preset or "-", f"{one.parameters:,}", frames, one.package])
    example = next((one for one in others if one.preset), others[0])
    named = f"type: {example.type}" + (f", preset: {example.preset}" if example.preset else "")
    return [
        "",
        f"To train, without weights (in an option file: network_g: {{{named}}}):",
        "",
        *aligned(rows, left=(0, 1, len(rows[0]) - 1)),
    ]


def as_json(
    networks: Mapping[str, Network],
    rainy: Mapping[str, Score],
    seconds: Mapping[str, float],
    others: Sequence[Trainable] = (),
) -> str:
    """All known facts in JSON; arguments as for `as_text`."""
    content = {
        "default": best_of(networks),
        "fast": fastest_of(networks),
        "seconds_a_frame": {"size": list(FRAME_SIZE), "by": _computer()},
        "rainy": dict(rainy),
        "networks": [
            asdict(network)
            | {"path": str(network.path), "seconds_a_frame": seconds[name]}
            | {"licence": network.license}  # the earlier spelling, which programs may read
            for name, network in networks.items()
        ],
        "trainable": [asdict(one) for one in others],
    }
    return json.dumps(as_json_has_it(content), indent=1, ensure_ascii=False, allow_nan=False)


def as_markdown(networks: Mapping[str, Network], rainy: Mapping[str, Score] = RAINY) -> str:
    """The model card's table, with everything that does not depend on the machine."""
    pairs = [(which, protocol) for which in SETS for protocol in _PROTOCOLS]
    titles = [f"{which}, {_PROTOCOLS[protocol]}" for which, protocol in pairs]
    head = ["network", "what", "parameters", f"multiply-adds, {FRAME_SIZE[0]}x{FRAME_SIZE[1]}", *titles]
    rows = []
    for name, network in networks.items():
        cost = f"{network.multiply_adds * FRAME_SIZE[0] * FRAME_SIZE[1] / 1e9:.1f} G"
        scores = [_score(network.scores.get(which), protocol) for which, protocol in pairs]
        rows.append([f"`{name}`", network.what, f"{network.parameters:,}", cost, *scores])
    rows.append(["rainy input", "", "", "", *(_score(rainy.get(which), protocol) for which, protocol in pairs)])
    return markdown(head, rows, text_columns=2)


def card_tables(networks: Mapping[str, Network], left: Mapping[str, Network], rainy: Mapping[str, Score]) -> str:
    """The tables of the shipped networks, and of those that shipped earlier."""
    tables = as_markdown(networks, rainy)
    if left:
        tables += "\n\nThese shipped before. Each was dropped for a network that is faster and has a better PSNR on "
        tables += "the validation clips:\n\n"
        tables += as_markdown(left, rainy)
    return tables


def _computer() -> str:
    device = pick_device("auto")
    return str(device) if device.type != "cpu" else f"CPU, {counted(torch.get_num_threads(), 'thread')}"


def _score(score: Score | None, protocol: str) -> str:
    return "-" if score is None else f"{score[protocol]['psnr']:.2f} / {score[protocol]['ssim']:.4f}"


def _about(score: Score) -> str:
    return f"{counted(len(score['clips']), 'clip')}, {counted(score['frames'], 'frame')}"
