"""The table of networks. A network is one file in this folder and one line here.

Optional attributes of a class, used when it is run without an option file:

    num_frame, layout, feature_tap, size_divisor    how it is called and tapped; see `interface`
    presets                                         name -> keywords of the constructor
    numbers_from_state(state)                       keywords of the constructor, read off a state dict (name -> tensor)
                                                    of this class; None for one of another class

Networks of other packages are added to the same table: see `extensions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from csd_plugin.tables import Table

if TYPE_CHECKING:
    from torch import nn

NETWORKS: Table[type[nn.Module]] = Table(
    {
        "SLDNet": "csd_plugin.archs.sldnet:SLDNet",
        "PReNet": "csd_plugin.archs.prenet:PReNet",
        "S2VD": "csd_plugin.archs.s2vd:S2VD",
        "HalfNet": "csd_plugin.archs.halfnet:HalfNet",
    }
)


def presets_of(network: type[nn.Module]) -> Mapping[str, dict[str, Any]]:
    """Preset name -> keywords of the constructor; empty for a network without presets."""
    return getattr(network, "presets", {})


class Untrained(NamedTuple):
    """A network that can be built without weights: `cls(**numbers)`.

    Attributes:
        network: its name in `NETWORKS`, and in option files.
        preset: its name; None for a class without presets.
        numbers: keywords of the constructor.
    """

    network: str
    preset: str | None
    cls: type[nn.Module]
    numbers: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The network's name on the command line."""
        return self.preset or self.network.lower()


def untrained() -> Iterator[Untrained]:
    """Every preset, and every network without presets that needs no keywords, in the order of the table."""
    for network, cls in NETWORKS.items():
        presets = presets_of(cls)
        for preset, numbers in presets.items():
            yield Untrained(network, preset, cls, numbers)
        needed = [one for one in inspect.signature(cls).parameters.values() if one.default is one.empty]
        if not presets and not needed:
            yield Untrained(network, None, cls, {})


def preset_of(network: nn.Module) -> str:
    """The preset that matches a network's numbers, or else the name of its class."""
    for name, numbers in presets_of(type(network)).items():
        if all(getattr(network, key, None) == value for key, value in numbers.items()):
            return name
    return type(network).__name__
