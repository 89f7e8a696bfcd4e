"""Networks that come with the package: checkpoints in this folder, and the facts about them in networks.json.

`tools/pack_network.py` writes both. All lists of these networks or their scores come from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from csd_plugin.errors import CSDError
from csd_plugin.plain import (
    entries,
    file_name,
    number,
    parse_json,
    plain_text,
    read_text,
    score_number,
    section,
    section_of,
    whole_number,
)

FOLDER = Path(__file__).parent
CATALOGUE = "networks.json"
_PROTOCOLS = ("nturain_y", "rgb")
"""Names of `metrics.protocols.PROTOCOLS`, repeated here, as that module needs more libraries."""
_MOST_FRAMES = 10**12
SETS = ("validation", "a1")
"""The sets on which networks are scored: rainy validation clips, on which they are chosen, and NTURain's a1."""

REAL_TIME = 40_000
"""Multiply-adds per pixel with which two cores can (almost) process 640x480 at 25 frames per second."""

Score = Mapping[str, Any]
"""clips, frames, skip; and of each protocol, `nturain_y` and `rgb`: psnr in dB and ssim, averages over the clips.

The PSNR of frames that are equal to the truth is infinite; the file has it as the text `inf`, as results do."""


_FORMER_KEYS = {"licence": "license"}
"""Keys of facts as they were named in older files."""


def under_todays_keys(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about a network under their current names, from a file of any age."""
    return {_FORMER_KEYS.get(key, key): value for key, value in facts.items()}


@dataclass(frozen=True)
class Network:
    """One network. All facts except `sha256`, that of its file, are also in the file, under `facts`.

    Attributes:
        what: one line for people.
        preset: the preset whose layers it has, e.g. a row of the paper's Table 2.
        numbers: the keywords that build it.
        multiply_adds: per pixel of a frame, including bias additions, as counted in Table 2.
        stored_as: fp32, or fp16 if that changes frames only by rounding; networks themselves are fp32.
        scores: for each of `SETS` on which it was scored.
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
        """PSNR of the luma on the validation clips in dB; below all others if it was not scored there."""
        return self.scores["validation"]["nturain_y"]["psnr"] if "validation" in self.scores else float("-inf")


def read_catalogue(folder: Path) -> tuple[dict[str, Network], dict[str, Score]]:
    """The networks of a folder by name, and the scores of the rainy frames that are their input.

    Raises CSDError for a file that is not a catalogue.
    """
    networks, rainy, _ = _read(folder / CATALOGUE)
    return networks, rainy


def read_left(folder: Path) -> dict[str, Network]:
    """The catalogue's facts about networks that shipped earlier; their files are gone. Raises CSDError."""
    return _read(folder / CATALOGUE)[2]


def _read(path: Path) -> tuple[dict[str, Network], dict[str, Score], dict[str, Network]]:
    try:
        content = section(parse_json(read_text(path)), "it")
        shipped, left = (
            _networks(content.get(key, default), key) for key, default in (("networks", None), ("left", {}))
        )
        return shipped, checked_scores(content.get("rainy"), "rainy"), left
    except OSError as error:
        raise CSDError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except ValueError as error:
        raise CSDError(f"{path}: damaged ({error}); restore it, or remove it to have a new one made") from error


def _networks(value: Any, what: str) -> dict[str, Network]:
    return {
        file_name(name, what): _network(name, under_todays_keys(section(facts, f"{what}.{name}")), f"{what}.{name}")
        for name, facts in section(value, what).items()
    }


def _network(name: str, facts: Mapping[str, Any], what: str) -> Network:
    """Raises ValueError."""
    section_of(facts, what, frozenset(field.name for field in fields(Network)) - {"name"})
    for key in ("what", "preset", "stored_as", "trained_on", "recipe", "license", "sha256"):
        plain_text(facts[key], f"{what}.{key}")
    for key in ("parameters", "multiply_adds"):
        whole_number(facts[key], f"{what}.{key}", 0, 2**62)
    section(facts["numbers"], f"{what}.numbers")
    return Network(name=name, **{**facts, "scores": checked_scores(facts["scores"], f"{what}.scores")})


def checked_scores(value: Any, what: str) -> dict[str, Score]:
    """Scores by sets of clips, read from a file. Raises ValueError for anything else."""
    return {which: checked_score(one, f"{what}.{which}") for which, one in section(value, what).items()}


def checked_score(value: Any, what: str) -> Score:
    """Like `checked_scores`, for one set."""
    content = section_of(value, what, frozenset(("clips", "frames", "skip", *_PROTOCOLS)))
    skip = [whole_number(count, f"{what}.skip", 0, _MOST_FRAMES) for count in entries(content["skip"], f"{what}.skip")]
    if len(skip) != 2:
        raise ValueError(f"{what}.skip has {len(skip)} numbers, not those of both ends")
    protocols = {key: section_of(content[key], f"{what}.{key}", frozenset(("psnr", "ssim"))) for key in _PROTOCOLS}
    return {
        "clips": [plain_text(clip, f"{what}.clips") for clip in entries(content["clips"], f"{what}.clips")],
        "frames": whole_number(content["frames"], f"{what}.frames", 0, _MOST_FRAMES),
        "skip": skip,
        **{
            key: {
                "psnr": score_number(those["psnr"], f"{what}.{key}.psnr"),
                "ssim": number(those["ssim"], f"{what}.{key}.ssim", -1, 1),
            }
            for key, those in protocols.items()
        },
    }


def best_of(networks: Mapping[str, Network]) -> str:
    """The network with the best validation, which is the default."""
    return max(networks.values(), key=lambda network: network.validated).name


def fastest_of(networks: Mapping[str, Network]) -> str:
    """The network for `--fast`: the best one for real time; if there is none, the one with the fewest operations."""
    quick = [network for network in networks.values() if network.multiply_adds <= REAL_TIME]
    if quick:
        return max(quick, key=lambda network: network.validated).name
    return min(networks.values(), key=lambda network: (network.multiply_adds, -network.validated)).name


def for_cameras_of(networks: Mapping[str, Network]) -> str:
    """The network for cameras: the best one for real time that needs no later frames; else that of `--fast`."""
    causal = {name: network for name, network in networks.items() if network.numbers.get("causal")}
    return fastest_of(causal or networks)


NETWORKS, RAINY = read_catalogue(FOLDER)
LEFT = read_left(FOLDER)
DEFAULT, FASTEST, FOR_CAMERAS = best_of(NETWORKS), fastest_of(NETWORKS), for_cameras_of(NETWORKS)


def shipped_as(checkpoint: Path) -> Network | None:
    """The facts about a file, if it is one of these."""
    return next((network for network in NETWORKS.values() if network.path == checkpoint), None)


def find_checkpoint(model: str | None) -> Path:
    """The checkpoint that `model` means: a shipped network's name, or a path; None is the default network.

    Raises CSDError if there is none.
    """
    name = DEFAULT if model is None else model
    if name in NETWORKS:
        return NETWORKS[name].path
    if Path(name).exists():
        return Path(name)
    if name in LEFT:
        raise CSDError(
            f"{name} no longer comes with this package: {FASTEST} is better and faster; its facts stay in "
            f"{FOLDER / 'MODEL_CARD.md'}, and those that ship are {', '.join(NETWORKS)}"
        )
    raise CSDError(
        f"there is no checkpoint {name}; give the path of one, e.g. experiments/NAME/models/net_g_latest.pth, "
        f"or a network that comes with this package: {', '.join(NETWORKS)}"
    )
