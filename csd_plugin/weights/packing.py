"""Adds a trained network to those that ship: its file, and its facts in the catalogue next to it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csd_plugin.archs import presets_of
from csd_plugin.archs.checkpoint import as_file, load_network, load_plain
from csd_plugin.archs.complexity import complexity
from csd_plugin.atomic import replacing, write_text
from csd_plugin.data.video import open_reader
from csd_plugin.digests import file_digest
from csd_plugin.errors import CSDError, suggestion
from csd_plugin.inference.facts import study
from csd_plugin.inference.runner import Derainer
from csd_plugin.limited_yaml import read_yaml
from csd_plugin.metrics.protocols import PROTOCOLS, score_frame
from csd_plugin.metrics.results import load_results
from csd_plugin.plain import as_json_has_it, plain_text, section
from csd_plugin.weights import (
    CATALOGUE,
    SETS,
    Network,
    Score,
    best_of,
    checked_score,
    checked_scores,
    fastest_of,
    find_checkpoint,
    under_todays_keys,
)

TEXTS = ("what", "trained_on", "recipe", "license")
MARKS = ("<!-- networks: tools/pack_network.py writes this table -->", "<!-- end of networks -->")
CHECKED_FRAMES = 4
FREE_DB = 0.001
"""fp16 halves a file; it is used if it changes no PSNR by this much."""


def pairs(settings: Sequence[str], known: Sequence[str]) -> list[tuple[str, str]]:
    """'KEY=VALUE' -> (key, value). Raises CSDError for an unknown key."""
    split = list(under_todays_keys(dict(setting.partition("=")[::2] for setting in settings)).items())
    for key, value in split:
        if key not in known or not value:
            raise CSDError(f"{key}={value} is not KEY=VALUE with a known key{suggestion(key, known)}")
    return split


def read_facts(path: Path | None) -> dict[str, str]:
    """The texts of a YAML file of facts, each as one line; empty without a file. Raises CSDError."""
    if path is None:
        return {}
    try:
        facts = read_yaml(path)
    except CSDError as error:
        raise CSDError(f"--facts {error}") from error
    if not isinstance(facts, dict) or not all(isinstance(text, str) for text in facts.values()):
        raise CSDError(f"--facts {path}: give texts: {', '.join(TEXTS)}")
    facts = under_todays_keys(facts)
    for key in facts:
        if key not in TEXTS:
            raise CSDError(f"--facts {path}: {key} is unknown{suggestion(key, TEXTS)}")
    return {key: " ".join(text.split()) for key, text in facts.items()}


def score_of(which: str, path: str) -> Score:
    """The score in a results file. Raises CSDError, also if clip a1, on which nothing is chosen, is among others."""
    scores = load_results(path).scores
    alone = scores.without_truth()
    if alone:
        raise CSDError(f"{which}={path}: {', '.join(alone)} without truth; score the other clips alone")
    clips = list(scores.clips)
    if (which == "a1") != (clips == ["a1"]) or (which != "a1" and "a1" in clips):
        raise CSDError(
            f"{which}={path}: scores of the clips {', '.join(clips)}; the clip a1 belongs to a1, others do not"
        )
    frames = sum(len(clip.frames) for clip in scores.clips.values())
    averages = {
        protocol: {"psnr": round(quality.psnr, 4), "ssim": round(quality.ssim, 6)}
        for protocol, quality in scores.average().items()
    }
    try:
        return checked_score({"clips": clips, "frames": frames, "skip": list(scores.skip), **averages}, "the average")
    except ValueError as error:
        raise CSDError(f"{which}={path}: {error}; score again") from error


def pack(
    checkpoint: str,
    name: str,
    texts: Mapping[str, str],
    scores: Mapping[str, Score],
    check: tuple[Path, Path] | None,
    folder: Path,
) -> Network:
    """Write a network's file; it appears complete or not at all.

    Args:
        texts: facts stated by people, by the names of `TEXTS`.
        scores: by the names of `weights.SETS`.
        check: rainy frames and their truth, on which fp16 is compared; None to skip that.
        folder: the folder to write to.

    Raises:
        CSDError: a fact is missing, or the checkpoint cannot be used.
    """
    source = find_checkpoint(checkpoint)
    network = load_network(source)
    known = _facts_in(source)
    texts = {key: known[key] for key in TEXTS if key in known} | dict(texts)
    for key in TEXTS:
        if key not in texts:
            raise CSDError(f"the fact {key!r} is missing: give it in --facts, or --fact {key}=TEXT")
    half, why = fits_fp16(network, check)
    preset, side = preset_of_any_width(network), 16
    seen = study(network)
    cost = complexity(network, (seen.num_frame, 3, side, side))
    facts = {
        "name": name,
        **{key: texts[key] for key in TEXTS},
        "preset": preset,
        "numbers": numbers_of(network),
        "parameters": cost.parameters,
        "multiply_adds": cost.operations // (side**2 * seen.interface.num_made),
        "stored_as": "fp16" if half else "fp32",
        "scores": known["scores"] | dict(scores),
    }
    state = _halved(network) if half else network.state_dict()
    out = folder / f"{name}.pth"
    with replacing(out) as draft:
        draft.write_bytes(as_file({"params": state, "facts": facts}))
        check_same(state, load_network(draft))
        digest = file_digest(draft)
    print(f"{out}: {out.stat().st_size:,} bytes, {facts['stored_as']} ({why}), sha256 {digest}")
    return Network(**facts, sha256=digest)


def _facts_in(checkpoint: Path) -> dict[str, Any]:
    """The texts and scores that a checkpoint states about itself. Raises CSDError."""
    try:
        known = under_todays_keys(section(load_plain(checkpoint, "checkpoint").get("facts", {}), "facts"))
        texts = {key: plain_text(known[key], f"facts.{key}") for key in TEXTS if key in known}
        return {**texts, "scores": checked_scores(known.get("scores", {}), "facts.scores")}
    except CSDError:
        raise
    except ValueError as error:
        raise CSDError(f"{checkpoint}: {error}; pack the checkpoint of the training") from error


def preset_of_any_width(network: nn.Module) -> str:
    """The preset of a network, whatever its channels; the name of the class if it has no presets.

    Raises CSDError for layers of no preset.
    """
    presets = presets_of(type(network))
    for name, numbers in presets.items():
        if all(getattr(network, key) == value for key, value in numbers.items() if key != "num_feat"):
            return name
    if presets:
        raise CSDError(
            f"the network's layers match no preset; networks that ship are {', '.join(presets)}, of any width"
        )
    return type(network).__name__


def numbers_of(network: nn.Module) -> dict[str, Any]:
    """The keywords to build a network that `load_network` has made, in the form of JSON."""
    numbers = type(network).numbers_from_state(network.state_dict())  # type: ignore[attr-defined]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in numbers.items()}


def fits_fp16(network: nn.Module, check: tuple[Path, Path] | None) -> tuple[bool, str]:
    """Whether fp16 costs no quality, and how that is known."""
    halved = copy.deepcopy(network)
    halved.load_state_dict(_halved(network))
    if all(map(torch.equal, network.state_dict().values(), halved.state_dict().values())):
        return True, "the weights are fp16 numbers"
    if not all(bool(value.isfinite().all()) for value in halved.state_dict().values()):
        return False, "some weights are too large for fp16"
    if check is None:
        return False, "fp16 was not tried"
    cost = max(abs(a - b) for a, b in zip(psnrs(network, *check), psnrs(halved, *check), strict=True))
    return cost < FREE_DB, f"fp16 moves the PSNR by {cost:.5f} dB on {CHECKED_FRAMES} frames of {check[0].name}"


def _halved(network: nn.Module) -> dict[str, Tensor]:
    """The network's state in fp16; counters and similar values unchanged."""
    state = network.state_dict().items()
    return {key: value.half() if value.is_floating_point() else value for key, value in state}


def psnrs(network: nn.Module, rain: Path, truth: Path) -> list[float]:
    """PSNR in dB for each protocol, over the first frames of a clip."""
    with open_reader(rain) as rainy, open_reader(truth) as clean:
        derained = Derainer(network)(islice(rainy, CHECKED_FRAMES))
        scores = [score_frame(ours, true) for ours, true in zip(derained, clean, strict=False)]
    return [sum(score[protocol].psnr for score in scores) / len(scores) for protocol in PROTOCOLS]


def check_same(state: Mapping[str, Tensor], network: nn.Module) -> None:
    """Raise CSDError if the weights of a network that was read back differ from those written."""
    for key, value in network.state_dict().items():
        if not torch.equal(value, state[key].to(value.dtype)):
            raise CSDError(f"{key} was read back from the file with other values; the disk or torch is faulty")


def write_catalogue(
    folder: Path, networks: Mapping[str, Network], rainy: Mapping[str, Score], left: Mapping[str, Network]
) -> None:
    """Write networks.json: the shipped networks, by their cost; the facts of earlier ones; the rainy frames' scores.

    Raises:
        CSDError: no network would be left.
    """
    left = {name: network for name, network in left.items() if name not in networks}
    if not networks:
        raise CSDError("no network would be left, but csd derain needs one")
    content: dict[str, Any] = {"rainy": dict(rainy)}
    for key, those in (("networks", networks), ("left", left)):
        order = sorted(those.values(), key=lambda network: (network.multiply_adds, network.name))
        content[key] = {network.name: asdict(network) for network in order}
        for entry in content[key].values():
            del entry["name"]
    written = json.dumps(as_json_has_it(content), indent=1, ensure_ascii=False, allow_nan=False)
    written = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda innermost: " ".join(innermost[0].split()), written)  # a line each
    write_text(folder / CATALOGUE, written + "\n")


def report(networks: Mapping[str, Network], rainy: Mapping[str, Score], packed: str | None) -> list[str]:
    """What to know after a change, including reasons why scores are not comparable."""
    lines = [f"csd derain uses {best_of(networks)}, --fast {fastest_of(networks)}"]
    for which in SETS:
        scored = {name: network.scores[which] for name, network in networks.items() if which in network.scores}
        scored |= {"the rainy frames": rainy[which]} if which in rainy else {}
        kinds = {json.dumps([score["clips"], score["frames"], score["skip"]]) for score in scored.values()}
        if len(kinds) > 1:
            lines.append(f"note: {which}: {', '.join(scored)} were not scored on the same frames; score them again")
        if packed and packed not in scored:
            lines.append(f"note: {packed} has no scores on {which}: --score {which}=FILE.json")
    return lines


def update_card(card: Path, table: str) -> list[str]:
    """Put the table between the marks of the model card; returns a note if there are none."""
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    begin, end = (text.find(mark) for mark in MARKS)
    if not 0 <= begin < end:
        return [f"note: {card} lacks the marks {MARKS[0]} and {MARKS[1]}: no table was written"]
    write_text(card, f"{text[:begin]}{MARKS[0]}\n{table}\n{text[end:]}")
    return [f"{card}: its table was updated"]
