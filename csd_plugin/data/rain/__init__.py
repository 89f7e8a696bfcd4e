"""Rain on clean video: what rain (`RainParams`), a renderer of it on frames and crops, pairs on disk."""

from csd_plugin.data.rain.pairs import PairOptions, clip_renderer, write_pairs
from csd_plugin.data.rain.params import PRESETS, RainParams, find_preset, random_params
from csd_plugin.data.rain.renderer import RainRenderer, ambient_light

__all__ = [
    "PRESETS",
    "PairOptions",
    "RainParams",
    "RainRenderer",
    "ambient_light",
    "clip_renderer",
    "find_preset",
    "random_params",
    "write_pairs",
]
