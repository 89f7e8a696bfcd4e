"""Networks that come with the package: checkpoints in this folder, and what is known of them in networks.json.

`tools/pack_network.py` writes both. Whatever else lists these networks or their scores reads it from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csd_plugin.errors import CSDError

FOLDER = Path(__file__).parent
SETS = ("validation", "a1")
"""What networks are scored on: rainy clips kept apart from training, by which they are chosen, and NTURain's a1."""

REAL_TIME = 40_000
"""Multiply-adds for one pixel with which two cores keep up with 640x480 at 25 frames per second, or nearly."""

Score = Mapping[str, Any]
"""clips, frames, skip; and of each protocol, `nturain_y` and `rgb`: psnr in dB and ssim, averages over the clips."""


_FORMER_KEYS = {"licence": "license"}
"""Keys of facts that files made before have."""


def under_todays_keys(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a network as they are called now, from a file of any age."""
    return {_FORMER_KEYS.get(key, key): value for key, value in facts.items()}


@dataclass(frozen=True)
class Network:
    """One network. All but `sha256`, that of its file, is in the file too, under `facts`.

    Attributes:
        what: one line for people.
        preset: the one whose layers it has, e.g. a row of the paper's Table 2.
        numbers: the keywords that build it.
        multiply_adds: for one pixel of a frame, with the additions of biases, as Table 2 counts them.
        stored_as: fp32, or fp16 where that changes no frame by more than rounding; networks themselves are fp32.
        scores: of each of `SETS` that it was scored on.
    """

    name: str
    what: str
    preset: str
    numbers: dict[str, Any]
    parameters: int
    multiply_adds: int
    stored_as: str
    trained_on: str
    recipe: str
    license: str
    scores: dict[str, Score]
    sha256: str

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.pth"

    @property
    def validated(self) -> float:
        """PSNR of the luma on the validation clips in dB; what was not scored there is behind all that was."""
        return self.scores["validation"]["nturain_y"]["psnr"] if "validation" in self.scores else float("-inf")


def read_catalogue(folder: Path) -> tuple[dict[str, Network], dict[str, Score]]:
    """The networks of a folder by their names; and the scores of the rainy frames that they were given."""
    content = json.loads((folder / "networks.json").read_text(encoding="utf-8"))
    networks = content["networks"].items()
    return {name: Network(name=name, **under_todays_keys(facts)) for name, facts in networks}, content["rainy"]


def read_left(folder: Path) -> dict[str, Network]:
    """What a folder's catalogue keeps of networks that shipped once: all but their files."""
    left = json.loads((folder / "networks.json").read_text(encoding="utf-8")).get("left", {})
    return {name: Network(name=name, **under_todays_keys(facts)) for name, facts in left.items()}


def best_of(networks: Mapping[str, Network]) -> str:
    """The network with the best validation; it is what people get who name none."""
    return max(networks.values(), key=lambda network: network.validated).name


def fastest_of(networks: Mapping[str, Network]) -> str:
    """The network for `--fast`: the best validated in real time; where none is, the one with the least to compute."""
    quick = [network for network in networks.values() if network.multiply_adds <= REAL_TIME]
    if quick:
        return max(quick, key=lambda network: network.validated).name
    return min(networks.values(), key=lambda network: (network.multiply_adds, -network.validated)).name


def for_cameras_of(networks: Mapping[str, Network]) -> str:
    """The network for cameras: the best validated in real time that waits for no later frame; else that of `--fast`."""
    causal = {name: network for name, network in networks.items() if network.numbers.get("causal")}
    return fastest_of(causal or networks)


NETWORKS, RAINY = read_catalogue(FOLDER)
LEFT = read_left(FOLDER)
DEFAULT, FASTEST, FOR_CAMERAS = best_of(NETWORKS), fastest_of(NETWORKS), for_cameras_of(NETWORKS)


def shipped_as(checkpoint: Path) -> Network | None:
    """What is known of a file, if it is one of these."""
    return next((network for network in NETWORKS.values() if network.path == checkpoint), None)


def find_checkpoint(model: str | None) -> Path:
    """The checkpoint that `model` means: a shipped network's name, or a path; None is the default network.

    Raises CSDError where there is none.
    """
    name = DEFAULT if model is None else model
    if name in NETWORKS:
        return NETWORKS[name].path
    if Path(name).exists():
        return Path(name)
    if name in LEFT:
        raise CSDError(
            f"{name} no longer comes with this package: {FASTEST} is better and faster; its facts stay in "
            f"{FOLDER / 'MODEL_CARD.md'}, and what ships is {', '.join(NETWORKS)}"
        )
    raise CSDError(
        f"there is no checkpoint {name}; give the path of one, e.g. experiments/NAME/models/net_g_latest.pth, "
        f"or a network that comes with this package: {', '.join(NETWORKS)}"
    )
