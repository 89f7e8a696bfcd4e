"""Networks that come with the package: checkpoints in this folder, and what is known of them in networks.json.

`tools/pack_network.py` writes both. Whatever else lists these networks or their scores reads it from here.
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
"""Names of `metrics.protocols.PROTOCOLS`, which need its libraries."""
_MOST_FRAMES = 10**12
SETS = ("validation", "a1")
"""What networks are scored on: rainy clips kept apart from training, by which they are chosen, and NTURain's a1."""

REAL_TIME = 40_000
"""Multiply-adds for one pixel with which two cores keep up with 640x480 at 25 frames per second, or nearly."""

Score = Mapping[str, Any]
"""clips, frames, skip; and of each protocol, `nturain_y` and `rgb`: psnr in dB and ssim, averages over the clips.

The PSNR of frames that are equal to the truth is infinite; the file has it as the text `inf`, as results do."""


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
    """The networks of a folder by their names; and the scores of the rainy frames that they were given.

    Raises CSDError for a file that is no catalogue.
    """
    networks, rainy, _ = _read(folder / CATALOGUE)
    return networks, rainy


def read_left(folder: Path) -> dict[str, Network]:
    """What a folder's catalogue keeps of networks that shipped once: all but their files. Raises CSDError."""
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
    """Scores by sets of clips, as a file has them. Raises ValueError for what is none."""
    return {which: checked_score(one, f"{what}.{which}") for which, one in section(value, what).items()}


def checked_score(value: Any, what: str) -> Score:
    """As `checked_scores`, of one set."""
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
